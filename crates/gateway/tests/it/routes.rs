//! Routes from outside: which backend a request reaches, what rules do with it, and what a change of routes leaves alone.

use std::{io::Write, net::SocketAddr};

use buttress_gateway::{compile::Declared, table::Place};
use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Proxy, Upstream, read_answer, until};

fn route(name: &str, spec: Value) -> Declared {
    let place = Place { file: "routes.yaml".into(), line: 1 };
    Declared { name: name.into(), spec: serde_json::from_value(spec).unwrap(), place, match_lines: vec![4, 5, 6] }
}

fn proxy(routes: &[Declared]) -> Proxy {
    Proxy::routing(routes, |_| {})
}

fn get(proxy: &Proxy, host: &str, path: &str, fields: &str) -> Answer {
    proxy.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n"))
}

fn record(proxy: &Proxy, answer: &Answer) -> Value {
    let id = answer.field("x-request-id").expect("every answer names its request");
    proxy.shared().records.find(id).expect("a record of it is kept").json()
}

fn to(upstream: &Upstream) -> Value {
    json!([{"endpoints": upstream.address.to_string()}])
}

/// An address that nobody listens on.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn host_and_path_choose_and_what_no_route_takes_is_404_with_a_record() {
    let (shop, admin) = (Upstream::answering("shop"), Upstream::answering("admin"));
    let proxy = proxy(&[
        route("shop", json!({"match": [{"host": "shop.example"}], "to": to(&shop)})),
        route("admin", json!({"match": [{"host": "shop.example", "path": "/admin/*"}], "to": to(&admin)})),
    ]);
    assert_eq!(get(&proxy, "shop.example:80", "/orders?x=1", "").body, "shop");
    assert_eq!(get(&proxy, "SHOP.example", "/admin/users", "").body, "admin");
    let answer = get(&proxy, "other.example", "/", "");
    assert_eq!((answer.status, answer.field("buttress-code")), (404, Some("bt0920")), "{answer:?}");
    assert_eq!(record(&proxy, &answer)["outcome"]["code"], "BT0920");
}

#[test]
fn weights_share_requests_and_a_header_chooses_whatever_they_say() {
    let (old, new) = (Upstream::answering("old"), Upstream::answering("new"));
    let proxy = proxy(&[route(
        "r",
        json!({"to": [
            {"name": "old", "weight": 3, "endpoints": old.address.to_string()},
            {"name": "new", "weight": 1, "endpoints": new.address.to_string(), "when": {"headers": {"x-canary": "1"}}},
        ]}),
    )]);
    let mut stream = proxy.connect();
    let mut ask = |fields: &str| {
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        read_answer(&mut stream).body
    };
    let news = (0..400).filter(|_| ask("") == "new").count();
    // 100 of 400 are expected; five deviations of the binomial distribution are 43.
    assert!((57..=143).contains(&news), "{news}");
    assert!((0..20).all(|_| ask("X-Canary: 1\r\n") == "new"));
}

#[test]
fn a_change_of_routes_drops_nothing_and_keeps_what_was_learnt() {
    let (old, new) = (Upstream::answering("old"), Upstream::answering("new"));
    let declared = |upstream: &Upstream| route("r", json!({"to": to(upstream), "retry": "off"}));
    let proxy = proxy(&[declared(&old)]);
    let mut stream = proxy.connect();
    let mut ask = || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_answer(&mut stream).body
    };
    assert_eq!(ask(), "old");
    let before = proxy.shared().table.load().routes[0].backends[0].clone();
    assert_eq!(proxy.shared().load(&[declared(&new)]).unwrap(), 2);
    assert_eq!(ask(), "new", "the same connection follows the new routes");
    let after = proxy.shared().table.load().routes[0].backends[0].clone();
    assert!(std::sync::Arc::ptr_eq(&before, &after), "the same policies with another list keep their state");
    // Two requests were counted under one name.
    let figures = proxy.shared().snapshot();
    assert_eq!(figures["routes"][0]["golden"]["by_class"][1], 2, "{figures}");
    // Other policies begin anew.
    let other = route("r", json!({"to": to(&new), "retry": "off", "breaker": {"open_for": "9s"}}));
    proxy.shared().load(&[other]).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&after, &proxy.shared().table.load().routes[0].backends[0]));
    assert_eq!(ask(), "new");
}

