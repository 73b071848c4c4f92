//! Resources as a user meets them: files, a node or an etcd, and somebody else who writes at the same time.

use std::{fs, path::Path};

use serde_json::Value;

use super::support::*;

const ROUTE: &str = "kind: Route
name: orders
labels: {team: shop}
spec:
  match:
    - {host: shop.example, path: /orders/*}
  to:
    - {name: v1, weight: 95, endpoints: 127.0.0.1:3001}
    - {name: v2, weight: 5, endpoints: 127.0.0.1:3002, when: {headers: {x-canary: \"1\"}}}
  deadline: 2s
---
kind: Listener
name: web
spec: {address: '127.0.0.1:8080'}
";

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_str(&ok(output)).unwrap()
}

/// The whole life of a route: at a node with `--server`, or at an etcd with `--etcd`.
fn life(at: &[&str], files: &Path) {
    let run = |args: &[&str]| run(&[args, at].concat());
    let file = write(files, "routes.yaml", ROUTE);

    let planned = ok(&run(&["apply", "-f", &file, "--dry-run"]));
    assert_eq!(planned, "route/orders created, generation 1 (dry run)\nlistener/web created, generation 1 (dry run)\n");
    assert_eq!(json(&run(&["get", "routes", "-o", "json"]))["resources"].as_array().unwrap().len(), 0);
    let absent = run(&["diff", "-f", &file]);
    assert_eq!(absent.status.code(), Some(1), "{}", stderr(&absent));
    assert!(stdout(&absent).contains("--- /dev/null\n+++ "), "{}", stdout(&absent));

    assert_eq!(
        ok(&run(&["apply", "-f", &file])),
        "route/orders created, generation 1\nlistener/web created, generation 1\n"
    );
    assert_eq!(
        ok(&run(&["apply", "-f", &file])),
        "route/orders unchanged, generation 1\nlistener/web unchanged, generation 1\n"
    );
    assert_eq!(ok(&run(&["diff", "-f", &file])), "");
    // What is got can be applied.
    let got = ok(&run(&["get", "route", "orders", "-o", "yaml"]));
    let again = write(files, "again.yaml", &got);
    assert_eq!(ok(&run(&["apply", "-f", &again])), "route/orders unchanged, generation 1\n");

    let changed = ROUTE.replace("deadline: 2s", "deadline: 3s").replace("team: shop", "team: web");
    let changed = write(files, "changed.yaml", &changed);
    let differs = run(&["diff", "-f", &changed]);
    let told = stdout(&differs);
    assert_eq!(differs.status.code(), Some(1));
    assert!(told.contains("-  deadline: 2s\n+  deadline: 3s\n"), "{told}");
    assert!(!told.contains("Listener") && !told.contains("\x1b["), "{told}");
    let applied = json(&run(&["apply", "-f", &changed, "--output", "json"]));
    assert_eq!(applied["results"][0]["generation"], 2);
    assert_eq!(applied["results"][1]["outcome"], "unchanged");
    // A label is no change of what is done.
    let labelled =
        write(files, "labelled.yaml", &fs::read_to_string(&changed).unwrap().replace("team: web", "team: x"));
    assert_eq!(
        ok(&run(&["apply", "-f", &labelled])),
        "route/orders changed, generation 2\nlistener/web unchanged, generation 1\n"
    );

    let table = ok(&run(&["get", "route"]));
    assert!(table.contains("orders  2           -      shop.example/orders/*  v1:95 +1"), "{table}");
    let described = ok(&run(&["describe", "route", "orders"]));
    assert!(described.contains("gateways     none observes it") && described.contains("deadline: 3s"), "{described}");

    // Another route with exactly that match would be a coin's toss.
    let twin = write(
        files,
        "twin.yaml",
        "kind: Route\nname: twin\nspec: {match: [{host: SHOP.example, path: /orders/*}], to: [{endpoints: a:1}]}\n",
    );
    let refused = failed(&run(&["apply", "-f", &twin]));
    assert!(
        refused.contains("route \"orders\" (match 1) and route \"twin\" (match 1)") && refused.contains("[BT1007]"),
        "{refused}"
    );

    // What stands in no file goes, and only of the kind that is named.
    let other = write(files, "other.yaml", "kind: Route\nname: other\nspec: {to: [{endpoints: a:1}]}\n");
    let pruned = ok(&run(&["apply", "-f", &other, "--prune-kind", "route"]));
    assert_eq!(pruned, "route/other created, generation 1\nroute/orders deleted, generation 2\n");
    assert!(ok(&run(&["get", "listener"])).contains("web"));
    assert_eq!(ok(&run(&["delete", "-f", &other])), "route/other deleted, generation 1\n");
    assert!(failed(&run(&["delete", "route", "other"])).contains("there is no route \"other\" [BT1009]"));
    assert!(failed(&run(&["get", "route", "other"])).contains("[BT1009]"));
    // A new one of that name begins anew.
    assert!(ok(&run(&["apply", "-f", &file])).starts_with("route/orders created, generation 1\n"));
    ok(&run(&["delete", "-f", &file]));
}

#[test]
fn routes_live_at_a_node_and_at_an_etcd_alike() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    life(&["--server", server], files.path());
    // The node's own etcd API is an etcd like others, and these are the same keys.
    let etcd = format!("http://{}", dev.nodes[0]["etcd"].as_str().unwrap());
    life(&["--etcd", &etcd], files.path());
    let file = write(files.path(), "routes.yaml", ROUTE);
    ok(&run(&["apply", "-f", &file, "--etcd", &etcd]));
    assert!(ok(&run(&["get", "routes", "--server", server])).contains("orders"));

    // What a gateway says of a route is shown with it.
    let status = r#"{"observed_generation":1,"gateway":"gw-1","ready":true,"message":""}"#;
    ok(&run(&["kv", "put", "/buttress/status/routes/orders/gw-1", status, "--server", server]));
    let status = r#"{"observed_generation":1,"gateway":"gw-2","ready":false,"message":"no endpoint answers"}"#;
    ok(&run(&["kv", "put", "/buttress/status/routes/orders/gw-2", status, "--server", server]));
    assert!(ok(&run(&["get", "routes", "--server", server])).contains("orders  1           1/2"));
    let described = ok(&run(&["describe", "route", "orders", "--server", server]));
    assert!(described.contains("1 of 2 serve this generation"), "{described}");
    assert!(described.contains("gw-2 not ready, generation 1: no endpoint answers"), "{described}");
    let told = json(&run(&["get", "route", "orders", "-o", "json", "--etcd", &etcd]));
    assert_eq!(told["status"][1]["gateway"], "gw-2");
}

#[test]
fn routes_live_at_a_real_etcd_too() {
    let Ok(endpoints) = std::env::var("ETCD_ENDPOINTS") else {
        eprintln!("NOT RUN: no routes at a real etcd, because ETCD_ENDPOINTS is not set");
        return;
    };
    let files = tempfile::tempdir().unwrap();
    let etcd: Vec<String> = endpoints.split(',').map(|address| format!("http://{address}")).collect();
    let namespace = format!("it-{:08x}.", std::process::id());
    life(&["--etcd", &etcd.join(","), "--namespace", &namespace], files.path());
}

#[test]
fn one_mistake_in_one_file_keeps_everything_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    write(files.path(), "a.yaml", "kind: Topic\nname: telemetry\nspec: {partitions: 2}\n");
    let wrong =
        write(files.path(), "b.yml", "kind: Route\nname: a\nspec:\n  to: [{endpoints: 127.0.0.1:1}]\n  dedline: 2s\n");
    let path = files.path().to_str().unwrap();
    let refused = failed(&run(&["apply", "-f", path, "--server", server]));
    assert!(
        refused.contains(&format!("error[BT1003]: there is no key \"dedline\" in `spec`\n --> {wrong}:5:3\n")),
        "{refused}"
    );
    assert!(
        refused.contains("= help: did you mean \"deadline\"?") && refused.contains("nothing was changed [BT1003]"),
        "{refused}"
    );
    assert!(!ok(&run(&["get", "topics", "--server", server])).contains("telemetry"));

    // A file that a resource names and that is not there is found before anything is sent as well.
    fs::write(&wrong, "kind: Model\nname: m\nspec: {model: nowhere.json}\n").unwrap();
    let refused = failed(&run(&["apply", "-f", path, "--server", server]));
    assert!(refused.contains(&format!("{wrong}:3:15")) && refused.contains("nowhere.json"), "{refused}");
    assert!(!ok(&run(&["get", "topics", "--server", server])).contains("telemetry"));

    // The node holds every document against the same rules.
    let address = server.strip_prefix("http://").unwrap();
    let body = r#"{"resources":[{"kind":"Route","name":"a","spec":{"to":[{"endpoints":"x"}],"retry":"on"}}]}"#;
    let answer = post(address, "/v1/resources", body);
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("\"code\":\"BT1004\""), "{answer}");
    let answer = post(address, "/v1/resources", "{\"resources\":7}");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("BT0601"), "{answer}");

    let standard = run_with_input(&["apply", "-f", "-", "--server", server], "kind: Rout\nname: a\nspec: {}\n");
    assert!(failed(&standard).contains("<stdin>:1:7"), "{}", stderr(&standard));
}

fn post(address: &str, path: &str, body: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn functions_models_and_topics_go_to_their_planes() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    fs::copy(format!("{root}guests/built/anomaly.wasm"), files.path().join("anomaly.wasm")).unwrap();
    fs::copy(format!("{root}examples/fleet-model/anomaly-v1.json"), files.path().join("anomaly.json")).unwrap();
    let text = "kind: Function
name: anomaly
spec:
  component: anomaly.wasm
  trigger: {topic: telemetry, max_wait: 20ms}
  grants: {models: [anomaly], topics: [alerts], state: true}
  limits: {memory: 128MiB}
---
kind: Model
name: anomaly
spec: {model: anomaly.json}
---
kind: Topic
name: telemetry
spec: {partitions: 4, retention_time: 7d, sequence: [machine, seq]}
";
    let file = write(files.path(), "fleet.yaml", text);
    let apply = |file: &str| run(&["apply", "-f", file, "--server", server]);
    assert_eq!(
        ok(&apply(&file)),
        "topic/telemetry created\nmodel/anomaly created, generation 1\nfunction/anomaly created, generation 1\n"
    );
    assert_eq!(
        ok(&apply(&file)),
        "topic/telemetry unchanged\nmodel/anomaly unchanged, generation 1\nfunction/anomaly unchanged, generation 1\n"
    );
    assert_eq!(ok(&run(&["diff", "-f", &file, "--server", server])), "");

    fs::copy(format!("{root}examples/fleet-model/anomaly-v2.json"), files.path().join("anomaly.json")).unwrap();
    write(files.path(), "fleet.yaml", &text.replace("20ms", "30ms"));
    let told = run(&["diff", "-f", &file, "--server", server]);
    assert_eq!(told.status.code(), Some(1));
    assert!(
        stdout(&told).contains("max_wait: 20ms") && stdout(&told).contains("-spec: {model: sha256:"),
        "{}",
        stdout(&told)
    );
    assert_eq!(
        ok(&apply(&file)),
        "topic/telemetry unchanged\nmodel/anomaly changed, generation 2\nfunction/anomaly changed, generation 2\n"
    );
    let described = ok(&run(&["describe", "function", "anomaly", "--server", server]));
    assert!(described.contains("generation   2") && described.contains("memory: 128MiB"), "{described}");

    write(files.path(), "fleet.yaml", &text.replace("partitions: 4", "partitions: 8"));
    let refused = failed(&apply(&file));
    assert!(refused.contains("exists with other settings") && refused.contains("[BT0303]"), "{refused}");
    let at_etcd = format!("http://{}", dev.nodes[0]["etcd"].as_str().unwrap());
    assert!(failed(&run(&["get", "topics", "--etcd", &at_etcd])).contains("name a node or a host with --server"));
    write(files.path(), "fleet.yaml", text);
    let gone = ok(&run(&["delete", "-f", &file, "--server", server]));
    assert_eq!(gone, "function/anomaly deleted\ntopic/telemetry deleted\n");
    let refused = failed(&run(&["delete", "model", "anomaly", "--server", server]));
    assert!(refused.contains("cannot be deleted") && refused.contains("[BT0604]"), "{refused}");
}

/// An editor that stays open while a colleague applies.
#[test]
fn who_wrote_in_between_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    let file = write(files.path(), "routes.yaml", ROUTE);
    ok(&run(&["apply", "-f", &file, "--server", server]));
    let theirs = write(files.path(), "theirs.yaml", &ROUTE.replace("2s", "5s"));
    let binary = env!("CARGO_BIN_EXE_buttress");
    let edit = |script: &str| {
        let editor = write(files.path(), "editor.sh", script);
        let mut command = buttress();
        command.args(["edit", "route", "orders", "--server", server]).env("EDITOR", format!("sh {editor}"));
        command.env("TMPDIR", files.path()).env_remove("VISUAL");
        command.output().unwrap()
    };
    let race =
        format!("{binary} apply -f {theirs} --server {server} >&2 && sed -i 's/deadline: 2s/deadline: 9s/' \"$1\"\n");
    let refused = failed(&edit(&race));
    assert!(refused.contains("Route \"orders\" was changed by somebody else since it was read [BT1008]"), "{refused}");
    assert!(refused.contains("what you wrote is kept in"), "{refused}");
    let now = json(&run(&["get", "route", "orders", "-o", "json", "--server", server]));
    assert_eq!((&now["spec"]["deadline"], &now["generation"]), (&Value::from("5s"), &Value::from(2)));
    // Nobody else this time.
    assert_eq!(ok(&edit("sed -i 's/deadline: 5s/deadline: 9s/' \"$1\"\n")), "route/orders changed, generation 3\n");
    assert_eq!(ok(&edit("true\n")), "");
    assert!(failed(&edit("sed -i 's/deadline/dedline/' \"$1\"\n")).contains("did you mean \"deadline\"?"));

    // The same over HTTP: a revision that was read earlier is refused, and nothing of the body is written.
    let address = server.strip_prefix("http://").unwrap();
    let stale = now["revision"].as_u64().unwrap();
    let body = format!(
        r#"{{"resources":[{{"kind":"Route","name":"new","revision":0,"spec":{{"to":[{{"endpoints":"a:1"}}]}}}}],"deletes":[{{"kind":"Route","name":"orders","revision":{stale}}}]}}"#
    );
    let answer = post(address, "/v1/resources", &body);
    assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("BT1008"), "{answer}");
    assert!(failed(&run(&["get", "route", "new", "--server", server])).contains("BT1009"));
}

/// The leader dies while somebody applies one version after the other. Each apply is repeated until it says yes, and in
/// the end every version counts once.
#[test]
fn applies_outlive_a_killed_leader() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let server = dev.http((leader + 1) % 3);
    for version in 1..=6u32 {
        if version == 3 {
            signal(node_process(dir.path(), &format!("node-{}", leader + 1)).unwrap(), "KILL");
        }
        let text = ROUTE.replace("deadline: 2s", &format!("deadline: {version}s"));
        let file = write(files.path(), "routes.yaml", &text);
        let generation = until("an apply that says yes", || {
            let applied = run(&["apply", "-f", &file, "--output", "json", "--server", &server]);
            let told: Value = serde_json::from_slice(&applied.stdout).ok()?;
            applied.status.success().then(|| told["results"][0]["generation"].as_u64().unwrap())
        });
        assert_eq!(generation, u64::from(version));
    }
    let there = dev.http((leader + 2) % 3);
    let told = json(&run(&["get", "route", "orders", "-o", "json", "--server", &there]));
    assert_eq!((&told["generation"], &told["spec"]["deadline"]), (&Value::from(6), &Value::from("6s")));
}

#[test]
fn a_request_is_tried_on_routes_in_files_and_on_those_that_are_applied() {
    let files = tempfile::tempdir().unwrap();
    let text = format!(
        "{ROUTE}---\nkind: Route\nname: posts\nspec:\n  match: [{{host: '*.example', method: POST}}]\n  to: [{{endpoints: 127.0.0.1:3009}}]\n"
    );
    let file = write(files.path(), "routes.yaml", &text);
    let told = ok(&run(&["route", "test", "-f", &file, "POST", "http://shop.example:8080/orders/7?a=1"]));
    assert!(told.starts_with(&format!("route \"orders\" takes it, by match 1 ({file}:6)\n")), "{told}");
    assert!(
        told.contains("   95 %  to v1, line 8: 127.0.0.1:3001\n") && told.contains("    5 %  to v2, line 9"),
        "{told}"
    );
    assert!(told.contains("deadline         2s  (line 10)") && told.contains("retry            3 attempts"), "{told}");
    assert!(told.contains("it holds too, and is less exact or comes later"), "{told}");
    let canary = ok(&run(&["route", "test", "-f", &file, "GET", "shop.example/orders", "-H", "X-Canary: 1"]));
    assert!(canary.contains("  100 %  to v2, line 9, its `when` holds: 127.0.0.1:3002\n"), "{canary}");
    assert!(canary.contains("the method is not POST"), "{canary}");
    let none = run(&["route", "test", "-f", &file, "GET", "/other", "--output", "json"]);
    assert_eq!(none.status.code(), Some(1));
    let none: Value = serde_json::from_slice(&none.stdout).unwrap();
    assert_eq!(
        (&none["found"], &none["others"][0]["why"]),
        (&Value::Null, &Value::from("the host is not shop.example"))
    );

    let lint = run(&["route", "lint", "-f", &file]);
    assert_eq!((lint.status.code(), stdout(&lint).lines().count()), (Some(0), 3), "{}", stderr(&lint));
    let wrong = write(files.path(), "wrong.yaml", &text.replace("deadline: 2s", "deadline: 2s\n  attempt_timeout: 1s"));
    let lint = run(&["route", "lint", "-f", &wrong]);
    assert_eq!(lint.status.code(), Some(1));
    assert!(stderr(&lint).contains("warning[BT-LINT-DEADLINE]: 3 attempts of 1s"), "{}", stderr(&lint));

    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = &dev.http(0);
    ok(&run(&["apply", "-f", &file, "--server", server]));
    let live = ok(&run(&["route", "test", "POST", "shop.example/orders", "--server", server]));
    assert!(live.starts_with("route \"orders\" takes it, by match 1 (route/orders:"), "{live}");
}

#[test]
fn a_request_is_tried_at_the_listener_at_which_it_comes_in() {
    let files = tempfile::tempdir().unwrap();
    let route = |name: &str, listeners: &str, port: u16| {
        format!(
            "kind: Route\nname: {name}\nspec:\n{listeners}  match: [{{path: /a}}]\n  to: [{{endpoints: 127.0.0.1:{port}}}]\n---\n"
        )
    };
    let text = route("inner", "  listeners: [inner, admin]\n", 3001) + &route("everybody", "", 3002);
    let file = write(files.path(), "routes.yaml", &text);
    let at = |listener: &[&str]| run(&[&["route", "test", "-f", &file, "GET", "/a"], listener].concat());
    for name in ["inner", "admin"] {
        let told = ok(&at(&["--listener", name]));
        assert!(told.starts_with("route \"inner\" takes it"), "{told}");
    }
    let told = ok(&at(&["--listener", "web"]));
    assert!(told.starts_with("route \"everybody\" takes it"), "{told}");
    assert!(told.contains("it is for the listener inner or admin"), "{told}");
    // Where nobody says at which, a route for some of them could take it.
    assert!(ok(&at(&[])).starts_with("route \"inner\" takes it"));

    let only = write(files.path(), "only.yaml", &route("inner", "  listeners: inner\n", 3001));
    let none = run(&["route", "test", "-f", &only, "GET", "/a", "--listener", "web", "--output", "json"]);
    assert_eq!(none.status.code(), Some(1));
    let none: Value = serde_json::from_slice(&none.stdout).unwrap();
    let why = Value::from("it is for the listener inner");
    assert_eq!((&none["found"], &none["others"][0]["why"]), (&Value::Null, &why), "{none}");
}

#[test]
fn schemas_are_printed_for_editors() {
    let schema: Value = serde_json::from_str(&ok(&run(&["schema", "route"]))).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["properties"]["kind"]["const"], "Route");
    assert!(ok(&run(&["schema"])).contains("Listener"));
    assert!(failed(&run(&["schema", "rout"])).contains("did you mean Route?"));
}
