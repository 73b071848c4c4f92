//! What a failure says of itself: in a header, in a body, in its record, and that all of them say the same and are documented.
//!
//! Every code that the gateway answers a request with is provoked here ([`CASES`]); [`NEVER`] has those that it does not answer
//! with, and why. A code that is in neither fails the test.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use buttress_core::Code;
use buttress_gateway::{
    archive,
    compile::Declared,
    decision::{self, ENTRIES, Entry},
    rules::{Counts, Point},
    table::Place,
};
use serde_json::{Value, json};

use crate::{
    support::{Answer, PATIENCE, Proxy, Upstream, read_answer, tls_of, until},
    tls::{Authority, server},
};

/// What provokes the codes; each may run beside the others.
const CASES: &[fn()] = &[
    requests_that_cannot_be_read_have_an_id_and_a_record,
    what_goes_wrong_upstream_says_so_everywhere_and_whether_it_may_have_arrived,
    what_an_upstream_answers_itself_is_remembered,
    an_answer_that_breaks_off_is_remembered,
    a_client_that_breaks_off_is_told_so_and_no_upstream_is_blamed,
    a_client_that_leaves_is_remembered_with_whom_it_waited_for,
    what_rules_refuse_says_so_everywhere,
    who_is_not_let_in_is_told_why_and_the_operator_what_would_have_let_him_in,
    deadlines_that_are_over_or_too_short_say_so,
    a_breaker_says_what_opened_it_and_when_to_come_again,
    a_half_open_breaker_says_that_its_probes_are_under_way,
    a_full_bulkhead_says_who_has_the_places,
    a_reached_limit_says_from_what_it_was_found_out,
    places_kept_for_others_and_queues_that_stand_say_so,
    a_throttle_says_how_much_was_accepted,
    a_limit_of_the_cluster_says_whether_its_store_answers,
];

/// Codes of this plane that no request is answered with.
const NEVER: &[(&str, &str)] = &[
    ("BT0913", "buttress explain answers it where no record is kept"),
    ("BT0921", "routes that cannot be carried out are refused before a request meets them"),
    ("BT0931", "a certificate that cannot be used is refused before a connection meets it"),
    ("BT-RAT-COST", "a request costs one token here, and every limit has room for one"),
];

