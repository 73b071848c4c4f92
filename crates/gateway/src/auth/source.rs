//! Where keys come from: files, addresses and issuers, read again while requests run.
//!
//! A request only ever loads a pointer. Reading happens when routes are loaded (files, so that a mistake is refused with its
//! line) and on one thread of its own after that. What cannot be read or does not make sense changes nothing: the last good
//! content stays, a warning is logged once for each new reason, and a figure says so.
//!
//! | | read again |
//! |---|---|
//! | a file | every 2 s, by its bytes: times of change are too coarse, and links are swapped |
//! | an address | every 5 min; after a failure in 1 s, then later and later, up to 30 s |
//! | an address, for a token whose key is not known | at once, but not within 10 s of the last time: anybody can send such tokens |
//!
//! An issuer is asked where its keys are each time (OpenID Connect Discovery 1.0, section 4), so that it may move them. Its answer
//! must name it as the route does, and an issuer within TLS cannot send us to keys without.
//!
//! Routes that name the same place share what was read. The thread begins with the first of them; nobody asks it to end, it
//! does when the last table that could need it is gone.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, watch},
};

use super::{jwks::KeySet, keys::KeyFile, keys::sha256};
use crate::{
    stream::Stream,
    tls::{self, Connector, Offer, Wrong},
};

/// Of what an issuer says about itself; the largest known are a tenth of it.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// What is read.
pub trait Content: Sized + Send + Sync + 'static {
    /// Larger ones are refused before they are held whole.
    const BYTES_MAX: usize;
    const WHAT: &'static str;

    /// # Errors
    /// What is wrong with it, without a word of it: it may be secret.
    fn read(bytes: &[u8]) -> Result<Self, String>;

    /// How many keys it holds.
    fn count(&self) -> usize;
}

/// What is asked with GET.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// `HOST:PORT`.
    address: Box<str>,
    /// As in the request.
    host: Box<str>,
    path: Box<str>,
    /// Within TLS; inside, a file of authorities.
    tls: Option<Option<Box<str>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    File(Box<str>),
    Http(Address),
    Issuer {
        /// As its tokens and its own document write it.
        name: Box<str>,
        document: Address,
    },
}

impl Address {
    /// With `http://` or `https://`; for the latter perhaps a file of authorities in place of those that this machine trusts.
    fn parse(text: &str, ca: Option<&str>) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err("is no http:// or https:// address".into()),
        };
        let (host, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let visible = |text: &str| text.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b'#');
        if host.is_empty() || !crate::parse::authority_ok(host.as_bytes()) || !visible(path) {
            return Err("is no address: http://HOST[:PORT]/PATH, without a user".into());
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port { host.to_owned() } else { format!("{host}:{}", if tls { 443 } else { 80 }) };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let tls = tls.then(|| ca.map(Into::into));
        Ok(Self { address: address.into(), host: host.into(), path: path.into(), tls })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, path, tls, .. } = self;
        write!(f, "http{}://{host}{path}", if tls.is_some() { "s" } else { "" })
    }
}

impl Origin {
    /// A path, or an address with `http://` or `https://`; for the latter perhaps a file of authorities in place of those that
    /// this machine trusts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, ca: Option<&str>) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty".into());
        }
        match text.split_once("://") {
            None => Ok(Self::File(text.into())),
            Some(("http" | "https", _)) => Address::parse(text, ca).map(Self::Http),
            Some((scheme, _)) => Err(format!(
                "begins with \"{scheme}\", which is not known; give a file, or an http:// or https:// address"
            )),
        }
    }

    /// An issuer that says itself where its keys are.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn issuer(name: &str, ca: Option<&str>) -> Result<Self, String> {
        if name.contains(['?', '#']) {
            return Err("has a query or a fragment, which the name of an issuer has not".into());
        }
        let document = Address::parse(&format!("{}/.well-known/openid-configuration", name.trim_end_matches('/')), ca)?;
        Ok(Self::Issuer { name: name.into(), document })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Http(address) | Self::Issuer { document: address, .. } => address.fmt(f),
        }
    }
}

