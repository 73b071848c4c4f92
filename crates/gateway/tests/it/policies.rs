//! The policies of the one route, from outside: what is sent again, what is refused, and what can be read about it later.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use buttress_gateway::compile::everything;
use serde_json::Value;

use crate::support::{Answer, PATIENCE, Proxy, Upstream};

/// Answers the first `failing` requests with this status, and then 200.
fn failing(failing: usize, status: &'static str) -> Upstream {
    let asked = AtomicUsize::new(0);
    Upstream::new(move |_, connection| {
        while connection.read_request().is_some() {
            let status = if asked.fetch_add(1, Ordering::SeqCst) < failing { status } else { "200 OK" };
            connection.write(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi").as_bytes());
        }
    })
}

fn ask(proxy: &Proxy, method: &str, fields: &str) -> Answer {
    proxy
        .ask(&format!("{method} /orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n"))
}

fn record(proxy: &Proxy, answer: &Answer) -> Value {
    let id = answer.field("x-request-id").expect("every answer names its request");
    proxy.shared().records.find(id).expect("a record of it is kept").json()
}

#[test]
fn a_brief_failure_is_hidden_and_remembered() {
    let upstream = failing(1, "503 Service Unavailable");
    let proxy = Proxy::to(&[upstream.address]);
    let answer = ask(&proxy, "GET", "");
    assert_eq!((answer.status, answer.body.as_str()), (200, "hi"));
    let seen = upstream.requests();
    assert!(!seen[0].contains("buttress-attempt") && seen[1].contains("buttress-attempt: 2\r\n"), "{seen:?}");
    let record = record(&proxy, &answer);
    let attempts = record["attempts"].as_array().unwrap();
    assert_eq!((&attempts[0]["status"], &attempts[1]["status"]), (&503.into(), &200.into()));
    assert_eq!(attempts[0]["next"]["code"], "BT-RTY-GO");
}

#[test]
fn a_post_that_an_upstream_answered_is_never_sent_again_and_the_record_says_why() {
    let upstream = failing(1, "503 Service Unavailable");
    let proxy = Proxy::to(&[upstream.address]);
    let answer = ask(&proxy, "POST", "");
    assert_eq!((answer.status, answer.body.as_str()), (503, "hi"), "the upstream's own answer goes on");
    let record = record(&proxy, &answer);
    assert_eq!(
        (&record["outcome"]["code"], &record["attempts"][0]["next"]["code"]),
        (&"BT0911".into(), &"BT-RTY-EFFECT".into())
    );
    assert_eq!(upstream.requests().len(), 1);
    // A key makes it one that may be repeated.
    let upstream = failing(1, "503 Service Unavailable");
    let proxy = Proxy::to(&[upstream.address]);
    assert_eq!(ask(&proxy, "POST", "Idempotency-Key: 7\r\n").status, 200);
}

#[test]
fn whoever_is_a_retry_already_is_not_multiplied() {
    let upstream = failing(9, "503 Service Unavailable");
    let proxy = Proxy::to(&[upstream.address]);
    let answer = ask(&proxy, "GET", "Buttress-Attempt: 2\r\n");
    assert_eq!(answer.status, 503);
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(record(&proxy, &answer)["attempts"][0]["next"]["code"], "BT-RTY-HOP");
}

#[test]
fn a_hop_that_has_given_up_says_so_to_the_hop_before() {
    let upstream = failing(99, "503 Service Unavailable");
    let inner = Proxy::to(&[upstream.address]);
    let outer = Proxy::to(&[inner.address]);
    let answer = ask(&outer, "GET", "");
    assert_eq!(answer.status, 503);
    assert_eq!(upstream.requests().len(), 3, "three attempts, not nine");
    assert_eq!(record(&outer, &answer)["attempts"][0]["next"]["code"], "BT-RTY-PUSHBACK");
}

#[test]
fn what_surely_never_arrived_is_sent_again_by_the_hop_before_even_a_post() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let good = Upstream::answering("ok");
    let inner = Proxy::to(&[dead]);
    let outer = Proxy::to(&[inner.address, good.address]);
    for _ in 0..8 {
        let answer = ask(&outer, "POST", "");
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    }
}