thread_local! {
    /// Codes that were driven through the check, by this thread.
    static DRIVEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

#[test]
fn every_code_that_requests_are_answered_with_is_provoked_and_explains_itself() {
    let driven: BTreeSet<String> = thread::scope(|scope| {
        let case = |case: &'static fn()| {
            scope.spawn(move || {
                case();
                DRIVEN.take()
            })
        };
        let running: Vec<_> = CASES.iter().map(case).collect();
        running.into_iter().flat_map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let ours = Code::ALL.iter().map(|(code, _)| code.0).filter(|code| code.starts_with("BT09"));
    let policies = ENTRIES.iter().filter(|entry| matches!(entry.answer, decision::Answer::Refuse { .. }));
    let known: BTreeSet<&str> = ours.chain(policies.map(|entry| entry.code)).collect();
    let never: BTreeSet<&str> = NEVER.iter().map(|(code, _)| *code).collect();
    let driven: BTreeSet<&str> = driven.iter().map(String::as_str).collect();
    let missing: Vec<_> = known.iter().filter(|code| !driven.contains(*code) && !never.contains(*code)).collect();
    assert!(missing.is_empty(), "nothing provokes {missing:?}");
    let surprising: Vec<_> = driven.iter().filter(|code| !known.contains(*code) || never.contains(*code)).collect();
    assert!(surprising.is_empty(), "{surprising:?} are answered, and are no codes that requests are answered with");
    assert!(never.is_subset(&known), "{never:?}");
}

fn route(spec: Value) -> Declared {
    let place = Place { file: "routes.yaml".into(), line: 1 };
    Declared { name: "r".into(), spec: serde_json::from_value(spec).unwrap(), place, match_lines: vec![4] }
}

fn routing(spec: Value) -> Proxy {
    Proxy::routing(&[route(spec)], |_| {})
}

fn get(proxy: &Proxy, fields: &str) -> Answer {
    proxy.ask(&format!("GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n"))
}

/// Sends a request with these fields, and leaves its answer for later. Whoever drops it resets the connection, which ends it.
fn sent(proxy: &Proxy, fields: &str) -> TcpStream {
    let mut stream = proxy.connect();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    stream.write_all(format!("GET /a HTTP/1.1\r\nHost: shop.example\r\n{fields}\r\n").as_bytes()).unwrap();
    stream
}

fn record(proxy: &Proxy, id: &str) -> Value {
    proxy.shared().records.find(id).expect("a record of it is kept").json()
}

/// An address that nobody listens on.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// An upstream that reads its requests and answers none.
fn silent() -> Upstream {
    Upstream::new(|_, connection| {
        connection.read_request();
        thread::park_timeout(PATIENCE);
    })
}

fn meaning(code: &str) -> String {
    match Entry::named(code) {
        Some(entry) => entry.meaning.to_owned(),
        None => {
            let page = format!("{}/../../docs/reference/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
            let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page}: {error}"));
            page.lines().next().unwrap().split_once(": ").unwrap().1.to_owned()
        }
    }
}

fn is(answer: &Answer, code: &str) -> bool {
    answer.field("buttress-code") == Some(&*code.to_lowercase())
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
    let title = http::StatusCode::from_u16(status).unwrap().canonical_reason();
    assert_eq!(problem["title"].as_str(), title, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty() && !detail.ends_with('.')), "{problem}");
    let record = remembered(proxy, id, status, code);
    assert_eq!(record["outcome"]["says"], problem["detail"], "{code}");
    // What would let a stranger in is told to the operator alone.
    let stranger = ["BT0923", "BT0924", "BT0925", "BT0926"].contains(&code);
    let pass = if stranger { Value::Null } else { record["outcome"]["would_pass"].clone() };
    assert_eq!(problem["would_pass"], pass, "{code}");
    // Whoever is refused for a while is told for how long, in whole seconds (RFC 9110, 10.2.3). What the route does on purpose
    // is nobody's state.
    let after = answer.field("retry-after").map(|after| after.parse::<u32>().unwrap());
    let asks = matches!(status, 429 | 503) && code != "BT0922";
    assert!(if asks { after.is_some_and(|after| after > 0) } else { after.is_none() }, "{code}: {answer:?}");
    record
}

/// The record's part of it, which answers have too that are not ours or that nobody waits for.
fn remembered(proxy: &Proxy, id: &str, status: u16, code: &str) -> Value {
    until(&format!("{code} is remembered"), || proxy.shared().records.find(id).is_some());
    let record = record(proxy, id);
    assert_eq!((&record["outcome"]["code"], &record["status"]), (&code.into(), &status.into()), "{record}");
    let text = |key: &str| record["outcome"][key].as_str().unwrap_or_default().to_owned();
    assert!(!text("says").is_empty() && !text("says").ends_with('.'), "{record}");
    assert!(!text("would_pass").is_empty(), "{code} does not say what would have passed: {record}");
    assert!(!meaning(code).is_empty(), "{code}");
    DRIVEN.with_borrow_mut(|driven| driven.insert(code.to_owned()));
    record
}

/// The same request as a call of gRPC: a status, a message and the code in an answer of trailers only, and a record that says
/// what the message does.
fn says_over_grpc(proxy: &Proxy, grpc: u16, code: &str) {
    let answer = get(proxy, "Content-Type: application/grpc\r\nTE: trailers\r\n");
    assert_eq!((answer.status, answer.field("grpc-status")), (200, Some(&*grpc.to_string())), "{code}: {answer:?}");
    assert!(is(&answer, code), "{answer:?}");
    assert_eq!((answer.field("content-type"), &*answer.body), (Some("application/grpc"), ""), "{code}");
    let record = record(proxy, answer.field("x-request-id").unwrap());
    assert_eq!((&record["outcome"]["code"], &record["grpc_status"]), (&code.into(), &grpc.into()), "{record}");
    let says = record["outcome"]["says"].as_str().unwrap().to_ascii_lowercase().replace('%', "%25");
    assert_eq!(answer.field("grpc-message"), Some(&*says), "{code}");
}

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
        // The remedy has the time that holds, and not the one that usually does.
        assert!(code != "BT0904" || record["outcome"]["would_pass"].to_string().contains("100 ms"), "{record}");
    }
    let authority = Authority::new();
    let shown = authority.named("shop", &["shop.example"]);
    let proxy = Proxy::with(&[upstream.address], |options| *tls_of(options) = Some(server(&[&shown])));
    says(&proxy, &get(&proxy, ""), 400, "BT0932");
}

