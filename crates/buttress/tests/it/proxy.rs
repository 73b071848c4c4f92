//! `buttress proxy`, `mock` and `explain` as a user meets them: three commands, real processes, loopback.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use serde_json::Value;

use super::support::*;

/// A command that serves until it is told to stop, and the line of JSON that it begins with.
struct Serving {
    child: Child,
    told: Value,
}

impl Serving {
    fn start(args: &[&str]) -> Self {
        let mut child =
            buttress().args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it said {line:?}"));
        Self { child, told }
    }

    fn address(&self, key: &str) -> String {
        self.told[key].as_str().unwrap().to_owned()
    }

    /// Asks it to end, and gives its exit code.
    fn stop(mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: &str, path: &str, fields: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_failure_behind_the_proxy_is_explained_in_sentences() {
    let mock = Serving::start(&["mock", "--fail", "100%", "--fail-with", "500", "--output", "json"]);
    let to = mock.address("listen");
    let proxy = ["proxy", "--to", &to, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--output", "json"];
    let proxy = Serving::start(&proxy);
    let (listen, admin) = (proxy.address("listen"), proxy.address("admin"));

    let answer = get(&listen, "/orders", "X-Request-Id: order-7\r\n");
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("x-request-id: order-7"), "{answer}");
    let told = ok(&run(&["explain", "order-7", "--admin", &admin]));
    assert!(told.contains("GET /orders") && told.contains(&format!("BT0911: {to} answered 500 itself")), "{told}");
    assert!(told.contains("BT-RTY-STATUS") && told.contains("retry budget: "), "{told}");
    let unknown = failed(&run(&["explain", "order-8", "--admin", &admin]));
    assert!(unknown.contains("[BT0913]"), "{unknown}");
    assert!(ok(&run(&["explain", "BT0911"])).starts_with("# BT0911"));
    assert!(ok(&run(&["explain", "bt-brk-open"])).starts_with("BT-BRK-OPEN: "));

    let page = get(&admin, "/", "");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("/proxy.js"), "{page}");
    for path in ["/explain/", "/explain/order-7", "/explain/a%2Fb"] {
        assert!(get(&admin, path, "").contains("/explain.js"), "{path}");
    }
    let listed = |query: &str| get(&admin, &format!("/v1/requests?{query}"), "").contains("order-7");
    assert!(listed("text=ORDERS") && listed("code=bt0911&route=everything&limit=1") && !listed("route=other"));
    assert!(get(&admin, "/v1/requests?status=500", "").starts_with("HTTP/1.1 400"));
    for asset in ["/explain.js", "/story.js", "/proxy.js", "/proxy.css", "/style.css", "/connection.js", "/format.js"] {
        assert!(get(&admin, asset, "").starts_with("HTTP/1.1 200"), "{asset}");
    }
    let metrics = get(&admin, "/metrics", "");
    assert!(metrics.contains("buttress_traffic_requests_total{route=\"everything\",status=\"5xx\"} 1\n"), "{metrics}");
    assert!(get(&admin, "/v1/requests", "").contains("order-7"));

    assert_eq!(proxy.stop(), Some(0));
    assert_eq!(mock.stop(), Some(0));
}

#[test]
fn what_is_typed_wrongly_is_refused_with_a_hint() {
    let wrong = failed(&run(&["proxy", "--to", "orders"]));
    assert!(wrong.contains("names no port [BT0701]") && wrong.contains("hint: "), "{wrong}");
    let twice = failed(&run(&["proxy", "--to", "127.0.0.1:1", "--to", "127.0.0.1:1", "--listen", "127.0.0.1:0"]));
    assert!(twice.contains("twice"), "{twice}");
    let usage = run(&["mock", "--latency", "p50=2s,p99=1s"]);
    assert!(stderr(&usage).contains("shorter than p50"), "{}", stderr(&usage));
}

/// Asks until the answer has this body.
fn until_body(listen: &str, path: &str, body: &str) {
    until(&format!("{path} answers {body}"), || {
        get(listen, path, "").ends_with(&format!("\r\n\r\n{body}")).then_some(())
    });
}

/// A route to a fixed answer, so that no upstream is needed.
fn answering(name: &str, path: &str, body: &str) -> String {
    format!("kind: Route\nname: {name}\nspec:\n  match: [{{path: {path}}}]\n  fallback: {{answer: {{body: {body}}}}}\n")
}

#[test]
fn routes_of_a_file_are_taken_up_while_running_and_wrong_ones_leave_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "kind: Route\nname: a\nspec:\n  too: []\n").unwrap();
    let wrong = failed(&run(&["proxy", "--config", path, "--listen", "127.0.0.1:0"]));
    assert!(
        wrong.contains("[BT0921]") && wrong.contains("routes.yaml:4:3") && wrong.contains("did you mean \"to\""),
        "{wrong}"
    );

    std::fs::write(&file, answering("a", "/a", "one")).unwrap();
    let proxy = Serving::start(&[
        "proxy",
        "--config",
        path,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--output",
        "json",
    ]);
    let (listen, admin) = (proxy.address("listen"), proxy.address("admin"));
    assert!(get(&listen, "/a", "").ends_with("one"));
    let none = get(&listen, "/b", "X-Request-Id: nowhere\r\n");
    assert!(none.starts_with("HTTP/1.1 404") && none.contains("BT0920"), "{none}");
    assert!(ok(&run(&["explain", "nowhere", "--admin", &admin])).contains("none takes it"));

    std::fs::write(&file, answering("a", "/a", "one") + "---\n" + &answering("b", "/b", "two")).unwrap();
    until_body(&listen, "/b", "two");
    std::fs::write(&file, answering("a", "orders", "one")).unwrap();
    until("the wrong routes are told", || get(&admin, "/metrics", "").contains("config_stale 1\n").then_some(()));
    assert!(get(&admin, "/v1/traffic", "").contains("does not begin with /"));
    assert!(get(&listen, "/b", "").ends_with("two"), "the routes from before hold");
    std::fs::write(&file, answering("a", "/a", "three")).unwrap();
    until_body(&listen, "/a", "three");
    assert!(get(&admin, "/metrics", "").contains("config_stale 0\n"));
    assert_eq!(proxy.stop(), Some(0));
}

