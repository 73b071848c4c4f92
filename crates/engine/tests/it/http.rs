//! HTTP calls.

use std::sync::Arc;

use buttress_core::{
    Code, Engine, Guest,
    guest::{GuestLimits, HttpCall, NamedModel},
};
use bytes::Bytes;
use expect_test::{Expect, expect};
use futures::future::join_all;

use crate::support::{built, engine, grants, guest, model};

fn call(method: &str, uri: &str, body: impl Into<Bytes>, models: Vec<NamedModel>) -> HttpCall {
    HttpCall {
        method: method.into(),
        uri: uri.into(),
        headers: vec![("content-type".into(), "application/json".into())],
        body: body.into(),
        models,
        now_ms: 1_700_000_000_000,
    }
}

/// A runtime as a node has it: one thread, no drivers of its own that a guest could lean on.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn check(guest: &Arc<dyn Guest>, request: HttpCall, want: Expect) {
    let shown = match block_on(guest.call_http(request)) {
        Err(error) => format!("! {error}\n"),
        Ok(answer) => {
            let mut shown = format!("{}\n", answer.status);
            for (name, value) in &answer.headers {
                shown += &format!("{name}: {}\n", String::from_utf8_lossy(value));
            }
            shown += &format!("\n{}\n", String::from_utf8_lossy(&answer.body));
            for log in &answer.logs {
                shown += &format!("# {}: {}\n", log.level, log.message);
            }
            shown
        }
    };
    want.assert_eq(&shown);
}

#[test]
fn the_flagship_answers() {
    let guest = guest("anomaly");
    let infer = r#"{"samples":[[60,2.5],[61,4.5]],"ts":1700000000000}"#;
    check(
        &guest,
        call("POST", "/infer?x=1", infer, vec![model()]),
        expect![[r#"
        200
        content-type: application/json
        content-length: 47

        {"anomaly":true,"score":0.9,"ts":1700000000000}
    "#]],
    );
    check(
        &guest,
        call("POST", "/infer", infer, vec![]),
        expect![[r#"
            200
            content-type: application/json
            content-length: 49

            {"anomaly":false,"score":0.63,"ts":1700000000000}
            # warn: model `anomaly` is granted, but nothing of this name was pushed yet; local rules decide
        "#]],
    );
    check(
        &guest,
        call("POST", "/f/detect", r#"{"temperature":82,"vibration":1,"timestamp":"now"}"#, vec![]),
        expect![[r#"
        200
        content-type: application/json
        content-length: 50

        {"anomaly":true,"timestamp":"now","source":"edge"}
    "#]],
    );
    check(
        &guest,
        call("POST", "/infer", "{", vec![]),
        expect![[r#"
        400
        content-type: application/json
        content-length: 121

        {"code":"BT0601","message":"a string was expected","hint":"send {\"samples\":[[temperature, vibration],…],\"ts\":…}"}
    "#]],
    );
    check(
        &guest,
        call("GET", "/infer", "", vec![]),
        expect![[r#"
        405
        content-type: application/json
        content-length: 79
        allow: POST

        {"code":"BT0603","message":"`GET` is not served at `/infer`","hint":"use POST"}
    "#]],
    );
    check(
        &guest,
        call("POST", "/infer", vec![b' '; 2 * 1024 * 1024], vec![]),
        expect![[r#"
        413
        content-type: application/json
        content-length: 99

        {"code":"BT0105","message":"the body is larger than 1 MiB","hint":"send fewer samples per request"}
    "#]],
    );
    check(
        &guest,
        call("PO ST", "/infer", "", vec![]),
        expect![[r#"
        ! the request cannot be handed to a function: invalid HTTP method [BT0601]
    "#]],
    );
}

#[test]
fn many_calls_at_once_are_all_answered() {
    let guest = guest("anomaly");
    let answers = block_on(join_all((0..200).map(|n| {
        let body = format!(r#"{{"samples":[[60,{}]],"ts":{n}}}"#, if n % 2 == 0 { 1 } else { 5 });
        guest.call_http(call("POST", "/infer", body, vec![model()]))
    })));
    for (n, answer) in answers.into_iter().enumerate() {
        let answer = answer.expect("an answer");
        let want =
            format!(r#"{{"anomaly":{},"score":{},"ts":{n}}}"#, n % 2 == 1, if n % 2 == 0 { "0.1" } else { "0.9" });
        assert_eq!(String::from_utf8_lossy(&answer.body), want);
    }
}

#[test]
fn a_component_without_the_trigger_says_so() {
    check(
        &guest("faulty"),
        call("GET", "/", "", vec![]),
        expect![[r#"
        ! the component does not export `wasi:http/incoming-handler` [BT0404]

        hint: give it a topic as its trigger
    "#]],
    );
}

#[test]
fn memory_is_limited_here_too() {
    let limits = GuestLimits { memory_bytes_max: 64 * 1024, ..GuestLimits::default() };
    let guest = engine().compile(&built("anomaly"), &grants(), limits).expect("a guest");
    let error = block_on(guest.call_http(call("POST", "/detect", "{}", vec![]))).expect_err("no room");
    assert_eq!(error.code, Code::MEMORY_LIMIT, "{error}");
}

#[test]
fn a_full_queue_is_told_to_the_caller() {
    let engine = buttress_engine::WasmEngine::new(buttress_engine::Options {
        http_threads_max: 1,
        http_queue_max: 2,
        cache_dir: Some(std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("components")),
        ..Default::default()
    })
    .expect("an engine");
    let guest = engine.compile(&built("anomaly"), &grants(), crate::support::limits()).expect("a guest");
    // 200 bodies of a megabyte take one thread longer than it takes to queue them.
    let body = Bytes::from(format!(r#"{{"samples":[{}[1,1]]}}"#, "[1,1],".repeat(16_000)));
    let calls: Vec<_> = (0..200).map(|_| guest.call_http(call("POST", "/infer", body.clone(), vec![]))).collect();
    let answers = block_on(join_all(calls));
    let refused = answers
        .iter()
        .filter(|answer| answer.as_ref().is_err_and(|error| error.code == Code::OVERLOADED && error.retryable))
        .count();
    let answered = answers.iter().filter(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)).count();
    assert_eq!(refused + answered, 200);
    assert!(answered >= 2 && refused > 0, "{answered} answered, {refused} refused");
    assert_eq!(engine.counters().http_calls_refused.load(std::sync::atomic::Ordering::Relaxed), refused as u64);
    // The engine may go while an answer is not even asked for.
    drop(guest.call_http(call("POST", "/infer", "{}", vec![])));
    drop(engine);
}
