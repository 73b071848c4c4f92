//! Backups of clusters of real processes, clusters begun from them, and the doctor.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use super::{
    cluster::{consumed, create, produce},
    support::*,
};

fn backup(server: &str, file: &Path, more: &[&str]) -> serde_json::Value {
    let file = file.to_str().unwrap();
    // While an election is under way nobody can say what was acknowledged.
    let taken = until("a backup", || {
        let args = [&["backup", "--to", file, "--output", "json", "--server", server][..], more].concat();
        let taken = run(&args);
        (taken.status.code() == Some(0)).then_some(taken)
    });
    serde_json::from_slice(&taken.stdout).unwrap()
}

/// Configuration files of a new cluster, with ports that were free a moment ago.
fn lay_out(dir: &Path, cluster: &str, nodes: usize) -> Vec<PathBuf> {
    let held: Vec<std::net::TcpListener> =
        (0..nodes * 4).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<String> = held.iter().map(|held| held.local_addr().unwrap().to_string()).collect();
    let members: String = ports
        .chunks(4)
        .zip(1..)
        .map(|(p, id)| {
            format!(
                "[[members]]\nid = {id}\nname = \"n{id}\"\npeer = \"{}\"\nkafka = \"{}\"\nmqtt = \"{}\"\nhttp = \"{}\"\n",
                p[0], p[1], p[2], p[3]
            )
        })
        .collect();
    let file = |id: usize| {
        let path = dir.join(format!("n{id}.toml"));
        let data = dir.join(format!("n{id}"));
        let head = format!("[node]\nid = {id}\ndata_dir = \"{}\"\n[cluster]\nid = \"{cluster}\"\n", data.display());
        std::fs::write(&path, head + &members).unwrap();
        path
    };
    (1..=nodes).map(file).collect()
}

fn http_of(config: &Path, node: usize) -> String {
    let text = std::fs::read_to_string(config).unwrap();
    format!("http://{}", text.split("http = \"").nth(node).unwrap().split('"').next().unwrap())
}

/// A node that ends with the test.
struct Node(Child);

