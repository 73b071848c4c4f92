//! TLS on both sides: who is shown which certificate, whose is believed, what is said where none is, and new ones while it runs.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
};

use buttress_core::Code;
use buttress_gateway::{
    compile::everything,
    config::Options,
    run::start,
    tls::{Client, Pair, Server, Wanted},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;

use crate::support::{Answer, PATIENCE, Proxy, Upstream, read_answer, tls_of, until};

/// An authority, and the directory in which what it signs lies.
pub struct Authority {
    pub dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Default)]
struct Says<'a> {
    common: &'a str,
    dns: &'a [&'a str],
    uris: &'a [&'a str],
    expired: bool,
}

impl Authority {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn signs(&self, file: &str, says: &Says<'_>) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = says.dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, says.common);
        for uri in says.uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        if says.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let pair = Pair { certificate: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) };
        fs::write(&pair.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    pub fn named(&self, file: &str, dns: &[&str]) -> Pair {
        self.signs(file, &Says { common: file, dns, ..Says::default() })
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(self.path("ca.pem")).unwrap() {
            roots.add(root.unwrap()).unwrap();
        }
        roots
    }

    /// A client that believes this authority, and shows `pair` when asked.
    pub fn client(&self, pair: Option<&Pair>, alpn: &[&str]) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let (chain, key) = loaded(pair);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

fn loaded(pair: &Pair) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(&pair.certificate).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(&pair.key).unwrap())
}

pub fn server(pairs: &[&Pair]) -> Server {
    Server {
        certificates: pairs.iter().map(|pair| (*pair).clone()).collect(),
        client_ca: None,
        client: Wanted::Required,
    }
}

type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A handshake for `name`.
pub fn dial(address: SocketAddr, config: ClientConfig, name: &str) -> std::io::Result<Secure> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(session, tcp))
}

pub fn ask(stream: &mut Secure, request: &str) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(Answer::parse(&String::from_utf8_lossy(&answer)))
}

pub fn shown(stream: &Secure) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn first(pair: &Pair) -> Vec<u8> {
    loaded(pair).0[0].to_vec()
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

#[test]
fn a_client_speaks_tls_and_the_upstream_hears_of_it() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("hello"));
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let mut stream = dial(proxy.address, authority.client(None, &["http/1.1"]), "a.example").unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let kept = "GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n";
    stream.write_all(kept.as_bytes()).unwrap();
    let mut begin = [0; 15];
    stream.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    let answer = ask(&mut stream, GET).unwrap();
    assert!(
        answer.body.ends_with("hello"),
        "the end of the connection is told, so reading to it is no error: {answer:?}"
    );
    assert!(upstream.requests()[0].contains("x-forwarded-proto: https\r\n"), "{:?}", upstream.requests());
    let mut metrics = String::new();
    proxy.shared().prometheus(&mut metrics);
    assert!(metrics.contains("buttress_traffic_handshakes_total{outcome=\"done\"} 1\n"), "{metrics}");
    assert!(metrics.contains("buttress_traffic_certificate_expiry_seconds{certificate=\""), "{metrics}");
}

#[test]
fn an_answer_that_broke_off_does_not_end_as_one_that_is_whole() {
    let authority = Authority::new();
    let pair = authority.named("a", &["a.example"]);
    let upstream = Upstream::new(|_, connection| {
        let (head, _) = connection.read_request().unwrap();
        connection.write(b"HTTP/1.1 200 OK\r\n\r\nsome of it");
        if head.starts_with("GET /broken") {
            // The client has what came before, so that it is the end which tells.
            let _ = connection.stream.read(&mut [0; 1]);
            rustix::net::sockopt::set_socket_linger(&connection.stream, Some(std::time::Duration::ZERO)).unwrap();
        }
    });
    let proxy = Proxy::with(&[upstream.address], |options| {
        *tls_of(options) = Some(server(&[&pair]));
        options.timeouts.silence = std::time::Duration::from_millis(300);
    });
    // Of HTTP/1.0, where the end of the connection is the end of the answer.
    for (path, whole) in [("/whole", true), ("/broken", false)] {
        let mut stream = dial(proxy.address, authority.client(None, &["http/1.1"]), "a.example").unwrap();
        let answer = ask(&mut stream, &format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.is_ok(), whole, "{answer:?}");
    }
}

