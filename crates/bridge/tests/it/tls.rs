//! TLS against servers that do it wrong, in this process; and addresses that say how it is to be done.

use std::{sync::Arc, time::Duration};

use buttress_bridge::{
    etcd::{self, EtcdLedger},
    kafka::{self, Kafka, Mechanism},
    secure::{Identity, Password, Roots, Tls, User},
};
use buttress_core::{Code, Error};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{io::AsyncReadExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

use crate::originals::Authority;

/// A server that shows a certificate, wants one if `mutual`, and then reads and says nothing.
async fn server(authority: &Authority, name: &str, mutual: bool) -> String {
    let pem = |kind: &str| authority.path(&format!("{name}.{kind}"));
    let chain = vec![CertificateDer::from_pem_file(pem("crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if mutual {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.path("ca.pem")).unwrap()).unwrap();
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
        )
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            });
        }
    });
    address
}

/// What both clients say of a server.
async fn both(address: &str, query: &str) -> [Error; 2] {
    let etcd = etcd::Options::from_url(&format!("etcd://{address}?{query}")).unwrap();
    let kafka = kafka::Options::from_url(&format!("kafka://{address}?{query}")).unwrap();
    // A deadline that no test waits for: what cannot get better is not tried again.
    let deadline = Duration::from_secs(600);
    let etcd = EtcdLedger::connect(etcd::Options { deadline, ..etcd }).await.map(|_| ()).unwrap_err();
    let kafka = Kafka::connect(kafka::Options { deadline, ..kafka }).await.map(|_| ()).unwrap_err();
    [etcd, kafka]
}

