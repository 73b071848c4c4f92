//! `buttress proxy`, `mock` and `explain` as a user meets them: three commands, real processes, loopback.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
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
    for asset in ["/proxy.js", "/proxy.css", "/style.css", "/connection.js", "/format.js"] {
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
    let refused = failed(&run(&[&base[..], &["--otlp", "https://127.0.0.1:4318"]].concat()));
    assert!(refused.contains("TLS to the collector"), "{refused}");
}