#[test]
fn routes_services_and_limits_come_from_the_store_and_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let store = format!("http://{}", dev.nodes[0]["etcd"].as_str().unwrap());
    let put = |key: &str, value: &str| ok(&run(&["kv", "put", key, value, "--server", &dev.http(0)]));
    let upstream = Serving::start(&["mock", "--output", "json"]);
    put("/buttress/routes/good", r#"{"generation":1,"spec":{"match":[{"path":"/s/*"}],"to":[{"service":"shop"}]}}"#);
    put("/buttress/routes/bad", r#"{"generation":1,"spec":{"match":[{"path":"/bad"}],"to":[]}}"#);
    put("/buttress/services/shop/1", &upstream.address("listen"));
    let proxy = Serving::start(&[
        "proxy",
        "--store",
        &store,
        "--name",
        "edge-1",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--output",
        "json",
    ]);
    let (listen, admin) = (proxy.address("listen"), proxy.address("admin"));
    until("the service is found", || get(&listen, "/s/1", "").starts_with("HTTP/1.1 200").then_some(()));
    let status = |name: &str| {
        let key = format!("/buttress/status/routes/{name}/edge-1");
        until("a status is written", || {
            let told = run(&["kv", "get", &key, "--server", &dev.http(0)]);
            let told = stdout(&told);
            told.contains("observed_generation").then_some(told)
        })
    };
    assert!(status("good").contains("\"ready\":true"));
    assert!(status("bad").contains("names no backend"));

    let limited = r#"{"generation":2,"spec":{"match":[{"path":"/s/*"}],"to":[{"service":"shop"}],"rate":[{"per_second":0.01,"burst":3,"cluster":{"slice":1}}]}}"#;
    put("/buttress/routes/good", limited);
    until("the limit of the cluster holds", || get(&listen, "/s/1", "").starts_with("HTTP/1.1 429").then_some(()));
    until("the pool lies in the store", || {
        run(&["kv", "get", "/buttress/limits/good/0", "--server", &dev.http(0)]).status.success().then_some(())
    });
    put("/buttress/routes/good", r#"{"generation":3,"spec":{"match":[{"path":"/s/*"}],"to":[{"service":"shop"}]}}"#);
    until("the limit is gone", || get(&listen, "/s/1", "").starts_with("HTTP/1.1 200").then_some(()));

    assert_eq!(dev.stop(), Some(0));
    assert!(get(&listen, "/s/1", "").starts_with("HTTP/1.1 200"), "what is known serves on without the store");
    assert!(get(&admin, "/v1/traffic", "").contains("good"));
    assert_eq!(proxy.stop(), Some(0));
}

fn listener(name: &str, address: &str) -> String {
    format!("---\nkind: Listener\nname: {name}\nspec: {{address: \"{address}\"}}\n")
}

/// An address at which nobody listens.
/// An address that is free, of a port that no other test is given: it is below those that the system hands out to whoever asks for
/// any, and what listens on it comes later, or goes again.
fn free() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + (std::process::id() % 100) as u16 * 100;
    let ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Relaxed));
    let mut addresses = ports.take(10_000).map(|port| format!("127.0.0.1:{port}"));
    addresses.find(|address| std::net::TcpListener::bind(address).is_ok()).expect("some port is free")
}

