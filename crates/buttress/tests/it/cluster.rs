//! Clusters of real processes: what is acknowledged stays, whoever is killed, and nobody is left behind.

use std::collections::BTreeSet;

use super::support::*;

/// Sends `numbers` as records of `topic` in one request through `server`, again until they are acknowledged.
pub fn produce(server: &str, topic: &str, numbers: std::ops::Range<u32>) {
    let lines: String = numbers.map(|n| format!("{{\"m\":\"m\",\"seq\":{n}}}\n")).collect();
    until("an acknowledgement", || {
        let sent = run_with_input(&["produce", topic, "--server", server], &lines);
        (sent.status.code() == Some(0)).then_some(())
    });
}

pub fn create(server: &str, topic: &str) {
    ok(&run(&["topic", "create", topic, "--partitions", "2", "--sequence", "m,seq", "--server", server]));
}

/// The sequence numbers in `topic`; none may come twice.
pub fn consumed(server: &str, topic: &str) -> BTreeSet<u64> {
    let text = until("every record", || {
        let read = run(&["consume", topic, "--output", "json", "--server", server]);
        (read.status.code() == Some(0)).then(|| stdout(&read))
    });
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let value: serde_json::Value = serde_json::from_str(record["value"].as_str().unwrap()).unwrap();
        assert!(seen.insert(value["seq"].as_u64().unwrap()), "twice: {line}");
    }
    seen
}

/// Waits until a node that was just started has applied what it is asked for.
fn consumed_at_last(server: &str, topic: &str, wanted: u64) {
    let wanted: BTreeSet<u64> = (1..=wanted).collect();
    until("what was acknowledged", || (consumed(server, topic) == wanted).then_some(()));
}

#[test]
fn any_node_takes_any_command() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let followers: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let (first, second) = (dev.http(followers[0]), dev.http(followers[1]));
    for node in &dev.nodes {
        for key in ["name", "kafka", "mqtt", "http", "etcd"] {
            assert!(node[key].is_string(), "{node}");
        }
    }

    create(&first, "tel");
    produce(&first, "tel", 1..4);
    consumed_at_last(&second, "tel", 3);

    // Text stays as it was typed.
    ok(&run(&["topic", "create", "notes", "--server", &first]));
    until("the topic on another node", || {
        let sent = run_with_input(&["produce", "notes", "--key", "k", "--server", &second], "plain text\n");
        (sent.status.code() == Some(0)).then_some(())
    });
    until("the record", || {
        (ok(&run(&["consume", "notes", "--server", &second])) == "0/0  k  plain text\n").then_some(())
    });
    assert_eq!(ok(&run(&["consume", "notes", "--max", "0", "--server", &first])), "");

    let described = run(&["topic", "describe", "tel", "--server", &first]);
    assert!(ok(&described).contains("PARTITION"));
    assert!(stderr(&described).contains("sequence_fields  [\"m\",\"seq\"]"), "{}", stderr(&described));
    let list = ok(&run(&["topic", "list", "--server", &second]));
    assert!(list.contains("notes") && list.contains("tel"), "{list}");
    let status = ok(&run(&["cluster", "status", "--server", &first]));
    assert_eq!((status.matches("leader").count(), status.matches("follower").count()), (1, 2), "{status}");
    let deleted = ok(&run(&["topic", "delete", "notes", "--output", "json", "--server", &first]));
    assert_eq!(deleted, "{\"deleted\":\"notes\"}\n");

    // Refusals keep code, hint and exit code through every edge.
    let refused = failed(&run_with_input(&["produce", "nowhere", "--server", &first], "x\n"));
    assert!(refused.starts_with("error: there is no topic \"nowhere\" [BT0301]\n\nhint: create it"), "{refused}");
    let refused = failed(&run_with_input(&["produce", "tel", "--server", &first], "{\"m\":\"m\",\"seq\":4}\nno\n"));
    assert!(refused.contains("record 2 of the input was refused") && refused.contains("[BT0308]"), "{refused}");
    assert!(refused.contains("hint: 1 of the 2 records sent are acknowledged"), "{refused}");
    let refused = failed(&run(&["fn", "invoke", "a b/c", "--server", &second]));
    assert!(refused.contains("[BT0401]"), "{refused}");

    assert_eq!(dev.stop(), Some(0));
    assert_eq!(processes_of(dir.path()), Vec::<u32>::new());
}

#[test]
fn functions_that_misbehave_are_refused_or_contained() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guests/built/");
    let component = |name: &str| format!("{built}{name}.wasm");

    let refused = failed(&run(&["fn", "deploy", "needs", &component("needs"), "--server", server]));
    assert!(refused.contains("acme:needs/rocket") && refused.contains("[BT0403]"), "{refused}");
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let refused = failed(&run(&["fn", "deploy", "text", text, "--server", server]));
    assert!(refused.contains("[BT0402]") && refused.contains("hint:"), "{refused}");
    let refused = failed(&run(&["model", "push", "text", text, "--server", server]));
    assert!(refused.contains("[BT0502]") && refused.contains("hint:"), "{refused}");

    for topic in ["readings", "faulty-out"] {
        ok(&run(&["topic", "create", topic, "--server", server]));
    }
    let deploy =
        ["fn", "deploy", "faulty", &component("faulty"), "--topic", "readings", "--output-topic", "faulty-out"];
    ok(&run(&[&deploy[..], &["--server", server]].concat()));
    ok(&run_with_input(&["produce", "readings", "--server", server], "before\npoison\nafter\n"));
    // The record that traps is set aside, the others pass, and the log says why.
    until("the records around the trap", || {
        let passed = stdout(&run(&["consume", "faulty-out", "--server", server]));
        (passed.contains("before") && passed.contains("after") && !passed.contains("poison")).then_some(())
    });
    until("the dead letter", || {
        stdout(&run(&["consume", "faulty-dead-letter", "--server", server])).contains("poison").then_some(())
    });
    let logs = ok(&run(&["fn", "logs", "faulty", "--server", server]));
    assert!(logs.starts_with("AT") && logs.lines().count() > 1 && logs.contains("node-1"), "{logs}");
    let list = ok(&run(&["fn", "list", "--server", server]));
    assert!(list.contains("faulty") && list.contains("readings") && list.contains("ready"), "{list}");
}

