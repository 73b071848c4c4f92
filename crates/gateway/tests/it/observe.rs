//! What an onlooker gets: a line for each request, and figures that Prometheus can read.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use buttress_gateway::{access_log, compile::everything, otlp::To};
use serde_json::Value;

use crate::{
    support::{Connection, Proxy, Upstream, read_answer, tls_of, until},
    tls::{Authority, server},
};

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
        let to = access_log::To::File(path.clone());
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
        logged.proxy().shared().log.as_ref().unwrap().figures().written.load(Ordering::Relaxed) == 1
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

/// A span as it arrived, with its attributes as texts.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    kind: u64,
    name: String,
    error: bool,
    begun: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
}

/// A log record as a collector reads it.
#[derive(Clone, Debug)]
struct Log {
    trace: String,
    span: String,
    flags: u64,
    severity: (u64, String),
    body: String,
    at: u64,
    attributes: BTreeMap<String, String>,
}

/// A collector that reads OTLP over HTTP as the specification has it, and answers with these statuses first.
struct Collector {
    upstream: Upstream,
    spans: Arc<Mutex<Vec<Span>>>,
    logs: Arc<Mutex<Vec<Log>>>,
}

impl Collector {
    fn new(first: &'static [&'static str]) -> Self {
        Self::with(first, None)
    }

    /// One that says this to log records.
    fn with(first: &'static [&'static str], to_logs: Option<&'static str>) -> Self {
        let (spans, logs) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<Vec<Log>>>::default());
        let (seen, read, asked) = (spans.clone(), logs.clone(), AtomicUsize::new(0));
        let upstream = Upstream::new(move |_, connection| {
            while let Some((head, body)) = connection.read_request() {
                assert!(head.contains("content-type: application/json\r\n"), "{head}");
                if head.starts_with("POST /v1/logs HTTP/1.1\r\n") {
                    match to_logs {
                        Some(status) => answer(connection, status, ""),
                        None => {
                            read.lock().unwrap().extend(parsed_logs(&serde_json::from_slice(&body).unwrap()));
                            answer(connection, "200 OK", "{}");
                        }
                    }
                    continue;
                }
                assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
                let at = asked.fetch_add(1, Ordering::SeqCst);
                let Some(status) = first.get(at) else {
                    let told: Value = serde_json::from_slice(&body).unwrap();
                    seen.lock().unwrap().extend(parsed(&told));
                    answer(connection, "200 OK", "{\"partialSuccess\":{}}");
                    continue;
                };
                answer(connection, &format!("{status}\r\nRetry-After: 0"), "");
            }
        });
        Self { upstream, spans, logs }
    }

    fn proxy(&self, upstream: &Upstream, sample: f64) -> Proxy {
        self.proxy_that(upstream, sample, false)
    }

    fn proxy_that(&self, upstream: &Upstream, sample: f64, logs: bool) -> Proxy {
        let to = To { logs, ..To::parse(&format!("http://{}", self.upstream.address), sample, "shop").unwrap() };
        let route = everything(&[upstream.address.to_string()], Some(Duration::from_secs(60)));
        Proxy::routing(&[route], |options| options.otlp = Some(to))
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn attributes(list: &Value) -> BTreeMap<String, String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| {
        let (kind, value) = one["value"].as_object().unwrap().iter().next().unwrap();
        assert!(
            ["stringValue", "intValue", "boolValue", "doubleValue", "arrayValue"].contains(&kind.as_str()),
            "{one}"
        );
        assert!(kind != "intValue" || value.is_string(), "64-bit numbers are texts: {one}");
        (text(&one["key"]), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    })
    .collect()
}

fn parsed_logs(told: &Value) -> Vec<Log> {
    let mut logs = Vec::new();
    for resource in told["resourceLogs"].as_array().unwrap() {
        assert_eq!(attributes(&resource["resource"]["attributes"])["service.name"], "shop");
        for scope in resource["scopeLogs"].as_array().unwrap() {
            assert_eq!(scope["scope"]["name"], "buttress.gateway");
            logs.extend(scope["logRecords"].as_array().unwrap().iter().map(|log| Log {
                trace: text(&log["traceId"]),
                span: text(&log["spanId"]),
                flags: log["flags"].as_u64().unwrap(),
                severity: (log["severityNumber"].as_u64().unwrap(), text(&log["severityText"])),
                body: text(&log["body"]["stringValue"]),
                at: text(&log["timeUnixNano"]).parse().unwrap(),
                attributes: attributes(&log["attributes"]),
            }));
        }
    }
    logs
}