/// A certificate for `localhost`, as two files that may come later.
struct Certificate {
    cert: std::path::PathBuf,
    key: std::path::PathBuf,
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Certificate {
    fn named(dir: &std::path::Path, name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Self { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")), made }
    }

    fn write(&self) {
        std::fs::write(&self.key, self.made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&self.cert, self.made.cert.pem()).unwrap();
    }

    fn tls(&self) -> Value {
        serde_json::json!({"certificates": [{"cert": self.cert, "key": self.key}]})
    }
}

/// A port of TLS tells so to whoever comes without it.
fn until_tls(address: &str) {
    until("it listens with TLS", || {
        TcpStream::connect(address).is_ok_and(|_| get(address, "/a", "").contains("BT0932")).then_some(())
    });
}

#[test]
fn a_certificate_that_could_not_be_read_is_tried_again_and_used_once_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.yaml");
    let (path, web, secure) = (file.to_str().unwrap(), free(), free());
    let route = answering("a", "/a", "one");
    std::fs::write(&file, route.clone() + &listener("web", &web)).unwrap();
    let proxy = Serving::start(&["proxy", "--config", path, "--admin", "127.0.0.1:0", "--output", "json"]);
    let admin = proxy.address("admin");
    let certificate = Certificate::named(dir.path(), "late");
    let tls = certificate.tls();
    let with_tls = format!("---\nkind: Listener\nname: secure\nspec: {{address: \"{secure}\", tls: {tls}}}\n");
    std::fs::write(&file, route.replace("one", "two") + &listener("web", &web) + &with_tls).unwrap();
    let told = until("the certificate is told", || {
        let told = get(&admin, "/v1/traffic", "");
        told.contains("BT0931").then_some(told)
    });
    assert!(told.contains("late.pem") && told.contains("listener \\\"secure\\\""), "{told}");
    assert!(get(&web, "/a", "").ends_with("one"), "the change is taken up as a whole, or not at all");

    certificate.write();
    until_tls(&secure);
    until_body(&web, "/a", "two");
    until("it is well", || get(&admin, "/v1/traffic", "").contains("\"problem\":null").then_some(()));
    assert_eq!(proxy.stop(), Some(0));
}

#[test]
fn listeners_of_a_file_come_and_go_while_running_and_a_taken_port_leaves_all_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.yaml");
    let (path, web, second) = (file.to_str().unwrap(), free(), free());
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let route = answering("a", "/a", "one");
    write(&(route.clone() + &listener("web", &web)));
    let proxy = Serving::start(&["proxy", "--config", path, "--admin", "127.0.0.1:0", "--output", "json"]);
    let admin = proxy.address("admin");
    assert_eq!(proxy.address("listen"), web);
    assert!(get(&web, "/a", "").ends_with("one"));

