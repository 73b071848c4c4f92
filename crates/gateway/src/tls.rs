//! TLS on both sides: which certificate we show, whose we believe, and how a new one takes the place of an old one.
//!
//! **Certificates change while we run.** Their files are looked at every [`RELOAD_EVERY`] and when somebody asks ([`State::reload`]).
//! What counts is what is in them, not their time: tools that renew certificates rename, copy and touch. A new set is
//! read whole and checked before it takes the place of the old one in one step; connections that are open keep what they
//! began with. What cannot be used is refused at the start, and said but not taken later: the old one goes on.
//!
//! | a certificate that | at the start | later |
//! |---|---|---|
//! | cannot be read, or is no PEM | `BT0931`, with the file and the reason | the old one stays; a warning, and `reloads_total{outcome="refused"}` |
//! | does not go with its key | the same | the same: tools write two files, one after the other |
//! | has expired, or is not valid yet | the same | the same |
//!
//! **Which one.** The name that the client asks for (SNI) picks it: the exact name, then `*.parent`; of several for one name the first
//! whose key the client can use. A client that names none, or one that nobody has, is shown the first.
//!
//! **Who asks.** With an authority for clients a certificate is wanted. The identity is its SPIFFE name, else its first DNS name, else
//! its common name; it stands in `Client::identity`, and goes on in `X-Forwarded-Client-Cert` in Envoy's form.
//!
//! **First start.** See above. **Recovery.** Tickets of sessions are ours alone and new with each start; they survive a new
//! certificate, but not a new authority for clients, which would let in who was let in before.
//!
//! Source: RFC 8446; RFC 6066, 3 (SNI); RFC 6125 (names); SPIFFE X.509-SVID; Envoy, "x-forwarded-client-cert".

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_core::{Code, Error};
use buttress_resources::route as spec;
use ring::digest::{SHA256, digest};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring as provider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::stream::Stream;

/// How often files of certificates are looked at.
pub const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// Handshakes under way: about 40 KiB each, so 40 MiB at the worst. Whoever comes beyond that is closed.
const HANDSHAKES_MAX: usize = 1024;
/// A file of certificates or a key; the bundle of a whole system has about a quarter of that.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// The first byte of TLS: a record of the handshake.
const HANDSHAKE: u8 = 0x16;
/// Of an identity or a forwarded text; what is longer is left out.
const NAME_MAX: usize = 2048;

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate first, then those between it and the authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Whether a client must have a certificate, where an authority for clients is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    #[default]
    Required,
    /// Who shows none is let in without an identity.
    Optional,
}

/// What a listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// At least one; the first is for clients that ask for no name that we have.
    pub certificates: Vec<Pair>,
    /// Authorities whose word counts for clients.
    pub client_ca: Option<PathBuf>,
    pub client: Wanted,
}

/// How upstreams are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Authorities, and nobody else; without it those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// Shown to an upstream that asks.
    pub identity: Option<Pair>,
    /// The name that the certificate must have; without it the host of the address.
    pub server_name: Option<String>,
}

fn unusable(message: String) -> Error {
    Error::new(Code::CERTIFICATE, message)
}