/// Where the keys of an issuer are, by its own document.
///
/// # Errors
/// What is wrong with the document, without a word of it.
pub fn jwks_uri(document: &[u8], issuer: &str) -> Result<String, String> {
    let said: serde_json::Value =
        serde_json::from_slice(document).map_err(|error| format!("is not JSON, from line {} on", error.line()))?;
    let text = |name: &str| said.get(name).and_then(serde_json::Value::as_str);
    match text("issuer") {
        // Section 4.3: exactly, or somebody else's keys would count for this issuer.
        Some(named) if named == issuer => {}
        Some(_) => return Err("is of another issuer than the route names (issuer)".into()),
        None => return Err("names no issuer, so it is no discovery document".into()),
    }
    text("jwks_uri").map(str::to_owned).ok_or_else(|| "says no place of keys (jwks_uri)".into())
}

/// When what is read again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub file: Duration,
    pub http: Duration,
    /// After the first failure; twice as long after the next, up to the largest.
    pub failed: Duration,
    pub failed_max: Duration,
    /// Not again for a key that is not known.
    pub unknown_key: Duration,
    /// A whole answer of an address.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            file: Duration::from_secs(2),
            http: Duration::from_secs(300),
            failed: Duration::from_secs(1),
            failed_max: Duration::from_secs(30),
            unknown_key: Duration::from_secs(10),
            patience: Duration::from_secs(5),
        }
    }
}

/// What was read well, last.
pub struct Loaded<T> {
    /// Of this source; rises when the content is another one.
    pub generation: u64,
    pub content: T,
    digest: [u8; 32],
}

#[derive(Default)]
struct State {
    reading: bool,
    /// When the last reading was over, well or not.
    over: Option<Instant>,
    well: Option<Instant>,
    /// Why the last one failed.
    problem: Option<String>,
    failures: u32,
}

pub struct Source<T> {
    pub origin: Origin,
    pace: Pace,
    loaded: ArcSwapOption<Loaded<T>>,
    state: Mutex<State>,
    /// Readings that are over.
    over: watch::Sender<u64>,
    wanted: Arc<Notify>,
}

/// A reading that is under way, for whoever wants to know what it brings.
#[derive(Debug)]
pub struct Fresher(watch::Receiver<u64>);

impl Fresher {
    /// Returns when it is over, or when nobody reads any more.
    pub async fn over(&mut self) {
        let _ = self.0.changed().await;
    }
}

/// How a source stands.
#[derive(Clone, Debug)]
pub struct Health {
    pub origin: String,
    pub keys: Option<usize>,
    pub problem: Option<String>,
    /// Since the last reading that was good.
    pub age: Option<Duration>,
}

impl<T: Content> Source<T> {
    fn new(origin: Origin, pace: Pace) -> Self {
        let (over, _) = watch::channel(0);
        let (loaded, state, wanted) = (ArcSwapOption::empty(), Mutex::default(), Arc::default());
        Self { origin, pace, loaded, state, over, wanted }
    }

    /// What is known now; nothing before the first reading that was good.
    pub fn loaded(&self) -> arc_swap::Guard<Option<Arc<Loaded<T>>>> {
        self.loaded.load()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn health(&self) -> Health {
        let state = self.state();
        Health {
            origin: self.origin.to_string(),
            keys: self.loaded().as_ref().map(|loaded| loaded.content.count()),
            problem: state.problem.clone(),
            age: state.well.map(|at| at.elapsed()),
        }
    }

    /// Asks for what is newer than this, which was not enough. None where that was looked at a moment ago.
    pub fn fresher(&self, than: u64) -> Option<Fresher> {
        let mut state = self.state();
        let newer = self.loaded().as_ref().is_some_and(|loaded| loaded.generation > than);
        let receiver = self.over.subscribe();
        if newer {
            // It came while the request was looked at: no need to wait.
            let mut receiver = receiver;
            receiver.mark_changed();
            return Some(Fresher(receiver));
        }
        if !state.reading {
            if state.over.is_some_and(|over| over.elapsed() < self.pace.unknown_key) {
                return None;
            }
            // Set here, so that of many requests at once one asks.
            state.reading = true;
            self.wanted.notify_one();
        }
        Some(Fresher(receiver))
    }

    /// Takes up what was read.
    fn take(&self, read: Result<Vec<u8>, String>) -> Result<(), String> {
        let made = read.and_then(|bytes| {
            let (digest, old) = (sha256(&bytes), self.loaded.load());
            if old.as_ref().is_some_and(|old| old.digest == digest) {
                return Ok(None);
            }
            let generation = old.as_ref().map_or(1, |old| old.generation + 1);
            T::read(&bytes).map(|content| Some(Arc::new(Loaded { generation, content, digest })))
        });
        let mut state = self.state();
        let result = match made {
            Ok(new) => {
                if let Some(new) = new {
                    tracing::info!(origin = %self.origin, what = T::WHAT, keys = new.content.count(), "keys were read");
                    self.loaded.store(Some(new));
                }
                (state.problem, state.failures, state.well) = (None, 0, Some(Instant::now()));
                Ok(())
            }
            Err(problem) => {
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(origin = %self.origin, what = T::WHAT, problem, "keys cannot be read; the last good ones stay");
                }
                state.problem = Some(problem.clone());
                state.failures = state.failures.saturating_add(1);
                Err(problem)
            }
        };
        (state.reading, state.over) = (false, Some(Instant::now()));
        self.over.send_modify(|count| *count += 1);
        result
    }

