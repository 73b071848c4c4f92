//! The HTTP side as transcripts: what is asked, and what is answered.

mod support;

use std::sync::atomic::Ordering::Relaxed;

use buttress_functions::FunctionsHttp;
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};
use support::{World, component, create, produce};

async fn ask(
    http: &FunctionsHttp,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Option<Response<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    http.route(request.body(body).unwrap()).await
}

/// Asks, and writes down what came.
async fn say(out: &mut String, http: &FunctionsHttp, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) {
    let shown = match std::str::from_utf8(&body) {
        Ok(text) if body.len() < 200 => text.trim_start_matches('\0').to_owned(),
        _ => format!("({} bytes)", body.len()),
    };
    *out += &format!("{method} {path}\n");
    for (key, value) in headers {
        *out += &format!("  {key}: {value}\n");
    }
    if !shown.is_empty() {
        *out += &format!("  {shown}\n");
    }
    let owned = http.owns(path.split('?').next().unwrap());
    let answer = ask(http, method, path, headers, body).await;
    assert_eq!(owned, answer.is_some(), "{method} {path}");
    let Some(response) = answer else {
        *out += "→ not this plane's\n\n";
        return;
    };
    *out += &format!("→ {}\n", response.status());
    for key in ["retry-after", "x-buttress-function", "connection"] {
        if let Some(value) = response.headers().get(key) {
            *out += &format!("  {key}: {}\n", value.to_str().unwrap());
        }
    }
    let text = match serde_json::from_slice::<Value>(response.body()) {
        Ok(value) => serde_json::to_string_pretty(&value).unwrap(),
        Err(_) => String::from_utf8_lossy(response.body()).into_owned(),
    };
    *out += &format!("  {}\n\n", text.replace('\n', "\n  "));
}