#[test]
fn routes_that_cannot_be_are_refused_with_their_place_and_the_old_ones_stay() {
    let upstream = Upstream::answering("ok");
    let proxy = proxy(&[route("r", json!({"to": to(&upstream)}))]);
    for (spec, field, says) in [
        (json!({}), "to", "names no backend"),
        (json!({"to": [{"endpoints": "nobody"}]}), "to.0.endpoints.0", "names no port"),
        (json!({"to": [{"name": "a", "dns": "x:1", "service": "x"}]}), "to.0", "one of endpoints, dns and service"),
        (json!({"to": to(&upstream), "match": [{"path": "orders"}]}), "match.0.path", "does not begin with /"),
        (json!({"to": to(&upstream), "breaker": {"calls_min": 0}}), "breaker.calls_min", "must be"),
        (json!({"to": to(&upstream), "rate": [{"per_second": 1, "by": "mood"}]}), "rate.0.by", "none of client"),
        (json!({"to": to(&upstream), "rate": [{"per_second": 0}]}), "rate.0.per_second", "must be"),
        (json!({"to": to(&upstream), "fallback": {"backend": "b"}}), "fallback.backend", "no backend is called"),
        (json!({"to": to(&upstream), "balance": {"by": "ring"}}), "balance.key", "needs one"),
        (json!({"to": to(&upstream), "rewrite": {"set": {"host": "x"}}}), "rewrite.set.host", "can be set"),
        (json!({"to": to(&upstream), "fault": {}}), "fault", "does nothing"),
        (json!({"to": [{"weight": 0, "endpoints": "127.0.0.1:1"}]}), "to", "every weight is 0"),
        (json!({"to": to(&upstream), "mirror": {"to": "x"}}), "mirror.to", "names no port"),
    ] {
        let wrong = proxy.shared().load(&[route("r", spec.clone())]).expect_err(&spec.to_string());
        assert_eq!((wrong[0].field.as_str(), wrong.len()), (field, 1), "{wrong:?}");
        assert!(wrong[0].says.contains(says) && wrong[0].to_string().starts_with("routes.yaml:1: "), "{wrong:?}");
    }
    let twice = [route("r", json!({"to": to(&upstream)})), route("r", json!({"to": to(&upstream)}))];
    assert_eq!(proxy.shared().load(&twice).unwrap_err()[0].field, "name");
    assert_eq!(get(&proxy, "a", "/", "").body, "ok");
    assert_eq!(proxy.shared().table.load().generation, 1);
}

#[test]
fn a_request_is_rewritten_as_its_route_says_and_the_record_names_the_line() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            connection.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let proxy = proxy(&[route(
        "r",
        json!({
            "match": [{"path": "/other"}, {"path": "/shop/*"}], "to": to(&upstream),
            "rewrite": {"prefix": "/v2/orders", "host": "inner.example", "set": {"X-From": "edge"}, "remove": ["x-secret"]},
        }),
    )]);
    let answer = get(&proxy, "shop.example", "/shop/7?a=b", "X-Secret: 1\r\nx-from: liar\r\nAccept: */*\r\n");
    assert_eq!(answer.status, 500);
    let seen = upstream.requests().pop().unwrap().to_ascii_lowercase();
    assert!(seen.starts_with("get /v2/orders/7?a=b http/1.1\r\nhost: inner.example\r\n"), "{seen}");
    assert!(seen.contains("\r\nx-from: edge\r\n") && !seen.contains("liar") && !seen.contains("x-secret"), "{seen}");
    let told = record(&proxy, &answer);
    assert_eq!(
        (&told["route"], &told["matched"], &told["path"]),
        (&"r".into(), &"routes.yaml:5".into(), &"/shop/7?a=b".into())
    );
    get(&proxy, "a", "/shop", "");
    assert!(upstream.requests().pop().unwrap().starts_with("GET /v2/orders HTTP/1.1\r\n"));
}

#[test]
fn limits_count_for_all_or_for_each_and_say_when_to_come_again() {
    let upstream = Upstream::answering("ok");
    let limited = |by: Value| {
        let mut rate = json!({"per_second": 0.001, "burst": 2});
        if !by.is_null() {
            rate["by"] = by;
        }
        proxy(&[route("r", json!({"to": to(&upstream), "rate": [rate]}))])
    };
    let all = limited(Value::Null);
    let answers: Vec<Answer> = (0..3).map(|at| get(&all, "a", "/", &format!("X-Tenant: {at}\r\n"))).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429]);
    let refused = &answers[2];
    assert!(refused.field("retry-after").is_some() && refused.field("buttress-undelivered").is_some(), "{refused:?}");
    assert!(record(&all, refused)["outcome"]["code"].as_str().unwrap().starts_with("BT-RAT"));
    let each = limited("header:X-Tenant".into());
    assert!((0..3).all(|at| get(&each, "a", "/", &format!("X-Tenant: {at}\r\n")).status == 200));
    assert!((0..2).any(|_| get(&each, "a", "/", "X-Tenant: 0\r\n").status == 429));
}