    let only = "kind: Route\nname: inner\nspec:\n  listeners: second\n  match: [{path: /a}]\n  fallback: {answer: {body: inner}}\n";
    write(&format!("{route}---\n{only}{}{}", listener("web", &web), listener("second", &second)));
    until("the second listens", || TcpStream::connect(&second).is_ok().then_some(()));
    until_body(&second, "/a", "inner");
    assert!(get(&web, "/a", "").ends_with("one"));
    assert!(get(&admin, "/v1/traffic", "").contains("\"listener\":\"second\""));

    // A route names the one that would go.
    write(&format!("{route}---\n{only}{}", listener("web", &web)));
    until("it is refused", || get(&admin, "/v1/traffic", "").contains("no listener for HTTP is called").then_some(()));
    assert!(get(&second, "/a", "").ends_with("inner"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let third = taken.local_addr().unwrap().to_string();
    write(&(route.clone() + &listener("web", &web) + &listener("third", &third)));
    let told = until("the taken port is told", || {
        let told = get(&admin, "/v1/traffic", "");
        told.contains("cannot listen on").then_some(told)
    });
    assert!(told.contains("routes.yaml:") && told.contains("BT0702"), "{told}");
    assert!(get(&second, "/a", "").ends_with("inner"), "all stays as it was");
    drop(taken);
    until("it is free, and taken up without another change", || TcpStream::connect(&third).is_ok().then_some(()));
    until("the second closes", || TcpStream::connect(&second).is_err().then_some(()));
    assert!(get(&admin, "/metrics", "").contains("config_stale 0\n"));
    assert_eq!(proxy.stop(), Some(0));
}

#[test]
fn listeners_of_the_store_come_and_go_and_one_that_cannot_be_says_so_in_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let store = format!("http://{}", dev.nodes[0]["etcd"].as_str().unwrap());
    let put = |key: &str, value: &str| ok(&run(&["kv", "put", key, value, "--server", &dev.http(0)]));
    let listens = |generation: u32, address: &str| {
        format!("{{\"generation\":{generation},\"spec\":{{\"address\":\"{address}\"}}}}")
    };
    put(
        "/buttress/routes/a",
        r#"{"generation":1,"spec":{"match":[{"path":"/a"}],"fallback":{"answer":{"body":"one"}}}}"#,
    );
    let (web, second) = (free(), free());
    put("/buttress/listeners/web", &listens(1, &web));
    let args = ["proxy", "--store", &store, "--name", "edge-1", "--admin", "127.0.0.1:0", "--output", "json"];
    let proxy = Serving::start(&args);
    let admin = proxy.address("admin");
    assert_eq!(proxy.address("listen"), web);
    assert!(get(&web, "/a", "").ends_with("one"));
    let until_status = |name: &str, says: &str| {
        let key = format!("/buttress/status/listeners/{name}/edge-1");
        until(&format!("{name} says {says}"), || {
            stdout(&run(&["kv", "get", &key, "--server", &dev.http(0)])).contains(says).then_some(())
        });
    };
    until_status("web", "\"ready\":true");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    put("/buttress/listeners/bad", &listens(1, &taken.local_addr().unwrap().to_string()));
    put("/buttress/listeners/second", &listens(1, &second));
    until("the good one listens beside the bad one", || TcpStream::connect(&second).is_ok().then_some(()));
    until_status("bad", "cannot listen on");
    until_status("second", "\"ready\":true");
    let refused = || {
        let told = get(&admin, "/v1/traffic", "");
        let body: Value = serde_json::from_str(told.split_once("\r\n\r\n").unwrap().1).unwrap();
        body["config"]["refused"].as_u64().unwrap()
    };
    let before = refused();
    put(
        "/buttress/routes/b",
        r#"{"generation":1,"spec":{"match":[{"path":"/b"}],"fallback":{"answer":{"body":"two"}}}}"#,
    );
    until_body(&web, "/b", "two");
    assert_eq!(refused(), before, "what is wrong and did not change is not told again");

    ok(&run(&["kv", "del", "/buttress/listeners/second", "--server", &dev.http(0)]));
    until("the second closes", || TcpStream::connect(&second).is_err().then_some(()));
    assert!(get(&web, "/a", "").ends_with("one"));

    // What may be well by itself is tried again by itself.
    let certificate = Certificate::named(dir.path(), "late");
    let (secure, tls) = (free(), certificate.tls());
    put(
        "/buttress/listeners/secure",
        &format!("{{\"generation\":1,\"spec\":{{\"address\":\"{secure}\",\"tls\":{tls}}}}}"),
    );
    until_status("secure", "BT0931");
    let good = taken.local_addr().unwrap().to_string();
    drop(taken);
    certificate.write();
    until_tls(&secure);
    until_status("secure", "\"ready\":true");
    until_status("bad", "\"ready\":true");
    assert!(get(&good, "/a", "").ends_with("one"));

    // Others are told where it listens by now.
    let told = || {
        let told = ok(&run(&["get", "gateway", "edge-1", "-o", "json", "--etcd", &store]));
        serde_json::from_str::<Value>(&told).unwrap()["listen"].clone()
    };
    until("others are told where it listens", || (told() == web.as_str()).then_some(()));
    let moved = free();
    put("/buttress/listeners/web", &listens(2, &moved));
    until("it listens elsewhere", || TcpStream::connect(&moved).is_ok().then_some(()));
    until("others are told that it moved", || (told() != web.as_str()).then_some(()));
    let all = [&moved, &good, &secure].map(|address| Value::from(address.as_str()));
    assert!(all.contains(&told()), "{}", told());
    assert_eq!(proxy.stop(), Some(0));
    let of_itself = ["/buttress/status/", "/buttress/gateways/"]
        .map(|prefix| stdout(&run(&["kv", "get", prefix, "--prefix", "--server", &dev.http(0)])));
    assert!(of_itself.iter().all(|told| told.lines().count() <= 1), "who ends takes back what it wrote: {of_itself:?}");
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn a_request_is_explained_after_a_kill_where_records_are_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("records");
    let mock = Serving::start(&["mock", "--fail", "100%", "--fail-with", "500", "--output", "json"]);
    let to = mock.address("listen");
    let args = [
        "proxy",
        "--to",
        &to,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--output",
        "json",
        "--records",
        records.to_str().unwrap(),
    ];
    let mut proxy = Serving::start(&args);
    assert!(get(&proxy.address("listen"), "/orders", "X-Request-Id: order-9\r\n").starts_with("HTTP/1.1 500"));
    let told = ok(&run(&["explain", "order-9", "--admin", &proxy.address("admin")]));
    let refused = failed(&run(&args));
    assert!(refused.contains("[BT0205]") && refused.contains("--records"), "{refused}");
    until("it is on disk", || {
        get(&proxy.address("admin"), "/metrics", "").contains("records_written_total 1\n").then_some(())
    });
    proxy.child.kill().unwrap();
    proxy.child.wait().unwrap();
    // It was killed in the middle of a line.
    let file = std::fs::read_dir(&records).unwrap().flatten().find(|entry| entry.path().extension().is_some()).unwrap();
    std::fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(b"{\"id\":\"torn").unwrap();

    let proxy = Serving::start(&args);
    let admin = proxy.address("admin");
    assert_eq!(ok(&run(&["explain", "order-9", "--admin", &admin])), told);
    assert!(get(&admin, "/v1/requests", "").contains("order-9"));
    let dir = dir.path().join("routes.yaml");
    std::fs::write(&dir, format!("kind: Route\nname: everything\nspec:\n  to: [{{endpoints: {to}}}]\n")).unwrap();
    let replayed = ok(&run(&["route", "what-if", "-f", dir.to_str().unwrap(), "--admin", &admin]));
    assert!(replayed.contains("1 failed, 1 would"), "{replayed}");
    assert_eq!(proxy.stop(), Some(0));
    assert_eq!(mock.stop(), Some(0));
}

#[test]
fn every_gateway_of_a_store_is_asked_and_those_that_are_gone_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let store = format!("http://{}", dev.nodes[0]["etcd"].as_str().unwrap());
    let none = failed(&run(&["explain", "r-1", "--store", &store]));
    assert!(none.contains("no gateway has its routes from"), "{none}");
    let start = |name: &str, to: &str| {
        Serving::start(&[
            "proxy",
            "--store",
            &store,
            "--name",
            name,
            "--to",
            to,
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--output",
            "json",
        ])
    };
    // A request passes the outer one and the inner one, and fails behind that.
    let inner = start("inner", "127.0.0.1:1");
    let outer = start("outer", &inner.address("listen"));
    let mut lost = start("lost", "127.0.0.1:1");
    let gateways = until("all three are told of", || {
        let told = ok(&run(&["get", "gateways", "--server", &dev.http(0)]));
        (told.lines().count() == 4).then_some(told)
    });
    assert!(gateways.contains("inner") && gateways.contains(&outer.address("admin")), "{gateways}");
    assert_eq!(ok(&run(&["get", "gateways", "--etcd", &store])), gateways);
    let one: Value =
        serde_json::from_str(&ok(&run(&["get", "gateway", "outer", "-o", "json", "--etcd", &store]))).unwrap();
    assert_eq!(one["listen"], outer.address("listen"));