/// Files that were read, by what is in them.
#[derive(Debug, Default)]
struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Files {
    fn read<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Self, Error> {
        let read = |path: &Path| {
            let wrong = |why: String| {
                unusable(format!("{} cannot be read: {why}", path.display()))
                    .hint("is the path right, and may this process read it?")
            };
            let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
            if size > PEM_BYTES_MAX {
                return Err(wrong(format!("it has {size} bytes, {PEM_BYTES_MAX} are read")));
            }
            Ok((path.to_owned(), fs::read(path).map_err(|error| wrong(error.to_string()))?))
        };
        Ok(Self(paths.map(read).collect::<Result<_, Error>>()?))
    }

    fn of(&self, path: &Path) -> &[u8] {
        self.0.iter().find(|(known, _)| known == path).map_or(&[], |(_, bytes)| bytes)
    }

    /// What tells one content from another; the content holds keys and is not kept.
    fn mark(&self) -> [u8; 32] {
        let mut all = Vec::new();
        for (_, bytes) in &self.0 {
            all.extend_from_slice(digest(&SHA256, bytes).as_ref());
        }
        sha256(&all)
    }

    fn certificates(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.of(path)).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(unusable(format!("{} holds no certificates in PEM", path.display()))
                .hint("a block begins with -----BEGIN CERTIFICATE-----")),
        }
    }

    fn authorities(&self, path: &Path) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        let (used, _) = roots.add_parsable_certificates(self.certificates(path)?);
        if used == 0 {
            let message = format!("no certificate in {} can be used as an authority", path.display());
            return Err(unusable(message).hint("is it an X.509 CA?"));
        }
        Ok(roots)
    }

    /// A chain and its key, checked: they go together, and it is the time of the certificate.
    fn pair(&self, pair: &Pair, now: i64) -> Result<(Arc<CertifiedKey>, Facts), Error> {
        let chain = self.certificates(&pair.certificate)?;
        let facts = facts(&chain[0]).ok_or_else(|| {
            unusable(format!("the first certificate in {} is not X.509", pair.certificate.display()))
                .hint("look at it with openssl x509 -text")
        })?;
        let name = pair.certificate.display();
        if facts.not_after <= now {
            return Err(unusable(format!("the certificate in {name} has expired, at {}", date(facts.not_after)))
                .hint("renew it, or set this machine's clock"));
        }
        if facts.not_before > now {
            return Err(unusable(format!("the certificate in {name} is not valid before {}", date(facts.not_before)))
                .hint("is this machine's clock right?"));
        }
        let wrong = |why: &dyn std::fmt::Display| {
            unusable(format!("the private key in {} cannot be used with {name}: {why}", pair.key.display()))
                .hint("give the certificate's own key, in PEM and without a passphrase")
        };
        let key = PrivateKeyDer::from_pem_slice(self.of(&pair.key)).map_err(|error| wrong(&error))?;
        let key = CertifiedKey::from_der(chain, key, &provider::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(&"it is the key of another certificate"),
            error => wrong(&error),
        })?;
        Ok((Arc::new(key), facts))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// A moment as people write it. Source: Howard Hinnant, "chrono-compatible low-level date algorithms".
fn date(unix: i64) -> String {
    let (days, seconds) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds % 3600 / 60)
}

/// What of a certificate is of use here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub not_before: i64,
    pub not_after: i64,
    pub dns: Vec<String>,
    pub uris: Vec<String>,
    pub common_name: Option<String>,
    /// As RFC 4514 writes it.
    pub subject: String,
}

/// Reads a certificate. `None`: it is none.
pub fn facts(der: &[u8]) -> Option<Facts> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let mut facts = Facts {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        ..Facts::default()
    };
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) if graphic(name) => facts.dns.push((*name).to_owned()),
                GeneralName::URI(uri) if graphic(uri) => facts.uris.push((*uri).to_owned()),
                _ => {}
            }
        }
    }
    let subject = certificate.subject();
    let names: Vec<&str> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    facts.common_name = names.last().filter(|name| graphic(name)).map(|name| (*name).to_owned());
    facts.subject = distinguished(subject);
    Some(facts)
}

/// Printable ASCII without spaces, and not too long: what may stand in a field, and be compared.
fn graphic(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The subject as RFC 4514 writes it: the last part first.
fn distinguished(name: &x509_parser::x509::X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut out = String::new();
    for part in parts.into_iter().rev() {
        for (at, attribute) in part.iter().enumerate() {
            if !out.is_empty() {
                out.push(if at == 0 { ',' } else { '+' });
            }
            let oid = attribute.attr_type();
            match x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry()) {
                Ok(short) => out.push_str(short),
                Err(_) => out.push_str(&oid.to_id_string()),
            }
            out.push('=');
            for byte in attribute.as_slice() {
                match byte {
                    b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' => {
                        out.push('\\');
                        out.push(*byte as char);
                    }
                    0x20..=0x7e => out.push(*byte as char),
                    byte => drop(write!(out, "\\{byte:02X}")),
                }
            }
            if out.len() > NAME_MAX {
                return String::new();
            }
        }
    }
    out
}

