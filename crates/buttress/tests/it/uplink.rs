//! An uplink between two real processes: what is in its way is said, and what it sends is there once, whoever is killed.

use serde_json::Value;

use super::support::*;

fn status(server: &str) -> Value {
    let answer = run(&["uplink", "status", "hq", "--output", "json", "--server", server]);
    serde_json::from_slice(&answer.stdout).unwrap_or_default()
}

fn lanes(status: &Value) -> Vec<Value> {
    status["lanes"].as_array().cloned().unwrap_or_default()
}

fn drained(server: &str) {
    until("an uplink that has sent everything", || {
        let lanes = lanes(&status(server));
        let idle =
            |lane: &Value| lane["state"] == "following" && lane["next"] == lane["end"] && lane["lag_records"] == 0;
        (!lanes.is_empty() && lanes.iter().all(idle)).then_some(())
    });
}

fn produce(server: &str, topic: &str, prefix: &str, count: u32) {
    let lines: String = (0..count).map(|n| format!("{prefix}{n}\n")).collect();
    ok(&run_with_input(&["produce", topic, "--server", server], &lines));
}

fn consumed(server: &str, topic: &str) -> Vec<String> {
    let text = ok(&run(&["consume", topic, "--server", server]));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn an_uplink_says_what_is_in_its_way_and_sends_everything_once() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (edge, centre) = (Dev::start(here.path(), 1), Dev::start(there.path(), 1));
    let (edge_at, centre_at) = (&edge.http(0), &centre.http(0));
    let to = centre_at.replace("http://", "buttress://");
    ok(&run(&["topic", "create", "telemetry", "--partitions", "2", "--server", edge_at]));
    ok(&run(&["topic", "create", "alerts", "--server", edge_at]));
    produce(edge_at, "telemetry", "r", 500);
    produce(edge_at, "alerts", "a", 20);
    let create = |more: &[&str]| {
        let given = ["uplink", "create", "hq", "--topic", "alerts:high", "--topic", "telemetry:low=plant", "--to", &to];
        run(&[&given[..], &["--edge", "press-7", "--server", edge_at], more].concat())
    };
    assert!(failed(&create(&[])).contains("[BT0803]"));
    assert!(failed(&create(&["--bound", "1GiB", "--from", "middle"])).contains("[BT0601]"));
    let kafka = |to: &str| {
        let given = ["uplink", "create", "in", "--topic", "alerts", "--bound", "1GiB", "--to", to, "--server", edge_at];
        failed(&run(&given))
    };
    let said = kafka("kafka://me:hunter2@127.0.0.1:9092");
    assert!(said.contains("[BT0803]") && said.contains("password-file=PATH") && !said.contains("hunter2"), "{said}");
    let said = kafka("kafka://me@127.0.0.1:9092?ssl=yes");
    assert!(said.contains("[BT0803]") && said.contains("?tls=ca.pem|system"), "{said}");
    // The node shows nothing of its own to whom the caller chooses, unless its operator put it there for that.
    for secret in ["password-file=/etc/passwd", "password-file=../../node-1.toml", "password-env=PATH", ""] {
        let said = kafka(&format!("kafka://me@127.0.0.1:9092?cleartext=yes&{secret}"));
        assert!(said.contains("[BT0806]") && said.contains("secrets"), "{secret}: {said}");
    }
    ok(&create(&["--bound", "1GiB"]));
    assert!(failed(&create(&["--bound", "1GiB"])).contains("[BT0802]"));

    // The topics are not there: said with its code, and nothing is lost.
    until("the code of a missing topic", || {
        let lanes = lanes(&status(edge_at));
        (lanes.len() == 3 && lanes.iter().all(|lane| lane["error"]["code"] == "BT0301")).then_some(())
    });
    let said = stderr(&run(&["uplink", "status", "hq", "--server", edge_at]));
    assert!(said.contains("BT0301") && said.contains("--create-topics"), "{said}");
    ok(&run(&["topic", "create", "plant", "--partitions", "2", "--server", centre_at]));
    ok(&run(&["topic", "create", "alerts", "--server", centre_at]));
    ok(&run(&["uplink", "resume", "hq", "--server", edge_at]));
    drained(edge_at);
    assert_eq!(consumed(edge_at, "telemetry"), consumed(centre_at, "plant"));

    // Files that an address names are the node's, and missed where the uplink runs.
    let nowhere = "kafka://me@127.0.0.1:1?tls=/nowhere/ca.pem&password-file=kafka";
    let lost =
        ["uplink", "create", "lost", "--topic", "alerts", "--bound", "1GiB", "--to", nowhere, "--server", edge_at];
    ok(&run(&lost));
    let said = until("the code of a file that is not there", || {
        let said = stderr(&run(&["uplink", "status", "lost", "--server", edge_at]));
        said.contains("[BT0701]").then_some(said)
    });
    assert!(said.contains("/nowhere/ca.pem") && said.contains("hint: is the path right"), "{said}");
    ok(&run(&["uplink", "delete", "lost", "--server", edge_at]));

    // Both are killed, one after the other; `dev` leaves a killed node down, so it is started anew on its directory.
    produce(edge_at, "telemetry", "s", 500);
    signal(node_process(here.path(), "node-1").unwrap(), "KILL");
    drop(edge);
    let edge = Dev::start(here.path(), 1);
    let edge_at = &edge.http(0);
    drained(edge_at);
    signal(node_process(there.path(), "node-1").unwrap(), "KILL");
    drop(centre);
    produce(edge_at, "telemetry", "t", 500);
    until("the code of a target that is away", || {
        lanes(&status(edge_at)).iter().any(|lane| lane["error"]["code"] == "BT0705").then_some(())
    });
    let centre = Dev::start(there.path(), 1);
    let centre_at = &centre.http(0);
    drained(edge_at);
    let (sent, came) = (consumed(edge_at, "telemetry"), consumed(centre_at, "plant"));
    assert_eq!(sent.len(), 1500);
    assert_eq!(sent, came);
    assert_eq!(consumed(edge_at, "alerts"), consumed(centre_at, "alerts"));

    // Paused it keeps, and a new one of the same names goes on where it was.
    ok(&run(&["uplink", "pause", "hq", "--server", edge_at]));
    until("a paused uplink", || lanes(&status(edge_at)).iter().all(|lane| lane["state"] == "paused").then_some(()));
    produce(edge_at, "alerts", "b", 5);
    ok(&run(&["uplink", "delete", "hq", "--server", edge_at]));
    assert!(failed(&run(&["uplink", "status", "hq", "--server", edge_at])).contains("[BT0801]"));
    let again = ["uplink", "create", "hq", "--topic", "alerts", "--to", &to, "--edge", "press-7", "--server", edge_at];
    ok(&run(&again));
    drained(edge_at);
    assert_eq!(consumed(edge_at, "alerts"), consumed(centre_at, "alerts"));
    assert!(consumed(centre_at, "buttress.uplink.gaps").is_empty());

    // The topic is made again: another log, under the same position.
    ok(&run(&["topic", "delete", "alerts", "--server", edge_at]));
    ok(&run(&["topic", "create", "alerts", "--server", edge_at]));
    produce(edge_at, "alerts", "new", 3);
    until("a log that is not the one", || {
        lanes(&status(edge_at)).iter().any(|lane| lane["error"]["code"] == "BT0804").then_some(())
    });
    ok(&run(&["uplink", "adopt", "hq", "--from", "start", "--server", edge_at]));
    drained(edge_at);
    assert_eq!(consumed(centre_at, "alerts").len(), 28);
}
