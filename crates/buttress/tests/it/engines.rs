//! Hosts of functions on real engines, where `KAFKA_BOOTSTRAP` and `ETCD_ENDPOINTS` name some; what is wrong with a host's
//! arguments needs none.

use std::{
    net::TcpListener,
    process::{Child, Stdio},
};

use serde_json::Value;

use super::support::*;

const DEAD: &str = "127.0.0.1:1";

#[test]
fn a_host_says_what_is_wrong_with_its_arguments() {
    let engines = ["host", "--kafka", DEAD, "--etcd", "http://127.0.0.1:1", "--http", "127.0.0.1:0"];
    let said = |more: &[&str]| failed(&run(&[&engines[..], more].concat()));
    assert!(said(&["--name", "a b"]).contains("--name \"a b\" cannot be a host's [BT0701]"));
    assert!(said(&["--namespace", "plant/"]).contains("namespace \"plant/\" cannot begin a topic's name [BT0701]"));
    assert!(said(&["--hold-ttl", "1s"]).contains("give 3s or more"));
    assert!(said(&["--mqtt", "0.0.0.0:0"]).contains("is not a loopback address [BT0701]"));
    assert!(said(&["--mqtt", "here"]).contains("is not IP:PORT [BT0701]"));
    let alone = run(&["demo", "--kafka", DEAD]);
    assert!(stderr(&alone).contains("--etcd"), "{}", stderr(&alone));
}

#[test]
fn a_topic_cannot_choose_an_engine_that_its_node_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    let refused = failed(&run(&["topic", "create", "t", "--engine", "kafka", "--server", server]));
    assert!(refused.contains("there is no engine \"kafka\" here, only embedded [BT0701]"), "{refused}");
    ok(&run(&["topic", "create", "t", "--engine", "embedded", "--server", server]));
}

/// A node's own log does not wait for a Kafka that is not there.
#[test]
fn a_node_works_while_its_kafka_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(dir.path(), 1, &["--kafka", DEAD]);
    let server = &dev.http(0);
    ok(&run(&["topic", "create", "t", "--server", server]));
    ok(&run_with_input(&["produce", "t", "--server", server], "a\n"));
    assert_eq!(ok(&run(&["consume", "t", "--server", server])), "0/0  -  a\n");
}

/// Killed when the test ends, however it ends.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn host(name: &str, id: &str, namespace: &str, http: &str) -> Host {
    let (kafka, etcd) = (std::env::var("KAFKA_BOOTSTRAP").unwrap(), std::env::var("ETCD_ENDPOINTS").unwrap());
    let etcd: Vec<String> = etcd.split(',').map(|address| format!("http://{address}")).collect();
    let child = buttress()
        .args(["host", "--kafka", &kafka, "--etcd", &etcd.join(","), "--namespace", namespace, "--hold-ttl", "3s"])
        .args(["--name", name, "--id", id, "--http", http])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Host(child.expect("the binary was built for this test"))
}

fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A device sends each reading through both hosts; one host is killed on the way. Every reading is judged once.
#[test]
fn a_killed_host_s_partitions_go_on_elsewhere_and_nothing_is_judged_twice() {
    if std::env::var("KAFKA_BOOTSTRAP").is_err() || std::env::var("ETCD_ENDPOINTS").is_err() {
        eprintln!("NOT RUN: no host is killed on real engines, because KAFKA_BOOTSTRAP or ETCD_ENDPOINTS is not set");
        return;
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let namespace = format!("it-{:08x}.", std::process::id());
    let (first, second) = (address(), address());
    let mut one = host("one", "1", &namespace, &first);
    let _two = host("two", "2", &namespace, &second);
    let (first, second) = (format!("http://{first}"), format!("http://{second}"));
    until("two hosts that know each other", || {
        let answer = run(&["cluster", "status", "--output", "json", "--server", &second]);
        let view: Value = serde_json::from_slice(&answer.stdout).ok()?;
        (view["members"].as_array()?.len() == 2).then_some(())
    });
    ok(&run(&["topic", "create", "telemetry", "--partitions", "4", "--sequence", "machine,seq", "--server", &first]));
    let model = |version: &str| format!("{root}examples/fleet-model/anomaly-{version}.json");
    ok(&run(&["model", "push", "anomaly", &model("v1"), "--server", &first]));
    let component = format!("{root}guests/built/anomaly.wasm");
    let deploy = ["--topic", "telemetry", "--output-topic", "machine-anomalies", "--model", "anomaly", "--state"];
    ok(&run(&[&["fn", "deploy", "anomaly", &component, "--server", &first], &deploy[..]].concat()));

    let readings = |seq: u32| -> String {
        let reading = |machine: u32| {
            format!(
                "{{\"machine\":\"m-{machine}\",\"seq\":{seq},\"ts\":1,\"temperature\":99.0,\"vibration\":9.5,\"speed\":1500,\"torque\":60,\"wear\":230}}\n"
            )
        };
        (0..8).map(reading).collect()
    };
    // A host that has not heard of the topic yet refuses it, and is asked again.
    let send = |server: &str, seq: u32| {
        until("a host that takes readings", || {
            run_with_input(&["produce", "telemetry", "--server", server], &readings(seq)).status.success().then_some(())
        });
    };
    for seq in 1..=3 {
        send(&first, seq);
        send(&second, seq);
    }
    one.0.kill().unwrap();
    one.0.wait().unwrap();
    ok(&run(&["model", "push", "anomaly", &model("v2"), "--server", &second]));
    for seq in 3..=6 {
        send(&second, seq);
    }
    let wanted = 8 * 6;
    let alerts = until("an alert for every reading", || {
        let text = stdout(&run(&["consume", "machine-anomalies", "--max", "1000", "--server", &second]));
        (text.lines().count() >= wanted).then_some(text)
    });
    let mut seen: Vec<(String, u64)> = alerts
        .lines()
        .map(|line| {
            let json: Value = serde_json::from_str(&line[line.find('{').expect("an alert is an object")..]).unwrap();
            (json["machine"].as_str().unwrap().to_owned(), json["seq"].as_u64().unwrap())
        })
        .collect();
    seen.sort_unstable();
    let total = seen.len();
    seen.dedup();
    assert_eq!((seen.len(), total), (wanted, wanted), "alerts that came twice, or not at all");
    let described = stdout(&run(&["fn", "list", "--output", "json", "--server", &second]));
    assert!(!described.contains("\"host\":\"one\""), "{described}");
}