#[test]
fn the_name_that_is_asked_for_picks_the_certificate() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let (a, wild) = (authority.named("a", &["a.example", "b.example"]), authority.named("w", &["*.c.example"]));
    let exact = authority.named("x", &["x.c.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&a, &wild, &exact])));
    let seen = |name: &str| dial(proxy.address, authority.client(None, &[]), name).map(|stream| shown(&stream));
    assert_eq!(seen("b.example").unwrap(), first(&a));
    assert_eq!(seen("Y.C.example").unwrap(), first(&wild));
    assert_eq!(seen("x.c.example").unwrap(), first(&exact), "the exact name comes before the wildcard");
    assert!(seen("c.example").is_err(), "a wildcard is for one label and no less");
    assert!(seen("z.y.c.example").is_err(), "and no more");
}

#[test]
fn both_versions_of_tls_that_are_safe_are_spoken() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        let mut stream = dial(proxy.address, config, "a.example").unwrap();
        assert_eq!(ask(&mut stream, GET).unwrap().status, 200);
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
    }
}

#[test]
fn clear_http_on_the_port_gets_an_answer_that_helps_and_garbage_gets_none() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((answer.status, answer.field("buttress-code")), (400, Some("bt0932")), "{answer:?}");
    assert!(answer.body.contains("https://"), "{answer:?}");
    assert_eq!(proxy.exchange(&[0, 1, 2, 3, 4, 5]), "");
    // A record of a handshake, and then nothing that is one: at most an alert comes back.
    let mut garbage = vec![0x16, 3, 1, 0, 32];
    garbage.extend([0xff; 32]);
    assert!(proxy.exchange(&garbage).len() <= 7);
    assert_eq!(upstream.requests().len(), 0);
    for outcome in ["clear", "garbage", "failed"] {
        until("it is counted", || {
            let mut metrics = String::new();
            proxy.shared().prometheus(&mut metrics);
            metrics.contains(&format!("handshakes_total{{outcome=\"{outcome}\"}} 1\n"))
        });
    }
}

#[test]
fn a_handshake_that_does_not_come_whole_ends() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| {
        *tls_of(options) = Some(server(&[&pair]));
        options.timeouts.head = std::time::Duration::from_millis(200);
    });
    assert_eq!(proxy.exchange(&[0x16, 3, 1, 1]), "");
    assert_eq!(proxy.exchange(b""), "");
    until("both are counted", || {
        let mut metrics = String::new();
        proxy.shared().prometheus(&mut metrics);
        metrics.contains("handshakes_total{outcome=\"timed_out\"} 2\n")
            && metrics.contains("buttress_traffic_handshakes 0\n")
    });
}

#[test]
fn a_client_proves_who_it_is_and_nobody_else_can_say_so() {
    let (authority, other, upstream) = (Authority::new(), Authority::new(), Upstream::answering("ok"));
    let spiffe = "spiffe://example.org/orders";
    let ours = authority.signs(
        "a",
        &Says { common: "a", dns: &["a.example"], uris: &["spiffe://example.org/proxy"], ..Says::default() },
    );
    let client =
        authority.signs("c", &Says { common: "a \"client\"", dns: &["c.example"], uris: &[spiffe], ..Says::default() });
    let wanted = |client| Server { client_ca: Some(authority.path("ca.pem")), client, ..server(&[&ours]) };
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(wanted(Wanted::Required)));
    let forged = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\nConnection: close, \
                  x-forwarded-client-cert\r\n\r\n";
    let mut stream = dial(proxy.address, authority.client(Some(&client), &[]), "a.example").unwrap();
    assert_eq!(ask(&mut stream, forged).unwrap().status, 200);
    let head = upstream.requests().remove(0);
    let field = head.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).unwrap().to_owned();
    assert!(field.starts_with("By=spiffe://example.org/proxy;Hash="), "{field}");
    assert!(
        field.ends_with(&format!(";Subject=\"CN=a \\\\\\\"client\\\\\\\"\";URI={spiffe};DNS=c.example")),
        "{field}"
    );
    assert!(!head.contains("forged"), "{head}");
    // Without a certificate, or with one of somebody else, nothing comes of it. With TLS 1.3 that shows when it reads.
    for config in [authority.client(None, &[]), {
        let stranger = other.named("s", &["c.example"]);
        authority.client(Some(&stranger), &[])
    }] {
        let failed = dial(proxy.address, config, "a.example").and_then(|mut stream| ask(&mut stream, GET));
        assert!(failed.is_err(), "{failed:?}");
    }
    assert_eq!(upstream.requests().len(), 1);
    let optional = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(wanted(Wanted::Optional)));
    let mut stream = dial(optional.address, authority.client(None, &[]), "a.example").unwrap();
    assert_eq!(ask(&mut stream, forged).unwrap().status, 200);
    assert!(!upstream.requests()[1].contains("forwarded-client-cert"), "{:?}", upstream.requests());
    let behind = Proxy::with(&[upstream.address], |options| options.edge.keep_client_cert = true);
    assert_eq!(behind.ask(forged).status, 200);
    assert!(upstream.requests()[2].contains("x-forwarded-client-cert: URI=spiffe://forged\r\n"));
}

