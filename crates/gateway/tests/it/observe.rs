//! What an onlooker gets: a line for each request, and figures that Prometheus can read.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use buttress_gateway::{access_log::To, compile::everything};
use serde_json::Value;

use crate::support::{Connection, Proxy, Upstream, read_answer, until};

/// A proxy with an access log in a folder of its own.
struct Logged {
    proxy: Option<Proxy>,
    path: PathBuf,
}

impl Logged {
    fn new(name: &str, upstream: &Upstream) -> Self {
        let folder = std::env::temp_dir().join(format!("buttress-observe-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("access.log");
        let to = To::File(path.clone());
        let route = everything(&[upstream.address.to_string()], Some(Duration::from_secs(60)));
        let proxy = Proxy::routing(&[route], |options| options.access_log = Some(to));
        Self { proxy: Some(proxy), path }
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it runs until it is stopped")
    }

    /// The lines, once the proxy has ended.
    fn stop(mut self) -> Vec<Value> {
        self.proxy = None;
        lines(&self.path)
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn answer(connection: &mut Connection, status: &str, body: &str) {
    connection.write(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
}

#[test]
fn every_request_leaves_one_line_that_says_what_became_of_it() {
    let upstream = Upstream::new(|_, connection| {
        let mut again = false;
        while let Some((head, _)) = connection.read_request() {
            match head.split(' ').nth(1).unwrap() {
                "/flaky" if !std::mem::replace(&mut again, true) => answer(connection, "503 Service Unavailable", "no"),
                "/cut" => {
                    connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
                    return;
                }
                "/down" => answer(connection, "500 Internal Server Error", "down"),
                _ => answer(connection, "200 OK", "hello"),
            }
        }
    });
    let logged = Logged::new("every", &upstream);
    let ask = |request: &str| logged.proxy().ask(request).status;
    let end = "Host: shop.example\r\nConnection: close\r\n";
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    assert_eq!(
        ask(&format!("GET /ok?a=\"b\" HTTP/1.1\r\n{end}User-Agent: me/1\r\nX-Request-Id: one\r\n{trace}\r\n")),
        200
    );
    assert_eq!(ask(&format!("PUT /flaky HTTP/1.1\r\n{end}Content-Length: 6\r\n\r\nabcdef")), 200);
    assert_eq!(ask(&format!("POST /down HTTP/1.1\r\n{end}Content-Length: 0\r\n\r\n")), 500);
    assert_eq!(ask(&format!("GET /cut HTTP/1.1\r\n{end}\r\n")), 200);
    assert_eq!(ask(&format!("HEAD /head HTTP/1.0\r\n{end}\r\n")), 200);
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    let endpoint = upstream.address.to_string();
    let lines = logged.stop();
    assert_eq!(lines.len(), 6, "{lines:#?}");
    let told = |at: usize, keys: &[&str]| -> Vec<String> {
        keys.iter().map(|key| lines[at].get(*key).unwrap_or_else(|| panic!("no {key}")).to_string()).collect()
    };
    let keys = ["method", "authority", "path", "protocol", "status", "client", "request_id", "user_agent", "trace_id"];
    assert_eq!(
        told(0, &keys).join(" "),
        r#""GET" "shop.example" "/ok?a=\"b\"" "HTTP/1.1" 200 "127.0.0.1" "one" "me/1" "4bf92f3577b34da6a3ce929d0e0e4736""#
    );
    assert_eq!(lines[0]["endpoint"], endpoint);
    assert_eq!((&lines[0]["route"], &lines[0]["matched"]), (&"everything".into(), &"the command line".into()));
    let keys = ["status", "attempts", "bytes_in", "bytes_out", "code", "ended"];
    assert_eq!(told(0, &keys).join(" "), r#"200 1 0 5 null "whole""#);
    assert_eq!(told(1, &keys).join(" "), r#"200 2 6 5 null "whole""#);
    assert_eq!(told(2, &keys).join(" "), r#"500 1 0 4 "BT0911" "whole""#);
    assert_eq!(told(3, &keys).join(" "), r#"200 1 0 9 "BT0912" "cut""#);
    assert_eq!(told(4, &keys).join(" "), r#"200 1 0 0 null "whole""#);
    assert_eq!((&lines[4]["method"], &lines[4]["protocol"]), (&"HEAD".into(), &"HTTP/1.0".into()));
    assert_eq!(told(5, &["status", "attempts", "path", "ended"]).join(" "), r#"400 0 "" "whole""#);
    assert!(lines[5]["code"].as_str().unwrap().starts_with("BT"), "{}", lines[5]);
    for line in &lines {
        assert!(line["whole_ms"].as_f64().unwrap() >= line["head_ms"].as_f64().unwrap(), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["caller"].is_null(), "{line}");
    }
}

#[test]
fn a_client_that_left_first_is_a_499_with_what_was_known() {
    let upstream = Upstream::new(|_, connection| {
        // Reads, and says nothing until the proxy gives up.
        while connection.read_request().is_some() {}
    });
    let logged = Logged::new("left", &upstream);
    // Over HTTP/1.1 a closed client is heard of only when it is answered; with HTTP/2 its stream is reset.
    let mut client = logged.proxy().connect();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // GET, http, path / as literal indices, and an authority: HPACK of RFC 7541.
    let head = b"\x82\x86\x84\x41\x01a";
    client.write_all(&[&[0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1][..], head].concat()).unwrap();
    until("the upstream has the request", || !upstream.requests().is_empty());
    client.write_all(&[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8]).unwrap();
    until("the line is written", || {
        logged.proxy().shared().log.as_ref().unwrap().figures().written.load(std::sync::atomic::Ordering::Relaxed) == 1
    });
    drop(client);
    let lines = logged.stop();
    assert_eq!(
        (&lines[0]["status"], &lines[0]["ended"], &lines[0]["protocol"]),
        (&499.into(), &"left".into(), &"HTTP/2".into())
    );
    assert_eq!(lines[0]["attempts"], 1);
}

#[test]
fn lines_are_there_soon_although_few_come_and_the_file_may_be_moved_away() {
    let upstream = Upstream::answering("hi");
    let logged = Logged::new("moved", &upstream);
    let mut client = logged.proxy().connect();
    let mut ask = || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut client).status, 200);
    };
    ask();
    until("the first line is written", || lines(&logged.path).len() == 1);
    let old = logged.path.with_extension("log.1");
    std::fs::rename(&logged.path, &old).unwrap();
    logged.proxy().shared().log.as_ref().unwrap().reopen();
    ask();
    until("the second line is in a new file", || logged.path.exists() && lines(&logged.path).len() == 1);
    assert_eq!(lines(&old).len(), 1);
}

#[test]
fn figures_name_themselves_and_count_codes() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            answer(connection, "500 Internal Server Error", "");
        }
    });
    let logged = Logged::new("figures", &upstream);
    assert_eq!(
        logged.proxy().ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").status,
        500
    );
    let mut page = String::new();
    logged.proxy().shared().prometheus(&mut page);
    assert!(page.contains("buttress_traffic_codes_total{code=\"BT0911\"} 1\n"), "{page}");
    for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    assert!(page.contains("buttress_traffic_access_log_dropped_total 0\n"), "{page}");
}
