//! Upstreams that play a script, clients that say what they are told, and the proxy between them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use buttress_gateway::{
    compile::{Declared, everything},
    config::{Edge, Options, Timeouts},
    listen::{Http, Listening, What},
    run::{Running, start},
};

/// Nothing here takes that long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An upstream: every connection is given to the script, with its number.
pub struct Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    /// Heads of all requests that scripts have read with [`read_request`].
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    pub fn new(script: impl Fn(usize, &mut Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, heads, script) = (connections.clone(), seen.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (script, heads) = (script.clone(), heads.clone());
                thread::spawn(move || {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    script(number, &mut Connection { stream, bytes: Vec::new(), heads });
                });
            }
        });
        Self { address, connections, seen }
    }

    /// Answers every request with 200 and these bytes.
    pub fn answering(body: &'static str) -> Self {
        Self::new(move |_, connection| {
            while connection.read_request().is_some() {
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                connection.write(response.as_bytes());
            }
        })
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

pub struct Connection {
    pub stream: TcpStream,
    bytes: Vec<u8>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Connection {
    /// Reads a head, and notes it. The body is left.
    pub fn read_head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.bytes.drain(..end + 4).collect()).unwrap();
                self.heads.lock().unwrap().push(head.clone());
                return Some(head);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Reads a head, notes it, and not a byte more: what comes behind stays with the kernel, which tells a close as a reset then.
    pub fn read_only_head(&mut self) -> Option<String> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        self.heads.lock().unwrap().push(head.clone());
        Some(head)
    }

    /// What was read behind a head.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&buffer[..read]);
                true
            }
        }
    }

    /// Reads a request whole; gives its head and the bytes of its body as they were framed.
    pub fn read_request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.read_head()?;
        let lower = head.to_ascii_lowercase();
        let end = |connection: &Self| {
            if lower.contains("transfer-encoding: chunked") {
                let last = connection.bytes.windows(5).position(|five| five == b"0\r\n\r\n");
                return last.map(|at| at + 5);
            }
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
            (connection.bytes.len() >= length).then_some(length)
        };
        loop {
            if let Some(end) = end(self) {
                return Some((head, self.bytes.drain(..end).collect()));
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        // The proxy may have gone, which is what some tests are about.
        let _ = self.stream.write_all(bytes);
    }
}

/// The TLS of a proxy's only listener.
pub fn tls_of(options: &mut Options) -> &mut Option<buttress_gateway::tls::Server> {
    match &mut options.listeners[0].what {
        What::Http(http) => &mut http.tls,
        What::Tcp(_) => panic!("it passes connections as they are"),
    }
}

pub struct Proxy {
    running: Option<Running>,
    pub address: SocketAddr,
}

impl Proxy {
    pub fn to(upstreams: &[SocketAddr]) -> Self {
        Self::with(upstreams, |_| {})
    }

    pub fn with(upstreams: &[SocketAddr], change: impl FnOnce(&mut Options)) -> Self {
        Self::to_endpoints(&upstreams.iter().map(ToString::to_string).collect::<Vec<_>>(), change)
    }

    /// One route for everything, to endpoints as they are written.
    pub fn to_endpoints(endpoints: &[String], change: impl FnOnce(&mut Options)) -> Self {
        Self::routing(&[everything(endpoints, None)], change)
    }

    pub fn options() -> Options {
        let listen = "127.0.0.1:0".parse().unwrap();
        let (timeouts, edge) = (Timeouts::default(), Edge::default());
        Options {
            listeners: vec![Listening::http("web", listen, Http::default())],
            threads: 1,
            bare: false,
            timeouts,
            edge,
            access_log: None,
            records: None,
            otlp: None,
            seed: 1,
        }
    }

    /// With these routes.
    pub fn routing(routes: &[Declared], change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Self::options();
        change(&mut options);
        let running = start(options, routes).unwrap();
        let address = running.address.unwrap_or_else(|| running.shared.listeners.all()[0].address);
        Self { address, running: Some(running) }
    }

    pub fn shared(&self) -> &buttress_gateway::shared::Shared {
        &self.running.as_ref().expect("it runs until it is dropped").shared
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes and reads until the proxy closes.
    pub fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The proxy may answer and close before all is written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A request that closes its connection, and the answer to it.
    pub fn ask(&self, request: &str) -> Answer {
        Answer::parse(&self.exchange(request.as_bytes()))
    }

    pub fn take(&mut self) -> Running {
        self.running.take().expect("it was not taken before")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Reads one answer with a Content-Length from a connection that stays open.
pub fn read_answer(stream: &mut TcpStream) -> Answer {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let answer = Answer::parse(&text);
            let length = answer.field("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
            if body.len() >= length || head.starts_with("HTTP/1.1 1") {
                return answer;
            }
        }
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection closed after {text:?}");
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come true");
        thread::sleep(Duration::from_millis(2));
    }
}
