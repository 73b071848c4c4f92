//! Keys and entries from the command line, and a watch, against a node of its own.

use std::io::{Read, Write};

use super::support::*;

#[test]
fn keys_are_written_read_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    let address = server.strip_prefix("http://").unwrap();
    let mut watch = std::net::TcpStream::connect(address).unwrap();
    write!(watch, "GET /v1/watch?prefix=a&from=1 HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();

    assert_eq!(ok(&run(&["kv", "put", "a/1", "one", "--server", server])), "revision 2\n");
    assert_eq!(ok(&run(&["kv", "put", "a b", "\u{e4}", "--server", server])), "revision 3\n");
    assert_eq!(ok(&run(&["kv", "get", "a/1", "--server", server])), "one\n");
    assert_eq!(ok(&run(&["kv", "get", "a b", "--server", server])), "\u{e4}\n");
    ok(&run(&["topic", "create", "t", "--server", server]));
    let entry = r#"{"guards":[{"key":"a/1","version":1}],"puts":[{"key":"a/1","value":"two"}],"appends":[{"topic":"t","records":[{"value":"r"}]}]}"#;
    let done = ok(&run_with_input(&["kv", "txn", "--server", server], entry));
    assert!(done.starts_with("revision ") && done.ends_with("appended t/0 at 0\n"), "{done}");
    // Once more: the guard does not hold, and nothing of it happens.
    let refused = failed(&run_with_input(&["kv", "txn", "--server", server], entry));
    assert!(refused.contains("version(\"a/1\") == 1, found 2 [BT0104]"), "{refused}");
    assert_eq!(ok(&run(&["consume", "t", "--server", server])), "0/0  -  r\n");
    assert_eq!(ok(&run(&["kv", "get", "a/1", "--revision", "2", "--server", server])), "one\n");
    let all = ok(&run(&["kv", "get", "a", "--prefix", "--server", server]));
    assert!(all.contains("a b") && all.contains("two"), "{all}");
    ok(&run(&["kv", "del", "a/1", "--server", server]));
    let gone = failed(&run(&["kv", "get", "a/1", "--server", server]));
    assert!(gone.contains("there is no key \"a/1\""), "{gone}");

    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(r#""type":"delete""#) {
        let read = watch.read(&mut piece).unwrap();
        assert!(read > 0, "the watch ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..read]);
    }
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.contains(r#"{"events":[{"key":"a/1","type":"put","value":"one"}],"revision":2}"#), "{seen}");
    assert!(seen.contains("application/x-ndjson"), "{seen}");

    let print = run(&["kv", "get", "b", "--prefix", "--output", "json", "--server", server]);
    assert_eq!(ok(&print), "");
    let dir = dir.path();
    let mut follow = buttress()
        .args(["kv", "watch", "a", "--prefix", "--from", "2", "--server", server])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let mut line = || shown.next().unwrap().unwrap();
    assert_eq!(line(), "2  put  a/1  one");
    assert_eq!(line(), "3  put  a b  \\xc3\\xa4");
    assert_eq!(line(), "4  put  a/1  two");
    assert_eq!(line(), "5  delete  a/1");
    ok(&run(&["kv", "put", "a", "live", "--server", server]));
    assert_eq!(line(), "6  put  a  live");
    follow.kill().unwrap();
    follow.wait().unwrap();
    // A watcher that is still there does not keep the node from stopping.
    assert_eq!(dev.stop(), Some(0));
    assert_eq!(processes_of(dir), Vec::<u32>::new());
}