impl Node {
    fn start(config: &Path) -> Self {
        let child = buttress()
            .args(["serve", "--with-parent", "--config"])
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary was built for this test");
        Self(child)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_under_load_and_kill_9_becomes_a_cluster_of_three() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let (asked, killed) = (dev.http((leader + 1) % 3), (leader + 2) % 3);
    create(&asked, "tel");
    ok(&run(&["topic", "create", "faulty-out", "--server", &asked]));
    let component = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guests/built/faulty.wasm");
    ok(&run(&[
        "fn",
        "deploy",
        "faulty",
        component,
        "--topic",
        "tel",
        "--output-topic",
        "faulty-out",
        "--server",
        &asked,
    ]));
    produce(&asked, "tel", 1..301);

    // More is written while the backup is taken, and a node dies.
    let writer = std::thread::spawn({
        let server = dev.http(leader);
        move || (0..10).for_each(|n| produce(&server, "tel", 301 + n * 20..321 + n * 20))
    });
    let process = node_process(dir.path(), dev.nodes[killed]["name"].as_str().unwrap()).expect("it runs");
    signal(process, "KILL");
    let file = dir.path().join("b.btb");
    let taken = backup(&asked, &file, &[]);
    writer.join().unwrap();
    assert_eq!((&taken["ok"], &taken["linearizable"]), (&true.into(), &true.into()));
    assert_eq!(taken["functions"][0]["name"], "faulty");
    let verified = run(&["backup", "verify", text(&file), "--output", "json"]);
    let verified: serde_json::Value = serde_json::from_str(&ok(&verified)).unwrap();
    assert_eq!(verified, taken);
    let shown = ok(&run(&["backup", "verify", text(&file)]));
    assert!(shown.contains("every byte verified") && shown.contains("faulty@1") && shown.contains("tel"), "{shown}");

    let refused = failed(&run(&["backup", "--to", text(&file), "--server", &asked]));
    assert!(refused.contains("exists") && refused.contains("--force"), "{refused}");
    // The old cluster is gone for good.
    assert_eq!(dev.stop(), Some(0));

    let again = tempfile::tempdir().unwrap();
    let configs = lay_out(again.path(), "again", 3);
    for config in &configs {
        let told = ok(&run(&["restore", text(&file), "--config", text(config)]));
        assert!(told.contains("as cluster \"again\""), "{told}");
    }
    let refused = failed(&run(&["restore", text(&file), "--config", text(&configs[0])]));
    assert!(refused.contains("[BT0207]"), "{refused}");
    let nodes: Vec<Node> = configs.iter().map(|config| Node::start(config)).collect();
    let server = http_of(&configs[0], 2);
    until("a leader", || {
        let answer = run(&["cluster", "status", "--output", "json", "--server", &server]);
        let view: serde_json::Value = serde_json::from_slice(&answer.stdout).ok()?;
        view["leader"].as_u64()
    });
    for node in 1..=3 {
        let found = consumed(&http_of(&configs[0], node), "tel");
        let acknowledged: BTreeSet<u64> = (1..301).collect();
        assert!(found.is_superset(&acknowledged), "lost {:?}", acknowledged.difference(&found));
        // And nothing in halves: what came later came in order.
        assert_eq!(found, (1..=found.len() as u64).collect(), "a hole");
    }
    // It goes on where it was: the same numbers are known, the next one is new, and the function runs.
    let known = consumed(&server, "tel").len() as u32;
    produce(&server, "tel", known..known + 2);
    until("the next record, once", || (consumed(&server, "tel").len() as u32 == known + 1).then_some(()));
    until("what the restored function makes of it", || {
        let seen = stdout(&run(&["consume", "faulty-out", "--server", &server]));
        seen.contains(&format!("\"seq\":{}", known + 1)).then_some(())
    });
    drop(nodes);
}

#[test]
fn damaged_files_are_refused_with_the_place_and_the_right_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = dev.http(0);
    create(&server, "tel");
    produce(&server, "tel", 1..101);
    let file = dir.path().join("b.btb");
    backup(&server, &file, &["--stale"]);
    let good = std::fs::read(&file).unwrap();
    let bad = dir.path().join("bad.btb");
    let configs = lay_out(dir.path(), "again", 1);
    let data = dir.path().join("n1");
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 4;
    let mut newer = good.clone();
    newer[8] = 9;
    let crc = crc32c::crc32c(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    for (bytes, says) in [
        (&good[..good.len() - 1], "before its trailer [BT0206]"),
        (&good[..100], "it ends at byte 100, before its trailer [BT0206]"),
        (&flipped, "fails its checksum [BT0206]"),
        (&[&good[..], b"more"].concat(), "follow its end [BT0206]"),
        (&newer, "has format 9, this version knows 1 [BT0204]"),
        (b"hello", "not a backup"),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let verified = run(&["backup", "verify", text(&bad)]);
        assert_eq!(verified.status.code(), Some(1), "{}", stderr(&verified));
        assert!(stderr(&verified).contains(says), "{says}: {}", stderr(&verified));
        let json = run(&["backup", "verify", text(&bad), "--output", "json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["ok"], false);
        let refused = failed(&run(&["restore", text(&bad), "--config", text(&configs[0])]));
        assert!(refused.contains(says), "{refused}");
        assert!(!data.exists(), "nothing is written");
    }
    let missing = failed(&run(&["backup", "verify", "/nowhere.btb"]));
    assert!(missing.contains("cannot read"), "{missing}");
    // What is not finished is no node's.
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("RESTORING"), "").unwrap();
    let refused = failed(&run(&["serve", "--config", text(&configs[0])]));
    assert!(refused.contains("[BT0208]"), "{refused}");
    ok(&run(&["restore", text(&file), "--config", text(&configs[0])]));

    // A connection that is cut leaves no file.
    let lost = dir.path().join("lost.btb");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let half = format!("http://{}", listener.local_addr().unwrap());
    let part = good[..good.len() / 2].to_vec();
    let cutter = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", part.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&part).unwrap();
        stream.write_all(b"\r\n").unwrap();
    });
    let refused = failed(&run(&["backup", "--to", text(&lost), "--server", &half]));
    cutter.join().unwrap();
    assert!(refused.contains("broke the answer off") && refused.contains("[BT0705]"), "{refused}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("lost.btb")), "{left:?}");
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn dev_begins_with_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let dev = Dev::start(&first, 1);
    create(&dev.http(0), "tel");
    produce(&dev.http(0), "tel", 1..51);
    let file = dir.path().join("b.btb");
    backup(&dev.http(0), &file, &[]);
    assert_eq!(dev.stop(), Some(0));
    let again = Dev::start_with(&dir.path().join("again"), 3, &["--restore", text(&file)]);
    for node in 0..3 {
        until("the records", || (consumed(&again.http(node), "tel") == (1..51).collect()).then_some(()));
    }
    assert_eq!(again.stop(), Some(0));
}

fn doctor(server: &str, more: &[&str]) -> (Option<i32>, serde_json::Value) {
    let args = [&["doctor", "--output", "json", "--server", server][..], more].concat();
    let told = run(&args);
    let told_json = serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(&told)));
    (told.status.code(), told_json)
}

