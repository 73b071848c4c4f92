//! `buttress proxy`: the traffic plane before one service, without a configuration.
//!
//! Traffic runs on threads of its own ([`buttress_gateway::run`]); the live page, metrics and records on this one, so that
//! whoever looks does not slow down what is looked at.

mod admin;
pub mod explain;

use std::{net::SocketAddr, sync::Arc};

use buttress_core::{Code, Error};
use buttress_gateway::{
    config::{Endpoint, Options, Timeouts},
    run::start,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    cli::{
        Answer,
        args::{Output, PROXY_ADMIN, ProxyArgs},
        show,
    },
    dev::{interrupted, seed},
    logging,
};

pub fn run(args: &ProxyArgs) -> Answer {
    logging::init(args.log, "warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(proxy(args));
    // Not waited for: with a parent, a thread that reads standard input does not come back before that ends.
    runtime.shutdown_background();
    result
}

async fn proxy(args: &ProxyArgs) -> Answer {
    let endpoints = args.to.iter().map(|to| Endpoint::parse(to)).collect::<Result<Vec<_>, _>>()?;
    let threads = match args.threads {
        Some(threads) => threads.into(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    raise_descriptors();
    let timeouts = Timeouts { request: args.deadline, drain: args.drain, ..Timeouts::default() };
    let options = Options { listen: args.listen, endpoints, threads, bare: args.bare, timeouts, seed: seed()? };
    let admin = admin_listener(args.admin).await?;
    let admin_address = admin.local_addr()?;
    let end = interrupted();
    let running = start(options)?;
    announce(args, running.address, admin_address)?;
    let serving = tokio::spawn(admin::serve(admin, Arc::clone(&running.shared)));
    tokio::select! {
        () = end => {}
        () = crate::serve::parent_gone(), if args.with_parent => {}
    }
    eprintln!("draining: no new connections, {} at most for what runs", show_duration(args.drain));
    // The page goes on while requests end. Whoever asks twice does not want to wait.
    let again = interrupted();
    tokio::select! {
        stopped = tokio::task::spawn_blocking(move || running.stop()) => stopped?,
        () = again => {
            eprintln!("ended at once, with what was running");
            // A return would wait for the thread that drains.
            std::process::exit(1);
        }
    }
    serving.abort();
    Ok(true)
}

fn show_duration(duration: std::time::Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// The address that was asked for; without one the usual one, or any where another proxy has that.
async fn admin_listener(asked: Option<SocketAddr>) -> Result<TcpListener, Error> {
    let address = asked.unwrap_or_else(|| PROXY_ADMIN.parse().expect("the constant is an address"));
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if asked.is_none() => {
            tracing::debug!(%error, "the usual admin address is taken");
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            TcpListener::bind(any).await.map_err(|error| taken(any, &error))
        }
        Err(error) => Err(taken(address, &error)),
    }
}

fn taken(address: SocketAddr, error: &std::io::Error) -> Error {
    Error::new(Code::PORT_TAKEN, format!("cannot listen on {address}: {error}")).hint("name another with --admin")
}

fn announce(args: &ProxyArgs, address: SocketAddr, admin: SocketAddr) -> std::io::Result<()> {
    match args.output {
        Output::Json => {
            show::json(&json!({"listen": address.to_string(), "admin": admin.to_string(), "to": args.to}))?;
        }
        Output::Table => {
            println!("proxy: http://{address}  to {}", args.to.join(", "));
            println!("page:  http://{admin}/  metrics: http://{admin}/metrics");
            eprintln!(
                "next: curl -i http://{address}/ and, when something fails: buttress explain REQUEST-ID --admin {admin}"
            );
        }
    }
    use std::io::Write as _;
    std::io::stdout().flush()
}

/// A proxy needs two descriptors for a connection. Where the limit cannot be raised, accepting says so in time.
fn raise_descriptors() {
    if let Ok((soft, hard)) = rlimit::Resource::NOFILE.get()
        && soft < hard
        && let Err(error) = rlimit::Resource::NOFILE.set(hard, hard)
    {
        tracing::debug!(%error, soft, "the limit of open files stays");
    }
}