#[tokio::test(start_paused = true)]
async fn transcript() {
    let world = World::new();
    let logs = create(&world.local, "in", 2);
    let http = world.plane.http();
    let mut out = String::new();
    let out = &mut out;
    let none = Bytes::new();
    let json_type = [("content-type", "application/json")];
    let both = component(json!({"http": true}));
    let plain = component(json!({}));

    *out += "# nothing is there yet\n\n";
    say(out, &http, "GET", "/v1/functions", &[], none.clone()).await;
    say(out, &http, "GET", "/v1/functions/f", &[], none.clone()).await;
    say(out, &http, "GET", "/v1/models/f", &[], none.clone()).await;
    say(out, &http, "GET", "/fn/f/x", &[], none.clone()).await;
    say(out, &http, "POST", "/infer", &[], none.clone()).await;
    say(out, &http, "PATCH", "/v1/functions/f", &[], none.clone()).await;
    say(out, &http, "GET", "/v1/functions/f/what", &[], none.clone()).await;

    *out += "# bad deploys\n\n";
    say(out, &http, "PUT", "/v1/functions/f", &[], "wasm".into()).await;
    say(out, &http, "PUT", "/v1/functions/F", &json_type, r#"{"http":true}"#.into()).await;
    say(out, &http, "PUT", "/v1/functions/f", &json_type, r#"{"http":true}"#.into()).await;
    let unknown = format!(r#"{{"http":true,"component":"sha256:{}"}}"#, "0".repeat(64));
    say(out, &http, "PUT", "/v1/functions/f", &json_type, unknown.into()).await;
    let manifest = [("x-buttress-function", r#"{"http":true}"#)];
    say(out, &http, "PUT", "/v1/functions/f", &manifest, "not wasm".into()).await;
    say(out, &http, "PUT", "/v1/functions/f", &manifest, plain.clone()).await;
    say(out, &http, "PUT", "/v1/functions/f", &manifest, component(json!({"imports": ["state"], "http": true}))).await;
    say(out, &http, "PUT", "/v1/functions/f", &manifest, component(json!({"panics": true}))).await;
    let missing = [("x-buttress-function", r#"{"trigger":{"topic":"nowhere"}}"#)];
    say(out, &http, "PUT", "/v1/functions/f", &missing, plain.clone()).await;
    let trigger = [("x-buttress-function", r#"{"trigger":{"topic":"in"}}"#)];
    say(out, &http, "PUT", "/v1/functions/f", &trigger, component(json!({"batches": false}))).await;
    say(out, &http, "PUT", "/v1/models/wear", &[], "a cat".into()).await;
    say(out, &http, "PUT", "/v1/models/Wear", &[], "1".into()).await;
    say(out, &http, "PUT", "/v1/blobs", &[], none.clone()).await;
    assert!(world.plane.catalogue().borrow().functions.is_empty(), "a refused deploy changes nothing");

    *out += "# good ones\n\n";
    say(out, &http, "PUT", "/v1/models/wear", &[], "5".into()).await;
    say(out, &http, "PUT", "/v1/blobs", &[], both.clone()).await;
    let manifest = json!({
        "component": buttress_functions::blob::digest(&both),
        "trigger": {"topic": "in"},
        "http": true,
        "routes": ["/infer"],
        "grants": {"models": ["wear"], "topics": ["out"], "state": true},
    });
    say(out, &http, "PUT", "/v1/functions/f", &json_type, manifest.to_string().into()).await;
    say(out, &http, "PUT", "/v1/functions/f", &json_type, manifest.to_string().into()).await;
    let thief = [("x-buttress-function", r#"{"routes":["/infer"]}"#)];
    say(out, &http, "PUT", "/v1/functions/g", &thief, both.clone()).await;
    produce(&world.local, logs[1], &[("m1", "6"), ("m2", "boom"), ("m3", "1")]);
    world.caught_up("f", "in").await;

    *out += "# calls\n\n";
    let headers = [("x-test", "1"), ("connection", "close")];
    say(out, &http, "POST", "/infer?verbose", &headers, "body".into()).await;
    say(out, &http, "GET", "/fn/f", &[], none.clone()).await;
    say(out, &http, "PUT", "/fn/f/a/b?c=d", &[], none.clone()).await;
    say(out, &http, "POST", "/v1/functions/f/invoke?path=%2Fhello%3Fx=1", &[], "hi".into()).await;
    say(out, &http, "POST", "/v1/functions/f/invoke?method=get&path=hello", &[], none.clone()).await;
    say(out, &http, "POST", "/infer", &[], "boom".into()).await;
    say(out, &http, "POST", "/infers", &[], none.clone()).await;

    *out += "# what people see\n\n";
    // Time inside guests is real time, which a transcript cannot hold.
    let mut seen = String::new();
    say(&mut seen, &http, "GET", "/v1/functions/f", &[], none.clone()).await;
    say(&mut seen, &http, "GET", "/v1/functions/f/logs?limit=3", &[], none.clone()).await;
    say(&mut seen, &http, "GET", "/v1/functions/f/logs?limit=many", &[], none.clone()).await;
    say(&mut seen, &http, "GET", "/v1/models", &[], none.clone()).await;
    for line in seen.lines() {
        match line.split_once("\"guest_ms\": ") {
            Some((before, after)) => {
                *out += &format!("{before}\"guest_ms\": …{}\n", if after.ends_with(',') { "," } else { "" });
            }
            None => *out += &format!("{line}\n"),
        }
    }
    *out += "\n# and the end\n\n";
    say(out, &http, "DELETE", "/v1/functions/f", &[], none.clone()).await;
    say(out, &http, "DELETE", "/v1/functions/f", &[], none.clone()).await;
    expect_test::expect_file!["../testdata/http.txt"].assert_eq(out);
    world.stop().await;
}

/// A function that hangs holds its own callers back, and nobody else's.
#[tokio::test(start_paused = true)]
async fn a_busy_function_turns_callers_away() {
    let world = World::new();
    let http = world.plane.http();
    let manifest = json!({"http": true, "limits": {"http_concurrency": 2}});
    world.deploy("busy", manifest.clone(), component(json!({"http": true}))).await;
    world.deploy("idle", manifest, component(json!({"http": true, "tag": "idle"}))).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let http = http.clone();
        calls
            .spawn(async move { ask(&http, "POST", "/fn/busy/", &[], "hang".into()).await.unwrap().status().as_u16() });
    }
    tokio::task::yield_now().await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..70 {
        let http = http.clone();
        waiting.spawn(async move {
            let answer = ask(&http, "POST", "/fn/busy/", &[], "quick".into()).await.unwrap();
            let retry_after = answer.headers().contains_key("retry-after");
            (answer.status().as_u16(), retry_after)
        });
    }
    let mut answers = waiting.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers[..6], [(429, true); 6], "more than 64 do not wait");
    assert_eq!(answers[6..], [(503, true); 64], "those that waited gave up in time");
    let idle = ask(&http, "POST", "/fn/idle/", &[], "quick".into()).await.unwrap();
    assert_eq!(idle.status().as_u16(), 200);
    assert_eq!(world.counter("busy", |s| s.http_refused.load(Relaxed)), 70);
    // Clients that go away free their places.
    calls.shutdown().await;
    let after = ask(&http, "POST", "/fn/busy/", &[], "quick".into()).await.unwrap();
    assert_eq!(after.status().as_u16(), 200);
    world.stop().await;
}