#[tokio::test]
async fn a_server_that_cannot_be_believed_is_told_at_once_with_the_reason() {
    let (ours, theirs) = (Authority::new("tls-ours"), Authority::new("tls-theirs"));
    let cases = [
        (server(&theirs, "server", false).await, ours.query(), "another authority"),
        (server(&ours, "expired-server", false).await, ours.query(), "has expired"),
        (server(&ours, "other-host", false).await, ours.query(), "another name"),
        (server(&ours, "server", true).await, ours.query(), "wants a certificate of ours"),
        (server(&ours, "server", true).await, ours.query_as("expired-client"), "expired"),
        (
            server(&ours, "server", true).await,
            format!(
                "{}&cert={}&key={}",
                ours.query(),
                theirs.path("client.crt").display(),
                theirs.path("client.key").display()
            ),
            "does not take our certificate",
        ),
    ];
    for (address, query, wanted) in cases {
        for error in both(&address, &query).await {
            assert!(error.code == Code::TLS && !error.retryable, "{wanted}: {error}");
            assert!(error.hint.as_ref().is_some_and(|hint| hint.contains(wanted)), "{wanted}: {error}");
            assert!(error.message.contains(&address), "{error}");
        }
    }
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_told() {
    let authority = Authority::new("tls-plain");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for error in both(&address, &authority.query()).await {
        assert!(error.code == Code::TLS && error.hint.as_ref().is_some_and(|h| h.contains("speak TLS")), "{error}");
    }
}

#[tokio::test]
async fn a_port_that_speaks_tls_only_is_told_to_who_does_not() {
    let authority = Authority::new("tls-only");
    let address = server(&authority, "server", false).await;
    let options = kafka::Options { deadline: Duration::from_millis(100), ..kafka::Options::new([address]) };
    let error = Kafka::connect(options).await.map(|_| ()).unwrap_err();
    assert!(error.code == Code::UNREACHABLE && error.to_string().contains("TLS"), "{error}");
}

#[test]
fn an_address_says_how_an_engine_is_reached() {
    let kafka = kafka::Options::from_url(
        "kafka://al%40ice@a:1,b:2?tls=/etc/ca.pem&sasl=scram-sha-256&password-file=/run/secret&prefix=plant",
    )
    .unwrap();
    assert_eq!((kafka.bootstrap, &kafka.prefix[..]), (vec!["a:1".to_owned(), "b:2".to_owned()], "plant"));
    assert_eq!(kafka.tls, Some(Tls { roots: Roots::File("/etc/ca.pem".into()), identity: None }));
    let sasl = kafka.sasl.unwrap();
    let file = Password::File("/run/secret".into());
    assert_eq!((sasl.mechanism, sasl.user), (Mechanism::ScramSha256, User { name: "al@ice".into(), password: file }));

    let kafka = kafka::Options::from_url("alice@a:1?tls=system").unwrap();
    let sasl = kafka.sasl.unwrap();
    assert_eq!(sasl.mechanism, Mechanism::ScramSha512, "the strongest, unless something else is said");
    assert_eq!(sasl.user.password, Password::Env("BUTTRESS_KAFKA_PASSWORD".into()));
    assert_eq!(kafka.tls, Some(Tls { roots: Roots::System, identity: None }));
    assert_eq!(kafka::Options::from_url("a:1,b:2").unwrap().bootstrap, ["a:1", "b:2"]);

    let etcd =
        etcd::Options::from_url("etcd://root@a:1?tls=ca.pem&cert=c.pem&key=c.key&namespace=app/&password-env=PW")
            .unwrap();
    assert_eq!((&etcd.endpoints[..], &etcd.namespace[..]), (&["a:1".to_owned()][..], "app/"));
    let identity = Identity { certificate: "c.pem".into(), key: "c.key".into() };
    assert_eq!(etcd.tls, Some(Tls { roots: Roots::File("ca.pem".into()), identity: Some(identity) }));
    assert_eq!(etcd.user, Some(User { name: "root".into(), password: Password::Env("PW".into()) }));
    let list = etcd::Options::from_url("https://a:1,https://b:2").unwrap();
    assert_eq!(list.endpoints, ["https://a:1", "https://b:2"]);
    assert!(!format!("{:?}", Password::Given(buttress_bridge::secure::Secret::new("hunter2"))).contains("hunter2"));
}

#[test]
fn an_address_that_is_none_is_told_with_the_form_that_is_right() {
    for url in [
        "kafka://alice:hunter2@a:1",
        "http://a:1",
        "kafka://a:1?tls",
        "kafka://a:1?tls=",
        "kafka://a:1?tls=x&tls=y",
        "kafka://a:1?color=red",
        "kafka://a:1?sasl=plain",
        "kafka://alice@a:1?sasl=gssapi",
        "kafka://@a:1",
        "kafka://a:1?password-file=x",
        "kafka://alice@a:1?password-file=x&password-env=y",
        "kafka://a:1?cert=x",
        "kafka://a:1?tls=x&cert=x",
        "kafka://a:1?cert=x&key=y",
        "kafka://a:1?prefix=a%20b",
        "kafka://a:1?prefix=%zz",
        "kafka://a:1?cleartext=maybe",
        &format!("kafka://{}", "a:1,".repeat(20_000)),
    ] {
        let error = kafka::Options::from_url(url).unwrap_err();
        assert!(error.code == Code::CONFIG && error.hint.is_some(), "{url}: {error}");
        assert!(!error.to_string().contains("hunter2"), "a password is not repeated: {error}");
    }
    for url in ["etcd://root:hunter2@a:1", "kafka://a:1", "etcd://a:1?sasl=plain", "etcd://a:1?prefix=x"] {
        let error = etcd::Options::from_url(url).unwrap_err();
        assert!(error.code == Code::CONFIG && error.hint.is_some(), "{url}: {error}");
    }
}

/// Nothing is sent before what is needed is there, and a password does not go where anybody can read it.
#[tokio::test]
async fn what_is_missing_on_this_side_is_told_before_anything_is_sent() {
    let authority = Authority::new("tls-files");
    let broken = authority.path("broken.pem");
    std::fs::write(&broken, "no PEM at all").unwrap();
    let broken = broken.display();
    let (ca, client) = (authority.path("ca.pem"), authority.path("client.crt"));
    let (ca, client) = (ca.display(), client.display());
    for query in [
        "tls=/nowhere/ca.pem".to_owned(),
        format!("tls={broken}"),
        format!("tls={ca}&cert={client}&key={broken}"),
        format!("tls={ca}&cert={client}&key={}", authority.path("server.key").display()),
        format!("tls={ca}&password-file=/nowhere/password"),
        format!("tls={ca}&password-env=BUTTRESS_NOT_SET_ANYWHERE"),
    ] {
        for (scheme, connect) in [("kafka", true), ("etcd", false)] {
            let url = format!("{scheme}://alice@127.0.0.1:1?{query}");
            let error = match connect {
                true => Kafka::connect(kafka::Options::from_url(&with_password(&url)).unwrap()).await.map(|_| ()),
                false => EtcdLedger::connect(etcd::Options::from_url(&with_password(&url)).unwrap()).await.map(|_| ()),
            }
            .unwrap_err();
            assert!(error.code == Code::CONFIG && error.hint.is_some(), "{url}: {error}");
        }
    }
}

/// Where the case is not about the password, there is one.
fn with_password(url: &str) -> String {
    if url.contains("password") { url.to_owned() } else { format!("{url}&password-env=PATH") }
}
