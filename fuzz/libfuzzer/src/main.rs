//! libFuzzer around one target, which `BUTTRESS_FUZZ_TARGET` names. One binary for all of them, because most of a build is
//! what they share. `cargo xtask fuzz` builds and runs it.

#![no_main]

use std::sync::LazyLock;

use buttress_fuzz::{Target, target};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("BUTTRESS_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
