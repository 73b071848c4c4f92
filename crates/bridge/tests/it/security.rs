//! Users and certificates, with a real Kafka and a real etcd that want them.

use std::{sync::Arc, time::Duration};

use buttress_bridge::{
    contract::{Keys, Pass},
    etcd::{self, EtcdLedger},
    kafka::{self, Kafka},
    secure::{Connector, Password, Roots, Secret, Tls, User, Wire},
};
use buttress_core::{Code, Consistency, Entry, Error, KeyRange, Ledger, Put, TopicChange, entry::TopicSettings};
use buttress_etcd_proto::{
    authpb::Permission,
    client::Channel,
    etcdserverpb::{self as pb, auth_client::AuthClient},
};
use http::uri::Scheme;

use crate::{
    originals::{Authority, Etcd, broker},
    unique,
};

fn kafka_options(address: &str, user: &str, password: &str, query: &str) -> kafka::Options {
    let mut options = kafka::Options::from_url(&format!("kafka://{user}@{address}?{query}")).expect("an address");
    options.sasl.as_mut().expect("a user").user.password = Password::Given(Secret::new(password));
    // What is refused is refused at once, or the test waits longer than anybody's patience.
    options.deadline = Duration::from_secs(600);
    options
}

fn create(name: &str) -> Entry {
    let settings = TopicSettings::default();
    let create = TopicChange::Create { name: name.to_owned(), id: [0; 16], partitions: 1, settings };
    Entry { topics: vec![create], ..Entry::default() }
}

async fn refused(options: kafka::Options) -> Error {
    Kafka::connect(options).await.map(|_| ()).expect_err("it is refused")
}