#[test]
fn certificates_that_cannot_be_used_are_refused_with_the_file_and_the_reason() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let (good, other) = (authority.named("good", &["a.example"]), authority.named("other", &["a.example"]));
    let expired =
        authority.signs("old", &Says { common: "old", dns: &["a.example"], expired: true, ..Says::default() });
    let torn = Pair { certificate: authority.path("torn.pem"), key: good.key.clone() };
    fs::write(&torn.certificate, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    for (pair, file, why) in [
        (Pair { certificate: authority.path("no.pem"), key: good.key.clone() }, "no.pem", "cannot be read"),
        (torn, "torn.pem", "holds no certificates"),
        (Pair { key: other.key, ..good.clone() }, "other.key", "the key of another certificate"),
        (Pair { key: good.certificate.clone(), ..good.clone() }, "good.pem", "private key"),
        (expired, "old.pem", "has expired, at 2021-01-01 00:00 UTC"),
    ] {
        let route = everything(&[upstream.address.to_string()], None);
        let mut options = Proxy::options();
        *tls_of(&mut options) = Some(server(&[&pair]));
        let error = start(options, &[route]).err().expect("it cannot be used");
        assert_eq!(error.code, Code::CERTIFICATE);
        assert!(error.message.contains(file) && error.message.contains(why), "{}", error.message);
        assert!(error.hint.is_some());
    }
}

#[test]
fn a_new_certificate_takes_over_and_a_bad_one_does_not() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("ok"));
    let pair = authority.named("a", &["a.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| {
        *tls_of(options) = Some(server(&[&pair]));
        // A connection that has not said anything yet waits for the files too.
        options.timeouts.head = std::time::Duration::from_secs(3600);
    });
    let old = first(&pair);
    let connect = || dial(proxy.address, authority.client(None, &[]), "a.example").unwrap();
    let mut open = connect();
    assert_eq!(shown(&open), old);
    // The certificate is there, its key is not yet: the old one goes on. Files are put there in one step, as somebody else looks too.
    let fresh = authority.named("fresh", &["a.example"]);
    let new = first(&fresh);
    fs::rename(&fresh.certificate, &pair.certificate).unwrap();
    let metric = |text: &str| {
        let mut metrics = String::new();
        proxy.shared().prometheus(&mut metrics);
        metrics.contains(text)
    };
    proxy.shared().tls.reload();
    proxy.shared().tls.reload();
    assert!(metric("certificate_reloads_total{outcome=\"refused\"} 1\n"), "what is refused is counted once");
    assert_eq!(shown(&connect()), old);
    fs::rename(&fresh.key, &pair.key).unwrap();
    // Nobody has to ask.
    until("the new certificate is found", || metric("certificate_reloads_total{outcome=\"done\"} 1\n"));
    assert_eq!(shown(&connect()), new);
    assert_ne!(old, new);
    assert_eq!(ask(&mut open, GET).unwrap().status, 200, "what was open lives on");
}

/// An upstream with TLS that answers every connection's first request, and says which protocol was chosen.
struct SecureUpstream {
    address: SocketAddr,
    heads: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

fn secure_upstream(pair: &Pair, client_ca: Option<RootCertStore>) -> SecureUpstream {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
        ),
    };
    let (chain, key) = loaded(pair);
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let seen = heads.clone();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let (config, seen) = (config.clone(), seen.clone());
            thread::spawn(move || {
                tcp.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
                let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    bytes.extend_from_slice(&buffer[..read]);
                    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                        seen.lock().unwrap().push(String::from_utf8(bytes.drain(..end + 4).collect()).unwrap());
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").unwrap();
                    }
                }
            });
        }
    });
    SecureUpstream { address, heads }
}