#[test]
fn faults_on_purpose_hit_those_whom_they_are_for() {
    let upstream = Upstream::answering("ok");
    let fault = json!({"when": {"headers": {"x-chaos": "*"}}, "abort": 503});
    let proxy = proxy(&[route("r", json!({"to": to(&upstream), "fault": fault}))]);
    assert_eq!(get(&proxy, "a", "/", "").status, 200);
    let answer = get(&proxy, "a", "/", "X-Chaos: yes\r\n");
    assert_eq!((answer.status, answer.field("buttress-code")), (503, Some("bt0922")));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn where_no_backend_answers_another_one_or_a_fixed_answer_does() {
    let spare = Upstream::answering("spare");
    let backends = json!([
        {"name": "main", "endpoints": nobody().to_string()},
        {"name": "spare", "weight": 0, "endpoints": spare.address.to_string()},
    ]);
    let other = proxy(&[route("r", json!({"to": backends, "retry": "off", "fallback": {"backend": "spare"}}))]);
    assert_eq!(get(&other, "a", "/", "").body, "spare");
    // A POST of which nothing arrived may go there too.
    let posted = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(other.ask(posted).body, "spare");
    let failing = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            connection.write(b"HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let backends = json!([
        {"name": "main", "endpoints": failing.address.to_string()},
        {"name": "spare", "weight": 0, "endpoints": spare.address.to_string()},
    ]);
    let seen = spare.requests().len();
    let other = proxy(&[route("r", json!({"to": backends, "fallback": {"backend": "spare"}}))]);
    assert_eq!(other.ask(posted).status, 503, "it may have had an effect, so it goes nowhere else");
    assert_eq!(spare.requests().len(), seen);
    let answer = json!({"status": 200, "body": "[]", "content_type": "application/json"});
    let fixed =
        proxy(&[route("r", json!({"to": [{"endpoints": nobody().to_string()}], "fallback": {"answer": answer}}))]);
    let answer = get(&fixed, "a", "/", "");
    assert_eq!(
        (answer.status, answer.body.as_str(), answer.field("content-type")),
        (200, "[]", Some("application/json"))
    );
    assert_eq!(record(&fixed, &answer)["outcome"]["code"], "BT0906", "the record tells what was hidden");
}

#[test]
fn a_copy_goes_to_the_mirror_with_its_body_and_its_answer_is_not_heard() {
    let (upstream, mirror) = (Upstream::answering("ok"), Upstream::answering("mirrored"));
    let proxy = proxy(&[route("r", json!({"to": to(&upstream), "mirror": {"to": mirror.address.to_string()}}))]);
    let answer = proxy.ask("POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\norder");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    until("the mirror is asked", || mirror.requests().len() == 1);
    assert!(
        mirror.requests()[0].starts_with("POST /x HTTP/1.1\r\n") && mirror.requests()[0].contains("content-length: 5")
    );
}

#[test]
fn a_slow_attempt_is_hedged_and_the_faster_one_counts() {
    // The first connection answers its later requests never; every other one at once.
    let slow = Upstream::new(|number, connection| {
        let mut answered = 0;
        while connection.read_request().is_some() {
            if number == 0 && answered >= 250 {
                std::thread::park_timeout(PATIENCE);
            }
            answered += 1;
            connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    });
    let spec = json!({"to": to(&slow), "hedge": {"budget": "100%"}, "deadline": "50s"});
    let proxy = proxy(&[route("r", spec)]);
    let mut stream = proxy.connect();
    let mut ask = || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: last\r\n\r\n").unwrap();
        read_answer(&mut stream).status
    };
    for _ in 0..250 {
        assert_eq!(ask(), 200);
    }
    assert_eq!(ask(), 200, "the connection that hangs is not waited for");
    let hedges = proxy.shared().snapshot()["hedges"].as_u64().unwrap();
    assert!(hedges >= 1, "{hedges}");
    // The attempt that lost is over: nothing is counted as running.
    let running = || proxy.shared().snapshot()["routes"][0]["backends"][0]["endpoints"][0]["golden"]["running"].clone();
    until("nothing runs", || running() == 0);
}