/// Whom a client's certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Option<Arc<str>>,
    /// One element of `X-Forwarded-Client-Cert`.
    pub forwarded: Arc<str>,
}

impl Peer {
    /// Of a certificate that was verified; `by`: who we are.
    pub fn of(der: &[u8], by: Option<&str>) -> Self {
        let facts = facts(der).unwrap_or_default();
        let spiffe = facts.uris.iter().find(|uri| uri.starts_with("spiffe://"));
        let identity = spiffe.or(facts.dns.first()).or(facts.common_name.as_ref()).map(|name| Arc::from(name.as_str()));
        let mut forwarded = String::new();
        if let Some(by) = by {
            let _ = write!(forwarded, "By={};", quoted(by));
        }
        forwarded.push_str("Hash=");
        for byte in sha256(der) {
            let _ = write!(forwarded, "{byte:02x}");
        }
        if !facts.subject.is_empty() {
            let escaped = facts.subject.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(forwarded, ";Subject=\"{escaped}\"");
        }
        let uris = facts.uris.iter().map(|uri| ("URI", uri));
        for (key, value) in uris.chain(facts.dns.iter().map(|name| ("DNS", name))) {
            let _ = write!(forwarded, ";{key}={}", quoted(value));
            if forwarded.len() > 2 * NAME_MAX {
                break;
            }
        }
        Self { identity, forwarded: forwarded.into() }
    }
}

/// A value as it must be written where it holds what has a meaning there.
fn quoted(value: &str) -> String {
    if value.contains([',', ';', '=', '"', '\\']) {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        value.to_owned()
    }
}

/// Which certificate is shown to whom.
#[derive(Debug)]
struct Names {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what stands behind `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    all: Vec<Arc<CertifiedKey>>,
}

impl Names {
    fn of(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        self.exact.get(&name).or_else(|| self.wildcard.get(parent)).unwrap_or(&self.all)
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting = hello.server_name().map_or(&self.all[..], |name| self.of(name));
        let usable = fitting.iter().find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some());
        usable.or(fitting.first()).cloned()
    }
}

#[derive(Debug)]
struct LoadedServer {
    config: Arc<ServerConfig>,
    mark: [u8; 32],
    client_ca: [u8; 32],
    tickets: Arc<dyn ProducesTickets>,
    /// Until when each is valid, by its file.
    expiry: Vec<(String, i64)>,
    /// The first SPIFFE name or URI that we have ourselves.
    by: Option<Arc<str>>,
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

impl Server {
    fn files(&self) -> Result<Files, Error> {
        let pairs = self.certificates.iter().flat_map(|pair| [pair.certificate.as_path(), &pair.key]);
        Files::read(pairs.chain(self.client_ca.as_deref()))
    }

    fn load(&self, files: &Files, before: Option<&LoadedServer>) -> Result<LoadedServer, Error> {
        let wrong = |error: rustls::Error| unusable(format!("TLS cannot be used: {error}"));
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        let (mut all, mut expiry, mut by) = (Vec::new(), Vec::new(), None);
        for pair in &self.certificates {
            let (key, facts) = files.pair(pair, unix_now())?;
            expiry.push((pair.certificate.display().to_string(), facts.not_after));
            by = by.or_else(|| facts.uris.first().map(|uri| Arc::from(uri.as_str())));
            // A certificate without other names still has a common one.
            let names = if facts.dns.is_empty() { facts.common_name.into_iter().collect() } else { facts.dns };
            for name in names {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default().push(Arc::clone(&key)),
                    None => exact.entry(name).or_default().push(Arc::clone(&key)),
                }
            }
            all.push(key);
        }
        if all.is_empty() {
            return Err(unusable("a listener with TLS has no certificate".into()).hint("give --tls-cert and --tls-key"));
        }
        let client_ca = self.client_ca.as_ref().map_or([0; 32], |path| sha256(files.of(path)));
        let tickets = match before.filter(|before| before.client_ca == client_ca) {
            Some(before) => before.tickets.clone(),
            None => provider::Ticketer::new().map_err(wrong)?,
        };
        let builder =
            ServerConfig::builder_with_provider(crypto()).with_safe_default_protocol_versions().map_err(wrong)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(files.authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto());
                let verifier = match self.client {
                    Wanted::Required => verifier,
                    Wanted::Optional => verifier.allow_unauthenticated(),
                };
                let wrong = |error| unusable(format!("{} cannot be used for clients: {error}", path.display()));
                builder.with_client_cert_verifier(verifier.build().map_err(wrong)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Names { exact, wildcard, all }));
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        config.ticketer = tickets.clone();
        // Tickets are the client's to keep; nothing is kept here for it.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(LoadedServer { config: Arc::new(config), mark: files.mark(), client_ca, tickets, expiry, by })
    }
}

/// What became of handshakes, in the order of [`OUTCOMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    TimedOut,
    Clear,
    Garbage,
    TurnedAway,
}

