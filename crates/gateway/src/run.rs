//! Threads: one runtime of one thread for each core that carries traffic. They share a port (SO_REUSEPORT), the kernel
//! spreads connections over them, and nothing that a request needs is shared.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration};

use buttress_core::{Code, Error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::watch,
    time::Instant,
};

use crate::{
    compile::Declared,
    config::Options,
    proxy::Core,
    request_id::Numbers,
    server::{Drain, serve},
    shared::Shared,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Connections of one core; each costs a descriptor here and perhaps one upstream.
const CONNECTIONS_MAX: usize = 50_000;
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A proxy that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts the threads; they listen when this returns.
///
/// # Errors
/// `PORT_TAKEN` where the address is not free, `CONFIG` where there is nowhere to send requests.
pub fn start(options: Options, routes: &[Declared]) -> Result<Running, Error> {
    let mut address = options.listen;
    let mut listeners = Vec::with_capacity(options.threads);
    // The port must be ours alone, which SO_REUSEPORT would not tell.
    if address.port() != 0 {
        std::net::TcpListener::bind(address).map_err(|error| taken(address, &error))?;
    }
    for _ in 0..options.threads.max(1) {
        let socket = listen(address).map_err(|error| taken(address, &error))?;
        address = socket.local_addr().map_err(|error| taken(address, &error))?;
        listeners.push(socket);
    }
    let (stop, stopped) = watch::channel(false);
    let seeds = Numbers::new(options.seed);
    let (shared, mut threads) = (Arc::new(Shared::new(options, address, routes)?), Vec::new());
    for (at, listener) in listeners.into_iter().enumerate() {
        let (shared, stopped, seed) = (shared.clone(), stopped.clone(), seeds.draw());
        let thread = std::thread::Builder::new().name(format!("traffic-{at}")).spawn(move || {
            let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "a runtime for traffic cannot be made"),
            };
            runtime.block_on(core(shared, at, seed, listener, stopped));
        });
        threads.push(thread.map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))?);
    }
    Ok(Running { address, shared, stop, threads })
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

async fn core(
    shared: Arc<Shared>,
    at: usize,
    seed: u64,
    listener: std::net::TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listening socket cannot be used"),
    };
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
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if drain.open() >= CONNECTIONS_MAX => {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many connections; one is closed");
            }
            Ok((stream, from)) => {
                core.shard.connections.add(1);
                core.shard.connections_total.add(1);
                let (core, drain) = (core.clone(), drain.clone());
                tokio::task::spawn_local(async move {
                    let shard = core.shard.clone();
                    serve(core, drain, stream, from).await;
                    shard.connections.take(1);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    drain.begin();
    let end = Instant::now() + core.shared.options.timeouts.drain;
    while core.shard.connections.get() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
