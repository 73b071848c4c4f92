//! Limits of a whole cluster, from a store that is fast, slow, contended, away, or etcd as its JSON gateway answers.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress_tower::{
    Policy, PolicyLayer, RouteConfig, ShedLayer,
    cluster::{ClusterLimit, Pools, Stored},
    etcd::{self, Etcd},
    policy::lease::{Config, Pool},
    server_config,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::MS;

/// A store in this process, as slow as it is told, that may be away.
#[derive(Default)]
struct Inside {
    all: Mutex<HashMap<String, Stored>>,
    away: AtomicBool,
    asked: AtomicUsize,
    slow: Duration,
}

#[derive(Clone, Default)]
struct Store(Arc<Inside>);

impl Store {
    fn slow(slow: Duration) -> Self {
        Self(Arc::new(Inside { slow, ..Inside::default() }))
    }

    async fn answers(&self) -> Result<(), &'static str> {
        self.0.asked.fetch_add(1, SeqCst);
        sleep(self.0.slow).await;
        if self.0.away.load(SeqCst) { Err("away") } else { Ok(()) }
    }
}

impl Pools for Store {
    type Error = &'static str;

    async fn read(&self, key: &str) -> Result<Option<Stored>, &'static str> {
        self.answers().await?;
        Ok(self.0.all.lock().unwrap().get(key).cloned())
    }

    async fn replace(&self, key: &str, version: Option<u64>, value: &[u8]) -> Result<bool, &'static str> {
        self.answers().await?;
        let mut all = self.0.all.lock().unwrap();
        if all.get(key).map(|known| known.version) != version {
            return Ok(false);
        }
        all.insert(key.to_owned(), Stored { value: value.to_vec(), version: version.unwrap_or(0) + 1 });
        Ok(true)
    }
}

/// Burns what there is, once a millisecond for so long.
async fn burnt(limits: &[ClusterLimit], span: Duration) -> usize {
    let (end, mut passed) = (Instant::now() + span, 0);
    while Instant::now() < end {
        passed += limits.iter().filter(|limit| limit.take().is_ok()).count();
        sleep(MS).await;
    }
    passed
}

