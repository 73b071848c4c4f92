//! `cargo xtask guests`: builds the components of `guests/` into `guests/built`, with their digests.
//!
//! The built components are committed, so that nobody needs the wasm32-wasip2 target to build or test Buttress.
//! `check` builds and compares instead of writing. A build is the same on every machine with the pinned toolchain;
//! paths of the machine do not enter it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest, Sha256};

const TARGET: &str = "wasm32-wasip2";
const GUESTS: [&str; 5] = ["anomaly", "copy", "faulty", "misbehave", "needs"];
/// All components together; they are in the repository and two of them in the binary.
const BYTES_MAX: usize = 1024 * 1024;

/// Builds the guests, and writes them to `guests/built` or, with `check`, compares them with what is there.
///
/// # Errors
/// Where the target is not installed, a guest does not build, or, with `check`, one differs.
pub fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let guests = root.join("guests");
    if !target_installed()? {
        bail!(
            "the target {TARGET} is not installed, so the guests cannot be built; the committed components are used as \
             they are\n\nhint: rustup target add {TARGET}"
        );
    }
    // A directory of their own: a shared one would rebuild the host's crates whenever profiles differ.
    let target_dir = root.join("target").join("guests");
    let remap = format!(
        "--remap-path-prefix={}=guests --remap-path-prefix={}=cargo",
        guests.display(),
        cargo_home()?.display()
    );
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--target", TARGET])
        .current_dir(&guests)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", remap)
        .env_remove("RUSTFLAGS")
        .status()
        .context("cargo cannot be run")?;
    if !status.success() {
        bail!("the guests do not build");
    }

    let mut digests = String::new();
    let mut differing = Vec::new();
    let mut total = 0;
    for name in GUESTS {
        let fresh = fs::read(target_dir.join(TARGET).join("release").join(format!("{name}.wasm")))
            .with_context(|| format!("the build left no {name}.wasm"))?;
        total += fresh.len();
        let mut digest = String::new();
        for byte in Sha256::digest(&fresh) {
            write!(digest, "{byte:02x}")?;
        }
        writeln!(digests, "{digest}  {name}.wasm")?;
        let path = guests.join("built").join(format!("{name}.wasm"));
        if fs::read(&path).is_ok_and(|built| built == fresh) {
            continue;
        }
        differing.push(name);
        if !check {
            fs::write(&path, &fresh).with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    if total > BYTES_MAX {
        bail!("the components have {total} bytes together; at most {BYTES_MAX} are committed");
    }
    let sums = guests.join("built").join("SHA256SUMS");
    if check {
        if !differing.is_empty() {
            bail!("built anew, these differ from guests/built: {}\n\nhint: cargo xtask guests", differing.join(", "));
        }
        if fs::read_to_string(&sums).unwrap_or_default() != digests {
            bail!("guests/built/SHA256SUMS does not match\n\nhint: cargo xtask guests");
        }
        eprintln!("the {} guests are as committed ({total} bytes)", GUESTS.len());
        return Ok(());
    }
    fs::write(&sums, digests).with_context(|| format!("{} cannot be written", sums.display()))?;
    let changed =
        if differing.is_empty() { "none changed".to_owned() } else { format!("changed: {}", differing.join(", ")) };
    eprintln!("built {} guests ({total} bytes); {changed}", GUESTS.len());
    Ok(())
}

fn target_installed() -> Result<bool> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .context("rustc cannot be run")?;
    let path = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(path.trim()).is_dir())
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}