const OUTCOMES: [&str; 6] = ["done", "failed", "timed_out", "clear", "garbage", "turned_away"];

/// What became of new certificates of a whole proxy.
#[derive(Debug, Default)]
struct Reloaded {
    done: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Reloads {
    all: Arc<Reloaded>,
    /// What was refused, so that it is said once.
    last: Mutex<Option<[u8; 32]>>,
}

impl Reloads {
    fn refuse(&self, mark: [u8; 32], error: &Error) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.replace(mark) != Some(mark) {
            self.all.refused.fetch_add(1, Relaxed);
            let hint = error.hint.as_deref().unwrap_or_default();
            tracing::warn!(code = error.code.0, hint, "{}; the old certificate stays", error.message);
        }
    }

    fn done(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.all.done.fetch_add(1, Relaxed);
        tracing::info!("certificates were read again");
    }
}

/// Handshakes of a whole proxy: they outlive the listeners that did them.
#[derive(Debug, Default)]
struct Handshakes {
    outcomes: [AtomicU64; OUTCOMES.len()],
    under_way: AtomicUsize,
}

/// The side of clients.
#[derive(Debug)]
pub struct Acceptor {
    told: Server,
    loaded: RwLock<Arc<LoadedServer>>,
    reloads: Reloads,
    handshakes: Arc<Handshakes>,
}

/// What comes of a connection to a port of TLS.
pub enum Accepted {
    Secure {
        stream: Stream,
        http2: bool,
        peer: Option<Peer>,
    },
    /// The client speaks HTTP without TLS.
    Clear(TcpStream),
    /// No handshake came about.
    Nothing,
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Acceptor {
    fn new(told: Server, all: Arc<Reloaded>, handshakes: Arc<Handshakes>) -> Result<Self, Error> {
        let loaded = told.load(&told.files()?, None)?;
        let reloads = Reloads { all, ..Reloads::default() };
        Ok(Self { told, loaded: RwLock::new(Arc::new(loaded)), reloads, handshakes })
    }

    fn loaded(&self) -> Arc<LoadedServer> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self) {
        let (old, read) = (self.loaded(), self.told.files());
        let mark = read.as_ref().map_or([0; 32], Files::mark);
        if mark == old.mark {
            return;
        }
        match read.and_then(|files| self.told.load(&files, Some(&old))) {
            Ok(fresh) => {
                *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                self.reloads.done();
            }
            Err(error) => self.reloads.refuse(mark, &error),
        }
    }

