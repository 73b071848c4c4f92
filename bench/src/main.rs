//! Macro benchmarks that put Buttress beside what it is measured against, on the same machine, in alternating rounds.
//! They print figures and never judge them: a shared machine must not fail a build.
//!
//! `kv`, `watch`, `log` and `fn-kafka` run three nodes of either side as processes of their own (`sides.rs`), with data
//! on the same disk, and put the same client in front of both. What a node uses of the processor is read from the
//! operating system, and what the client uses is told beside it: on a small machine they share the cores.

#[cfg(feature = "inside")]
mod append;
#[cfg(feature = "inside")]
#[path = "fn.rs"]
mod function;

mod figures;
mod fn_kafka;
mod gateway;
mod half_load;
mod kv;
mod log;
mod options;
mod overload;
mod policy;
mod sides;
mod watch;

// The flagship's logic, compiled for this machine, so that the cost of the sandbox can be told.
#[cfg(feature = "inside")]
#[allow(dead_code, reason = "the component uses all of it, the benchmark one function")]
#[path = "../../guests/anomaly/src/detect.rs"]
mod detect;
#[cfg(feature = "inside")]
#[allow(dead_code, reason = "as above")]
#[path = "../../guests/anomaly/src/json.rs"]
mod json;
#[cfg(feature = "inside")]
#[allow(dead_code, reason = "as above")]
#[path = "../../guests/anomaly/src/rules.rs"]
mod rules;

/// The product's own: what a client costs beside it should be little, and what runs in this process should run as it does there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
cargo xtask bench kv                          puts and linearizable gets, three nodes, beside etcd
cargo xtask bench kv --clients 128 --seconds 5 --rounds 3
cargo xtask bench kv --keys 1000000 --rounds 0    resident memory with a million keys
cargo xtask bench watch                       1,000 watchers of one prefix, beside etcd
cargo xtask bench log                         produce with acks=all to three nodes, beside Kafka
cargo xtask bench log --partitions 64 --rounds 1  one of its cases
cargo xtask bench fn-kafka                    a function on a Kafka, exactly once, beside a transactional loop in Java
cargo xtask bench gateway                     processor time for each request through a proxy, beside HAProxy and nginx
cargo xtask bench overload [--load 2]         goodput through a brown-out under overload: direct, HAProxy, buttress proxy
cargo xtask bench half-load                   what a proxy adds to p99 at half of the capacity: direct, HAProxy, buttress proxy
cargo xtask bench half-load --generator own   the same without oha, from one thread that never sleeps
cargo xtask bench fn                          functions: requests/s beside wasmtime serve's library path, cold start, batches
cargo xtask bench policy                      what the decisions of the traffic plane cost, in ns
cargo xtask bench append                      commits of 1 MiB to one node beside a loop of append and fdatasync
cargo xtask bench kv --output json            one object on stdout
";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "kv" => kv::run(rest),
        Some((command, rest)) if command == "watch" => watch::run(rest),
        Some((command, rest)) if command == "log" => log::run(rest),
        Some((command, rest)) if command == "fn-kafka" => fn_kafka::run(rest),
        Some((command, rest)) if command == "gateway" => gateway::run(rest),
        Some((command, rest)) if command == "half-load" => half_load::run(rest),
        Some((command, rest)) if command == "overload" => overload::run(rest),
        Some((command, rest)) if command == "policy" => policy::run(rest),
        #[cfg(feature = "inside")]
        Some((command, rest)) if command == "fn" => function::run(rest),
        // Not for people: `fn` runs it to see what a process at rest holds.
        #[cfg(feature = "inside")]
        Some((command, rest)) if command == "fn-at-rest" => function::at_rest(rest),
        #[cfg(feature = "inside")]
        Some((command, rest)) if command == "append" => append::run(rest),
        Some((flag, _)) if flag == "--help" || flag == "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => anyhow::bail!("no such benchmark\n\n{HELP}"),
    }
}