/// A backend without retries and outlier detection.
fn once(endpoints: &str) -> Value {
    json!({"to": [{"endpoints": endpoints}], "retry": "off", "outlier": "off", "deadline": "200ms"})
}

fn what_goes_wrong_upstream_says_so_everywhere_and_whether_it_may_have_arrived() {
    let proxy = routing(once(&nobody()));
    let told = says(&proxy, &get(&proxy, ""), 502, "BT0906");
    assert_eq!(
        (&told["attempts"][0]["delivered"], &told["matched"]),
        (&false.into(), &"routes.yaml:1".into()),
        "{told}"
    );
    says_over_grpc(&proxy, 14, "BT0906");
    for (answers, status, code) in
        [("", 502, "BT0907"), ("SSH-2.0-x\r\n\r\n", 502, "BT0908"), ("HTTP/1.1 200 OK\r\n", 504, "BT0909")]
    {
        let upstream = Upstream::new(move |_, connection| {
            connection.read_request();
            connection.write(answers.as_bytes());
            if status == 504 {
                thread::park_timeout(PATIENCE);
            }
        });
        let proxy = routing(once(&upstream.address.to_string()));
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
    let proxy = routing(once(&format!("https://{}", clear.address)));
    says(&proxy, &get(&proxy, ""), 502, "BT0930");
}

/// It goes on as it came, so it has no code of ours; the record has one.
fn what_an_upstream_answers_itself_is_remembered() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nhers");
    });
    let proxy = routing(once(&upstream.address.to_string()));
    let answer = get(&proxy, "X-Request-Id: hers\r\n");
    assert_eq!((answer.status, answer.field("buttress-code"), &*answer.body), (500, None, "hers"));
    remembered(&proxy, "hers", 500, "BT0911");
}

/// The head of the answer has gone on by then, so that it can only be cut.
fn an_answer_that_breaks_off_is_remembered() {
    let upstream = Upstream::new(|_, connection| {
        connection.read_request();
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    });
    let proxy = Proxy::to(&[upstream.address]);
    let answer = get(&proxy, "X-Request-Id: cut\r\n");
    assert_eq!((answer.status, &*answer.body), (200, "abc"));
    let told = remembered(&proxy, "cut", 200, "BT0912");
    assert!(told["outcome"]["says"].as_str().unwrap().contains("after 3 bytes"), "{told}");
}