/// The pool's clock is the wall's, which does not stand still while tokio's does, so no test in virtual time may count on its filling:
/// what is held against the bound here is the burst.
#[tokio::test(start_paused = true)]
async fn services_share_what_the_pool_has_whoever_is_faster() {
    let config = Config { slice: 10, ..Config::new(0.001, 100) };
    let store = Store::slow(3 * MS);
    let limits: Vec<ClusterLimit> = (0..4).map(|_| ClusterLimit::new("pool", config).unwrap()).collect();
    let following: Vec<_> =
        limits.iter().map(|limit| tokio::spawn(limit.follow(store.clone(), |error| panic!("{error}")))).collect();
    let passed = burnt(&limits, Duration::from_secs(20)).await;
    assert!(passed <= 100, "{passed}");
    // All that expired unburnt is less than a slice and a half for each.
    assert!(passed >= 100 - 4 * 15, "{passed}");
    assert_eq!(limits[0].take().unwrap_err().code(), "BT-LSE-EMPTY");
    // An empty pool says when to come again: nobody hammers the store.
    let asked = store.0.asked.load(SeqCst);
    burnt(&limits, Duration::from_secs(10)).await;
    assert!(store.0.asked.load(SeqCst) - asked <= 4 * 11, "once a second at most");
    drop(limits);
    for one in following {
        one.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_leaves_what_was_leased_and_then_each_its_own_share() {
    let config = Config { slice: 10, cut_off_per_second: 2.0, ..Config::new(10.0, 10) };
    let (store, told) = (Store::default(), Arc::new(AtomicUsize::new(0)));
    let limit = ClusterLimit::new("pool", config).unwrap();
    let heard = told.clone();
    tokio::spawn(limit.follow(store.clone(), move |error| {
        assert_eq!(error, "away");
        heard.fetch_add(1, SeqCst);
    }));
    sleep(MS).await;
    assert_eq!(limit.held(), 10);
    store.0.away.store(true, SeqCst);
    assert_eq!(burnt(std::slice::from_ref(&limit), Duration::from_secs(1)).await, 10, "what was leased");
    sleep(Duration::from_secs(5)).await;
    let alone = burnt(std::slice::from_ref(&limit), Duration::from_secs(10)).await;
    assert!((19..=23).contains(&alone), "two a second, and a burst of two: {alone}");
    let refused = (0..3).find_map(|_| limit.take().err()).expect("a burst of two");
    assert_eq!(refused.code(), "BT-LSE-CUT");
    assert!(told.load(SeqCst) > 5);
    // Bytes that are no pool begin anew.
    store.0.all.lock().unwrap().get_mut("pool").unwrap().value = b"what is this".to_vec();
    store.0.away.store(false, SeqCst);
    sleep(Duration::from_secs(2)).await;
    assert!(limit.held() > 0 && limit.take().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_a_token_answers_429_and_a_client_is_told_why() {
    let config = Config { slice: 2, ..Config::new(0.001, 2) };
    let limit = ClusterLimit::new("pool", config).unwrap();
    tokio::spawn(limit.follow(Store::default(), |error| panic!("{error}")));
    sleep(MS).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let service = service_fn(move |_: Request<String>| {
        count.fetch_add(1, SeqCst);
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok")))) }
    });
    let policy = Policy::builder(server_config()).cluster_limit(limit.clone()).build().unwrap();
    let server = ShedLayer::new(policy).layer(service.clone());
    assert_eq!(server.clone().oneshot(Request::new(String::new())).await.unwrap().status(), 200);
    let policy = Policy::builder(RouteConfig::default()).cluster_limit(limit).build().unwrap();
    let client = PolicyLayer::new(policy).layer(service);
    assert_eq!(client.clone().oneshot(Request::new(String::new())).await.unwrap().status(), 200);
    let refused = server.oneshot(Request::new(String::new())).await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), refused.headers()["buttress-code"].to_str().unwrap()),
        (429, "BT-LSE-EMPTY")
    );
    let error = client.oneshot(Request::new(String::new())).await.err().unwrap();
    assert_eq!((error.why().code(), error.is_refusal(), error.undelivered()), ("BT-LSE-EMPTY", true, true));
    assert_eq!(seen.load(SeqCst), 2, "what has no token is never sent");
    let wrong = ClusterLimit::new("pool", Config { slice: 0, ..config }).unwrap_err();
    assert!(wrong.to_string().contains("cluster_limit.slice"), "{wrong}");
}

/// What etcd's JSON gateway answers, checked against the real one by `examples/cluster.rs`.
fn gateway(kvs: Arc<Mutex<Vec<(String, String, u64)>>>) -> impl Fn(&str, &Value) -> (u16, Value) + Clone {
    move |path, asked| {
        let mut kvs = kvs.lock().unwrap();
        let revision = kvs.iter().map(|(_, _, at)| *at).max().unwrap_or(0);
        let header = json!({"revision": revision.to_string()});
        let found = |key: &Value| kvs.iter().find(|(known, ..)| *key == **known).cloned();
        match path {
            "/v3/kv/range" => match found(&asked["key"]) {
                None => (200, json!({"header": header})),
                Some((key, value, at)) => (
                    200,
                    json!({"header": header, "kvs": [{"key": key, "value": value, "mod_revision": at.to_string()}], "count": "1"}),
                ),
            },
            "/v3/kv/txn" => {
                let unchanged = &asked["compare"][0];
                let at = found(&unchanged["key"]).map_or(0, |(_, _, at)| at);
                if unchanged["mod_revision"].as_str() != Some(&at.to_string()) {
                    return (200, json!({"header": header}));
                }
                let put = &asked["success"][0]["request_put"];
                let key = put["key"].as_str().unwrap().to_owned();
                kvs.retain(|(known, ..)| *known != key);
                kvs.push((key, put["value"].as_str().unwrap().to_owned(), revision + 1));
                (200, json!({"header": header, "succeeded": true}))
            }
            _ => (404, json!({"code": 5, "message": "Not Found"})),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn etcd_is_asked_as_its_gateway_wants_it_and_what_it_says_is_told() {
    let kvs = Arc::new(Mutex::new(Vec::new()));
    let answers = gateway(kvs.clone());
    let client = service_fn(move |request: Request<Full<Bytes>>| {
        let answers = answers.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let (status, said) = answers(&path, &serde_json::from_slice(&body).unwrap());
            let response = Response::builder().status(status).body(Full::<Bytes>::from(said.to_string()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let etcd = Etcd::new(client, "http://store.example:2379/").unwrap();
    assert_eq!(etcd.read("a").await.unwrap(), None);
    assert!(etcd.replace("a", None, b"one").await.unwrap());
    assert!(!etcd.replace("a", None, b"two").await.unwrap(), "it is there by now");
    let stored = etcd.read("a").await.unwrap().unwrap();
    assert_eq!(stored, Stored { value: b"one".to_vec(), version: 1 });
    assert!(etcd.replace("a", Some(1), b"three").await.unwrap());
    assert!(!etcd.replace("a", Some(1), b"four").await.unwrap());
    let limit = ClusterLimit::new("limit", Config::new(100.0, 10)).unwrap();
    tokio::spawn(limit.follow(etcd.clone(), |error| panic!("{error}")));
    sleep(MS).await;
    assert_eq!(limit.held(), 10);
    let stored = etcd.read("limit").await.unwrap().unwrap();
    assert!(Pool::from_bytes(&stored.value).is_some_and(|pool| pool.tat > 0));

    let says = |status: u16, body: &'static str| {
        let client = service_fn(move |_: Request<Full<Bytes>>| async move {
            Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::from(body)).unwrap())
        });
        async move { Etcd::new(client, "http://store").unwrap().read("a").await.unwrap_err().to_string() }
    };
    assert_eq!(
        says(401, r#"{"error":"etcdserver: user name is empty","code":3}"#).await,
        "etcd answers 401: etcdserver: user name is empty"
    );
    assert_eq!(says(502, "<html>").await, "etcd answers 502: nothing about why");
    for strange in
        ["<html>", "{}", "[]", r#"{"header":{},"kvs":[{"value":"%"}]}"#, r#"{"header":{},"kvs":[{"value":"YQ=="}]}"#]
    {
        assert!(says(200, strange).await.contains("is not etcd's"), "{strange}");
    }
    let hangs =
        service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    assert!(matches!(Etcd::new(hangs, "http://store").unwrap().read("a").await, Err(etcd::Error::Late)));
    let dead =
        service_fn(|_: Request<Full<Bytes>>| async { Err::<Response<Full<Bytes>>, _>(std::io::Error::other("cut")) });
    let error = Etcd::new(dead, "http://store").unwrap().read("a").await.unwrap_err();
    assert_eq!(error.to_string(), "etcd does not answer: cut");
    assert!(Etcd::new(hangs, "not an address").is_err());
}