    async fn refresh(&self) {
        self.state().reading = true;
        let read = match &self.origin {
            Origin::File(path) => {
                let path = path.to_string();
                // On a thread for blocking: a file may lie on a disk that hangs.
                let reading = tokio::task::spawn_blocking(move || read_file(&path, T::BYTES_MAX));
                reading.await.unwrap_or_else(|_| Err("the reading broke off".into()))
            }
            Origin::Http(address) => self.patiently(fetch(address, T::BYTES_MAX)).await,
            Origin::Issuer { name, document } => self.patiently(discover(name, document, T::BYTES_MAX)).await,
        };
        let _ = self.take(read);
    }

    async fn patiently(&self, fetched: impl Future<Output = Result<Vec<u8>, String>>) -> Result<Vec<u8>, String> {
        let fetched = tokio::time::timeout(self.pace.patience, fetched);
        fetched.await.unwrap_or_else(|_| Err(format!("did not answer within {:?}", self.pace.patience)))
    }

    fn pause(&self) -> Duration {
        let state = self.state();
        match (&self.origin, state.failures, state.over) {
            (Origin::File(_), ..) => self.pace.file,
            (_, 0, None) => Duration::ZERO,
            (_, 0, _) => self.pace.http,
            (_, failures, _) => {
                let doubled = self.pace.failed * 2u32.saturating_pow((failures - 1).min(16));
                doubled.min(self.pace.failed_max)
            }
        }
    }
}

impl<T> Drop for Source<T> {
    fn drop(&mut self) {
        // Whoever follows it looks, sees that it is gone, and ends.
        self.wanted.notify_one();
    }
}

async fn follow<T: Content>(source: Weak<Source<T>>) {
    loop {
        let Some((pause, wanted)) = source.upgrade().map(|source| (source.pause(), source.wanted.clone())) else {
            return;
        };
        let _ = tokio::time::timeout(pause, wanted.notified()).await;
        let Some(source) = source.upgrade() else { return };
        source.refresh().await;
    }
}

fn read_file(path: &str, bytes_max: usize) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    // A pipe or a device could keep a reader forever.
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Err("is not a file".into());
    }
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > bytes_max {
        return Err(format!("is larger than {bytes_max} bytes"));
    }
    Ok(bytes)
}

/// The keys of an issuer, from where it says that they are.
async fn discover(issuer: &str, document: &Address, bytes_max: usize) -> Result<Vec<u8>, String> {
    let said = fetch(document, DOCUMENT_BYTES_MAX).await?;
    let uri = jwks_uri(&said, issuer)?;
    let ca = document.tls.as_ref().and_then(Option::as_deref);
    let keys = Address::parse(&uri, ca).map_err(|says| format!("names a place of keys that {says} (jwks_uri)"))?;
    if document.tls.is_some() && keys.tls.is_none() {
        return Err("names keys at http://, though the issuer is at https:// (jwks_uri)".into());
    }
    fetch(&keys, bytes_max).await.map_err(|says| format!("names keys at {keys}, which {says}"))
}