    assert!(get(&outer.address("listen"), "/a", "X-Request-Id: r-1\r\n").starts_with("HTTP/1.1 502"));
    lost.child.kill().unwrap();
    lost.child.wait().unwrap();
    let asked = run(&["explain", "r-1", "--store", &store]);
    let told = ok(&asked);
    let at = |name: &str| told.find(&format!("gateway {name} (")).unwrap_or_else(|| panic!("{name}: {told}"));
    assert!(at("outer") < at("inner") && told.contains("BT0906"), "{told}");
    assert!(stderr(&asked).contains("not asked: lost ("), "{}", stderr(&asked));
    let json: Value =
        serde_json::from_str(&ok(&run(&["explain", "r-1", "--store", &store, "--output", "json"]))).unwrap();
    assert_eq!((&json["asked"], &json["unreachable"][0]["gateway"]), (&3.into(), &"lost".into()), "{json}");
    assert_eq!(json["records"].as_array().unwrap().len(), 2);
    let unknown = failed(&run(&["explain", "r-2", "--store", &store]));
    assert!(unknown.contains("is kept by") && unknown.contains("those that were not asked may have one"), "{unknown}");
    let both = [inner.address("admin"), outer.address("admin")].join(",");
    assert!(ok(&run(&["explain", "r-1", "--admin", &both])).contains(&format!("gateway {}:", inner.address("admin"))));

