//! `buttress proxy`: the traffic plane before one service without a configuration, or before many by routes from files and
//! from a store.
//!
//! Traffic runs on threads of its own ([`buttress_gateway::run`]); the live page, metrics and records on this one, so that
//! whoever looks does not slow down what is looked at.

mod admin;
pub mod explain;
mod files;
mod state;
mod store;

use std::{net::SocketAddr, sync::Arc};

use buttress_core::{Code, Error};
use buttress_gateway::{
    compile::{Declared, everything},
    config::{Endpoint, Options, Timeouts},
    run::start,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use files::Files;
use state::State;
use store::Store;

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
    runtime.block_on(proxy(args))
}

async fn proxy(args: &ProxyArgs) -> Answer {
    for endpoint in &args.to {
        Endpoint::parse(endpoint)?;
    }
    // What the command line names takes what is left of the files and of the store.
    let fixed: Vec<Declared> =
        (!args.to.is_empty()).then(|| everything(&args.to, Some(args.deadline))).into_iter().collect();
    let files = Files::new(args.config.clone());
    let texts = files.texts()?;
    let mut routes = files::routes(&texts)?;
    routes.extend(fixed.clone());
    let store = match &args.store {
        Some(url) => {
            let store = Store::connect(url, name(args)).await?;
            let first = store.routes().await?;
            Some((store, first))
        }
        None => None,
    };
    let threads = match args.threads {
        Some(threads) => threads.into(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    raise_descriptors();
    let timeouts = Timeouts { drain: args.drain, ..Timeouts::default() };
    let options = Options { listen: args.listen, threads, bare: args.bare, timeouts, seed: seed()? };
    let admin = admin_listener(args.admin).await?;
    let admin_address = admin.local_addr()?;
    let end = interrupted();
    let running = start(options, &routes)?;
    let (shared, state) = (running.shared.clone(), Arc::new(State::new()));
    let mut following = JoinSet::new();
    if let Some((store, first)) = store {
        let beside = routes;
        // The routes of the store hold before anybody is told that the proxy listens.
        let (ready, taken) = tokio::sync::oneshot::channel();
        following.spawn(store.follow(first, beside, shared.clone(), state.clone(), ready));
        let _ = taken.await;
    } else if !args.config.is_empty() {
        following.spawn(files::follow(files, texts, fixed, shared.clone(), state.clone()));
    }
    announce(args, running.address, admin_address)?;
    let serving = tokio::spawn(admin::serve(admin, shared, state));
    end.await;
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
    following.shutdown().await;
    Ok(true)
}

/// How this gateway is called in the store.
fn name(args: &ProxyArgs) -> String {
    args.name.clone().unwrap_or_else(|| {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}-{}", std::process::id())
    })
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
            let config: Vec<String> = args.config.iter().map(|path| path.display().to_string()).collect();
            show::json(&json!({
                "listen": address.to_string(), "admin": admin.to_string(), "to": args.to, "config": config,
                "store": args.store,
            }))?;
        }
        Output::Table => {
            let mut ways: Vec<String> =
                args.config.iter().map(|path| format!("routes of {}", path.display())).collect();
            ways.extend(args.store.iter().map(|url| format!("routes of {url}")));
            ways.extend((!args.to.is_empty()).then(|| format!("to {}", args.to.join(", "))));
            println!("proxy: http://{address}  {}", ways.join("; "));
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