fn a_client_that_breaks_off_is_told_so_and_no_upstream_is_blamed() {
    let upstream = silent();
    let proxy = Proxy::to(&[upstream.address]);
    // A client that has closed its sending side still listens.
    for (body, code) in
        [("Content-Length: 10\r\n\r\nabc", "BT0910"), ("Transfer-Encoding: chunked\r\n\r\nx\r\n", "BT0902")]
    {
        let mut stream = proxy.connect();
        stream.write_all(format!("POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{body}").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let told = says(&proxy, &Answer::parse(&answer), 400, code);
        let attempt = &told["attempts"][0];
        assert_eq!((&attempt["kind"], &attempt["next"]), (&"cancelled".into(), &Value::Null), "{told}");
        let blamed = told["outcome"]["says"].as_str().unwrap().contains(&upstream.address.to_string());
        assert!(!blamed && !told["outcome"]["would_pass"].as_str().unwrap().contains("upstream"), "{told}");
    }
    let mut metrics = String::new();
    proxy.shared().prometheus(&mut metrics);
    let attempts = |status: &str| {
        let of = |line: &&str| line.starts_with("buttress_traffic_endpoint_requests_total") && line.contains(status);
        metrics.lines().find(of).unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((attempts("4xx"), attempts("5xx")), ("2".into(), "0".into()));
}

fn a_client_that_leaves_is_remembered_with_whom_it_waited_for() {
    let upstream = silent();
    let proxy = Proxy::to(&[upstream.address]);
    let mut stream = proxy.connect();
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: gone\r\nContent-Length: 0\r\n\r\n").unwrap();
    until("it was sent", || !upstream.requests().is_empty());
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    let told = remembered(&proxy, "gone", 499, "BT0914");
    let attempt = &told["attempts"][0];
    assert_eq!((&attempt["endpoint"], &attempt["kind"]), (&upstream.address.to_string().into(), &"cancelled".into()));
    assert!(told["outcome"]["says"].as_str().unwrap().contains(&upstream.address.to_string()), "{told}");
}

fn what_rules_refuse_says_so_everywhere() {
    let upstream = Upstream::answering("ok");
    let to = upstream.address.to_string();
    let cases = [
        (json!({"match": [{"path": "/other"}], "to": [{"endpoints": to}]}), 404, "BT0920", 12),
        (json!({"to": [{"endpoints": to}], "fault": {"abort": 503}}), 503, "BT0922", 14),
        (json!({"to": [{"endpoints": to}], "breaker": {"force": "open"}}), 503, "BT-BRK-FORCED", 14),
        (json!({"to": [{"endpoints": to}], "rate": [{"per_second": 0.001, "burst": 1}]}), 429, "BT-RAT-LIMIT", 8),
        (json!({"to": [{"service": "none"}]}), 503, "BT-BAL-NONE", 14),
    ];
    for (spec, status, code, grpc) in cases {
        let proxy = routing(spec);
        // The second is where something has to have happened before.
        let first = get(&proxy, "");
        let answer = if is(&first, code) { first } else { get(&proxy, "") };
        says(&proxy, &answer, status, code);
        says_over_grpc(&proxy, grpc, code);
    }
    // A route that only has an answer has none for gRPC.
    let proxy = routing(json!({"fallback": {"answer": {"body": "closed"}}}));
    assert_eq!(get(&proxy, "").body, "closed");
    says_over_grpc(&proxy, 14, "BT0920");
}

fn who_is_not_let_in_is_told_why_and_the_operator_what_would_have_let_him_in() {
    let (upstream, keys) = (Upstream::answering("ok"), tempfile::tempdir().unwrap());
    let callers = keys.path().join("callers");
    let digest = ring::digest::digest(&ring::digest::SHA256, b"mine");
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(&callers, format!("shop {digest}\n")).unwrap();
    let by_key = json!({"api_keys": {"file": callers}, "allow": [{"method": "POST"}]});
    let by_token = json!({"jwt": {"jwks": format!("http://{}/keys", nobody())}});
    let token = "Authorization: Bearer e30.e30.e30\r\n";
    for (auth, fields, status, code) in [
        (&by_key, "", 401, "BT0923"),
        (&by_key, "X-Api-Key: hers\r\n", 401, "BT0924"),
        (&by_key, "X-Api-Key: mine\r\n", 403, "BT0925"),
        (&by_token, token, 503, "BT0926"),
    ] {
        let proxy = routing(json!({"to": [{"endpoints": upstream.address.to_string()}], "auth": auth}));
        let answer = get(&proxy, fields);
        says(&proxy, &answer, status, code);
        assert_eq!(answer.field("www-authenticate").is_some(), status == 401, "{answer:?}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
}

fn deadlines_that_are_over_or_too_short_say_so() {
    let upstream = Upstream::new(|_, connection| {
        while connection.read_request().is_some() {
            thread::sleep(Duration::from_millis(5));
            connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let proxy = Proxy::to(&[upstream.address]);
    says(&proxy, &get(&proxy, "Buttress-Timeout-Ms: 0\r\n"), 504, "BT-DLN-PAST");
    let told = says(&proxy, &get(&proxy, "Grpc-Timeout: 500u\r\n"), 504, "BT-DLN-SHORT");
    assert_eq!(told["deadline_ms"], 0.5, "{told}");
    // Once it is known how long calls take, fewer milliseconds than that are not begun with. A hundred calls are enough to know;
    // on a machine that is busy elsewhere they may be too far apart.
    let mut stream = proxy.connect();
    let answer = asked_until("BT-DLN-SHORT", || {
        for _ in 0..100 {
            stream.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert_eq!(read_answer(&mut stream).status, 200);
        }
        get(&proxy, "Buttress-Timeout-Ms: 3\r\n")
    });
    let told = says(&proxy, &answer, 504, "BT-DLN-SHORT");
    assert_eq!((&told["deadline_ms"], &told["attempts"]), (&3.0.into(), &json!([])), "{told}");
}

fn a_breaker_says_what_opened_it_and_when_to_come_again() {
    for (breaker, code) in
        [(json!({"consecutive": 1}), "BT-BRK-CONSECUTIVE"), (json!({"calls": 2, "failure_rate": "50%"}), "BT-BRK-OPEN")]
    {
        let mut breaker = breaker;
        breaker["open_for"] = json!("30s");
        let proxy =
            routing(json!({"to": [{"endpoints": nobody()}], "retry": "off", "outlier": "off", "breaker": breaker}));
        let answer = asked_until(code, || get(&proxy, ""));
        let told = says(&proxy, &answer, 503, code);
        // Half a minute, a little more or less.
        let after: u32 = answer.field("retry-after").unwrap().parse().unwrap();
        assert!(after > 10, "{answer:?}");
        assert!(told["outcome"]["would_pass"].to_string().contains("as a probe"), "{told}");
        says_over_grpc(&proxy, 14, code);
    }
}

/// Asks until this is the code of the answer.
fn asked_until(code: &str, mut ask: impl FnMut() -> Answer) -> Answer {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if is(&answer, code) {
            return answer;
        }
        assert!(Instant::now() < end, "{code} did not come: {answer:?}");
    }
}

fn a_half_open_breaker_says_that_its_probes_are_under_way() {
    let upstream = Upstream::new(|number, connection| {
        connection.read_request();
        if number == 0 {
            connection.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
        } else {
            thread::park_timeout(PATIENCE);
        }
    });
    let breaker = json!({"consecutive": 1, "probes": 1, "open_for": "20ms"});
    let to = upstream.address.to_string();
    let proxy = routing(json!({"to": [{"endpoints": to}], "retry": "off", "outlier": "off", "breaker": breaker}));
    assert_eq!(get(&proxy, "").status, 500);
    let mut waiting = Vec::new();
    until("a probe is under way", || {
        let stream = sent(&proxy, "");
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        // It is refused, or it is the probe.
        until("something came of it", || stream.peek(&mut [0]).is_ok() || upstream.requests().len() > 1);
        waiting.push(stream);
        upstream.requests().len() > 1
    });
    says(&proxy, &get(&proxy, ""), 503, "BT-BRK-HALF");
    says_over_grpc(&proxy, 14, "BT-BRK-HALF");
}

/// A route with this concurrency, and somebody in it who does not leave.
fn occupied(concurrency: Value) -> (Upstream, Proxy, TcpStream) {
    let upstream = silent();
    let to = upstream.address.to_string();
    let spec = json!({"to": [{"endpoints": to}], "concurrency": concurrency, "priority": {"header": "x-priority"}});
    let proxy = routing(spec);
    let first = sent(&proxy, "");
    until("the place is taken", || !upstream.requests().is_empty());
    (upstream, proxy, first)
}

fn a_full_bulkhead_says_who_has_the_places() {
    for (queue, code) in [(0, "BT-BLK-FULL"), (1, "BT-BLK-WAITED")] {
        let (_upstream, proxy, _first) = occupied(json!({"limit": 1, "queue": queue, "adaptive": "off"}));
        let told = says(&proxy, &get(&proxy, "Buttress-Timeout-Ms: 200\r\n"), 503, code);
        assert!(told["state"].to_string().contains("1 calls run, 0 wait, 1 may run at once"), "{told}");
        assert_eq!((&told["attempts"], &told["deadline_ms"]), (&json!([]), &200.0.into()), "{told}");
    }
}

fn a_reached_limit_says_from_what_it_was_found_out() {
    let (_upstream, proxy, _first) = occupied(json!({"queue": 0, "adaptive_min": 1, "adaptive_max": 1}));
    says(&proxy, &get(&proxy, ""), 503, "BT-LIM-FULL");
    says_over_grpc(&proxy, 14, "BT-LIM-FULL");
}

fn places_kept_for_others_and_queues_that_stand_say_so() {
    let (_upstream, proxy, _first) = occupied(json!({"limit": 2, "queue": 0, "adaptive": "off"}));
    let told = says(&proxy, &get(&proxy, "X-Priority: 3\r\n"), 503, "BT-SHD-PRIORITY");
    assert_eq!(told["said"]["priority"], 3, "{told}");
    // A queue stands when somebody waits for a tenth of a second, and so it is kept from being empty.
    let (_upstream, proxy, _first) = occupied(json!({"limit": 1, "queue": 1000, "adaptive": "off"}));
    let mut waiting: Vec<TcpStream> = Vec::new();
    let answer = asked_until("BT-SHD-QUEUE", || {
        waiting.push(sent(&proxy, ""));
        thread::sleep(Duration::from_millis(10));
        let answered = waiting.iter().position(|stream| {
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut [0]).is_ok()
        });
        let Some(at) = answered else { return Answer::parse("") };
        let mut stream = waiting.swap_remove(at);
        stream.set_nonblocking(false).unwrap();
        read_answer(&mut stream)
    });
    let told = says(&proxy, &answer, 503, "BT-SHD-QUEUE");
    assert_eq!(told["admission"][0]["code"], "BT-BLK-QUEUED", "{told}");
}

fn a_throttle_says_how_much_was_accepted() {
    let proxy = routing(json!({"to": [{"endpoints": nobody()}], "outlier": "off", "breaker": "off", "throttle": {}}));
    // What decided in the end stands in the body too, where a further attempt was to be made and could not begin.
    let mut answer = Answer::parse("");
    until("a retry is refused", || {
        answer = get(&proxy, "");
        is(&answer, "BT0906") && answer.body.contains("an upstream that accepts its calls")
    });
    let told = says(&proxy, &answer, 502, "BT0906");
    let attempts = told["attempts"].as_array().unwrap();
    assert_eq!(attempts.last().unwrap()["next"]["code"], "BT-RTY-GO", "{told}");
    assert_eq!(answer.field("buttress-undelivered"), Some("1"), "{answer:?}");
    let answer = asked_until("BT-THR-CLIENT", || get(&proxy, ""));
    let told = says(&proxy, &answer, 503, "BT-THR-CLIENT");
    assert!(told["outcome"]["says"].as_str().unwrap().contains("accepted 0 of"), "{told}");
}

/// The test is the store.
fn a_limit_of_the_cluster_says_whether_its_store_answers() {
    let upstream = Upstream::answering("ok");
    let limit = json!({"per_second": 1000, "burst": 1, "cluster": {}});
    let proxy = routing(json!({"to": [{"endpoints": upstream.address.to_string()}], "rate": [limit]}));
    let shared = proxy.shared();
    let table = shared.table.load_full();
    let Counts::Cluster(leased) = &table.routes[0].limits[0].counts else { panic!("it is one of the cluster") };
    let lease = &leased.lease;
    assert_eq!(lease.ask(shared.now()), Some(1));
    lease.granted(shared.now(), 1);
    assert_eq!(get(&proxy, "").status, 200);
    says(&proxy, &get(&proxy, ""), 429, "BT-LSE-EMPTY");
    says_over_grpc(&proxy, 8, "BT-LSE-EMPTY");
    lease.silent(shared.now());
    let answer = asked_until("BT-LSE-CUT", || get(&proxy, ""));
    says(&proxy, &answer, 429, "BT-LSE-CUT");
    says_over_grpc(&proxy, 8, "BT-LSE-CUT");
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
