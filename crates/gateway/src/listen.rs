//! Listeners: where traffic comes in. They change while the proxy runs, as routes do.
//!
//! A change is prepared whole: every new port is bound and every certificate read before anything of the old set ends. What cannot
//! be carried out is refused with its place, and the old set stays. A **port** is a socket for each core (SO_REUSEPORT: the kernel
//! spreads connections over them); a **setting** is what its new connections get.
//!
//! | a listener | |
//! |---|---|
//! | is added | bound, and served by every core at once |
//! | says something else at the same address | the port stays; new connections get the new setting. Those that are open end as they began: one of HTTP is told to close with its next answer (`connection: close`, GOAWAY) |
//! | moves to another address | the new port is bound before the old one closes |
//! | is gone | its port closes: no handshake begins any more, and whoever has one under way or is in the kernel's queue is still taken; open connections are told to close with their next answer, and cut when the time to drain is over |
//!
//! A client of HTTP/1.1 whose kept connection is closed may have just sent a request on it. So a connection without a request is not
//! closed when its listener goes, as it is when the proxy stops: it stays for the time to drain, and its next answer says that it
//! was the last.
//!
//! **First start.** A port that is not free, or a certificate that cannot be used, is an error. **Recovery.** Ports are this process's
//! alone: another one that has the address is seen, although SO_REUSEPORT would not tell.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::{Code, Error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use socket2::{SockFilter, SockRef};
use tokio::sync::{mpsc, watch};

use crate::{
    table::Place,
    tcp,
    tls::{self, Acceptor},
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Listeners of one proxy; each costs a descriptor for every core.
pub const LISTENERS_MAX: usize = 256;

/// A listener as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// What routes call it.
    pub name: Arc<str>,
    pub place: Place,
    pub listen: SocketAddr,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Http(Http),
    /// Connections are passed as they are.
    Tcp(tcp::Options),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http {
    /// Without it clients speak in clear.
    pub tls: Option<tls::Server>,
    /// How long a connection may be without a request; without it, what the whole proxy says.
    pub idle: Option<Duration>,
}

impl Listening {
    pub fn http(name: &str, listen: SocketAddr, http: Http) -> Self {
        Self { name: name.into(), place: Place::default(), listen, what: What::Http(http) }
    }

    pub fn tcp(name: &str, listen: SocketAddr, options: tcp::Options) -> Self {
        Self { name: name.into(), place: Place::default(), listen, what: What::Tcp(options) }
    }

    pub const fn is_http(&self) -> bool {
        matches!(self.what, What::Http(_))
    }

    /// `http`, `https` or `tcp`.
    pub const fn protocol(&self) -> &'static str {
        match &self.what {
            What::Http(Http { tls: None, .. }) => "http",
            What::Http(_) => "https",
            What::Tcp(_) => "tcp",
        }
    }

    fn wrong(&self, error: Error) -> Wrong {
        Wrong { listener: self.name.to_string(), place: self.place.clone(), error }
    }

    /// Whether it says the same, wherever it is written by now.
    fn says_the_same(&self, other: &Self) -> bool {
        self.name == other.name && self.listen == other.listen && self.what == other.what
    }

    /// Whether a port that was bound for `other` serves this one as well.
    fn same_port(&self, other: &Self) -> bool {
        // Port 0 is a port of its own for everybody who asks for it.
        self.listen == other.listen && (self.listen.port() != 0 || self.name == other.name)
    }
}

/// Why a listener cannot be.
#[derive(Clone, Debug)]
pub struct Wrong {
    pub listener: String,
    pub place: Place,
    pub error: Error,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, code) = (&self.place, self.error.code.0);
        if !place.file.is_empty() {
            write!(f, "{place}: ")?;
        }
        write!(f, "listener \"{}\": {code}: {}", self.listener, self.error.message)?;
        match &self.error.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with listeners, as one error with the code of the first.
pub fn refused(wrong: &[Wrong]) -> Error {
    let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    let code = wrong.first().map_or(Code::ROUTES_INVALID, |first| first.error.code);
    Error::new(code, all.join("\n")).hint(format!("buttress explain {} says more", code.0))
}

/// What new connections of a port get.
#[derive(Debug)]
pub struct Setting {
    pub told: Listening,
    pub serves: Serves,
}

#[derive(Debug)]
pub enum Serves {
    Http(Option<Arc<Acceptor>>),
    Tcp(Box<tcp::Listener>),
}

impl Setting {
    fn new(told: &Listening, address: SocketAddr, tls: &tls::State) -> Result<Self, Error> {
        let serves = match &told.what {
            What::Http(http) => Serves::Http(http.tls.as_ref().map(|told| tls.acceptor(told)).transpose()?),
            What::Tcp(options) => Serves::Tcp(Box::new(tcp::Listener::new(options.clone(), address)?)),
        };
        Ok(Self { told: told.clone(), serves })
    }