    fn count(&self, outcome: Outcome) {
        self.handshakes.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// Does the handshake, until `due` at most.
    pub async fn accept(&self, tcp: TcpStream, due: Instant) -> Accepted {
        let mut first = [0];
        match tokio::time::timeout_at(due, tcp.peek(&mut first)).await {
            Ok(Ok(1)) => {}
            // Silence and a close: a balancer that looks whether we are there.
            Ok(_) => return Accepted::Nothing,
            Err(_) => {
                self.count(Outcome::TimedOut);
                return Accepted::Nothing;
            }
        }
        if first[0] != HANDSHAKE {
            let clear = first[0].is_ascii_alphabetic();
            self.count(if clear { Outcome::Clear } else { Outcome::Garbage });
            return if clear { Accepted::Clear(tcp) } else { Accepted::Nothing };
        }
        let under_way = self.handshakes.under_way.fetch_add(1, Relaxed);
        let _under_way = UnderWay(&self.handshakes.under_way);
        if under_way >= HANDSHAKES_MAX {
            self.count(Outcome::TurnedAway);
            tracing::warn!(limit = HANDSHAKES_MAX, "too many handshakes of TLS; a connection is closed");
            return Accepted::Nothing;
        }
        let loaded = self.loaded();
        let accepting = TlsAcceptor::from(loaded.config.clone()).accept(tcp);
        let stream = match tokio::time::timeout_at(due, accepting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.count(Outcome::Failed);
                tracing::debug!(%error, "a handshake of TLS failed");
                return Accepted::Nothing;
            }
            Err(_) => {
                self.count(Outcome::TimedOut);
                return Accepted::Nothing;
            }
        };
        self.count(Outcome::Done);
        let session = stream.get_ref().1;
        let http2 = session.alpn_protocol() == Some(HTTP2);
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let peer = certificate.map(|certificate| Peer::of(certificate, loaded.by.as_deref()));
        Accepted::Secure { stream: Stream::Tls(Box::new(TlsStream::Server(stream))), http2, peer }
    }
}

/// The three ways in which an upstream is asked what it speaks.
#[derive(Debug)]
struct LoadedClient {
    either: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    mark: [u8; 32],
    expiry: Option<(String, i64)>,
}

/// What an upstream is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The upstream chooses.
    Either,
    Http1,
    Http2,
}

impl Client {
    fn roots(&self) -> Result<PathBuf, Error> {
        let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
        self.ca.clone().or_else(system).ok_or_else(|| {
            unusable("this machine has no list of authorities that it trusts".into()).hint(
                "install ca-certificates, or name the authority with --upstream-ca, --otlp-ca, or ca in the route",
            )
        })
    }

    fn files(&self) -> Result<Files, Error> {
        let roots = self.roots()?;
        let pair = self.identity.iter().flat_map(|pair| [pair.certificate.as_path(), &pair.key]);
        Files::read([roots.as_path()].into_iter().chain(pair))
    }

    fn load(&self, files: &Files) -> Result<LoadedClient, Error> {
        let wrong = |error: rustls::Error| unusable(format!("TLS cannot be used: {error}"));
        let builder = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(files.authorities(&self.roots()?)?);
        let mut expiry = None;
        let mut either = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let (key, facts) = files.pair(pair, unix_now())?;
                expiry = Some((pair.certificate.display().to_string(), facts.not_after));
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        either.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        let only = |protocol: &[u8]| {
            let mut config = either.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            // A session that was agreed on for one protocol is not resumed for another.
            config.resumption = rustls::client::Resumption::in_memory_sessions(256);
            Arc::new(config)
        };
        let (http1, http2) = (only(HTTP1), only(HTTP2));
        Ok(LoadedClient { either: Arc::new(either), http1, http2, mark: files.mark(), expiry })
    }
}

/// Why an upstream has no TLS with us.
#[derive(Debug)]
pub enum Wrong {
    /// Nothing of a request was sent; a sentence that says what is wrong.
    Tls(String),
    Io(io::Error),
}

