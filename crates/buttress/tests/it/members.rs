//! Members that come, are promoted, leave and are restarted one after the other, as an operator does it.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::Value;

use super::{cluster::consumed, support::*};

/// A node that `cluster join --serve` or `serve` runs; ends with the test.
struct Node(Child);

impl Node {
    fn run(args: &[&str]) -> Self {
        let child = buttress()
            .args(args)
            .args(["--with-parent", "--log", "json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built for this test");
        Self(child)
    }

    /// Waits for its end; gives its exit code and what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.0.stderr.take().expect("it is piped").read_to_string(&mut said).expect("its log is text");
        (self.0.wait().expect("the child is ours").code(), said)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn members(server: &str) -> Vec<Value> {
    let answer = run(&["cluster", "status", "--output", "json", "--server", server]);
    let view: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
    view["members"].as_array().cloned().unwrap_or_default()
}

fn role(server: &str, name: &str) -> Option<String> {
    let found = members(server).into_iter().find(|m| m["name"] == name)?;
    Some(found["role"].as_str()?.to_owned())
}

/// What became of a request.
enum Sent {
    /// The server said yes.
    Acknowledged,
    /// The server said no.
    Refused(String),
    /// No connection, or it ended before an answer came: ask another node, with the same sequence number.
    Elsewhere,
}

fn send(address: &str, number: u64) -> Sent {
    let body = format!("{{\"m\":\"m\",\"seq\":{number}}}");
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let head = format!("POST /events?topic=tel HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        write!(stream, "{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match exchange() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Sent::Acknowledged,
        Ok(answer) if answer.starts_with("HTTP/1.1 ") => Sent::Refused(answer),
        Ok(_) | Err(_) => Sent::Elsewhere,
    }
}

/// A client that sends one record after the other, each until it is acknowledged.
struct Producer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Producer {
    fn start(addresses: Vec<String>) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (theirs, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let mut refused = Vec::new();
            let mut at = 0;
            for number in 1.. {
                if theirs.load(SeqCst) {
                    break;
                }
                loop {
                    match send(&addresses[at % addresses.len()], number) {
                        Sent::Acknowledged => break,
                        Sent::Refused(answer) => refused.push(answer),
                        Sent::Elsewhere => {}
                    }
                    at += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                count.store(number, SeqCst);
            }
            refused
        });
        Self { stop, acknowledged, thread }
    }

    fn more(&self, records: u64) {
        let from = self.acknowledged.load(SeqCst);
        until("more is acknowledged", || (self.acknowledged.load(SeqCst) >= from + records).then_some(()));
    }

    /// How many were acknowledged, and what was refused.
    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        let refused = self.thread.join().expect("it does not panic");
        (self.acknowledged.load(SeqCst), refused)
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().expect("temporary directories have plain names").to_owned()
}

#[test]
fn a_node_joins_and_all_are_restarted_without_a_failed_request() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let first = dev.http(0);
    ok(&run(&["topic", "create", "tel", "--partitions", "2", "--sequence", "m,seq", "--server", &first]));
    let addresses: Vec<String> = (0..3).map(|node| dev.http(node).trim_start_matches("http://").to_owned()).collect();
    let producer = Producer::start(addresses);
    producer.more(20);

    // The first run dies after the cluster has given an id; the second gets the same.
    let (config, data) = (path(dir.path(), "node-4.toml"), path(dir.path(), "node-4"));
    let join = ["cluster", "join", "--name", "node-4", "--data-dir", &data, "--config", &config];
    let json = ["--output", "json", "--server", &first];
    let joined: Value = serde_json::from_str(&ok(&run(&[&join[..], &json].concat()))).unwrap();
    assert_eq!(joined["id"], 4);
    std::fs::remove_file(&config).unwrap();
    let second: Value = serde_json::from_str(&ok(&run(&[&join[..], &json].concat()))).unwrap();
    assert_eq!(second["id"], 4);
    let node = Node::run(&[&join[..], &["--server", &first, "--serve"]].concat());
    until("node-4 is a voter", || (role(&first, "node-4")? == "voter").then_some(()));
    let fourth = format!("http://{}", second["http"].as_str().unwrap());
    producer.more(20);
    // Whoever starts it once more is told that it is one already, with its own configuration.
    let again = run(&[&join[..], &json].concat());
    assert_eq!(serde_json::from_str::<Value>(&ok(&again)).unwrap()["id"], 4);
    // A configuration that is another's is left alone.
    let other = ["cluster", "join", "--name", "node-5", "--data-dir", &data, "--config", &config, "--server", &first];
    let refused = failed(&run(&other));
    assert!(refused.contains("exists and is for \"node-4\"") && refused.contains("[BT0701]"), "{refused}");

    // Everybody in turn; `dev` starts again what ends.
    for name in ["node-1", "node-2", "node-3"] {
        let before = node_process(dir.path(), name).expect("it runs");
        signal(before, "TERM");
        until("it is started again", || node_process(dir.path(), name).filter(|pid| *pid != before));
        let server = dev.http(name[5..].parse::<usize>().unwrap() - 1);
        until("it has caught up", || {
            let all = members(&server);
            (all.len() == 4 && all.iter().all(|m| m["reachable"] == true && m["lag"].as_u64() < Some(50))).then_some(())
        });
        producer.more(20);
    }
    signal(node.0.id(), "TERM");
    let (code, said) = node.ended();
    assert_eq!(code, Some(0), "{said}");
    let node = Node::run(&["serve", "--config", &config]);
    until("node-4 is back", || members(&fourth).iter().find(|m| m["name"] == "node-4")?["lag"].as_u64().map(drop));
    producer.more(20);

    let (acknowledged, refused) = producer.end();
    assert_eq!(refused, Vec::<String>::new(), "failed requests");
    let wanted: BTreeSet<u64> = (1..=acknowledged).collect();
    for server in [&first, &dev.http(1), &dev.http(2), &fourth] {
        until("every acknowledged record, once", || (consumed(server, "tel") == wanted).then_some(()));
    }

    // It leaves again, and says why it stops.
    let removed = run(&["cluster", "remove", "node-4", "--server", &first]);
    ok(&removed);
    assert!(stderr(&removed).contains("node-4 is no member any more"), "{}", stderr(&removed));
    let (code, said) = node.ended();
    assert_eq!(code, Some(2));
    assert!(said.contains("BT0111") && said.contains("was removed from cluster"), "{said}");
    let (code, said) = Node::run(&["serve", "--config", &config]).ended();
    assert_eq!(code, Some(2), "it does not loop: {said}");
    assert!(said.contains("BT0111"), "{said}");
    // Its file is of no use any more, and joining with it says so.
    let refused = failed(&run(&[&join[..], &json].concat()));
    assert!(refused.contains("[BT0701]") && refused.contains("join again"), "{refused}");
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn a_lost_machine_is_replaced_and_steps_that_lose_the_quorum_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let first = dev.http(0);
    for (what, said) in [
        (&["remove", "nod-1"][..], "did you mean \"node-1\"? members: node-1, node-2, node-3"),
        (&["promote", "node-9"], "did you mean"),
        (&["transfer", "x"], "members: node-1, node-2, node-3"),
    ] {
        let refused = failed(&run(&[&["cluster"], what, &["--server", &first]].concat()));
        assert!(refused.contains("[BT0112]") && refused.contains(said), "{refused}");
    }
    let to = format!("node-{}", (dev.leader(0) + 1) % 3 + 1);
    let moved = run(&["cluster", "transfer", &to, "--server", &first]);
    ok(&moved);
    assert!(stderr(&moved).contains(&format!("{to} leads")), "{}", stderr(&moved));

    let (config, data) = (path(dir.path(), "node-4.toml"), path(dir.path(), "node-4"));
    let join =
        ["cluster", "join", "--name", "node-4", "--data-dir", &data, "--config", &config, "--learner", "--serve"];
    let _node = Node::run(&[&join[..], &["--server", &first]].concat());
    until("node-4 is a learner", || (role(&first, "node-4")? == "learner").then_some(()));
    let replaced = run(&["cluster", "replace", "node-2", "--with", "node-4", "--server", &first]);
    ok(&replaced);
    assert!(stderr(&replaced).contains("node-4 has taken the place of node-2"), "{}", stderr(&replaced));
    // `dev` lets it rest.
    until("the end of node-2", || node_process(dir.path(), "node-2").is_none().then_some(()));
    let names: Vec<Value> = members(&first).iter().map(|m| m["name"].clone()).collect();
    assert_eq!(names, ["node-1", "node-3", "node-4"]);
    let status = ok(&run(&["cluster", "status", "--server", &first]));
    assert!(status.contains("ROLE") && status.matches("voter").count() == 3, "{status}");
    let last = ok(&run(&["cluster", "remove", "node-3", "--output", "json", "--server", &first]));
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((last["id"].as_u64(), last["warnings"].as_array().map(Vec::len)), (Some(3), Some(2)), "{last}");
    drop(_node);
    let refused = until("the arithmetic", || {
        let tried = run(&["cluster", "remove", "node-4", "--server", &first]);
        (tried.status.code() == Some(2)).then(|| stderr(&tried))
    });
    assert!(refused.contains("BT01"), "{refused}");
}