#[test]
fn an_endpoint_that_is_not_well_is_left_out_until_it_is_again() {
    let ill = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen_ill = ill.clone();
    let sick = Upstream::new(move |_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let status = match head.starts_with("GET /health ") && seen_ill.load(std::sync::atomic::Ordering::SeqCst) {
                true => "503 Ill",
                false => "200 OK",
            };
            connection.write(format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nsick").as_bytes());
        }
    });
    let well = Upstream::answering("well");
    let health = json!({"path": "/health", "every": "20ms", "fails": 2, "passes": 2});
    let endpoints = json!([sick.address.to_string(), well.address.to_string()]);
    let spec = json!({"to": [{"endpoints": endpoints, "health": health}], "balance": {"by": "round-robin"}});
    let proxy = proxy(&[route("r", spec)]);
    let answers = || (0..8).map(|_| get(&proxy, "a", "/", "").body).collect::<Vec<_>>();
    assert!(answers().contains(&"sick".to_owned()));
    let state = || proxy.shared().snapshot()["routes"][0]["backends"][0]["endpoints"][0]["state"].clone();
    ill.store(true, std::sync::atomic::Ordering::SeqCst);
    until("the endpoint is found ill", || state() == "down");
    assert!(answers().iter().all(|body| body == "well"));
    ill.store(false, std::sync::atomic::Ordering::SeqCst);
    until("the endpoint is found well", || state() == "in");
    until("it is asked again", || answers().contains(&"sick".to_owned()));
}

#[test]
fn a_service_of_the_registry_and_a_name_of_dns_give_endpoints_that_change() {
    let (one, two) = (Upstream::answering("one"), Upstream::answering("two"));
    let dns = format!("localhost:{}", one.address.port());
    let proxy = proxy(&[
        route("s", json!({"match": [{"path": "/service"}], "to": [{"service": "orders"}]})),
        route("d", json!({"match": [{"path": "/dns"}], "to": [{"dns": dns}]})),
    ]);
    let answer = get(&proxy, "a", "/service", "");
    assert_eq!((answer.status, answer.field("buttress-code")), (503, Some("bt-bal-none")), "{answer:?}");
    let source = || buttress_gateway::discover::Source::Service("orders".into());
    proxy.shared().discovered(source(), vec![one.address.to_string(), "no address".into()]);
    assert_eq!(get(&proxy, "a", "/service", "").body, "one");
    proxy.shared().discovered(source(), vec![two.address.to_string()]);
    assert_eq!(get(&proxy, "a", "/service", "").body, "two");
    // The upstream listens on 127.0.0.1 only; where localhost is ::1 too, the other address is tried.
    until("the name is asked", || get(&proxy, "a", "/dns", "").body == "one");
    // A change of policies keeps what was found.
    let spec = json!({"match": [{"path": "/service"}], "to": [{"service": "orders"}], "deadline": "3s"});
    proxy.shared().load(&[route("s", spec)]).unwrap();
    assert_eq!(get(&proxy, "a", "/service", "").body, "two");
}

#[test]
fn an_old_answer_stands_in_while_the_backends_fail_and_only_for_who_may_have_it() {
    let ill = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen_ill = ill.clone();
    let upstream = Upstream::new(move |_, connection| {
        while let Some((head, _)) = connection.read_request() {
            if seen_ill.load(std::sync::atomic::Ordering::SeqCst) {
                connection.write(b"HTTP/1.1 503 Ill\r\nContent-Length: 0\r\n\r\n");
            } else if head.starts_with("GET /chunks") {
                connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                connection.write(b"3\r\none\r\n");
                connection.write(b"3\r\ntwo\r\n0\r\n\r\n");
            } else {
                connection.write(b"HTTP/1.1 200 OK\r\nX-Version: 7\r\nContent-Length: 4\r\n\r\ngood");
            }
        }
    });
    let spec = json!({"to": to(&upstream), "retry": "off", "fallback": {"stale": "1m", "answer": {"body": "none"}}});
    let proxy = proxy(&[route("r", spec)]);
    assert_eq!(get(&proxy, "a", "/x", "").body, "good");
    assert!(get(&proxy, "a", "/chunks", "").body.contains("two"));
    assert_eq!(get(&proxy, "a", "/secret", "Cookie: session=1\r\n").body, "good");
    ill.store(true, std::sync::atomic::Ordering::SeqCst);
    let old = get(&proxy, "a", "/x", "");
    assert_eq!((old.status, old.body.as_str(), old.field("x-version")), (200, "good", Some("7")));
    assert_eq!((old.field("buttress-fallback"), old.field("age").is_some()), (Some("stale"), true), "{old:?}");
    assert_eq!(record(&proxy, &old)["outcome"]["code"], "BT0911", "the record tells what was hidden");
    assert_eq!(get(&proxy, "a", "/chunks", "").body, "onetwo");
    for (path, fields) in [("/secret", "Cookie: session=1\r\n"), ("/secret", ""), ("/other", "")] {
        assert_eq!(get(&proxy, "a", path, fields).body, "none", "{path} {fields}");
    }
}
