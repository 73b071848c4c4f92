//! Threads: one runtime of one thread for each core that carries traffic. They share a port (SO_REUSEPORT), the kernel
//! spreads connections over them, and nothing that a request needs is shared.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use buttress_core::{Code, Error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::watch,
    time::Instant,
};

use crate::{
    compile::Declared,
    config::Options,
    discover, health,
    proxy::Core,
    request_id::Numbers,
    server::{Drain, serve},
    shared::Shared,
    tcp, tls,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Connections of one core; each costs a descriptor here and perhaps one upstream.
const CONNECTIONS_MAX: u64 = 50_000;
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A proxy that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// Dropped, it ends the thread that looks at certificates.
    _certificates: mpsc::Sender<()>,
}

/// Starts the threads; they listen when this returns.
///
/// # Errors
/// `PORT_TAKEN` where an address is not free, `ROUTES_INVALID`, `CERTIFICATE`.
pub fn start(options: Options, routes: &[Declared]) -> Result<Running, Error> {
    let threads = options.threads.max(1);
    let (mut address, mut sockets) = (options.listen, (0..threads).map(|_| Sockets::default()).collect::<Vec<_>>());
    // Who only passes connections on has no port of HTTP.
    if !options.tcp_only {
        let (bound, all) = listen_on_all(options.listen, threads)?;
        address = bound;
        sockets.iter_mut().zip(all).for_each(|(sockets, socket)| sockets.http = Some(socket));
    }
    let mut tcp = Vec::new();
    for listener in &options.edge.tcp {
        let (bound, all) = listen_on_all(listener.listen, threads)?;
        sockets.iter_mut().zip(all).for_each(|(sockets, socket)| sockets.tcp.push(socket));
        tcp.push(tcp::Listener::new(listener.clone(), bound)?);
    }
    let (stop, stopped) = watch::channel(false);
    let seeds = Numbers::new(options.seed);
    let shared = Arc::new(Shared::new(options, address, tcp, routes)?);
    let mut threads = Vec::new();
    let certificates = watch_certificates(&shared)?;
    for (at, sockets) in sockets.into_iter().enumerate() {
        let (shared, stopped, seed) = (shared.clone(), stopped.clone(), seeds.draw());
        threads.push(spawn(format!("traffic-{at}"), move || core(shared, at, seed, sockets, stopped))?);
    }
    let (watched, stopped) = (shared.clone(), stop.subscribe());
    threads.push(spawn("traffic-watch".to_owned(), move || async move { watch(watched, stopped).await })?);
    Ok(Running { address, shared, stop, threads, _certificates: certificates })
}

/// What one core accepts on.
#[derive(Default)]
struct Sockets {
    http: Option<std::net::TcpListener>,
    /// As `options.edge.tcp`.
    tcp: Vec<std::net::TcpListener>,
}

/// A socket for each core, all on one port.
fn listen_on_all(mut address: SocketAddr, threads: usize) -> Result<(SocketAddr, Vec<std::net::TcpListener>), Error> {
    // The port must be ours alone, which SO_REUSEPORT would not tell.
    if address.port() != 0 {
        std::net::TcpListener::bind(address).map_err(|error| taken(address, &error))?;
    }
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads {
        let socket = listen(address).map_err(|error| taken(address, &error))?;
        address = socket.local_addr().map_err(|error| taken(address, &error))?;
        sockets.push(socket);
    }
    Ok((address, sockets))
}

/// Looks at the files of certificates now and then, on a thread of its own: disks are slow at times.
fn watch_certificates(shared: &Arc<Shared>) -> Result<mpsc::Sender<()>, Error> {
    let (alive, ended) = mpsc::channel::<()>();
    let shared = Arc::downgrade(shared);
    let looking = std::thread::Builder::new().name("certificates".into()).spawn(move || {
        while ended.recv_timeout(tls::RELOAD_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
            let Some(shared) = shared.upgrade() else { return };
            shared.tls.reload();
        }
    });
    looking.map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))?;
    Ok(alive)
}

/// A thread with a runtime of its own, whose values never leave it.
fn spawn<F: Future<Output = ()>>(
    name: String,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(work()),
            Err(error) => tracing::error!(%error, "a runtime for traffic cannot be made"),
        }
    });
    thread.map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))
}

/// Looks after endpoints, beside the traffic.
async fn watch(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let checks = tokio::task::spawn_local(health::keep(shared.clone()));
    let names = tokio::task::spawn_local(discover::keep(shared));
    let _ = stopped.wait_for(|stopped| *stopped).await;
    checks.abort();
    names.abort();
}

impl Running {
    /// Takes no more connections, lets requests end, and returns when all have, or when the time for it is over.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        for thread in self.threads {
            let _ = thread.join();
        }
        if let Some(exporter) = &self.shared.exporter {
            exporter.close();
        }
        if let Some(log) = &self.shared.log
            && !log.close()
        {
            tracing::warn!("the access log did not take its last lines in time");
        }
        if let Some(archive) = self.shared.records.archive() {
            archive.close();
        }
    }
}

fn taken(address: SocketAddr, error: &io::Error) -> Error {
    Error::new(Code::PORT_TAKEN, format!("cannot listen on {address}: {error}"))
        .hint("stop what uses the address, or name another with --listen")
}

/// A socket that listens, and shares its port with the other cores.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

async fn core(shared: Arc<Shared>, at: usize, seed: u64, sockets: Sockets, mut stopped: watch::Receiver<bool>) {
    let core = Rc::new(Core::new(shared, at, seed));
    let drain = Rc::new(Drain::default());
    let sweeping = core.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            sweeping.sweep(Instant::now());
        }
    });
    if core.lines.is_some() {
        let core = core.clone();
        tokio::task::spawn_local(async move {
            if let Some(lines) = &core.lines {
                lines.flushing().await;
            }
        });
    }
    for (which, socket) in sockets.tcp.into_iter().enumerate() {
        let (core, stopped) = (core.clone(), stopped.clone());
        tokio::task::spawn_local(async move {
            let serving = core.clone();
            accept(socket, &core, stopped, |stream, from, counted| {
                let core = serving.clone();
                async move {
                    let _counted = counted;
                    core.shared.tcp[which].serve(&core, stream, from).await;
                }
            })
            .await;
        });
    }
    match sockets.http {
        Some(socket) => {
            let serving = |stream, from, counted| serve(core.clone(), drain.clone(), stream, from, counted);
            accept(socket, &core, stopped, serving).await;
        }
        None => drop(stopped.wait_for(|stopped| *stopped).await),
    }
    drain.begin();
    let end = Instant::now() + core.shared.options.timeouts.drain;
    while core.shard.connections.get() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A connection, for as long as it is open.
pub struct Counted(Rc<Core>);

impl Counted {
    fn new(core: &Rc<Core>) -> Self {
        core.shard.connections.add(1);
        core.shard.connections_total.add(1);
        Self(core.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shard.connections.take(1);
    }
}

/// Takes connections until the proxy stops; then nobody listens any more.
async fn accept<F: Future<Output = ()> + 'static>(
    socket: std::net::TcpListener,
    core: &Rc<Core>,
    mut stopped: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, SocketAddr, Counted) -> F,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listening socket cannot be used"),
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if core.shard.connections.get() >= CONNECTIONS_MAX => {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many connections; one is closed");
            }
            Ok((stream, from)) => {
                // Not in an `async` block: that would have room for the future twice, as what it holds and as what it awaits,
                // and each connection has it for as long as it is open.
                tokio::task::spawn_local(serve(stream, from, Counted::new(core)));
            }
            Err(error) => {
                // Out of descriptors, most likely.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
