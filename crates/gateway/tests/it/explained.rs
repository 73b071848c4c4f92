//! What a failure says of itself: in a header, in a body, in its record, and that all of them say the same and are documented.

use std::{io::Write, net::TcpListener, time::Duration};

use buttress_gateway::{
    archive,
    compile::Declared,
    decision::{ENTRIES, Entry},
    rules::Point,
    table::Place,
};
use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Proxy, Upstream, until};

fn route(spec: Value) -> Declared {
    let place = Place { file: "routes.yaml".into(), line: 1 };
    Declared { name: "r".into(), spec: serde_json::from_value(spec).unwrap(), place, match_lines: vec![4] }
}

fn get(proxy: &Proxy, fields: &str) -> Answer {
    proxy.ask(&format!("GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n"))
}

fn record(proxy: &Proxy, id: &str) -> Value {
    proxy.shared().records.find(id).expect("a record of it is kept").json()
}

/// An address that nobody listens on.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn meaning(code: &str) -> String {
    match Entry::named(code) {
        Some(entry) => entry.meaning.to_owned(),
        None => {
            let page = format!("{}/../../docs/reference/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page}: {error}"));
            page.lines().next().unwrap().split_once(": ").unwrap().1.to_owned()
        }
    }
}

/// Header, body, record and documentation say the same.
fn says(proxy: &Proxy, answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!((answer.status, answer.field("buttress-code")), (status, Some(&*code.to_lowercase())), "{answer:?}");
    assert_eq!(answer.field("content-type"), Some("application/problem+json"), "{code}");
    let id = answer.field("x-request-id").unwrap_or_else(|| panic!("{code}: no id in {answer:?}"));
    let problem: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{code}: {answer:?}"));
    // RFC 9457, 3.1.
    assert_eq!(problem["type"], format!("urn:buttress:{code}"));
    assert_eq!(
        (&problem["status"], &problem["code"], &problem["request_id"]),
        (&status.into(), &code.into(), &id.into())
    );
    assert_eq!(problem["instance"], format!("urn:buttress:request:{id}"));
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty() && !detail.ends_with('.')), "{problem}");
    let record = record(proxy, id);
    assert_eq!((&record["outcome"]["code"], &record["status"]), (&code.into(), &status.into()), "{record}");
    assert_eq!(record["outcome"]["says"], problem["detail"], "{code}");
    let pass = record["outcome"]["would_pass"].as_str().unwrap_or_default();
    assert!(!pass.is_empty(), "{code} does not say what would have passed: {record}");
    // What would let a stranger in is told to the operator alone.
    if !["BT0923", "BT0924", "BT0925", "BT0926"].contains(&code) {
        assert_eq!(problem["would_pass"], pass, "{code}");
    }
    assert!(!meaning(code).is_empty(), "{code}");
    record
}