fn parsed(told: &Value) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in told["resourceSpans"].as_array().unwrap() {
        assert_eq!(attributes(&resource["resource"]["attributes"])["service.name"], "shop");
        for scope in resource["scopeSpans"].as_array().unwrap() {
            assert_eq!(scope["scope"]["name"], "buttress.gateway");
            spans.extend(scope["spans"].as_array().unwrap().iter().map(|span| Span {
                trace: text(&span["traceId"]),
                id: text(&span["spanId"]),
                parent: text(&span["parentSpanId"]),
                kind: span["kind"].as_u64().unwrap(),
                name: text(&span["name"]),
                error: span["status"]["code"] == 2,
                begun: text(&span["startTimeUnixNano"]).parse().unwrap(),
                ended: text(&span["endTimeUnixNano"]).parse().unwrap(),
                attributes: attributes(&span["attributes"]),
            }));
        }
    }
    spans
}

/// The trace and the parent that a request carried.
fn carried(head: &str) -> (String, String, String) {
    let value = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("every request carries one");
    let parts: Vec<&str> = value.trim().split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{value}");
    (parts[1].into(), parts[2].into(), parts[3].into())
}

const CAME: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";

#[test]
fn a_sampled_trace_gets_a_span_for_the_request_and_for_each_attempt_and_upstreams_hang_below_theirs() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::new(move |_, connection| {
        while connection.read_request().is_some() {
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            answer(connection, if first { "503 Service Unavailable" } else { "200 OK" }, "hi");
        }
    });
    let collector = Collector::new(&[]);
    let proxy = collector.proxy(&upstream, 0.0);
    let fields = format!(
        "Host: shop.example:81\r\n{CAME}01\r\ntracestate: a=1,b=2\r\nUser-Agent: me/1\r\nConnection: close\r\n"
    );
    assert_eq!(proxy.ask(&format!("GET /orders?id=7 HTTP/1.1\r\n{fields}\r\n")).status, 200);
    until("three spans arrive", || collector.spans().len() == 3);
    let (spans, seen) = (collector.spans(), upstream.requests());
    let request = spans.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!(
        (request.trace.as_str(), request.parent.as_str()),
        ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    );
    assert_eq!((request.name.as_str(), request.error), ("GET everything", false));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/orders"),
        ("url.query", "id=7"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("server.address", "shop.example"),
        ("server.port", "81"),
        ("user_agent.original", "me/1"),
        ("http.response.body.size", "2"),
        ("buttress.route", "everything"),
    ] {
        assert_eq!(request.attributes.get(key).map(String::as_str), Some(value), "{key}: {request:#?}");
    }
    let attempts: Vec<&Span> = spans.iter().filter(|span| span.kind == 3).collect();
    assert_eq!(attempts.len(), 2);
    for (at, attempt) in attempts.iter().enumerate() {
        assert_eq!((&attempt.trace, &attempt.parent), (&request.trace, &request.id));
        assert!(request.begun <= attempt.begun && attempt.begun <= attempt.ended && attempt.ended <= request.ended);
        // What the upstream was told is this attempt's span.
        assert_eq!(carried(&seen[at]), (request.trace.clone(), attempt.id.clone(), "01".into()));
        assert!(seen[at].contains("tracestate: a=1,b=2\r\n"), "{}", seen[at]);
    }
    assert_eq!((&attempts[0].attributes["error.type"], attempts[0].error), (&"503".to_owned(), true));
    assert_eq!((&attempts[1].attributes["http.request.resend_count"], attempts[1].error), (&"1".to_owned(), false));
    assert_ne!(attempts[0].id, attempts[1].id);
}

#[test]
fn who_began_a_trace_decides_and_of_our_own_what_failed_is_told() {
    let upstream = Upstream::new(|_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let fails = head.starts_with("POST /fails");
            answer(connection, if fails { "500 Internal Server Error" } else { "200 OK" }, "hi");
        }
    });
    let collector = Collector::new(&[]);
    let proxy = collector.proxy(&upstream, 0.0);
    let end = "Host: a\r\nConnection: close\r\nContent-Length: 0\r\n";
    assert_eq!(proxy.ask(&format!("POST /fails HTTP/1.1\r\n{end}{CAME}00\r\n\r\n")).status, 500);
    assert_eq!(proxy.ask(&format!("POST /works HTTP/1.1\r\n{end}\r\n")).status, 200);
    assert_eq!(proxy.ask(&format!("POST /fails HTTP/1.1\r\n{end}\r\n")).status, 500);
    let seen = upstream.requests();
    // Not sampled: it went on as it came.
    assert_eq!(carried(&seen[0]), ("4bf92f3577b34da6a3ce929d0e0e4736".into(), "00f067aa0ba902b7".into(), "00".into()));
    until("the spans of the failure arrive", || !collector.spans().is_empty());
    // Whatever else there was would have come by the time the proxy has ended.
    drop(proxy);
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let (trace, attempt, flags) = carried(&seen[2]);
    assert_eq!(flags, "00");
    let request = spans.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!((&request.trace, request.parent.as_str(), request.error), (&trace, "", true));
    assert_eq!(request.attributes["buttress.code"], "BT0911");
    assert!(spans.iter().any(|span| span.id == attempt && span.parent == request.id));
}