/// One GET on a connection of its own. Redirections are not followed: the address is the one that a human has trusted.
async fn fetch(from: &Address, bytes_max: usize) -> Result<Vec<u8>, String> {
    let Address { address, host, path, tls } = from;
    let stream = TcpStream::connect(&**address).await.map_err(|error| format!("cannot be reached: {error}"))?;
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(ca) => {
            let told = tls::Client { ca: ca.as_deref().map(Into::into), ..tls::Client::default() };
            let connector = Connector::new(told).map_err(|error| error.message)?;
            let agreed = connector.connect(stream, address, Offer::Http1).await.map_err(|wrong| match wrong {
                Wrong::Tls(says) => says,
                Wrong::Io(error) => format!("broke off: {error}"),
            })?;
            agreed.0
        }
    };
    let mut http = hyper::client::conn::http1::Builder::new();
    let broke = |error: hyper::Error| format!("broke off: {error}");
    let (mut sender, connection) = http.max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let request = http::Request::get(&**path)
        .header("host", &**host)
        .header("accept", "application/jwk-set+json, application/json")
        .header("user-agent", "buttress")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        if response.status() != 200 {
            return Err(format!("answered {}", response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broke(*error),
            Err(_) => format!("answered more than {bytes_max} bytes"),
        })?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        done = &mut exchange => return done,
        _ = &mut connection => {}
    }
    // The connection has ended; what it brought is in the exchange, or an error is.
    exchange.await
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All sources of a table, shared with the next one.
pub struct Sources {
    pace: Pace,
    keys: Mutex<HashMap<Origin, Weak<Source<KeyFile>>>>,
    jwks: Mutex<HashMap<Origin, Weak<Source<KeySet>>>>,
    /// Sources that nobody follows yet.
    new: Mutex<Vec<Task>>,
    thread: OnceLock<mpsc::UnboundedSender<Task>>,
}

impl Default for Sources {
    fn default() -> Self {
        Self::new(Pace::default())
    }
}

static THREADS: AtomicU64 = AtomicU64::new(0);

impl Sources {
    pub fn new(pace: Pace) -> Self {
        let (keys, jwks, new, thread) = (Mutex::default(), Mutex::default(), Mutex::default(), OnceLock::new());
        Self { pace, keys, jwks, new, thread }
    }

    /// # Errors
    /// Why the file cannot be taken as it is.
    pub fn keys(&self, path: &str) -> Result<Arc<Source<KeyFile>>, String> {
        self.of(&self.keys, Origin::File(path.into()))
    }

    /// # Errors
    /// Why the file cannot be taken as it is. An address is read later.
    pub fn jwks(&self, origin: Origin) -> Result<Arc<Source<KeySet>>, String> {
        self.of(&self.jwks, origin)
    }

    fn of<T: Content>(
        &self,
        known: &Mutex<HashMap<Origin, Weak<Source<T>>>>,
        origin: Origin,
    ) -> Result<Arc<Source<T>>, String> {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = known.get(&origin).and_then(Weak::upgrade) {
            return Ok(source);
        }
        let source = Arc::new(Source::<T>::new(origin.clone(), self.pace));
        if let Origin::File(path) = &origin {
            source.take(read_file(path, T::BYTES_MAX))?;
        }
        known.retain(|_, source| source.strong_count() > 0);
        known.insert(origin, Arc::downgrade(&source));
        let task = Box::pin(follow(Arc::downgrade(&source)));
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        Ok(source)
    }

    /// Follows what nobody follows yet.
    pub fn follow(&self) {
        let new = std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner));
        if new.is_empty() {
            return;
        }
        let thread = self.thread.get_or_init(|| {
            let (tasks, mut come) = mpsc::unbounded_channel::<Task>();
            let name = format!("keys-{}", THREADS.fetch_add(1, Relaxed));
            let spawned = std::thread::Builder::new().name(name).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(async {
                        while let Some(task) = come.recv().await {
                            tokio::spawn(task);
                        }
                    }),
                    Err(error) => tracing::error!(%error, "a runtime for reading keys cannot be made"),
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "a thread for reading keys cannot be started");
            }
            tasks
        });
        for task in new {
            // Where the thread could not be made, that was said; files stay as they were read, addresses answer 503.
            let _ = thread.send(task);
        }
    }

    /// How all of them stand, by origin.
    pub fn health(&self) -> Vec<(&'static str, Health)> {
        fn of<T: Content>(known: &Mutex<HashMap<Origin, Weak<Source<T>>>>) -> Vec<(&'static str, Health)> {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.values().filter_map(Weak::upgrade).map(|source| (T::WHAT, source.health())).collect()
        }
        let mut all = of(&self.keys);
        all.append(&mut of(&self.jwks));
        all.sort_by(|(_, one), (_, other)| one.origin.cmp(&other.origin));
        all
    }
}