    // Who ends says so.
    assert_eq!(outer.stop(), Some(0));
    let left = ok(&run(&["get", "gateways", "--etcd", &store]));
    assert!(!left.contains("outer") && left.contains("inner"), "{left}");
    assert_eq!(inner.stop(), Some(0));
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn the_access_log_is_opened_anew_at_sigusr1_and_may_be_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let mock = Serving::start(&["mock", "--output", "json"]);
    let to = mock.address("listen");
    let base = ["proxy", "--to", &to, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--output", "json"];
    let proxy = Serving::start(&[&base[..], &["--access-log", path.to_str().unwrap()]].concat());
    let ask = |path: &str| assert!(get(&proxy.address("listen"), path, "").starts_with("HTTP/1.1 200"));
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..6000 {
            if holds() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{what} did not come true");
    };
    ask("/first");
    until("the first line is there", &|| lines(&path).contains("\"path\":\"/first\""));
    std::fs::rename(&path, &old).unwrap();
    signal(proxy.child.id(), "USR1");
    until("the name stands for a new file", &|| path.exists());
    ask("/second");
    // What is there when the proxy ends is written.
    assert_eq!(proxy.stop(), Some(0));
    assert!(lines(&path).contains("\"path\":\"/second\"") && !lines(&old).contains("/second"));

    let mut proxy = Serving::start(&[&base[..], &["--access-log", "-"]].concat());
    assert!(get(&proxy.address("listen"), "/third", "").starts_with("HTTP/1.1 200"));
    let mut line = String::new();
    BufReader::new(proxy.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&told["path"], &told["status"], &told["endpoint"]),
        (&"/third".into(), &200.into(), &to.clone().into())
    );