#[test]
fn requests_that_cannot_be_read_have_an_id_and_a_record() {
    let upstream = Upstream::answering("ok");
    let proxy = Proxy::with(&[upstream.address], |options| options.timeouts.head = Duration::from_millis(100));
    for (bytes, status, code) in [
        ("GET /a HTTP/1.1\r\n\r\n", 400, "BT0901"),
        ("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "BT0902"),
        (&format!("GET /a HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(70_000)), 431, "BT0903"),
        ("GET /a HTTP/1.1\r\nHost:", 408, "BT0904"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "BT0905"),
    ] {
        let answer = Answer::parse(&proxy.exchange(bytes.as_bytes()));
        let record = says(&proxy, &answer, status, code);
        assert_eq!((&record["method"], &record["route"]), (&"".into(), &"".into()));
    }
}

#[test]
fn what_goes_wrong_upstream_says_so_everywhere_and_whether_it_may_have_arrived() {
    let once = |spec: Value| Proxy::routing(&[route(spec)], |_| {});
    let to = |endpoints: &str| json!({"to": [{"endpoints": endpoints}], "retry": "off", "outlier": "off", "deadline": "200ms"});
    let proxy = once(to(&nobody()));
    let told = says(&proxy, &get(&proxy, ""), 502, "BT0906");
    assert_eq!(
        (&told["attempts"][0]["delivered"], &told["matched"]),
        (&false.into(), &"routes.yaml:1".into()),
        "{told}"
    );
    for (answers, status, code) in
        [("", 502, "BT0907"), ("SSH-2.0-x\r\n\r\n", 502, "BT0908"), ("HTTP/1.1 200 OK\r\n", 504, "BT0909")]
    {
        let upstream = Upstream::new(move |_, connection| {
            connection.read_request();
            connection.write(answers.as_bytes());
            if status == 504 {
                std::thread::park_timeout(PATIENCE);
            }
        });
        let proxy = once(to(&upstream.address.to_string()));
        let told = says(&proxy, &get(&proxy, ""), status, code);
        let attempt = &told["attempts"][0];
        assert_eq!(
            (&attempt["delivered"], &attempt["endpoint"]),
            (&true.into(), &upstream.address.to_string().into()),
            "{told}"
        );
        assert_eq!(attempt["picked"]["code"], "BT-BAL-ONLY", "{told}");
    }
    let clear = Upstream::new(|_, connection| {
        connection.write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        connection.read_request();
    });
    let proxy = once(to(&format!("https://{}", clear.address)));
    says(&proxy, &get(&proxy, ""), 502, "BT0930");
}

#[test]
fn what_rules_and_policies_refuse_says_so_everywhere() {
    let upstream = Upstream::answering("ok");
    let to = upstream.address.to_string();
    let keys = tempfile::tempdir().unwrap();
    let callers = keys.path().join("callers");
    std::fs::write(&callers, format!("shop {}\n", "0".repeat(64))).unwrap();
    let cases = [
        (json!({"match": [{"path": "/other"}], "to": [{"endpoints": to}]}), 404, "BT0920"),
        (json!({"to": [{"endpoints": to}], "fault": {"abort": 503}}), 503, "BT0922"),
        (json!({"to": [{"endpoints": to}], "auth": {"api_keys": {"file": callers}}}), 401, "BT0923"),
        (json!({"to": [{"endpoints": to}], "breaker": {"force": "open"}}), 503, "BT-BRK-FORCED"),
        (json!({"to": [{"endpoints": to}], "rate": [{"per_second": 0.001, "burst": 1}]}), 429, "BT-RAT-LIMIT"),
        (
            json!({"to": [{"endpoints": nobody()}], "retry": "off", "outlier": "off", "breaker": {"consecutive": 1}}),
            503,
            "BT-BRK-CONSECUTIVE",
        ),
        (json!({"to": [{"service": "none"}]}), 503, "BT-BAL-NONE"),
    ];
    for (spec, status, code) in cases {
        let proxy = Proxy::routing(&[route(spec)], |_| {});
        // The second is where something has to have happened before.
        let first = get(&proxy, "");
        let answer = if first.field("buttress-code") == Some(&*code.to_lowercase()) { first } else { get(&proxy, "") };
        says(&proxy, &answer, status, code);
    }
    let proxy = Proxy::to(&[upstream.address]);
    says(&proxy, &get(&proxy, "Buttress-Timeout-Ms: 0\r\n"), 504, "BT-DLN-PAST");
}

/// A route with one place, and somebody in it who does not leave.
#[test]
fn a_full_bulkhead_says_who_has_the_places() {
    for (queue, code) in [(0, "BT-BLK-FULL"), (1, "BT-BLK-WAITED")] {
        full(queue, code);
    }
}

fn full(queue: u32, code: &str) {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        std::thread::park_timeout(PATIENCE);
    });
    let spec = json!({"to": [{"endpoints": upstream.address.to_string()}], "concurrency": {"limit": 1, "queue": queue, "adaptive": "off"}});
    let proxy = Proxy::routing(&[route(spec)], |_| {});
    let mut first = proxy.connect();
    first.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    until("the place is taken", || !upstream.requests().is_empty());
    let told = says(&proxy, &get(&proxy, "Buttress-Timeout-Ms: 200\r\n"), 503, code);
    assert!(told["state"].to_string().contains("1 calls run, 0 wait, 1 may run at once"), "{told}");
    assert_eq!(told["attempts"], json!([]));
}

#[test]
fn a_client_that_leaves_is_remembered_with_whom_it_waited_for() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        std::thread::park_timeout(PATIENCE);
    });
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: gone\r\nContent-Length: 0\r\n\r\n").unwrap();
    until("it was sent", || !upstream.requests().is_empty());
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    until("it is remembered", || proxy.shared().records.find("gone").is_some());
    let told = record(&proxy, "gone");
    assert_eq!((&told["status"], &told["outcome"]["code"]), (&499.into(), &"BT0914".into()), "{told}");
    let attempt = &told["attempts"][0];
    assert_eq!((&attempt["endpoint"], &attempt["kind"]), (&upstream.address.to_string().into(), &"cancelled".into()));
    assert!(told["outcome"]["says"].as_str().unwrap().contains(&upstream.address.to_string()), "{told}");
    assert!(meaning("BT0914").contains("left"));
}

