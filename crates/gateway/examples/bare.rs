//! The data path alone, for a profiler: `bare LISTEN ENDPOINT`, or with the policies: `bare LISTEN ENDPOINT full [ACCESS-LOG]`.

use buttress_gateway::listen::{Http, Listening};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let options = buttress_gateway::config::Options {
        listeners: vec![Listening::http("bare", args[0].parse().expect("an address"), Http::default())],
        threads: 1,
        bare: args.get(2).is_none_or(|how| how != "full"),
        timeouts: Default::default(),
        edge: buttress_gateway::config::Edge::default(),
        access_log: args.get(3).map(|to| buttress_gateway::access_log::To::parse(to)),
        records: None,
        otlp: None,
        seed: 1,
    };
    let route = buttress_gateway::compile::everything(&args[1..2], None);
    let running = buttress_gateway::run::start(options, &[route]).expect("it starts");
    println!("{}", running.address.expect("it listens for HTTP"));
    std::thread::park();
    running.stop();
}
