//! The proxy and the tower layers are two drivers of the same policies: the same upstream, played to both, leads to the same codes.
//!
//! The proxy runs on sockets and real time here, so the script has nothing that depends on how fast a machine is: statuses, one call after
//! the other, one endpoint. Every random order, and time, is compared in virtual time in `crates/tower/tests/it/parity.rs`.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use buttress_tower::{Policy, PolicyLayer, RouteConfig};
use http::{Request, Response};
use serde_json::Value;
use tower_service::Service as _;

use crate::support::{Proxy, Upstream};

/// What the upstream answers, request by request; 200 when that is over.
const SCRIPT: &[u16] = &[503, 200, 503, 503, 503, 500, 404, 502, 200, 504, 501, 503, 503, 200];

/// Method, and fields beside the usual ones.
const CALLS: &[(&str, &str, &str)] = &[
    ("GET", "", ""),
    ("GET", "", ""),
    ("GET", "", ""),
    ("DELETE", "", ""),
    ("POST", "", ""),
    ("POST", "idempotency-key", "7"),
    ("GET", "buttress-attempt", "2"),
    ("PUT", "", ""),
    ("GET", "", ""),
];

fn status_at(at: usize) -> u16 {
    SCRIPT.get(at).copied().unwrap_or(200)
}

/// Of a record of the proxy, in the order in which they were decided.
fn codes(record: &Value) -> Vec<String> {
    let code = |decision: &Value| decision["code"].as_str().map(str::to_owned);
    let mut codes: Vec<String> = record["admission"].as_array().unwrap().iter().filter_map(code).collect();
    for attempt in record["attempts"].as_array().unwrap() {
        codes.extend(["picked", "breaker", "next"].iter().filter_map(|key| code(&attempt[key])));
    }
    codes
}

/// The status of each call, and the codes of those that the proxy keeps a record of.
fn by_proxy() -> Vec<(u16, Option<Vec<String>>)> {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::new(move |_, connection| {
        while connection.read_request().is_some() {
            let status = status_at(asked.fetch_add(1, SeqCst));
            connection.write(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok").as_bytes());
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    let ask = |(method, name, value): &(&str, &str, &str)| {
        let field = if name.is_empty() { String::new() } else { format!("{name}: {value}\r\n") };
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n{field}\r\n");
        let answer = proxy.ask(&head);
        let id = answer.field("x-request-id").expect("every answer names its request");
        (answer.status, proxy.shared().records.find(id).map(|record| codes(&record.json())))
    };
    CALLS.iter().map(ask).collect()
}

fn by_layer() -> Vec<(u16, Vec<String>)> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let records = told.clone();
    let policy = Policy::builder(RouteConfig::default()).on_decision(move |record| {
        // The proxy's records leave out what a success means for retries.
        let codes = record
            .codes()
            .into_iter()
            .filter(|code| *code != "BT-RTY-DONE" || !matches!(record.end, buttress_tower::End::Answered(200)));
        records.lock().unwrap().push(codes.map(str::to_owned).collect::<Vec<_>>());
    });
    let asked = Arc::new(AtomicUsize::new(0));
    let upstream = Scripted(asked);
    let mut layer = tower_layer::Layer::layer(&PolicyLayer::new(policy.build().unwrap()), upstream);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut ask = |(method, name, value): &(&str, &str, &str)| {
        let mut request = Request::builder().method(*method);
        if !name.is_empty() {
            request = request.header(*name, *value);
        }
        let answer = runtime.block_on(layer.call(request.body(String::new()).unwrap())).unwrap();
        (answer.status().as_u16(), told.lock().unwrap().last().unwrap().clone())
    };
    CALLS.iter().map(&mut ask).collect()
}

#[derive(Clone)]
struct Scripted(Arc<AtomicUsize>);

impl tower_service::Service<Request<String>> for Scripted {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<String>) -> Self::Future {
        let status = status_at(self.0.fetch_add(1, SeqCst));
        std::future::ready(Ok(Response::builder().status(status).body("ok".into()).unwrap()))
    }
}

#[test]
fn the_proxy_and_the_layer_answer_alike_and_for_the_same_reasons() {
    let (proxy, layer) = (by_proxy(), by_layer());
    let mut compared = 0;
    for (at, ((status, codes), (wanted, reasons))) in proxy.iter().zip(&layer).enumerate() {
        assert_eq!(status, wanted, "call {at}: {:?}", CALLS[at]);
        // The proxy keeps failures, and what took more than one attempt.
        if let Some(codes) = codes {
            assert_eq!(codes, reasons, "call {at}: {:?}", CALLS[at]);
            compared += 1;
        }
    }
    assert!(compared >= 6, "the script led to {compared} records");
}