fn finding<'a>(told: &'a serde_json::Value, id: &str) -> &'a serde_json::Value {
    let findings = told["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id} in {told}"))
}

#[test]
fn the_doctor_tells_the_well_from_the_sick() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let server = dev.http(leader);
    create(&server, "tel");
    // Digests are of stretches of 64 entries, and the first whole one is from 64 to 127.
    for n in 0..130 {
        produce(&server, "tel", 1 + n..2 + n);
    }
    let (_, told) = until("equal replicas and one leader", || {
        let (code, told) = doctor(&server, &[]);
        let compared = finding(&told, "DOC-15")["evidence"].as_str()?.contains("are equal");
        (compared && finding(&told, "DOC-02")["level"] == "ok").then_some((code, told))
    });
    for id in ["DOC-01", "DOC-02", "DOC-03", "DOC-05", "DOC-07", "DOC-14", "DOC-15"] {
        assert_eq!(finding(&told, id)["level"], "ok", "{told}");
    }
    assert_eq!(finding(&told, "DOC-04")["level"], "info", "one machine: {told}");
    let shown = run(&["doctor", "--all", "--server", &server]);
    assert!(stdout(&shown).contains("DOC-15") && stdout(&shown).contains("LEVEL"), "{}", stdout(&shown));
    let (code, told) = doctor(&server, &["--what-if", "remove=node-1"]);
    let ahead = finding(&told, "DOC-18")["evidence"].as_str().unwrap();
    assert!(ahead.contains("then 2 voters, 2 reachable, 2 needed: none may fail"), "{ahead}");
    assert!(code == Some(0) || told["warnings"].as_u64() > Some(0), "{told}");

    // One is stopped, so that nobody starts it again.
    let sick = (leader + 1) % 3;
    let name = dev.nodes[sick]["name"].as_str().unwrap();
    let process = node_process(dir.path(), name).expect("it runs");
    signal(process, "STOP");
    let (code, told) =
        doctor(&server, &["--what-if", &format!("remove={}", dev.nodes[leader]["name"].as_str().unwrap())]);
    signal(process, "CONT");
    assert_eq!(code, Some(1));
    let missing = finding(&told, "DOC-01");
    assert!(missing["level"] == "warning" && missing["evidence"].as_str().unwrap().contains(name), "{missing}");
    let ahead = finding(&told, "DOC-18");
    assert_eq!(ahead["level"], "warning");
    assert!(
        ahead["remedy"].as_str().unwrap().contains("it leaves 2 voters of whom 1 is reachable; a quorum is 2"),
        "{ahead}"
    );

    let nobody = failed(&run(&["doctor", "--server", "http://127.0.0.1:1"]));
    assert!(nobody.contains("[BT0705]"), "{nobody}");
    let wrong = failed(&run(&["doctor", "--what-if", "destroy=node-1", "--server", &server]));
    assert!(wrong.contains("is no step"), "{wrong}");
}
