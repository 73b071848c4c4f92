//! etcd's v3 protocol: its messages and services as they are on the wire, and with the feature `client` one connection that
//! carries them.
//!
//! It never decides anything: the coordination plane serves these messages, the bridge sends them to an etcd that the user
//! runs, and neither may depend on the other, so what both speak lies here. `cargo xtask protos` generates the code from
//! `proto/`; the result is committed, so that no build needs a generator.

/// All messages, as the JSON gateway reads them.
pub const DESCRIPTOR: &[u8] = include_bytes!("generated/descriptor.bin");

macro_rules! generated {
    ($($package:ident),*) => {$(
        #[allow(clippy::all, rust_2018_idioms, missing_docs)]
        #[rustfmt::skip]
        pub mod $package {
            include!(concat!("generated/", stringify!($package), ".rs"));
        }
    )*};
}

generated!(mvccpb, authpb, etcdserverpb, v3lockpb, v3electionpb);

#[cfg(feature = "client")]
pub mod client;