#[test]
fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_costs_spans_that_are_counted() {
    let upstream = Upstream::answering("hi");
    let collector = Collector::new(&["503 Service Unavailable", "429 Too Many Requests", "200 OK"]);
    let ask =
        |proxy: &Proxy| assert_eq!(proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status, 200);
    let proxy = collector.proxy(&upstream, 1.0);
    ask(&proxy);
    let figures = || {
        let shared = proxy.shared();
        let figures = shared.traces.as_ref().unwrap().figures();
        [&figures.exported, &figures.dropped, &figures.failures].map(|count| count.load(Ordering::Relaxed))
    };
    until("the third try is taken", || figures() == [2, 0, 2]);
    let refusing = Collector::new(&["400 Bad Request"]);
    let proxy = refusing.proxy(&upstream, 1.0);
    ask(&proxy);
    let shared = proxy.shared();
    let figures = shared.traces.as_ref().unwrap().figures();
    until("what was refused is counted", || figures.dropped.load(Ordering::Relaxed) == 2);
    ask(&proxy);
    until("what comes later is taken", || figures.exported.load(Ordering::Relaxed) == 2);
    assert_eq!(refusing.spans().len(), 2);
}

#[test]
fn a_collector_within_tls_is_believed_by_its_certificate_and_gets_the_fields_that_it_asks_for() {
    let (upstream, authority) = (Upstream::answering("hi"), Authority::new());
    let collector = Collector::new(&[]);
    let pair = authority.named("otel", &["localhost"]);
    let front = Proxy::with(&[collector.upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let proxy = |ca: PathBuf| {
        let mut to = To::parse(&format!("https://localhost:{}", front.address.port()), 1.0, "shop").unwrap();
        to.fields.put("Authorization", "Bearer s3cret").unwrap();
        to.fields.put("User-Agent", "shop/1").unwrap();
        to.tls.as_mut().unwrap().ca = Some(ca);
        let route = everything(&[upstream.address.to_string()], Some(Duration::from_secs(60)));
        Proxy::routing(&[route], |options| options.otlp = Some(to))
    };
    let believed = proxy(authority.path("ca.pem"));
    assert_eq!(believed.ask("GET /orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status, 200);
    until("both spans arrive", || collector.spans().len() == 2);
    let head = &collector.upstream.requests()[0];
    assert!(head.contains("authorization: Bearer s3cret\r\n"), "{head}");
    assert_eq!(head.matches("user-agent: ").count(), 1, "{head}");
    assert!(head.contains("user-agent: shop/1\r\n"), "{head}");

    let other = proxy(Authority::new().path("ca.pem"));
    assert_eq!(other.ask("GET /lost HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status, 200);
    let failures = || other.shared().traces.as_ref().unwrap().figures().failures.load(Ordering::Relaxed);
    until("it was tried", || failures() > 0);
    drop(other);
    assert_eq!(collector.spans().len(), 2, "nobody else is told what passes here");
}

#[test]
fn a_request_that_failed_or_was_tried_again_is_a_log_record_beside_its_span_and_one_that_simply_succeeded_is_none() {
    let flaky = AtomicBool::new(true);
    let upstream = Upstream::new(move |_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let again = head.starts_with("GET /flaky") && flaky.swap(false, Ordering::SeqCst);
            match again || head.starts_with("POST /fails") {
                true => answer(connection, "503 Service Unavailable", "no"),
                false => answer(connection, "200 OK", "hi"),
            }
        }
    });
    let collector = Collector::new(&[]);
    let proxy = collector.proxy_that(&upstream, 0.0, true);
    let end = "Host: shop.example:81\r\nConnection: close\r\nContent-Length: 0\r\n";
    let asked = [
        proxy.ask(&format!("POST /fails?id=7 HTTP/1.1\r\n{end}\r\n")).status,
        proxy.ask(&format!("POST /fails HTTP/1.1\r\n{end}{CAME}00\r\n\r\n")).status,
        proxy.ask(&format!("GET /flaky HTTP/1.1\r\n{end}{CAME}01\r\n\r\n")).status,
        proxy.ask(&format!("GET /quiet HTTP/1.1\r\n{end}\r\n")).status,
    ];
    assert_eq!(asked, [503, 503, 200, 200]);
    let seen = upstream.requests();
    drop(proxy);
    let (logs, spans) = (collector.logs.lock().unwrap().clone(), collector.spans());
    let of = |path: &str| logs.iter().filter(|log| log.attributes["url.path"] == path).collect::<Vec<_>>();
    let [own, came] = of("/fails")[..] else { panic!("{logs:#?}") };
    assert_eq!(own.severity, (17, "ERROR".to_owned()));
    assert!(own.body.starts_with("BT0911: ") && own.body.contains(&upstream.address.to_string()), "{}", own.body);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("url.query", "id=7"),
        ("http.response.status_code", "503"),
        ("client.address", "127.0.0.1"),
        ("server.address", "shop.example"),
        ("server.port", "81"),
        ("buttress.route", "everything"),
        ("buttress.code", "BT0911"),
        ("error.type", "BT0911"),
    ] {
        assert_eq!(own.attributes.get(key).map(String::as_str), Some(value), "{key}: {own:#?}");
    }
    assert!(own.attributes["buttress.attempts"].contains(&upstream.address.to_string()), "{own:#?}");
    let span = spans.iter().find(|span| span.kind == 2 && span.trace == own.trace).expect("its span is exported");
    assert_eq!(
        (&span.id, own.flags, own.attributes["buttress.request_id"].clone()),
        (&own.span, 0, span.attributes["buttress.request_id"].clone())
    );
    // A record's time has milliseconds.
    assert!(own.at + 1_000_000 > span.begun, "{own:#?} {span:#?}");
    // Whoever began that trace does not want its spans; its log record belongs to it all the same.
    assert_eq!((came.trace.as_str(), came.span.as_str(), came.flags), ("4bf92f3577b34da6a3ce929d0e0e4736", "", 0));
    assert!(seen.iter().any(|head| head.starts_with("POST /fails HTTP") && carried(head).0 == came.trace));
    let [again] = of("/flaky")[..] else { panic!("{logs:#?}") };
    assert_eq!((again.severity.1.as_str(), again.flags), ("INFO", 1));
    assert!(!again.attributes.contains_key("error.type"), "{again:#?}");
    assert!(spans.iter().any(|span| span.id == again.span && span.trace == again.trace));
    assert_eq!(of("/quiet").len(), 0, "{logs:#?}");
}

#[test]
fn a_collector_that_takes_no_log_records_costs_no_spans_and_what_is_lost_is_counted() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            answer(connection, "500 Internal Server Error", "no");
        }
    });
    let collector = Collector::with(&[], Some("404 Not Found"));
    let proxy = collector.proxy_that(&upstream, 0.0, true);
    assert_eq!(proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").status, 500);
    let figures = |figures: &buttress_gateway::otlp::Figures| {
        [&figures.exported, &figures.dropped, &figures.failures].map(|count| count.load(Ordering::Relaxed))
    };
    until("both were sent", || {
        let shared = proxy.shared();
        let spans = figures(shared.traces.as_ref().unwrap().figures());
        (spans, figures(shared.records.logs().unwrap().figures())) == ([2, 0, 0], [0, 1, 1])
    });
    let mut text = String::new();
    proxy.shared().prometheus(&mut text);
    assert!(text.contains("buttress_traffic_logs_dropped_total 1\n"), "{text}");
    drop(proxy);
    let quiet = Collector::new(&[]);
    let proxy = quiet.proxy(&upstream, 0.0);
    assert_eq!(proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").status, 500);
    until("its spans arrive", || quiet.spans().len() == 2);
    drop(proxy);
    assert_eq!(quiet.logs.lock().unwrap().len(), 0, "nobody asked for log records");
}

#[test]
fn what_was_told_before_the_proxy_ends_arrives() {
    let upstream = Upstream::answering("hi");
    let collector = Collector::new(&[]);
    let proxy = collector.proxy(&upstream, 1.0);
    for _ in 0..20 {
        assert_eq!(proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status, 200);
    }
    drop(proxy);
    let spans = collector.spans();
    assert_eq!(spans.len(), 40);
    let traces: std::collections::BTreeSet<&String> = spans.iter().map(|span| &span.trace).collect();
    assert_eq!(traces.len(), 20, "each request begins a trace of its own");
}