fn to_secure(address: SocketAddr, told: Client) -> Proxy {
    Proxy::to_endpoints(&[format!("https://{address}")], |options: &mut Options| {
        options.edge.upstream_tls = told;
    })
}

#[test]
fn an_upstream_is_asked_within_tls_and_its_connection_is_kept() {
    let authority = Authority::new();
    let (pair, client) = (authority.named("u", &["127.0.0.1"]), authority.named("p", &["proxy.example"]));
    let upstream = secure_upstream(&pair, Some(authority.roots()));
    let proxy = to_secure(
        upstream.address,
        Client { ca: Some(authority.path("ca.pem")), identity: Some(client), ..Client::default() },
    );
    let mut stream = proxy.connect();
    for _ in 0..3 {
        stream.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
        let answer = read_answer(&mut stream);
        assert_eq!((answer.status, answer.body.as_str()), (200, "secret"));
    }
    assert_eq!(upstream.heads.lock().unwrap().len(), 3);
    let mut metrics = String::new();
    proxy.shared().prometheus(&mut metrics);
    let endpoint = format!("route=\"everything\",backend=\"1\",endpoint=\"{}\"", upstream.address);
    let connects = format!("buttress_traffic_endpoint_connects_total{{{endpoint}}} 1\n");
    assert!(metrics.contains(&connects), "{metrics}");
}

#[test]
fn a_wrong_certificate_is_told_in_a_sentence_and_nothing_reaches_the_upstream() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = |authority: &Authority| Client { ca: Some(authority.path("ca.pem")), ..Client::default() };
    let named = authority.named("n", &["b.example", "c.example"]);
    let expired = authority.signs("e", &Says { common: "e", dns: &["127.0.0.1"], expired: true, ..Says::default() });
    let good = authority.named("g", &["127.0.0.1"]);
    let stranger = other.named("s", &["proxy.example"]);
    let with = |pair: &Pair| Client { identity: Some(pair.clone()), ..ca(&authority) };
    for (pair, client_ca, told, says) in [
        (&named, false, ca(&authority), "its certificate is for b.example, c.example, and not for 127.0.0.1"),
        (&expired, false, ca(&authority), "its certificate has expired, at 2021-01-01 00:00 UTC"),
        (&good, false, ca(&other), "its certificate is of an authority that is not trusted here"),
        (&good, true, ca(&authority), "it wants a certificate of ours"),
        (&good, true, with(&stranger), "it does not take our certificate"),
    ] {
        let upstream = secure_upstream(pair, client_ca.then(|| authority.roots()));
        let proxy = to_secure(upstream.address, told);
        // A POST, which may be sent again only because nothing reached anybody.
        let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
        assert_eq!((answer.status, answer.field("buttress-code")), (502, Some("bt0930")), "{answer:?}");
        assert!(answer.body.contains(says), "{} in {answer:?}", says);
        assert_eq!(answer.field("buttress-undelivered"), Some("1"), "{answer:?}");
        assert!(upstream.heads.lock().unwrap().is_empty());
    }
    let clear = Upstream::new(|_, connection| {
        let _ = connection.stream.read(&mut [0; 4096]);
        connection.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let answer = to_secure(clear.address, ca(&authority)).ask(GET);
    assert!(answer.body.contains("it does not speak TLS on this port"), "{answer:?}");
    let upstream = secure_upstream(&named, None);
    let renamed = Client { server_name: Some("c.example".into()), ..ca(&authority) };
    assert_eq!(to_secure(upstream.address, renamed).ask(GET).status, 200, "the name can be given");
}

#[test]
fn proxies_in_a_row_speak_http2_within_tls() {
    let (authority, upstream) = (Authority::new(), Upstream::answering("through two"));
    let pair = authority.named("a", &["127.0.0.1"]);
    let inner = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let outer = to_secure(inner.address, Client { ca: Some(authority.path("ca.pem")), ..Client::default() });
    let mut stream = outer.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream).body, "through two");
    }
    assert_eq!(inner.shared().shards.iter().map(|shard| shard.connections_total.get()).sum::<u64>(), 1);
    let heads = upstream.requests();
    assert!(heads.iter().all(|head| head.contains("x-forwarded-proto: http\r\n")), "what the first hop saw: {heads:?}");
}
