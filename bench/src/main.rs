//! Macro benchmarks that put Buttress beside what it is measured against, on the same machine, in alternating rounds.
//! They print figures and never judge them: a shared machine must not fail a build.

#[path = "fn.rs"]
mod function;
mod log;

// The flagship's logic, compiled for this machine, so that the cost of the sandbox can be told.
#[allow(dead_code, reason = "the component uses all of it, the benchmark one function")]
#[path = "../../guests/anomaly/src/detect.rs"]
mod detect;
#[allow(dead_code, reason = "as above")]
#[path = "../../guests/anomaly/src/json.rs"]
mod json;
#[allow(dead_code, reason = "as above")]
#[path = "../../guests/anomaly/src/rules.rs"]
mod rules;

const HELP: &str = "\
buttress-bench fn                     functions: requests/s beside wasmtime serve's library path, cold start, batches
buttress-bench fn --rounds 5 --seconds 2
buttress-bench log                    commits of 1 MiB to one node beside a loop of append and fdatasync
buttress-bench fn --output json       one object on stdout
";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == "fn" => function::run(rest),
        // Not for people: `fn` runs it to see what a process at rest holds.
        Some((command, rest)) if command == "fn-at-rest" => function::at_rest(rest),
        Some((command, rest)) if command == "log" => log::run(rest),
        Some((flag, _)) if flag == "--help" || flag == "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => anyhow::bail!("no such benchmark\n\n{HELP}"),
    }
}
