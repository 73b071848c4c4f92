//! How a connection to the user's engines is made safe: TLS, and who we say that we are.
//!
//! A server is believed only with a certificate of an authority that was named, for the host that was asked for; there is no
//! switch that turns this off. A password is read from a file or from the environment each time that it is shown to a server,
//! so one that was changed is found without a restart, and certificates are looked at again every minute for the same reason.
//! A password goes over a connection without TLS only to this machine, or where that was asked for by name.
//!
//! What cannot get better by waiting is not tried again: a certificate that is not trusted or has expired (`BT0706`), a user or
//! password that is refused (`BT0707`), a right that is missing (`BT0708`).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use buttress_core::{Code, Error};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::patience::lock;

/// A file of certificates or a key; the bundle of a whole system has about a quarter of that.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Passwords are short; this is what a server takes at most.
const PASSWORD_BYTES_MAX: u64 = 4096;
/// How long certificates are used before their files are looked at again.
const RELOAD_AFTER: Duration = Duration::from_secs(60);
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For whoever sends it; never for a log.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    Given(Secret),
    /// In an environment variable.
    Env(String),
    /// In a file; a line break at its end does not count.
    File(PathBuf),
}

/// Who we say that we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub password: Password,
}

impl User {
    /// Reads the password from where it is.
    ///
    /// # Errors
    /// `CONFIG` where it is not there.
    pub fn password(&self) -> Result<Secret, Error> {
        let config = |message: String, hint: &str| Error::new(Code::CONFIG, message).hint(hint);
        match &self.password {
            Password::Given(secret) => Ok(secret.clone()),
            Password::Env(name) => std::env::var(name).map(Secret).map_err(|_| {
                let message =
                    format!("the password of '{}' is to be in the environment as {name}, which is not set", self.name);
                config(message, "set it, or name a file with password-file=PATH")
            }),
            Password::File(path) => {
                let text = read(path, PASSWORD_BYTES_MAX, "a password")?;
                let text = String::from_utf8(text).map_err(|_| {
                    config(format!("the password in {} is no UTF-8", path.display()), "write it as text")
                })?;
                Ok(Secret(text.strip_suffix('\n').map_or(&text[..], |t| t.strip_suffix('\r').unwrap_or(t)).to_owned()))
            }
        }
    }
}

/// Whose word counts for a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that this machine trusts.
    System,
    /// Those in a PEM file, and nobody else.
    File(PathBuf),
}

/// A certificate of our own, which a server may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// TLS 1.2 or 1.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub roots: Roots,
    pub identity: Option<Identity>,
}

fn read(path: &Path, bytes_max: u64, what: &str) -> Result<Vec<u8>, Error> {
    let unreadable = |why: String| {
        Error::new(Code::CONFIG, format!("{what} cannot be read from {}: {why}", path.display()))
            .hint("is the path right, and may this process read it?")
    };
    let size = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > bytes_max {
        return Err(unreadable(format!("it has {size} bytes, {bytes_max} are read")));
    }
    fs::read(path).map_err(|error| unreadable(error.to_string()))
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path, PEM_BYTES_MAX, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::new(Code::CONFIG, format!("{} holds no certificates in PEM", path.display()))
            .hint("a block begins with -----BEGIN CERTIFICATE-----")),
    }
}

impl Tls {
    /// # Errors
    /// `CONFIG` for files that cannot be used.
    fn load(&self, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
        let config = |message: String| Error::new(Code::CONFIG, message);
        let path = match &self.roots {
            Roots::File(path) => path.clone(),
            Roots::System => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
                config("this machine has no list of authorities that it trusts".into())
                    .hint("install ca-certificates, or name the authority with tls=ca.pem")
            })?,
        };
        let mut roots = RootCertStore::empty();
        let (used, _) = roots.add_parsable_certificates(certificates(&path, "the authorities")?);
        if used == 0 {
            return Err(config(format!("no certificate in {} can be used", path.display())).hint("is it an X.509 CA?"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config(format!("TLS cannot be used: {error}")))?
            .with_root_certificates(roots);
        let mut made = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = certificates(certificate, "the certificate")?;
                let unusable = |why: String| {
                    config(format!("the private key in {} cannot be used: {why}", key.display()))
                        .hint("give the certificate's own key, in PEM and without a passphrase")
                };
                let pem = read(key, PEM_BYTES_MAX, "the private key")?;
                let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(error.to_string()))?
            }
        };
        made.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(made)
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub enum Dial {
    /// Worth another try.
    Unreachable(String),
    /// It cannot get better by waiting.
    Refused(Error),
}

/// Makes connections, with or without TLS.
#[derive(Debug)]
pub struct Connector {
    tls: Option<Tls>,
    alpn: &'static [&'static [u8]],
    loaded: Mutex<Option<(Instant, Arc<ClientConfig>)>>,
}