/// The side of upstreams.
#[derive(Debug)]
pub struct Connector {
    told: Client,
    loaded: RwLock<Arc<LoadedClient>>,
    reloads: Reloads,
}

impl Connector {
    /// # Errors
    /// `CERTIFICATE`, with the file and what is wrong with it.
    pub fn new(told: Client) -> Result<Self, Error> {
        if let Some(name) = &told.server_name {
            ServerName::try_from(name.as_str()).map_err(|_| {
                Error::new(Code::CONFIG, format!("\"{name}\" is not a name that a certificate can have"))
            })?;
        }
        let loaded = told.load(&told.files()?)?;
        Ok(Self { told, loaded: RwLock::new(Arc::new(loaded)), reloads: Reloads::default() })
    }

    fn loaded(&self) -> Arc<LoadedClient> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self) {
        let (old, read) = (self.loaded(), self.told.files());
        let mark = read.as_ref().map_or([0; 32], Files::mark);
        if mark == old.mark {
            return;
        }
        match read.and_then(|files| self.told.load(&files)) {
            Ok(fresh) => {
                *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                self.reloads.done();
            }
            Err(error) => self.reloads.refuse(mark, &error),
        }
    }

    /// Agrees on TLS with the upstream at `address` (`HOST:PORT`). Tells whether it chose HTTP/2.
    ///
    /// # Errors
    /// Its certificate is not believed, it does not believe ours, or the connection broke.
    pub async fn connect(&self, tcp: TcpStream, address: &str, offer: Offer) -> Result<(Stream, bool), Wrong> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = self.told.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Wrong::Tls(format!("\"{name}\" is not a name that a certificate can have")))?;
        let loaded = self.loaded();
        let config = match offer {
            Offer::Either => &loaded.either,
            Offer::Http1 => &loaded.http1,
            Offer::Http2 => &loaded.http2,
        };
        match TlsConnector::from(config.clone()).connect(name, tcp).await {
            Ok(stream) => {
                let chosen = stream.get_ref().1.alpn_protocol();
                if offer == Offer::Http2 && chosen != Some(HTTP2) {
                    return Err(Wrong::Tls("the upstream does not speak HTTP/2 over TLS (no ALPN h2)".into()));
                }
                let http2 = chosen == Some(HTTP2);
                Ok((Stream::Tls(Box::new(TlsStream::Client(stream))), http2))
            }
            Err(error) => Err(match said(&error) {
                Some(says) => Wrong::Tls(says),
                None => Wrong::Io(error),
            }),
        }
    }
}

/// What TLS has against an upstream, as a sentence; `None` where it is not TLS that failed.
pub fn said(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    use CertificateError as Bad;
    Some(match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is of an authority that is not trusted here; name the right one (--upstream-ca, --otlp-ca, or ca in the route)".into()
        }
        rustls::Error::InvalidCertificate(Bad::ExpiredContext { not_after, .. }) => {
            format!("its certificate has expired, at {}", date(not_after.as_secs() as i64))
        }
        rustls::Error::InvalidCertificate(Bad::Expired) => "its certificate has expired".into(),
        rustls::Error::InvalidCertificate(Bad::NotValidYetContext { not_before, .. }) => {
            format!("its certificate is not valid before {}", date(not_before.as_secs() as i64))
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet) => "its certificate is not valid yet".into(),
        rustls::Error::InvalidCertificate(Bad::NotValidForNameContext { expected, presented }) => {
            // As rustls writes them: `DnsName("a.example")`.
            let names: Vec<&str> = presented
                .iter()
                .map(|name| name.split_once('(').map_or(&name[..], |(_, rest)| rest.trim_end_matches(')')))
                .map(|name| name.trim_matches('"'))
                .collect();
            let expected = expected.to_str();
            format!("its certificate is for {}, and not for {expected}", names.join(", "))
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName) => "its certificate is for another name".into(),
        rustls::Error::InvalidCertificate(other) => format!("its certificate cannot be used: {other:?}"),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of ours: --upstream-cert and --upstream-key".into()
        }
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it speaks none of the protocols that were offered (ALPN)".into()
        }
        rustls::Error::AlertReceived(alert) if of_certificates(*alert) => {
            format!("it does not take our certificate ({alert:?})")
        }
        rustls::Error::AlertReceived(alert) => format!("it refused the handshake ({alert:?})"),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port".into(),
        other => format!("no TLS with it: {other}"),
    })
}

