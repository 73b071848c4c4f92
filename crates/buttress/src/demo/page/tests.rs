//! The page's server, over real sockets where bytes matter and by its routing where they do not.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::*;
use crate::demo::feed::{Asked, Phase};

/// Ends with the test.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(feed: &Arc<Feed>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Server { address, task: tokio::spawn(serve(listener, feed.clone())) }
}

impl Server {
    /// Sends the bytes and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as a close.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    /// Status and body of a request with these additional header lines.
    async fn ask(&self, line: &str, headers: &str) -> (u16, String) {
        let host = self.address;
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        parts(&self.raw(request.as_bytes()).await)
    }
}

fn parts(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Reads events of a feed's connection, one at a time.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    async fn open(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET /feed HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut events = Self { stream, text: String::new() };
        let head = events.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        events
    }

    async fn until(&mut self, mark: &str) -> String {
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.text.find(mark) {
                let rest = self.text.split_off(at + mark.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let read = self.stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "the feed ended before {mark:?}, after {:?}", self.text);
            self.text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
        }
    }

    /// The next event's JSON; comments and chunk sizes are left out.
    async fn next(&mut self) -> serde_json::Value {
        self.until("data: ").await;
        let data = self.until("\n\n").await;
        serde_json::from_str(data.trim_end()).unwrap()
    }
}