#[test]
fn a_record_holds_what_the_decision_hung_on_and_no_credentials() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            connection.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let to = upstream.address.to_string();
    let spec = json!({
        "match": [{"path": "/*", "headers": {"X-Canary": "*"}}, {"path": "/*", "headers": {"cookie": "beta*"}}, {"path": "/*"}],
        "to": [{"name": "a", "weight": 1, "endpoints": to}, {"name": "b", "weight": 1, "endpoints": to}],
        "rate": [{"per_second": 1000, "by": "header:x-tenant"}], "breaker": "off", "outlier": "off",
    });
    let proxy = Proxy::routing(&[route(spec)], |_| {});
    let mut seen = Vec::new();
    for n in 0..40 {
        let answer = proxy.ask(&format!(
            "GET /a?page=1&token=hush HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: r-{n}\r\nX-Canary: 1\r\n\
             Cookie: beta=hush\r\nAuthorization: Bearer hush\r\nX-Other: hush\r\n\r\n"
        ));
        assert_eq!(answer.status, 500);
        let told = record(&proxy, &format!("r-{n}"));
        assert!(!told.to_string().contains("hush"), "{told}");
        assert_eq!(told["path"], "/a?page=1&token=***");
        assert_eq!(
            told["fields"],
            json!({"cookie": {"withheld": true}, "x-canary": {"values": ["1"]}, "x-tenant": {"values": []}})
        );
        // The point chooses again what it chose then.
        let point = Point::read(told["point"].as_f64().unwrap()).unwrap();
        assert_eq!(told["backend"], ["a", "b"][point.among(&[1, 1]).unwrap()]);
        seen.push(told["backend"].clone());
    }
    assert!(seen.contains(&"a".into()) && seen.contains(&"b".into()), "{seen:?}");
}

#[test]
fn records_outlive_the_proxy_where_they_are_kept_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let to = archive::To { dir: dir.path().to_owned(), bytes: archive::BYTES_MIN };
    let (upstream, again) = (nobody(), to.clone());
    let proxy = Proxy::to_endpoints(std::slice::from_ref(&upstream), |options| options.records = Some(to));
    let answer = get(&proxy, "X-Request-Id: before\r\n");
    assert_eq!(answer.status, 502);
    let told = record(&proxy, "before");
    // What cannot be read takes no room on the disk.
    let garbage = Answer::parse(&proxy.exchange(b"junk\r\n\r\n"));
    let junk = garbage.field("x-request-id").unwrap().to_owned();
    assert!(proxy.shared().records.find(&junk).is_some());
    drop(proxy);
    let proxy = Proxy::to_endpoints(&[upstream], |options| options.records = Some(again));
    let records = &proxy.shared().records;
    assert_eq!(records.find_anywhere("before"), Some(told));
    assert!(records.find("before").is_none() && records.find_anywhere(&junk).is_none());
    get(&proxy, "X-Request-Id: after\r\n");
    let listed = records.list(&Default::default(), 10);
    let ids: Vec<&Value> = listed.iter().map(|record| &record["id"]).collect();
    assert_eq!(ids, ["after", "before"]);
    until("the disk has it", || {
        let mut metrics = String::new();
        proxy.shared().prometheus(&mut metrics);
        metrics.contains("buttress_traffic_records_written_total 1\n")
    });
}

/// Where a remedy names a setting, a route has it by that name.
#[test]
fn remedies_name_settings_that_routes_have() {
    let schema = include_str!("../../../../docs/reference/schema/route.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let properties = |schema: &Value, name: &str| -> Vec<String> {
        let text =
            schema["$defs"].as_object().into_iter().flatten().find(|(known, _)| known.eq_ignore_ascii_case(name));
        let properties = text.map(|(_, of)| of["properties"].clone()).unwrap_or_default();
        properties.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let mut named = 0;
    for entry in ENTRIES {
        let text = entry.would_pass.split("(in the library").next().unwrap_or_default();
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '.' || c == '_'));
        for word in words.filter(|word| word.trim_matches('.').contains('.')) {
            let (section, setting) = word.trim_matches('.').split_once('.').unwrap();
            let known = properties(&schema, section);
            assert!(known.iter().any(|known| known == setting), "{}: a route has no {word}: {known:?}", entry.code);
            named += 1;
        }
    }
    assert!(named >= 8, "{named} settings are named");
}
