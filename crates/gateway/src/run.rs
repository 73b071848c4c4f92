//! Threads: one runtime of one thread for each core that carries traffic. They share ports (SO_REUSEPORT), the kernel
//! spreads connections over them, and nothing that a request needs is shared. Which ports, [`crate::listen`] says.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{self as blocking, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use buttress_core::{Code, Error};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    compile::Declared,
    config::Options,
    discover, health,
    listen::{self, Listeners, Order, Port, Serves, Setting},
    proxy::Core,
    request_id::Numbers,
    server::{Drain, Ending, serve},
    shared::Shared,
    tls,
};

/// Connections of one core; each costs a descriptor here and perhaps one upstream.
const CONNECTIONS_MAX: u64 = 50_000;
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often those that drain are counted.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// For handshakes that are under way when a port begins to close; clients are seldom further away.
const HANDSHAKES_MAX: Duration = Duration::from_millis(500);

/// A proxy that runs.
pub struct Running {
    /// Where HTTP listened first, if anywhere.
    pub address: Option<SocketAddr>,
    pub shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// Dropped, it ends the thread that looks at certificates.
    _certificates: blocking::Sender<()>,
}

/// Starts the threads; they listen when this returns.
///
/// # Errors
/// `PORT_TAKEN` where an address is not free, `ROUTES_INVALID`, `CERTIFICATE`.
pub fn start(options: Options, routes: &[Declared]) -> Result<Running, Error> {
    let (listeners, orders) = Listeners::new(options.threads.max(1));
    let (stop, stopped) = watch::channel(false);
    let seeds = Numbers::new(options.seed);
    let shared = Arc::new(Shared::new(options, listeners, routes)?);
    let wanted = shared.listeners.prepare(&shared.options.listeners, &shared.tls);
    wanted.map_err(|wrong| listen::refused(&wrong))?.commit();
    let address = shared.listeners.first_http().map(|port| port.address);
    let mut threads = Vec::new();
    let certificates = watch_certificates(&shared)?;
    for (at, orders) in orders.into_iter().enumerate() {
        let (shared, stopped, seed) = (shared.clone(), stopped.clone(), seeds.draw());
        threads.push(spawn(format!("traffic-{at}"), move || core(shared, at, seed, orders, stopped))?);
    }
    let (watched, stopped) = (shared.clone(), stop.subscribe());
    threads.push(spawn("traffic-watch".to_owned(), move || async move { watch(watched, stopped).await })?);
    Ok(Running { address, shared, stop, threads, _certificates: certificates })
}