#[tokio::test]
async fn a_kafka_s_users_are_let_in_by_every_mechanism_over_tls() {
    let Some(broker) = broker("users of a Kafka").await else { return };
    let tls = broker.authority.query();
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        let query = format!("{tls}&sasl={mechanism}");
        let kafka = Kafka::connect(kafka_options(&broker.secure(), "alice", "alice-secret", &query)).await;
        let kafka = kafka.unwrap_or_else(|error| panic!("{mechanism}: {error}"));
        let topic = unique(mechanism);
        let log = kafka.submit(create(&topic)).await.expect("alice may do everything").created[0].1[0];
        kafka.submit(Entry { appends: vec![crate::kafka::one(log, "v")], ..Entry::default() }).await.expect("a record");
        let claimed = kafka.claim(&format!("{topic}group"), log, true).await.expect("a claim");
        assert_eq!(claimed.position, None);

        let wrong = refused(kafka_options(&broker.secure(), "alice", "guessed", &query)).await;
        assert!(wrong.code == Code::CREDENTIALS && !wrong.retryable && wrong.hint.is_some(), "{mechanism}: {wrong}");
        let nobody = refused(kafka_options(&broker.secure(), "nobody", "alice-secret", &query)).await;
        assert_eq!(nobody.code, Code::CREDENTIALS, "{mechanism}: {nobody}");
        for error in [wrong, nobody] {
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("guessed"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_a_kafka_s_user_may_not_do_is_told_at_once() {
    let Some(broker) = broker("rights of a Kafka's user").await else { return };
    let alice = Kafka::connect(kafka::Options::new([broker.bootstrap()])).await.expect("the Kafka is reached");
    let topic = unique("rights");
    alice.submit(create(&topic)).await.expect("a topic is made");
    let mallory = || kafka_options(&broker.secure(), "mallory", "mallory-secret", &broker.authority.query());
    let kafka = Kafka::connect(mallory()).await.expect("mallory is known");
    let error = kafka.submit(create(&unique("mallory"))).await.unwrap_err().into_error();
    assert!(error.code == Code::FORBIDDEN && error.hint.is_some(), "{error}");
    let named = kafka::Options { topics: vec![topic], ..mallory() };
    let error = refused(named).await;
    assert!(error.code == Code::FORBIDDEN && !error.retryable, "a topic that may not be looked at: {error}");
}

#[tokio::test]
async fn a_kafka_that_wants_certificates_and_one_that_wants_users_say_so() {
    let Some(broker) = broker("certificates of a Kafka").await else { return };
    let with = |query: String| {
        let url = format!("kafka://{}?{query}", broker.mutual());
        kafka::Options { deadline: Duration::from_secs(600), ..kafka::Options::from_url(&url).unwrap() }
    };
    let kafka = Kafka::connect(with(broker.authority.query_as("client"))).await.expect("a certificate is a user");
    kafka.submit(create(&unique("mutual"))).await.expect("who may do everything");
    for query in [broker.authority.query(), broker.authority.query_as("expired-client")] {
        let error = refused(with(query)).await;
        assert!(error.code == Code::TLS && error.hint.is_some(), "{error}");
    }
    let other = Authority::new("another-authority");
    assert_eq!(refused(kafka_options(&broker.secure(), "alice", "alice-secret", &other.query())).await.code, Code::TLS);

    let hasty = |url: String| kafka::Options {
        deadline: Duration::from_millis(200),
        ..kafka::Options::from_url(&url).unwrap()
    };
    let nobody = refused(hasty(format!("{}?{}", broker.secure(), broker.authority.query()))).await;
    assert!(nobody.code == Code::UNREACHABLE && nobody.to_string().contains("user"), "without a user: {nobody}");
    let open = refused(hasty(broker.secure())).await;
    assert!(open.code == Code::UNREACHABLE && open.to_string().contains("TLS"), "without TLS: {open}");
    let plain = kafka_options(&broker.bootstrap(), "alice", "alice-secret", "sasl=plain");
    assert_eq!(refused(plain).await.code, Code::CONFIG, "a listener that takes no users");
}

async fn admin(endpoint: &str, tls: Option<Tls>) -> AuthClient<Channel> {
    let (scheme, connector) = (
        if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
        Connector::new(tls, &[b"h2"]).expect("the certificates are good"),
    );
    let wire: Wire = loop {
        if let Ok(wire) = connector.connect(endpoint, Duration::from_secs(2)).await {
            break wire;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    AuthClient::new(Channel::over(wire, endpoint, scheme).await.expect("HTTP/2 is spoken"))
}

/// Users `root` and `app`, whose role may use what begins with `app/`.
async fn enable_users(admin: &mut AuthClient<Channel>) {
    for user in ["root", "app", "poor"] {
        let name = user.to_owned();
        let add = pb::AuthUserAddRequest { name, password: format!("{user}-secret"), ..Default::default() };
        admin.user_add(add).await.expect("a user is made");
    }
    for role in ["root", "app"] {
        admin.role_add(pb::AuthRoleAddRequest { name: role.into() }).await.expect("a role is made");
        let grant = pb::AuthUserGrantRoleRequest { user: role.into(), role: role.into() };
        admin.user_grant_role(grant).await.expect("a user has a role");
    }
    grant(admin, "app/", "app0").await;
    admin.auth_enable(pb::AuthEnableRequest {}).await.expect("users are asked for");
}

async fn grant(admin: &mut AuthClient<Channel>, from: &str, to: &str) {
    let perm = Permission {
        perm_type: buttress_etcd_proto::authpb::permission::Type::Readwrite.into(),
        key: from.to_owned().into(),
        range_end: to.to_owned().into(),
    };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "app".into(), perm: Some(perm) };
    admin.role_grant_permission(grant).await.expect("a role may do something");
}

fn etcd_options(endpoint: &str, query: &str, user: Option<(&str, &str)>) -> etcd::Options {
    let mut options = etcd::Options::from_url(&format!("etcd://{endpoint}?{query}")).expect("an address");
    options.user =
        user.map(|(name, password)| User { name: name.into(), password: Password::Given(Secret::new(password)) });
    options.namespace = "app/".into();
    options
}

fn put(key: &str) -> Entry {
    Entry { puts: vec![Put { key: key.to_owned().into(), value: Some("v".into()), lease: None }], ..Entry::default() }
}

#[tokio::test]
async fn an_etcd_s_users_are_let_in_over_tls_and_stay_so_when_tokens_end() {
    let authority = Authority::new("etcd-authority");
    let environment = vec![
        ("ETCD_SECURE", authority.dir.display().to_string()),
        // Seconds without use.
        ("ETCD_MORE", "--auth-token-ttl 2".to_owned()),
    ];
    let Some(etcd) = Etcd::start("users of an etcd", 1, environment) else { return };
    let (endpoint, tls) = (etcd.endpoint(0), authority.query());
    let roots = Tls { roots: Roots::File(authority.path("ca.pem")), identity: None };
    // A user is given, and nobody is asked yet: as with etcd's own client, that is no fault.
    let early = EtcdLedger::connect(etcd_options(&endpoint, &tls, Some(("app", "app-secret")))).await;
    let early = early.expect("the etcd comes up");
    early.submit(put("early")).await.expect("nobody is asked who they are");
    let mut admin_of_all = admin(&endpoint, Some(roots.clone())).await;
    enable_users(&mut admin_of_all).await;
    early.submit(put("early")).await.expect("now somebody is, and the user is shown");

    let options = || etcd_options(&endpoint, &tls, Some(("app", "app-secret")));
    let ledger = Arc::new(EtcdLedger::connect(options()).await.expect("the user is known"));
    ledger.submit(put("a")).await.expect("the user may");
    let mut watch = ledger.watch(KeyRange::prefix("a"), None).await.expect("the user may watch");
    // Tokens end after two seconds without use.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ledger.submit(put("a")).await.expect("a token that has ended is replaced");
    assert_eq!(watch.next().await.expect("the watch goes on").expect("it does").len(), 1);
    ledger.read(KeyRange::key("a"), 1, Consistency::Linearizable).await.expect("and so do reads");

    // Whoever changes users makes tokens old.
    let token =
        admin_of_all.authenticate(pb::AuthenticateRequest { name: "root".into(), password: "root-secret".into() });
    let token = token.await.expect("root is known").into_inner().token;
    let wire = Connector::new(Some(roots), &[b"h2"]).unwrap().connect(&endpoint, Duration::from_secs(5)).await.unwrap();
    let channel = Channel::over(wire, &endpoint, Scheme::HTTPS).await.unwrap().with_token(token.parse().unwrap());
    grant(&mut AuthClient::new(channel), "other/", "other0").await;
    ledger.submit(put("a")).await.expect("a token that is old is replaced");

    let pass: Pass = Box::new(|ms| Box::pin(tokio::time::sleep(Duration::from_millis(ms))));
    // Compaction, leases and the list of leases included: what the contract asks, a user of a namespace can do, save compacting,
    // which etcd leaves to root.
    let root =
        Arc::new(EtcdLedger::connect(etcd_options(&endpoint, &tls, Some(("root", "root-secret")))).await.unwrap());
    Keys { ledger: root, prefix: "contract/".into(), pass }.run().await;

    let connect = async |options| EtcdLedger::connect(options).await.map(|_| ()).expect_err("it is refused");
    let patient = |options| etcd::Options { deadline: Duration::from_secs(600), ..options };
    let wrong = connect(patient(etcd_options(&endpoint, &tls, Some(("app", "guessed"))))).await;
    assert!(wrong.code == Code::CREDENTIALS && !wrong.retryable && wrong.hint.is_some(), "{wrong}");
    let nobody = connect(patient(etcd_options(&endpoint, &tls, Some(("nobody", "guessed"))))).await;
    assert_eq!(nobody.code, Code::CREDENTIALS, "{nobody}");
    assert!(!nobody.to_string().contains("guessed"));

    let poor =
        EtcdLedger::connect(etcd_options(&endpoint, &tls, Some(("poor", "poor-secret")))).await.expect("it is known");
    let error = poor.submit(put("a")).await.unwrap_err().into_error();
    assert!(error.code == Code::FORBIDDEN && error.hint.is_some(), "{error}");
    let error = poor.read(KeyRange::key("a"), 1, Consistency::Linearizable).await.unwrap_err();
    assert_eq!(error.code, Code::FORBIDDEN, "{error}");
    let error = match poor.watch(KeyRange::prefix("a"), None).await {
        Ok(mut watch) => watch.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code, Code::FORBIDDEN, "{error}");
    let outside = etcd::Options { namespace: "elsewhere/".into(), ..options() };
    let outside = EtcdLedger::connect(outside).await.expect("it is known");
    assert_eq!(outside.submit(put("a")).await.unwrap_err().code(), Code::FORBIDDEN);

    let anonymous = EtcdLedger::connect(etcd_options(&endpoint, &tls, None)).await;
    let error = match anonymous {
        Ok(ledger) => ledger.submit(put("a")).await.unwrap_err().into_error(),
        Err(error) => error,
    };
    assert!(error.code == Code::CREDENTIALS && error.hint.is_some(), "{error}");
}

#[tokio::test]
async fn an_etcd_that_wants_certificates_gets_one_or_says_so() {
    let authority = Authority::new("etcd-mutual");
    let environment = vec![
        ("ETCD_SECURE", authority.dir.display().to_string()),
        ("ETCD_CLIENT_CA", authority.path("ca.pem").display().to_string()),
    ];
    let Some(etcd) = Etcd::start("certificates of an etcd", 1, environment) else { return };
    let with = |query: String| etcd_options(&etcd.endpoint(0), &query, None);
    let ledger = EtcdLedger::connect(with(authority.query_as("client"))).await.expect("the certificate is taken");
    ledger.submit(put("a")).await.expect("a key is put");
    for query in [authority.query(), authority.query_as("expired-client")] {
        let options = etcd::Options { deadline: Duration::from_secs(600), ..with(query) };
        let error = EtcdLedger::connect(options).await.map(|_| ()).expect_err("it is refused");
        assert!(error.code == Code::TLS && error.hint.is_some(), "{error}");
    }
}