#[test]
fn an_event_is_framed_line_by_line() {
    assert_eq!(event(r#"{"a":1}"#), "data: {\"a\":1}\n\n");
    assert_eq!(event("one\ntwo"), "data: one\ndata: two\n\n");
    assert_eq!(event("evil\r\revent: x"), "data: evil\ndata: \ndata: event: x\n\n");
    assert_eq!(event(""), "data: \n\n");
}

#[tokio::test]
async fn the_feed_begins_with_the_snapshot_and_goes_on_with_the_updates() {
    let feed = Arc::new(Feed::default());
    feed.configure(9, 60.0, 7);
    feed.event("start", "before the page");
    let server = start(&feed).await;
    let mut events = Events::open(&server).await;
    let retry = events.until("\n\n").await;
    assert!(retry.contains("retry: 1000"), "{retry}");
    let snapshot = events.next().await;
    assert_eq!((&snapshot["type"], &snapshot["columns"]), (&"snapshot".into(), &3.into()));
    assert_eq!(snapshot["events"][0]["text"], "before the page");
    feed.event("swap", "two\nlines, \"quoted\"");
    feed.phase(Phase::Playing);
    feed.update(|tick| tick.counters.sent = 5);
    assert_eq!(events.next().await["text"], "two\nlines, \"quoted\"");
    let tick = events.next().await;
    assert_eq!((&tick["type"], &tick["counters"]["sent"]), (&"tick".into(), &5.into()));
}

#[tokio::test]
async fn a_subscriber_that_lags_gets_a_new_snapshot() {
    let feed = Arc::new(Feed::default());
    let mut subscription = Subscription::new(feed.clone());
    let text = |bytes: Option<Bytes>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    assert_eq!(text(subscription.next().await), "retry: 1000\n\n");
    assert!(text(subscription.next().await).starts_with(r#"data: {"type":"snapshot""#));
    for n in 0..1_000 {
        feed.event("check", format!("event {n}"));
    }
    let snapshot = text(subscription.next().await);
    assert!(snapshot.starts_with(r#"data: {"type":"snapshot""#) && snapshot.contains("event 999"), "{snapshot}");
    feed.event("check", "after");
    assert!(text(subscription.next().await).contains(r#""text":"after""#));
}

#[tokio::test(start_paused = true)]
async fn a_silent_feed_says_that_it_is_there() {
    let mut subscription = Subscription::new(Arc::new(Feed::default()));
    subscription.next().await;
    subscription.next().await;
    assert_eq!(subscription.next().await.unwrap(), ": still here\n\n");
}

#[tokio::test]
async fn every_file_that_the_page_names_is_served_and_none_is_foreign() {
    let server = start(&Arc::default()).await;
    let assets = || ASSETS.iter().chain(&SHARED);
    for (path, _, text) in assets() {
        let (status, body) = server.ask(&format!("GET {path}"), "").await;
        assert_eq!((status, body.as_str()), (200, *text), "{path}");
        assert!(!text.contains("https://"), "{path} names something outside");
    }
    let named = assets().flat_map(|(_, _, text)| {
        let marks = ["src=\"", "href=\"", "from \"."];
        marks.into_iter().flat_map(|mark| text.split(mark).skip(1)).filter_map(|rest| rest.split('"').next())
    });
    for name in named.filter(|name| name.starts_with('/')) {
        assert!(assets().any(|(path, ..)| *path == name), "'{name}' is named and not served");
    }
    let request = format!("HEAD / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address);
    let head = server.raw(request.as_bytes()).await;
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_button_reaches_the_fleet_and_its_answer_comes_back() {
    let feed = Arc::new(Feed::default());
    let server = start(&feed).await;
    let mut asked = feed.take_commands().unwrap();
    let fleet = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(Asked { command, answer }) = asked.recv().await {
            seen.push(command);
            let _ = answer.send(match command {
                Command::KillLeader => Ok("n1 was killed; it led term 2".into()),
                Command::Restart => Err(Error::new(Code::BAD_REQUEST, "no node is down").hint("kill the leader first")),
                Command::SwapModel => Err(Error::new(Code::NO_LEADER, "no leader").retryable()),
                Command::WearOut(machine) => Ok(format!("the bearing of {machine} was damaged")),
            });
            if seen.len() == 4 {
                break;
            }
        }
        seen
    });
    let page = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n", server.address);
    let (status, body) = server.ask("POST /actions/kill-leader", &page).await;
    assert_eq!((status, body.as_str()), (200, r#"{"message":"n1 was killed; it led term 2","ok":true}"#));
    let (status, body) = server.ask("POST /actions/restart", &page).await;
    let refused = r#"{"code":"BT0601","hint":"kill the leader first","message":"no node is down"}"#;
    assert_eq!((status, body.as_str()), (409, refused));
    assert_eq!(server.ask("POST /actions/swap-model", &page).await.0, 503);
    // As curl sends it.
    let (status, body) = server.ask("POST /actions/wear-out?machine=42", "").await;
    assert_eq!((status, body.contains("bearing of 42")), (200, true), "{body}");
    let expected = [Command::KillLeader, Command::Restart, Command::SwapModel, Command::WearOut(42)];
    assert_eq!(fleet.await.unwrap(), expected);
    // The fleet is gone.
    let (status, body) = server.ask("POST /actions/restart", &page).await;
    assert_eq!((status, body.contains("BT0103")), (409, true), "{body}");
}

#[tokio::test]
async fn another_sites_page_presses_no_button() {
    let feed = Arc::new(Feed::default());
    let server = start(&feed).await;
    let mut asked = feed.take_commands().unwrap();
    let here = format!("Origin: http://{}\r\n", server.address);
    for foreign in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1:1\r\n",
        &here.replace("http:", "https:"),
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
        &format!("{here}Sec-Fetch-Site: cross-site\r\n"),
        &format!("{here}Origin: http://evil.example\r\n"),
    ] {
        let (status, body) = server.ask("POST /actions/kill-leader", foreign).await;
        assert_eq!((status, body.contains("BT0601")), (403, true), "{foreign}: {body}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "localhost:80:80", "localhost:x", ""] {
        for line in ["POST /actions/kill-leader", "GET /feed", "GET /"] {
            let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            assert_eq!(parts(&server.raw(request.as_bytes()).await).0, 421, "{host}: {line}");
        }
    }
    assert!(asked.try_recv().is_err(), "a foreign page pressed a button");
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.2:9", "[::1]", "[::1]:80"] {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        assert_eq!(local_host(&headers), Some(host));
    }
}

#[tokio::test]
async fn requests_that_mean_nothing_are_refused_and_do_nothing() {
    let feed = Arc::new(Feed::default());
    let server = start(&feed).await;
    let mut asked = feed.take_commands().unwrap();
    for (line, expected) in [
        ("GET /../../etc/passwd", 404),
        ("GET /feed/", 404),
        ("GET /style.css?v=1", 200),
        ("POST /", 405),
        ("PUT /feed", 405),
        ("HEAD /feed", 405),
        ("GET /actions/kill-leader", 405),
        ("DELETE /actions/restart", 405),
        ("POST /actions/", 404),
        ("POST /actions/format-disk", 404),
        ("POST /actions/wear-out", 400),
        ("POST /actions/wear-out?machine=", 400),
        ("POST /actions/wear-out?machine=-1", 400),
        ("POST /actions/wear-out?machine=%2B1", 400),
        ("POST /actions/wear-out?machine=+1", 400),
        ("POST /actions/wear-out?machine=4294967296", 400),
        ("POST /actions/wear-out?Machine=1&x", 400),
    ] {
        let (status, body) = server.ask(line, "").await;
        assert_eq!(status, expected, "{line}: {body}");
    }
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    {
        let answer = server.raw(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: {}\r\nX: {}", server.address, "x".repeat(2 * page::HEAD_BYTES_MAX));
    let answer = server.raw(endless.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // A body that never comes is not waited for.
    let (status, _) = server.ask("POST /actions/wear-out?machine=x", "Content-Length: 1000000000000\r\n").await;
    assert_eq!(status, 400);
    assert!(asked.try_recv().is_err(), "a meaningless request did something");
}

#[tokio::test]
async fn the_end_of_the_server_ends_its_connections() {
    let server = start(&Arc::default()).await;
    let mut events = Events::open(&server).await;
    events.next().await;
    server.task.abort();
    let mut rest = Vec::new();
    let _ = events.stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}
