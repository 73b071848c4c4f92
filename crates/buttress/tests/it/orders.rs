//! `buttress demo orders`: real processes, real faults, and promises that are judged from the log. Nothing here depends on
//! how fast the machine is: figures may be what they are, but every order ends, and everybody is gone at the end.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
};

use serde_json::{Value, json};

use super::support::*;

#[test]
fn every_order_ends_through_flaky_slow_and_dead_services_a_killed_coordinator_and_a_killed_leader() {
    let told = run(&["demo", "orders", "--duration", "8s", "--rate", "4", "--output", "json"]);
    let report: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", stderr(&told)));
    assert_eq!(told.status.code(), Some(0), "{report:#}\n{}", stderr(&told));
    let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["ok", "orders", "promises", "recovery_s", "with", "without"]);
    for side in ["without", "with"] {
        let keys: Vec<&str> = report[side].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["amplification", "goodput", "p99_ms"]);
    }
    let orders = |key: &str| report["orders"][key].as_u64().unwrap_or_else(|| panic!("{key} in {report:#}"));
    assert!(orders("placed") > 0);
    assert_eq!(orders("completed") + orders("compensated"), orders("placed"));
    assert_eq!((orders("stuck"), orders("inconsistent")), (0, 0));
    let promises = report["promises"].as_array().unwrap();
    let ids: Vec<&str> = promises.iter().map(|promise| promise["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["ORDERS-1", "ORDERS-2", "ORDERS-3", "ORDERS-4", "ORDERS-5", "ORDERS-6", "ORDERS-7"]);
    assert!(promises.iter().all(|promise| promise["held"] == true), "{report:#}");
}

fn children_of(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        behind_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

#[test]
fn a_demo_that_is_killed_leaves_no_process_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = buttress()
        .args(["demo", "orders", "--nodes", "1", "--duration", "1h", "--rate", "1", "--data-dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let children = until("every process of the demo", || {
        let children = children_of(demo.id());
        // A node, two times six parts, four proxies.
        (children.len() == 17).then_some(children)
    });
    demo.kill().unwrap();
    demo.wait().unwrap();
    for child in children {
        until("the end of a process", || {
            let command = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            command.is_empty().then_some(())
        });
    }
}

fn ask(address: &str, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}");
    stream.write_all(format!("{head}\r\nContent-Type: application/json\r\n\r\n{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

/// A part of one side, which ends with the test.
struct Part {
    child: Child,
    address: String,
}

impl Part {
    fn start(role: &str, node: &str, to: &[String]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = port.to_string();
        let mut command = buttress();
        command.args(["orders-part", role, "--side", "without", "--nodes", node, "--listen", &address]);
        for to in to {
            command.args(["--to", to]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let part = Self { child, address };
        until(role, || ask(&part.address, "GET", "/stats", &Value::Null));
        part
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_coordinator_that_was_replaced_changes_nothing_any_more_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let node = dev.nodes[0]["http"].as_str().unwrap();
    for topic in ["order-events", "order-compensations"] {
        let made = ask(node, "POST", "/v1/topics", &json!({"name": topic, "partitions": 2})).unwrap();
        assert_eq!(made.0, 201, "{}", made.1);
    }
    let order = Part::start("order", node, &[]);
    let steps = ["inventory", "payment", "shipping"].map(|role| (role, Part::start(role, node, &[])));
    let to: Vec<String> = steps.iter().map(|(role, part)| format!("{role}={}", part.address)).collect();
    let place = |number: u32| {
        let id = format!("without-{number:06}");
        let body = json!({"id": id, "sku": 1, "quantity": 1, "cents": 500, "card": "card-1", "to": "1 Arch Street"});
        let placed = ask(&order.address, "POST", "/orders", &body).unwrap();
        assert_eq!(placed.0, 202, "{}", placed.1);
        id
    };
    let ended = |id: &str| {
        until("the end of an order", || {
            let kept = ask(node, "GET", &format!("/v1/keys/sagas/without/ended/{id}"), &Value::Null)?;
            (kept.0 == 200).then(|| kept.1["value"].as_str().unwrap().to_owned())
        })
    };
    let mut first = Part::start("coordinator", node, &to);
    let before = place(0);
    assert!(ended(&before).contains("\"outcome\":\"completed\""));

    // It sleeps through an order, which its successor carries out; then it wakes up and finds another one.
    signal(first.child.id(), "STOP");
    let _second = Part::start("coordinator", node, &to);
    let while_asleep = place(1);
    assert!(ended(&while_asleep).contains("\"outcome\":\"completed\""));
    signal(first.child.id(), "CONT");
    let after = place(2);
    assert!(ended(&after).contains("\"outcome\":\"completed\""));
    until("the end of the first coordinator", || first.child.try_wait().unwrap());

    // The same order again is the same order; another one under its id is refused.
    place(2);
    let other = json!({"id": after, "sku": 2, "quantity": 1, "cents": 1, "card": "card-1", "to": "1 Arch Street"});
    assert_eq!(ask(&order.address, "POST", "/orders", &other).unwrap().0, 409);

    // A call under the old token is refused, and asking for an order that is not one is told.
    let (_, inventory) = &steps[0];
    let mut stream = TcpStream::connect(&inventory.address).unwrap();
    let body = json!({"id": "without-000009", "sku": 1, "quantity": 1, "cents": 1, "card": "c", "to": "t"}).to_string();
    let head = format!(
        "POST /reserve HTTP/1.1\r\nHost: a\r\nConnection: close\r\nsaga-fence: 1\r\nContent-Length: {}",
        body.len()
    );
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("another coordinator"), "{answer}");
    assert_eq!(ask(node, "GET", "/v1/keys/orders/without/inventory/without-000009", &Value::Null).unwrap().0, 404);
    assert_eq!(ask(&order.address, "POST", "/orders", &json!({"id": 1})).unwrap().0, 400);
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is_started() {
    let refused = failed(&run(&["demo", "orders", "--rate", "0"]));
    assert!(refused.contains("--rate is 0 [BT0701]") && refused.contains("hint: give 0.5"), "{refused}");
    let refused = failed(&run(&["demo", "orders", "--duration", "1s"]));
    assert!(refused.contains("--duration is 1s"), "{refused}");
}
