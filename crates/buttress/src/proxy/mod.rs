//! `buttress proxy`: the traffic plane before one service without a configuration, or before many by routes from files and
//! from a store.
//!
//! Traffic runs on threads of its own ([`buttress_gateway::run`]); the live page, metrics and records on this one, so that
//! whoever looks does not slow down what is looked at.

mod admin;
pub mod explain;
mod files;
pub mod fleet;
mod listeners;
mod presence;
mod state;
mod store;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use buttress_core::{Code, Error};
use buttress_gateway::{
    access_log::To,
    archive,
    compile::{Declared, everything},
    config::{Edge, Endpoint, Options, Timeouts},
    listen, otlp,
    run::start,
    shared::Shared,
    table::Place,
    tcp, tls,
};
use buttress_resources::kept::Gateway;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, JoinSet},
};

use files::Files;
use listeners::{Base, COMMAND_LINE};
use state::State;
use store::Store;

use crate::{
    cli::{
        Answer,
        args::{EdgeArgs, Output, PROXY_ADMIN, PROXY_LISTEN, ProxyArgs},
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
    for endpoint in &args.to {
        Endpoint::parse(endpoint)?;
    }
    // What the command line names takes what is left of the files and of the store.
    let fixed: Vec<Declared> =
        (!args.to.is_empty()).then(|| everything(&args.to, Some(args.deadline))).into_iter().collect();
    let files = Files::new(args.config.clone());
    let texts = files.texts()?;
    let (mut routes, listeners) = files::declared(&texts)?;
    routes.extend(fixed.clone());
    let store = match &args.store {
        Some(url) => {
            let store = Store::connect(url, name(args)).await?;
            let first = store.resources().await?;
            Some((store, first))
        }
        None => None,
    };
    let threads = match args.threads {
        Some(threads) => threads.into(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    raise_descriptors();
    let timeouts = Timeouts { drain: args.drain, silence: args.edge.silence, ..Timeouts::default() };
    let base = base(args, timeouts)?;
    // One of the store that cannot be read is told in its status, and holds up no other.
    let kept = store.as_ref().map(|(_, first)| first.listeners(&timeouts)).unwrap_or_default();
    let mut beside = base.with_resources(&listeners).map_err(|wrong| listen::refused(&wrong))?;
    if kept.iter().any(listen::Listening::is_http) {
        beside.retain(|one| base.usual.as_ref() != Some(one));
    }
    if store.is_none() {
        let orphans = listeners::orphans(&routes, &beside);
        if !orphans.is_empty() {
            return Err(buttress_gateway::shared::refused(&orphans).into());
        }
    }
    let edge = edge(&args.edge);
    let access_log = args.access_log.as_deref().map(To::parse);
    let otlp = args.otlp.as_deref().map(|to| collector(to, args)).transpose()?;
    let (bare, seed) = (args.bare, seed()?);
    let records = args.records.clone().map(|dir| archive::To { dir, bytes: args.records_size });
    let options = Options { listeners: beside, threads, bare, timeouts, edge, access_log, records, otlp, seed };
    let admin = admin_listener(args.admin).await?;
    let admin_address = admin.local_addr()?;
    let end = interrupted();
    let running = start(options, &routes)?;
    let (shared, state) = (running.shared.clone(), Arc::new(State::new()));
    let mut following = JoinSet::new();
    let told = store.as_ref().map(|(store, _)| store.clone());
    if let Some((store, first)) = store {
        let beside = store::Beside { routes, listeners, base };
        // The routes and listeners of the store hold before anybody is told that the proxy listens.
        let (ready, taken) = tokio::sync::oneshot::channel();
        following.spawn(store.follow(first, beside, shared.clone(), state.clone(), ready));
        let _ = taken.await;
    } else if !args.config.is_empty() {
        following.spawn(files::follow(files, texts, fixed, base, shared.clone(), state.clone()));
    }
    if let Some(store) = told.clone() {
        let (name, shared) = (store.name().to_owned(), shared.clone());
        let since = std::time::SystemTime::now();
        following.spawn(async move { store.announce(|| about(&name, &shared, admin_address, since)).await });
    }
    announce(args, &running.shared, admin_address)?;
    let reloading = tokio::spawn(reload_when_asked(Arc::clone(&running.shared)));
    let reopening = reopens(&running.shared)?;
    let serving = tokio::spawn(admin::serve(admin, shared, state));
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
    reloading.abort();
    reopening.abort();
    following.shutdown().await;
    if let Some(store) = told {
        store.leave().await;
    }
    Ok(true)
}

/// What others are told of this gateway, as it is now.
fn about(name: &str, shared: &Shared, admin: SocketAddr, since: std::time::SystemTime) -> Gateway {
    let since = since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let host = fleet::host();
    // Who listens everywhere is asked by the machine's name.
    let reached = |address: SocketAddr| match address.ip().is_unspecified() {
        true => format!("{host}:{}", address.port()),
        false => address.to_string(),
    };
    // Where clients of HTTP connect first, else those of TCP; nowhere while all listeners are taken away.
    let ports = &shared.listeners;
    let listen = ports.first_http().or_else(|| ports.all().into_iter().find(|port| port.now().open));
    Gateway {
        name: name.to_owned(),
        listen: listen.map(|port| reached(port.address)).unwrap_or_default(),
        admin: reached(admin),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms: since.as_millis() as u64,
        host,
    }
}

/// How this gateway is called in the store.
fn name(args: &ProxyArgs) -> String {
    args.name.clone().unwrap_or_else(|| format!("{}-{}", fleet::host(), std::process::id()))
}

/// Where spans and log records go, with what the variables of OpenTelemetry say about it. What is said here counts more than what they say.
fn collector(to: &str, args: &ProxyArgs) -> Result<otlp::To, Error> {
    let first =
        |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let service = first(&["OTEL_SERVICE_NAME"]);
    let mut to = otlp::To::parse(to, args.trace_sample, service.as_deref().unwrap_or("buttress-proxy"))?;
    to.logs = args.otlp_logs;
    if let Some(list) = first(&["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]) {
        to.fields.put_list(&list)?;
    }
    for field in &args.otlp_header {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match value.strip_prefix('@') {
            None => to.fields.put(name, value)?,
            Some(file) => {
                let read = std::fs::read_to_string(file).map_err(|error| {
                    Error::new(Code::CONFIG, format!("--otlp-header {name}: \"{file}\" cannot be read: {error}"))
                        .hint("name a file with the value alone in it")
                })?;
                to.fields.put(name, &read)?;
            }
        }
    }
    match (&mut to.tls, &args.otlp_ca) {
        (Some(tls), Some(ca)) => tls.ca = Some(ca.clone()),
        (Some(tls), None) => {
            let named = first(&["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
            tls.ca = named.map(PathBuf::from);
        }
        (None, Some(_)) => {
            return Err(Error::new(Code::CONFIG, "--otlp-ca is of a collector with TLS, and --otlp names one without")
                .hint("write https:// in --otlp"));
        }
        (None, None) => {}
    }
    Ok(to)
}

fn pair(certificate: &Path, key: &Path) -> tls::Pair {
    tls::Pair { certificate: certificate.to_owned(), key: key.to_owned() }
}

/// The listeners of the command line.
fn base(args: &ProxyArgs, timeouts: Timeouts) -> Result<Base, Error> {
    let edge = &args.edge;
    if edge.tls_cert.len() != edge.tls_key.len() {
        let message = format!("there are {} certificates and {} keys", edge.tls_cert.len(), edge.tls_key.len());
        return Err(
            Error::new(Code::CONFIG, message).hint("give --tls-key once for each --tls-cert, in the same order")
        );
    }
    let certificates: Vec<_> = edge.tls_cert.iter().zip(&edge.tls_key).map(|(cert, key)| pair(cert, key)).collect();
    let client = if edge.tls_client_optional { tls::Wanted::Optional } else { tls::Wanted::Required };
    let server = tls::Server { certificates, client_ca: edge.tls_client_ca.clone(), client };
    let tls = (!server.certificates.is_empty()).then_some(server);
    let asked = args.listen.is_some() || tls.is_some();
    let listen = args.listen.unwrap_or_else(|| PROXY_LISTEN.parse().expect("the constant is an address"));
    let place = || Place { file: "the command line".into(), line: 0 };
    let http = listen::Listening {
        place: place(),
        ..listen::Listening::http(COMMAND_LINE, listen, listen::Http { tls, idle: None })
    };
    let mut always = Vec::new();
    for (at, text) in edge.tcp.iter().enumerate() {
        let (listen, told) = tcp::Options::parse(text)?;
        let told = tcp::Options { idle: edge.silence, send_proxy: edge.tcp_send_proxy, ..told };
        let name = format!("tcp-{}", at + 1);
        always.push(listen::Listening { place: place(), ..listen::Listening::tcp(&name, listen, told) });
    }
    // Who was told of connections alone has no port of HTTP, unless one was asked for.
    let tcp_only = args.to.is_empty() && args.config.is_empty() && args.store.is_none();
    let mut usual = (asked || !tcp_only).then_some(http);
    if asked {
        always.extend(usual.take());
    }
    Ok(Base { always, usual, timeouts })
}

/// How connections are made and taken, as it is asked for.
fn edge(args: &EdgeArgs) -> Edge {
    Edge {
        upstream_tls: tls::Client {
            ca: args.upstream_ca.clone(),
            identity: args.upstream_cert.as_ref().zip(args.upstream_key.as_ref()).map(|(cert, key)| pair(cert, key)),
            server_name: args.upstream_name.clone(),
        },
        keep_client_cert: args.keep_client_cert,
        half_close_leaves: args.half_close_leaves,
    }
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

/// Looks at certificates at once on SIGHUP, which would otherwise end the process.
async fn reload_when_asked(shared: Arc<Shared>) {
    let Ok(mut asked) = signal(SignalKind::hangup()) else { return };
    while asked.recv().await.is_some() {
        let shared = Arc::clone(&shared);
        // Its only error is a panic there, which is reported there.
        let _ = tokio::task::spawn_blocking(move || shared.tls.reload()).await;
    }
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

/// Where requests go, in words.
fn ways(args: &ProxyArgs) -> String {
    let mut ways: Vec<String> = args.config.iter().map(|path| format!("routes of {}", path.display())).collect();
    ways.extend(args.store.iter().map(|url| format!("routes of {url}")));
    ways.extend((!args.to.is_empty()).then(|| format!("to {}", args.to.join(", "))));
    ways.join("; ")
}

fn announce(args: &ProxyArgs, shared: &Shared, admin: SocketAddr) -> std::io::Result<()> {
    let ports = shared.listeners.all();
    let mut tcp = Vec::new();
    let mut http = Vec::new();
    for port in &ports {
        let told = port.now().setting.told.clone();
        match told.what {
            listen::What::Tcp(options) => tcp.push((port.address, options.endpoints)),
            listen::What::Http(_) => http.push(format!("{}://{}", told.protocol(), port.address)),
        }
    }
    match args.output {
        Output::Json => {
            let tcp: Vec<_> = tcp.iter().map(|(at, to)| json!({"listen": at.to_string(), "to": to})).collect();
            let listen = shared.listeners.first_http().map(|port| port.address.to_string());
            let config: Vec<String> = args.config.iter().map(|path| path.display().to_string()).collect();
            let listeners: Vec<_> = ports.iter().map(|port| port.json()).collect();
            show::json(&json!({
                "listen": listen, "listeners": listeners, "admin": admin.to_string(), "to": args.to, "config": config,
                "store": args.store, "tcp": tcp,
            }))?;
        }
        // Where stdout is the access log, people read stderr.
        Output::Table if args.access_log.as_deref() == Some("-") => {
            for url in &http {
                eprintln!("proxy: {url}  {}", ways(args));
            }
            eprintln!("page:  http://{admin}/  metrics: http://{admin}/metrics");
        }
        Output::Table => {
            for url in &http {
                println!("proxy: {url}  {}", ways(args));
            }
            for (at, to) in &tcp {
                println!("tcp:   {at}  to {}", to.join(", "));
            }
            println!("page:  http://{admin}/  metrics: http://{admin}/metrics");
            if let Some(url) = http.first() {
                eprintln!(
                    "next: curl -i {url}/ and, when something fails: buttress explain REQUEST-ID --admin {admin}"
                );
            }
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