    let missing = folder.path().join("none/access.log");
    let refused = failed(&run(&[&base[..], &["--access-log", missing.to_str().unwrap()]].concat()));
    assert!(refused.contains("access log") && refused.contains("hint:"), "{refused}");
    let http = ["--otlp", "http://127.0.0.1:4318"];
    let missing = missing.to_str().unwrap();
    for (wrong, says) in [
        (vec!["--otlp", "grpc://127.0.0.1:4317"], "neither with http:// nor with https://"),
        ([&http[..], &["--otlp-ca", missing]].concat(), "--otlp names one without"),
        (vec!["--otlp", "https://127.0.0.1:4318", "--otlp-ca", missing], "cannot be read"),
        ([&http[..], &["--otlp-header", "api-key"]].concat(), "has no value"),
        ([&http[..], &["--otlp-header", "api-key=s3cret\u{e4}"]].concat(), "has no value of visible ASCII"),
        ([&http[..], &["--otlp-header", "host=s3cret"]].concat(), "is set by the exporter itself"),
        ([&http[..], &["--otlp-header", &format!("api-key=@{missing}")]].concat(), "cannot be read"),
    ] {
        let refused = failed(&run(&[&base[..], &wrong].concat()));
        assert!(
            refused.contains(says) && refused.contains("hint:") && !refused.contains("s3cret"),
            "{wrong:?}: {refused}"
        );
    }
}

#[test]
fn other_routes_are_judged_by_the_records_of_a_running_proxy() {
    let mock = Serving::start(&["mock", "--fail", "100%", "--fail-with", "500", "--output", "json"]);
    let to = mock.address("listen");
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let route = |rest: &str| {
        format!(
            "kind: Route\nname: orders\nspec:\n  match: [{{path: /orders/*}}]\n  to: [{{endpoints: {to}}}]\n  outlier: off\n{rest}"
        )
    };
    let live = write("live.yaml", route("  breaker: off\n  retry: off\n"));
    let proxy = ["proxy", "--config", &live, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--output", "json"];
    let proxy = Serving::start(&proxy);
    let (listen, admin) = (proxy.address("listen"), proxy.address("admin"));
    for n in 0..20 {
        assert!(get(&listen, &format!("/orders/{n}"), &format!("X-Request-Id: o-{n}\r\n")).starts_with("HTTP/1.1 500"));
    }

    let test = ok(&run(&["route", "test", "--admin", &admin, "GET", "http://shop.example/orders/7"]));
    assert!(test.contains("route \"orders\" takes it, by match 1 (") && test.contains("live.yaml:4"), "{test}");
    let none = run(&["route", "test", "--admin", &admin, "GET", "http://shop.example/other"]);
    assert_eq!(none.status.code(), Some(1));

    let same = ok(&run(&["route", "what-if", "-f", &live, "--admin", &admin]));
    assert!(same.contains("20 failed, 20 would, and of 0 nobody knows"), "{same}");
    let breaker = write("breaker.yaml", route("  breaker: {consecutive: 5}\n  retry: off\n"));
    let told = ok(&run(&["route", "what-if", "-f", &breaker, "--admin", &admin, "--output", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    let would = &told["routes"][0]["would"];
    // Records tell times to the millisecond, so one or the other comes before the fifth has failed.
    let (failed, refused) = (would["failed"].as_u64().unwrap(), would["refused"].as_u64().unwrap());
    assert!(failed + refused == 20 && (5..=12).contains(&failed), "{told}");
    assert_eq!(would["refused_by"][0]["code"], "BT-BRK-CONSECUTIVE", "{told}");
    assert!(would["refused_by"][0]["examples"][0].as_str().unwrap().starts_with("o-"), "{told}");

    // Kept for later; and one that was answered, which these routes would not take.
    let mut records = get(&admin, "/v1/records", "").split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(records.lines().count(), 20);
    let mut good: Value = serde_json::from_str(records.lines().next().unwrap()).unwrap();
    (good["path"], good["outcome"]["code"], good["id"]) = ("/other".into(), "BT-RTY-DONE".into(), "good".into());
    records.push_str(&format!("{good}\n"));
    let saved = write("records.jsonl", records);
    let more = run(&["route", "what-if", "-f", &live, "--records", &saved]);
    assert_eq!(more.status.code(), Some(1));
    assert!(
        ok(&run(&["explain", "bt-lint-breaker"])).starts_with("BT-LINT-BREAKER (warning): the breaker never opens")
    );

    assert_eq!(proxy.stop(), Some(0));
    assert_eq!(mock.stop(), Some(0));
}
