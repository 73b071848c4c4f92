//! `buttress proxy`: the traffic plane before one service, without a configuration.
//!
//! Traffic runs on threads of its own ([`buttress_gateway::run`]); the live page, metrics and records on this one, so that
//! whoever looks does not slow down what is looked at.

mod admin;
pub mod explain;

use std::{net::SocketAddr, sync::Arc};

use buttress_core::{Code, Error};
use buttress_gateway::{
    access_log::To,
    compile::everything,
    config::{Endpoint, Options, Timeouts},
    otlp,
    run::start,
    shared::Shared,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};

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
    let routes = [everything(&args.to, Some(args.deadline))];
    let threads = match args.threads {
        Some(threads) => threads.into(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    raise_descriptors();
    let timeouts = Timeouts { drain: args.drain, ..Timeouts::default() };
    let access_log = args.access_log.as_deref().map(To::parse);
    let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let service = service.as_deref().unwrap_or("buttress-proxy");
    let otlp = args.otlp.as_deref().map(|to| otlp::To::parse(to, args.trace_sample, service)).transpose()?;
    let (listen, bare) = (args.listen, args.bare);
    let options = Options { listen, threads, bare, timeouts, access_log, otlp, seed: seed()? };
    let admin = admin_listener(args.admin).await?;
    let admin_address = admin.local_addr()?;
    let end = interrupted();
    let running = start(options, &routes)?;
    announce(args, running.address, admin_address)?;
    let reopening = reopens(&running.shared)?;
    let serving = tokio::spawn(admin::serve(admin, Arc::clone(&running.shared)));
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
    reopening.abort();
    Ok(true)
}

/// Opens the access log anew at SIGUSR1, which a rotation of logs sends when it has moved the file.
fn reopens(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let (shared, mut asked) = (shared.clone(), signal(SignalKind::user_defined1())?);
    Ok(tokio::spawn(async move {
        while asked.recv().await.is_some() {
            if let Some(log) = &shared.log {
                log.reopen();
            }
        }
    }))
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
        // Where stdout is the access log, people read stderr.
        Output::Table if args.access_log.as_deref() == Some("-") => {
            eprintln!("proxy: http://{address}  to {}", args.to.join(", "));
            eprintln!("page:  http://{admin}/  metrics: http://{admin}/metrics");
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