/// Said of a certificate of ours, which a server looks at before anything of a request: it never got one.
fn of_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            // A signature of somebody who calls itself as an authority that it knows.
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}

/// With TLS 1.3 a server looks at our certificate when we believe to be done: its word comes where an answer should be.
pub fn certificate_refused(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = inner else { return None };
    if of_certificates(*alert) { said(error) } else { None }
}

/// TLS of a whole proxy.
#[derive(Debug, Default)]
pub struct State {
    servers: Mutex<Vec<Weak<Acceptor>>>,
    handshakes: Arc<Handshakes>,
    /// Of backends that say nothing themselves.
    usual: Client,
    clients: Mutex<Vec<Weak<Connector>>>,
    reloaded: Arc<Reloaded>,
}

/// Those of a list that somebody still uses.
fn used<T>(list: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
}

impl State {
    pub fn new(usual: Client) -> Self {
        Self { usual, ..Self::default() }
    }

    /// What does the handshakes of a listener. Listeners that are told the same share it.
    ///
    /// # Errors
    /// `CERTIFICATE`, with the file and what is wrong with it.
    pub fn acceptor(&self, told: &Server) -> Result<Arc<Acceptor>, Error> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|known| known.strong_count() > 0);
        if let Some(known) = servers.iter().filter_map(Weak::upgrade).find(|known| known.told == *told) {
            return Ok(known);
        }
        let new = Arc::new(Acceptor::new(told.clone(), self.reloaded.clone(), self.handshakes.clone())?);
        servers.push(Arc::downgrade(&new));
        Ok(new)
    }

    /// What makes TLS to the endpoints of a backend. Backends that are told the same share it; it lives as long as one of
    /// them does.
    ///
    /// # Errors
    /// As [`Connector::new`]; `CONFIG` for a certificate without its key.
    pub fn connector(&self, backend: &spec::Backend) -> Result<Arc<Connector>, Error> {
        let mut told = match &backend.tls {
            None => self.usual.clone(),
            Some(tls) => Client {
                ca: tls.ca.clone().map(PathBuf::from),
                identity: match (&tls.cert, &tls.key) {
                    (Some(cert), Some(key)) => Some(Pair { certificate: cert.into(), key: key.into() }),
                    (None, None) => None,
                    _ => return Err(Error::new(Code::CONFIG, "cert and key go together; one of them is missing")),
                },
                server_name: tls.server_name.clone(),
            },
        };
        if let (None, Some(dns)) = (&told.server_name, &backend.dns) {
            // Its endpoints are addresses, which no certificate names.
            let host = dns.split_once("://").map_or(dns.as_str(), |(_, rest)| rest);
            told.server_name = host.rsplit_once(':').map(|(host, _)| host.to_owned());
        }
        self.client(told)
    }

    /// The same for whoever says everything itself.
    ///
    /// # Errors
    /// As [`Connector::new`].
    pub fn client(&self, told: Client) -> Result<Arc<Connector>, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|known| known.strong_count() > 0);
        if let Some(known) = clients.iter().filter_map(Weak::upgrade).find(|known| known.told == told) {
            return Ok(known);
        }
        let mut new = Connector::new(told)?;
        new.reloads.all = self.reloaded.clone();
        let new = Arc::new(new);
        clients.push(Arc::downgrade(&new));
        Ok(new)
    }

    /// Looks at the files, and takes what is new and good in them. Reads files, so it is not for a thread with traffic.
    pub fn reload(&self) {
        for server in used(&self.servers) {
            server.reload();
        }
        for client in used(&self.clients) {
            client.reload();
        }
    }

    /// Figures in Prometheus' text form.
    pub fn prometheus(&self, out: &mut String) {
        let (servers, clients) = (used(&self.servers), used(&self.clients));
        let handshakes: Vec<u64> = self.handshakes.outcomes.iter().map(|count| count.load(Relaxed)).collect();
        let once = handshakes.iter().any(|count| *count > 0);
        if servers.is_empty() && clients.is_empty() && !once {
            return;
        }
        let _ = writeln!(
            out,
            "# HELP buttress_traffic_certificate_expiry_seconds Unix time at which a certificate ends.\n# TYPE buttress_traffic_certificate_expiry_seconds gauge"
        );
        let server = servers.iter().flat_map(|server| server.loaded().expiry.clone());
        let client = clients.iter().filter_map(|client| client.loaded().expiry.clone());
        let mut ends: Vec<(String, i64)> = server.chain(client).collect();
        ends.sort_unstable();
        // Two listeners may show the same certificate.
        ends.dedup();
        for (file, until) in ends {
            let file = file.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(out, "buttress_traffic_certificate_expiry_seconds{{certificate=\"{file}\"}} {until}");
        }
        let Reloaded { done, refused } = &*self.reloaded;
        let _ = writeln!(
            out,
            "# HELP buttress_traffic_certificate_reloads_total New certificates, taken or refused.\n# TYPE buttress_traffic_certificate_reloads_total counter"
        );
        for (outcome, count) in [("done", done.load(Relaxed)), ("refused", refused.load(Relaxed))] {
            let _ = writeln!(out, "buttress_traffic_certificate_reloads_total{{outcome=\"{outcome}\"}} {count}");
        }
        if !servers.is_empty() || once {
            let _ = writeln!(
                out,
                "# HELP buttress_traffic_handshakes_total Handshakes of TLS with clients, by what came of them.\n# TYPE buttress_traffic_handshakes_total counter"
            );
            for (outcome, count) in OUTCOMES.iter().zip(&handshakes) {
                let _ = writeln!(out, "buttress_traffic_handshakes_total{{outcome=\"{outcome}\"}} {count}");
            }
            let under_way = self.handshakes.under_way.load(Relaxed);
            let _ = writeln!(
                out,
                "# HELP buttress_traffic_handshakes Handshakes of TLS under way.\n# TYPE buttress_traffic_handshakes gauge\nbuttress_traffic_handshakes {under_way}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_whose_it_is_and_nothing_in_it_gets_out_of_its_quotes() {
        let der = include_bytes!("../testdata/client.der");
        let facts = facts(der).unwrap();
        assert_eq!(facts.dns, ["*.orders.example"]);
        assert_eq!(
            facts.subject, "CN=client x,O=a\\, \\\"b\\\"\\; c,C=CH",
            "as openssl writes it with -nameopt RFC2253"
        );
        assert_eq!(facts.not_after - facts.not_before, 3650 * 86_400);
        assert_eq!(facts.common_name, None, "a name with a blank is no identity");
        let peer = Peer::of(der, Some("a,b"));
        assert_eq!(peer.identity.as_deref(), Some("spiffe://example.org/orders"));
        let (begin, rest) = peer.forwarded.split_once(";Hash=").unwrap();
        assert_eq!(begin, "By=\"a,b\"");
        let subject =
            r#";Subject="CN=client x,O=a\\, \\\"b\\\"\\; c,C=CH";URI=spiffe://example.org/orders;DNS=*.orders.example"#;
        assert_eq!(&rest[64..], subject);
        assert_eq!(Peer::of(b"no certificate", None).identity, None);
    }

    #[test]
    fn moments_are_written_as_people_write_them() {
        for (unix, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_827_696, "2000-02-29 12:34 UTC"),
            (1_609_459_200, "2021-01-01 00:00 UTC"),
            (4_102_444_800, "2100-01-01 00:00 UTC"),
            (-1, "1969-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(unix), text);
        }
    }
}