    pub fn idle(&self) -> Option<Duration> {
        match &self.told.what {
            What::Http(http) => http.idle,
            What::Tcp(_) => None,
        }
    }
}

/// How a port stands.
#[derive(Clone)]
pub struct Now {
    pub setting: Arc<Setting>,
    /// Where that is written by now.
    pub place: Place,
    /// It takes connections.
    pub open: bool,
}

/// A bound address, with a socket on every core.
pub struct Port {
    pub address: SocketAddr,
    now: watch::Sender<Now>,
    /// Open connections of all cores.
    pub connections: AtomicUsize,
    /// Cores that still have something of it.
    serving: AtomicUsize,
}

impl Port {
    pub fn now(&self) -> Now {
        self.now.borrow().clone()
    }

    pub fn follow(&self) -> watch::Receiver<Now> {
        self.now.subscribe()
    }

    /// A core has nothing of it any more.
    pub fn left(&self) {
        self.serving.fetch_sub(1, Relaxed);
    }

    /// What the live page shows.
    pub fn json(&self) -> serde_json::Value {
        let Now { setting, place, open } = self.now();
        let told = &setting.told;
        serde_json::json!({
            "listener": *told.name, "place": place.to_string(), "listen": self.address.to_string(),
            "protocol": told.protocol(), "state": if open { "serving" } else { "draining" },
            "connections": self.connections.load(Relaxed),
        })
    }
}

/// A port that a core is to serve.
pub struct Order {
    pub port: Arc<Port>,
    pub socket: std::net::TcpListener,
}

/// All ports of a proxy.
pub struct Listeners {
    /// Held by the one change that is under way.
    changing: Mutex<()>,
    ports: Mutex<Vec<Arc<Port>>>,
    /// To each core.
    orders: Vec<mpsc::UnboundedSender<Order>>,
}

impl Listeners {
    /// For so many cores; gives the end at which each of them hears of ports.
    pub fn new(cores: usize) -> (Self, Vec<mpsc::UnboundedReceiver<Order>>) {
        let (orders, heard) = (0..cores).map(|_| mpsc::unbounded_channel()).unzip();
        (Self { changing: Mutex::default(), ports: Mutex::default(), orders }, heard)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Port>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that take connections or drain them.
    pub fn all(&self) -> Vec<Arc<Port>> {
        let alive = |port: &&Arc<Port>| port.now.borrow().open || port.serving.load(Relaxed) > 0;
        self.lock().iter().filter(alive).cloned().collect()
    }

    /// Where HTTP listens first, if anywhere.
    pub fn first_http(&self) -> Option<Arc<Port>> {
        let http = |port: &&Arc<Port>| {
            let now = port.now.borrow();
            now.open && matches!(now.setting.serves, Serves::Http(_))
        };
        self.lock().iter().find(http).cloned()
    }

    /// Binds and reads what is new in `wanted`. Nothing of it counts until [`Prepared::commit`]; dropped, it leaves all as it was.
    /// Reads files, so it is not for a thread with traffic.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn prepare(&self, wanted: &[Listening], tls: &tls::State) -> Result<Prepared<'_>, Vec<Wrong>> {
        let alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = self.lock().clone();
        let mut wrong = twins(wanted);
        let mut left: Vec<&Arc<Port>> = ports.iter().filter(|port| port.now.borrow().open).collect();
        let ours: Vec<u16> = ports.iter().map(|port| port.address.port()).collect();
        let (mut next, mut bound) = (Vec::new(), Vec::<u16>::new());
        for told in wanted {
            let at = left.iter().position(|port| told.same_port(&port.now.borrow().setting.told));
            let step = match at.map(|at| left.remove(at)) {
                Some(port) if port.now.borrow().setting.told.says_the_same(told) => {
                    Ok(Step::Stays(port.clone(), told.place.clone()))
                }
                Some(port) => {
                    Setting::new(told, port.address, tls).map(|setting| Step::Changes(port.clone(), setting.into()))
                }
                None => {
                    let port = told.listen.port();
                    // The port must be ours alone, which SO_REUSEPORT would not tell.
                    let only_ours = port != 0 && !ours.contains(&port) && !bound.contains(&port);
                    listen_on_all(told.listen, self.orders.len(), only_ours).and_then(|(address, sockets)| {
                        bound.push(address.port());
                        Ok(Step::Opens(Setting::new(told, address, tls)?.into(), address, sockets))
                    })
                }
            };
            match step {
                Ok(step) => next.push(step),
                Err(error) => wrong.push(told.wrong(error)),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let closes = left.into_iter().cloned().collect();
        Ok(Prepared { _alone: alone, listeners: self, next, closes })
    }
}

/// Names and addresses that stand twice, and too many.
fn twins(wanted: &[Listening]) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for (at, one) in wanted.iter().enumerate() {
        let invalid = |says: String, hint: &str| one.wrong(Error::new(Code::ROUTES_INVALID, says).hint(hint));
        if at >= LISTENERS_MAX {
            wrong.push(invalid(
                format!("there are {} listeners, {LISTENERS_MAX} at most are taken", wanted.len()),
                "run another gateway for the others",
            ));
            break;
        }
        for other in &wanted[..at] {
            if other.name == one.name {
                wrong.push(invalid(format!("the name stands at {} too", other.place), "give it another name"));
            } else if other.listen == one.listen && one.listen.port() != 0 {
                let says = format!("{} is the address of \"{}\" too", one.listen, other.name);
                wrong.push(invalid(
                    says,
                    "one address has one listener; give it another port, or leave one of them out",
                ));
            }
        }
    }
    wrong
}

enum Step {
    Stays(Arc<Port>, Place),
    Changes(Arc<Port>, Arc<Setting>),
    Opens(Arc<Setting>, SocketAddr, Vec<std::net::TcpListener>),
}

/// A change of listeners that can be carried out. There is one at a time.
pub struct Prepared<'a> {
    _alone: MutexGuard<'a, ()>,
    listeners: &'a Listeners,
    next: Vec<Step>,
    closes: Vec<Arc<Port>>,
}

