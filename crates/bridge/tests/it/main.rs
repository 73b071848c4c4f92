//! The contract, held against the embedded machine and against real engines.
//!
//! `ETCD_ENDPOINTS` and `KAFKA_BOOTSTRAP` (`HOST:PORT[,HOST:PORT…]`) say where the engines are; without them those tests say
//! that they were not run. `cargo xtask conformance` starts the originals and gives the addresses. What kills engines starts its own
//! (`originals.rs`).

mod contract;
mod etcd;
mod etcd_faults;
mod hold;
mod kafka;
mod kafka_faults;
mod originals;
mod proxy;
mod security;
mod tls;

/// Addresses from the environment; says loudly where there are none.
fn addresses(variable: &str, what: &str) -> Option<Vec<String>> {
    let Ok(list) = std::env::var(variable) else {
        eprintln!("NOT RUN: {what} is not held against its contract, because {variable} is not set");
        return None;
    };
    Some(list.split(',').map(str::to_owned).collect())
}

/// A name that no earlier run had.
fn unique(what: &str) -> String {
    let mut random = [0; 4];
    getrandom::fill(&mut random).expect("the system has random numbers");
    format!("{what}-{:08x}-", u32::from_be_bytes(random))
}