#[test]
fn kill_9_of_the_leader_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let other = dev.http((leader + 1) % 3);
    create(&other, "tel");
    produce(&other, "tel", 1..101);
    let name = dev.nodes[leader]["name"].as_str().unwrap();
    let killed = node_process(dir.path(), name).expect("the leader runs");
    signal(killed, "KILL");
    produce(&other, "tel", 101..201);
    for node in 0..3 {
        // `dev` starts the killed node again; it catches up.
        consumed_at_last(&dev.http(node), "tel", 200);
    }
    assert_ne!(node_process(dir.path(), name), Some(killed));
}

#[test]
fn dev_starts_nodes_again_that_were_all_killed() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    create(&dev.http(0), "tel");
    produce(&dev.http(1), "tel", 1..11);
    let nodes: Vec<u32> = processes_of(dir.path()).into_iter().filter(|pid| *pid != dev.child.id()).collect();
    for node in &nodes {
        signal(*node, "KILL");
    }
    produce(&dev.http(2), "tel", 11..21);
    consumed_at_last(&dev.http(0), "tel", 20);
    assert!(processes_of(dir.path()).iter().all(|pid| !nodes.contains(pid)));
    assert_eq!(dev.stop(), Some(0));
    assert_eq!(processes_of(dir.path()), Vec::<u32>::new());
}

#[test]
fn kill_9_of_everything_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), 3);
    create(&dev.http(0), "tel");
    produce(&dev.http(1), "tel", 1..101);
    let nodes = processes_of(dir.path());
    assert_eq!(nodes.len(), 4, "dev and three nodes");
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    for node in nodes.into_iter().filter(|node| *node != dev.child.id()) {
        // It may have ended already: its parent is gone.
        let _ = std::process::Command::new("kill").args(["-KILL", &node.to_string()]).output();
    }
    until("the end of every node", || processes_of(dir.path()).is_empty().then_some(()));

    let again = Dev::start(dir.path(), 3);
    assert_eq!(again.nodes, dev.nodes, "the same addresses");
    for node in 0..3 {
        consumed_at_last(&again.http(node), "tel", 100);
    }
    produce(&again.http(2), "tel", 101..102);
    consumed_at_last(&again.http(0), "tel", 101);
}

#[test]
fn nodes_end_with_the_process_that_started_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), 2);
    assert_eq!(processes_of(dir.path()).len(), 3);
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    until("the end of every node", || processes_of(dir.path()).is_empty().then_some(()));
}

#[test]
fn ctrl_c_while_the_nodes_start_leaves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        buttress().args(["dev", "--data-dir"]).arg(dir.path()).stderr(std::process::Stdio::null()).spawn().unwrap();
    until("a node", || node_process(dir.path(), "node-1"));
    signal(child.id(), "INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(processes_of(dir.path()), Vec::<u32>::new());
}

#[test]
fn a_directory_or_port_in_use_and_a_foreign_directory_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let dev = Dev::start(dir.path(), 1);

    let refused = failed(&run(&["dev", "--nodes", "1", "--data-dir", path]));
    assert!(refused.contains("[BT0205]") && refused.contains("hint: stop it"), "{refused}");
    let config = format!("{path}/node-1.toml");
    let refused = failed(&run(&["serve", "--config", &config]));
    assert!(refused.contains("cannot listen on") && refused.contains("[BT0702]"), "{refused}");
    assert_eq!(refused.matches("BT0702").count(), 1, "said once: {refused}");
    let refused = run(&["serve", "--log", "json", "--config", &config]);
    for line in failed(&refused).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert_eq!(line["code"], "BT0702");
    }
    assert_eq!(dev.stop(), Some(0));

    let refused = failed(&run(&["dev", "--nodes", "3", "--data-dir", path]));
    assert!(refused.contains("[BT0701]") && refused.contains("--nodes 1"), "{refused}");
    // Another process on the port: `dev` says what its node said.
    let text = std::fs::read_to_string(&config).unwrap();
    let http = text.split("http = \"").nth(1).unwrap().split('"').next().unwrap();
    let squatter = std::net::TcpListener::bind(http).unwrap();
    let refused = failed(&run(&["dev", "--nodes", "1", "--data-dir", path]));
    assert!(
        refused.contains("node-1 ended while starting: cannot listen on") && refused.contains("[BT0702]"),
        "{refused}"
    );
    drop(squatter);
    // The same directory under another cluster's name.
    let (before, rest) = text.split_once("[cluster]\nid = \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    let foreign = format!("{path}/foreign.toml");
    std::fs::write(&foreign, format!("{before}[cluster]\nid = \"foreign\"{}", &after)).unwrap();
    let refused = failed(&run(&["serve", "--config", &foreign]));
    assert!(refused.contains("[BT0107]") && refused.contains("\"foreign\""), "{refused}");
}