/// Looks at the files of certificates now and then, on a thread of its own: disks are slow at times.
fn watch_certificates(shared: &Arc<Shared>) -> Result<blocking::Sender<()>, Error> {
    let (alive, ended) = blocking::channel::<()>();
    let shared = Arc::downgrade(shared);
    let looking = std::thread::Builder::new().name("certificates".into()).spawn(move || {
        while ended.recv_timeout(tls::RELOAD_EVERY) == Err(RecvTimeoutError::Timeout) {
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

async fn core(
    shared: Arc<Shared>,
    at: usize,
    seed: u64,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut stopped: watch::Receiver<bool>,
) {
    let core = Rc::new(Core::new(shared, at, seed));
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
    let (mut serving, stops) = (JoinSet::new(), stopped.clone());
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            Some(order) = orders.recv() => drop(serving.spawn_local(serve_port(order, core.clone(), stops.clone()))),
            // Whoever has ended is forgotten.
            Some(_) = serving.join_next() => {}
        }
    }
    while serving.join_next().await.is_some() {}
}

/// A core's connections of one port, from its first to its last.
struct Serving {
    core: Rc<Core>,
    port: Arc<Port>,
    setting: Arc<Setting>,
    drain: Rc<Drain>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.port.left();
    }
}

/// A connection, for as long as it is open.
pub struct Counted(Rc<Core>, Arc<Port>);

impl Counted {
    fn new(core: &Rc<Core>, port: &Arc<Port>) -> Self {
        core.shard.connections.add(1);
        core.shard.connections_total.add(1);
        port.connections.fetch_add(1, Relaxed);
        Self(core.clone(), port.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shard.connections.take(1);
        self.1.connections.fetch_sub(1, Relaxed);
    }
}

impl Serving {
    fn take(&self, stream: TcpStream, from: SocketAddr) {
        if self.core.shard.connections.get() >= CONNECTIONS_MAX {
            return tracing::warn!(limit = CONNECTIONS_MAX, "too many connections; one is closed");
        }
        let (core, setting) = (self.core.clone(), self.setting.clone());
        let counted = Counted::new(&self.core, &self.port);
        match &self.setting.serves {
            // Not in an `async` block: that would have room for what it was given beside the future that has it too, and each
            // connection has it for as long as it is open.
            Serves::Http(acceptor) => {
                let acceptor = acceptor.clone();
                self.drain.spawn(|listed| serve(core, listed, setting, acceptor, stream, from, counted));
            }
            Serves::Tcp(_) => self.drain.spawn(|listed| async move {
                let (_counted, _listed) = (counted, listed);
                if let Serves::Tcp(listener) = &setting.serves {
                    listener.serve(&core, stream, from).await;
                }
            }),
        }
    }
}

/// Takes whoever the kernel has told that they are connected, and closes the socket: a close resets those that nobody has taken.
///
/// No new handshake begins meanwhile, and those under way get a moment to end. When the proxy stops, that moment is over at once.
async fn take_last(listener: TcpListener, serving: &Serving, stopped: &mut watch::Receiver<bool>) {
    if let Err(error) = listen::deafen(&listener) {
        tracing::debug!(%error, "a port that closes cannot be kept from beginning handshakes");
    }
    let end = Instant::now() + HANDSHAKES_MAX;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep_until(end) => return,
        };
        match accepted {
            Ok((stream, from)) => serving.take(stream, from),
            // It left while it waited.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => return tracing::warn!(%error, "accepting the last connections of a port failed"),
        }
    }
}

/// Takes connections until the port closes or the proxy stops, and looks after them until they have ended.
async fn serve_port(order: Order, core: Rc<Core>, mut stopped: watch::Receiver<bool>) {
    let Order { port, socket } = order;
    let (mut follow, drain_for) = (port.follow(), core.shared.options.timeouts.drain);
    let mut now = follow.borrow_and_update().clone();
    let mut serving = Serving { core, port, setting: now.setting.clone(), drain: Rc::default() };
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listening socket cannot be used"),
    };
    // Of settings that hold no more, as long as they have connections.
    let mut former: Vec<Rc<Drain>> = Vec::new();
    while now.open {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            // Its sender is in the port, which is held here.
            _ = follow.changed() => {}
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, from)) => serving.take(stream, from),
                    Err(error) => {
                        // Out of descriptors, most likely.
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                continue;
            }
        }
        now = follow.borrow_and_update().clone();
        if !Arc::ptr_eq(&now.setting, &serving.setting) {
            serving.setting = now.setting.clone();
            let old = std::mem::take(&mut serving.drain);
            old.begin(Ending::Gently);
            former.retain(|drain| drain.open() > 0);
            former.push(old);
        }
    }
    former.push(serving.drain.clone());
    let begin = |how| former.iter().for_each(|drain| drain.begin(how));
    begin(Ending::Gently);
    let end = Instant::now() + drain_for;
    take_last(listener, &serving, &mut stopped).await;
    let mut stops = false;
    while former.iter().any(|drain| drain.open() > 0) && Instant::now() < end {
        if *stopped.borrow() && !stops {
            stops = true;
            begin(Ending::Idle);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let cut: usize = former.iter().map(|drain| drain.cut()).sum();
    if cut > 0 {
        let (listener, address) = (&*serving.setting.told.name, serving.port.address);
        tracing::warn!(listener, %address, connections = cut, "the time to drain is over; connections are cut");
    }
}