impl Connector {
    /// `alpn`: what is spoken within TLS, where the server wants to know.
    ///
    /// # Errors
    /// `CONFIG` for files that cannot be used.
    pub fn new(tls: Option<Tls>, alpn: &'static [&'static [u8]]) -> Result<Self, Error> {
        let made = Self { tls, alpn, loaded: Mutex::default() };
        if let Some(tls) = &made.tls {
            *lock(&made.loaded) = Some((Instant::now(), Arc::new(tls.load(alpn)?)));
        }
        Ok(made)
    }

    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    fn config(&self) -> Option<Arc<ClientConfig>> {
        let tls = self.tls.as_ref()?;
        let mut loaded = lock(&self.loaded);
        let (at, config) = loaded.clone()?;
        if at.elapsed() < RELOAD_AFTER {
            return Some(config);
        }
        // Files that are just being replaced may be torn: what was good goes on until they are whole.
        let config = match tls.load(self.alpn) {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => {
                tracing::warn!(plane = "bridge", code = error.code.0, %error, "certificates cannot be read again");
                config
            }
        };
        *loaded = Some((Instant::now(), config.clone()));
        Some(config)
    }

    /// Connects to `HOST:PORT`, and agrees on TLS where that is asked for.
    ///
    /// # Errors
    /// Nobody is there, or `TLS`.
    pub async fn connect(&self, address: &str, within: Duration) -> Result<Wire, Dial> {
        let late = |_| Dial::Unreachable(format!("{address}: no connection in {within:?}"));
        let fault = |error: io::Error| match tls_error(address, &error) {
            Some(error) => Dial::Refused(error),
            None => Dial::Unreachable(format!("{address}: {error}")),
        };
        let stream = timeout(within, TcpStream::connect(address)).await.map_err(late)?.map_err(fault)?;
        let _ = stream.set_nodelay(true);
        let Some(config) = self.config() else { return Ok(Wire::Plain(stream)) };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| {
            Dial::Refused(Error::new(Code::CONFIG, format!("'{host}' is not a name that a certificate can have")))
        })?;
        let agreed = timeout(within, TlsConnector::from(config).connect(name, stream)).await;
        Ok(Wire::Tls(Box::new(agreed.map_err(late)?.map_err(fault)?), Trouble::default()))
    }
}

/// Whether an address is this machine's, so that what is sent there does not leave it.
pub(crate) fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A password does not go over a connection that anybody can read, unless somebody wants that by name.
///
/// # Errors
/// `CONFIG`.
pub fn check_cleartext(address: &str, secure: bool, allowed: bool) -> Result<(), Error> {
    if secure || allowed || is_local(address) {
        return Ok(());
    }
    let error = Error::new(Code::CONFIG, format!("the password would go to {address} for anybody to read"));
    Err(error.hint("add tls=ca.pem (or tls=system); cleartext=yes sends it all the same"))
}

/// What rustls says, if that is what went wrong, wherever it lies in the error.
pub(crate) fn tls_error(address: &str, error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return explain(address, found);
        }
        // An error of the system gives what is in it, but not as its source.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = inner.downcast_ref::<rustls::Error>()
        {
            return explain(address, found);
        }
        next = error.source();
    }
    None
}

fn explain(address: &str, error: &rustls::Error) -> Option<Error> {
    use CertificateError as Bad;
    let hint = match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "the server's certificate is of another authority: name the right one with tls=ca.pem"
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the server's certificate has expired: renew it there, or set this machine's clock"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "the server's certificate is not valid yet: is this machine's clock right?"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the server's certificate is for another name: use a name that it has, or have one made for this address"
        }
        rustls::Error::InvalidCertificate(_) => {
            "the server's certificate cannot be used: look at it with openssl x509 -text"
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server wants a certificate of ours: cert=client.pem&key=client.key"
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "our own certificate has expired: renew it"
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => "the server does not take our certificate, or wants one: is it of the authority that the server trusts?",
        // The other side gives up for reasons of its own; another try may do.
        rustls::Error::AlertReceived(
            AlertDescription::InternalError | AlertDescription::UserCanceled | AlertDescription::CloseNotify,
        ) => {
            return None;
        }
        rustls::Error::InvalidMessage(_) => "does this port speak TLS at all?",
        _ => "do both sides have TLS 1.2 or 1.3 in common?",
    };
    Some(Error::new(Code::TLS, format!("no TLS with {address}: {error}")).hint(hint))
}

/// What TLS has said of a connection. With 1.3 a server looks at our certificate after the handshake, and what is spoken
/// within (HTTP/2, say) tells of its own end only.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<rustls::Error>>>);

impl Trouble {
    /// Why the connection is refused for good, if it is.
    pub fn explain(&self, address: &str) -> Option<Error> {
        lock(&self.0).as_ref().and_then(|error| explain(address, error))
    }

    fn note(&self, error: &io::Error) {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            lock(&self.0).get_or_insert_with(|| error.clone());
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Trouble),
}

impl Wire {
    /// What TLS will have said, for whoever hands the connection on.
    pub fn trouble(&self) -> Trouble {
        match self {
            Wire::Plain(_) => Trouble::default(),
            Wire::Tls(_, trouble) => trouble.clone(),
        }
    }

    /// What is to be said of an error in writing: whoever hangs up has often said why just before, and nobody has read it yet.
    fn heard(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let Wire::Tls(stream, trouble) = self else { return error };
        let mut byte = [0];
        match Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(said)) if said.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                trouble.note(&said);
                said
            }
            _ => error,
        }
    }

    /// A connection that was idle is of use if nothing has come on it, not even its end.
    pub(crate) fn is_quiet(&self) -> bool {
        let stream = match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream, _) => stream.get_ref().0,
        };
        let mut byte = [0];
        matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Tls(stream, trouble) => {
                let read = Pin::new(stream).poll_read(cx, buf);
                if let Poll::Ready(Err(error)) = &read {
                    trouble.note(error);
                }
                read
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let written = match wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        };
        written.map_err(|error| wire.heard(cx, error))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let flushed = match wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        };
        flushed.map_err(|error| wire.heard(cx, error))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