#[test]
fn an_upstream_that_does_not_answer_in_time_gives_504() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        std::thread::park_timeout(PATIENCE);
    });
    let proxy =
        Proxy::routing(&[everything(&[upstream.address.to_string()], Some(Duration::from_millis(200)))], |_| {});
    let answer = ask(&proxy, "GET", "");
    assert_eq!((answer.status, answer.field("buttress-code")), (504, Some("bt0909")), "{answer:?}");
    let told =
        upstream.requests()[0].lines().find_map(|line| line.strip_prefix("buttress-timeout-ms: ")?.parse::<u64>().ok());
    assert!(told.is_some_and(|left| left <= 200), "{told:?}");
    // A caller may give less.
    let proxy = Proxy::to(&[upstream.address]);
    assert_eq!(ask(&proxy, "GET", "Buttress-Timeout-Ms: 50\r\n").status, 504);
}

#[test]
fn an_upstream_that_only_fails_is_left_alone_after_a_while_and_the_refusal_explains_itself() {
    let upstream = failing(usize::MAX, "500 Internal Server Error");
    let proxy = Proxy::to(&[upstream.address]);
    let refused = (0..200).map(|_| ask(&proxy, "POST", "")).find(|answer| answer.status == 503);
    let refused = refused.expect("the breaker opens when all of at least 20 calls failed");
    assert_eq!(refused.field("buttress-code"), Some("bt-brk-open"), "{refused:?}");
    let problem: Value = serde_json::from_str(&refused.body).unwrap();
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("100 %")), "{problem}");
    let record = record(&proxy, &refused);
    assert_eq!(record["attempts"], Value::Array(Vec::new()));
    assert!(record["state"].to_string().contains("breaker open"), "{record}");
}

#[test]
fn an_answer_that_is_cut_gives_its_place_back() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    });
    let proxy = Proxy::to(&[upstream.address]);
    for _ in 0..3 {
        let id = "cut-1";
        ask(&proxy, "GET", &format!("X-Request-Id: {id}\r\n"));
        let record = proxy.shared().records.find(id).expect("an answer that broke off is remembered").json();
        assert_eq!(record["outcome"]["code"], "BT0912", "{record}");
        let attempt = &record["attempts"][0];
        assert_eq!((&attempt["status"], &attempt["picked"]["code"]), (&200.into(), &"BT-BAL-ONLY".into()), "{record}");
        assert!(attempt["problem"].as_str().unwrap().contains("broke off after 4 bytes"), "{record}");
    }
    let running = || proxy.shared().snapshot()["routes"][0]["golden"]["running"].clone();
    crate::support::until("nothing runs", || running() == 0);
    let state = proxy.shared().table.load().routes[0].backends[0].state(proxy.shared().now()).join("; ");
    assert!(state.contains("0 calls run, 0 wait"), "{state}");
}

#[test]
fn figures_are_told_in_the_form_that_prometheus_reads() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::to(&[upstream.address]);
    for _ in 0..3 {
        ask(&proxy, "GET", "");
    }
    let mut page = String::new();
    proxy.shared().prometheus(&mut page);
    for line in [
        "buttress_traffic_requests_total{route=\"everything\",status=\"2xx\"} 3".to_owned(),
        "buttress_traffic_request_seconds_count{route=\"everything\"} 3".to_owned(),
        "buttress_traffic_running{route=\"everything\"} 0".to_owned(),
        format!(
            "buttress_traffic_endpoint_requests_total{{route=\"everything\",backend=\"1\",endpoint=\"{}\",status=\"2xx\"}} 3",
            upstream.address
        ),
        format!(
            "buttress_traffic_endpoint_connects_total{{route=\"everything\",backend=\"1\",endpoint=\"{}\"}} 1",
            upstream.address
        ),
        "buttress_traffic_attempts_total 3".to_owned(),
    ] {
        assert!(page.lines().any(|known| known == line), "{line} is not in\n{page}");
    }
}