impl Prepared<'_> {
    /// Lets it count. Tells what changed, a sentence each.
    pub fn commit(self) -> Vec<String> {
        let (mut ports, mut said) = (Vec::new(), Vec::new());
        for step in self.next {
            ports.push(match step {
                Step::Stays(port, place) => {
                    // Lines above it came or went, which is nothing to its connections.
                    port.now.send_if_modified(|now| {
                        now.place = place;
                        false
                    });
                    port
                }
                Step::Changes(port, setting) => {
                    said.push(format!("\"{}\" at {} changed", setting.told.name, port.address));
                    let place = setting.told.place.clone();
                    port.now.send_replace(Now { setting, place, open: true });
                    port
                }
                Step::Opens(setting, address, sockets) => {
                    said.push(format!("\"{}\" listens at {address}", setting.told.name));
                    let place = setting.told.place.clone();
                    let (now, _) = watch::channel(Now { setting, place, open: true });
                    let serving = AtomicUsize::new(sockets.len());
                    let port = Arc::new(Port { address, now, connections: AtomicUsize::new(0), serving });
                    for (core, socket) in self.listeners.orders.iter().zip(sockets) {
                        // A core that has ended takes nothing any more, and neither does its socket.
                        let _ = core.send(Order { port: port.clone(), socket });
                    }
                    port
                }
            });
        }
        for port in &self.closes {
            said.push(format!("\"{}\" at {} closes", port.now.borrow().setting.told.name, port.address));
            port.now.send_modify(|now| now.open = false);
        }
        // Those that drain are shown until they have.
        let drains = |port: &Arc<Port>| !port.now.borrow().open && port.serving.load(Relaxed) > 0;
        let mut known = self.listeners.lock();
        ports.extend(known.iter().filter(|port| drains(port)).cloned());
        *known = ports;
        drop(known);
        said
    }
}

/// A socket for each core, all on one port.
fn listen_on_all(
    mut address: SocketAddr,
    cores: usize,
    alone: bool,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>), Error> {
    if alone {
        std::net::TcpListener::bind(address).map_err(|error| taken(address, &error))?;
    }
    let mut sockets = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = listen(address).map_err(|error| taken(address, &error))?;
        address = socket.local_addr().map_err(|error| taken(address, &error))?;
        sockets.push(socket);
    }
    Ok((address, sockets))
}

fn taken(address: SocketAddr, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "stop what uses the address, or name another",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; name a higher one, or give it"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has the address; write :PORT for all that it has"
        }
        _ => "name another address",
    };
    Error::new(Code::PORT_TAKEN, format!("cannot listen on {address}: {error}")).hint(hint)
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

/// Has the kernel drop segments that would begin a connection, and no others: handshakes under way end, and whoever asks later
/// asks again after a second, when nobody listens.
///
/// # Errors
/// The kernel takes no filter.
pub fn deafen(socket: &impl AsFd) -> io::Result<()> {
    // Classic BPF over the segment, from its TCP header on: byte 13 has the flags (RFC 9293, 3.1). Accepted connections inherit
    // it, and have no use for such segments either.
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let filter = [
        SockFilter::new(0x30, 0, 0, 13),        // load the byte
        SockFilter::new(0x54, 0, 0, SYN | ACK), // and
        SockFilter::new(0x15, 0, 1, SYN),       // is it SYN alone?
        SockFilter::new(0x06, 0, 0, 0),         // yes: drop it
        SockFilter::new(0x06, 0, 0, u32::MAX),  // no: take all of it
    ];
    SockRef::from(socket).attach_filter(&filter)
}

/// `HOST:PORT`, or `:PORT` for every address.
pub fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddr::from(([0, 0, 0, 0], port.parse().ok()?))),
        None => text.parse().ok(),
    }
}
