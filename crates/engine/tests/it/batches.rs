//! Batches: outcomes, state, models, and every way to fail.

use buttress_core::{
    Code, Engine, Error,
    guest::{BatchOutcome, Grants, GuestLimits},
};
use expect_test::{Expect, expect};

use crate::support::{State, built, engine, grants, guest, limits, model, run, shown};

/// Runs batches on one instance of `misbehave`, committing state in between.
fn check(batches: &[&[&str]], want: Expect) {
    let guest = guest("misbehave");
    let mut instance = guest.instance().expect("an instance");
    let mut state = State::default();
    let models = [model()];
    let mut transcript = String::new();
    for batch in batches {
        let outcome = run(&mut *instance, batch, &models, &mut state);
        transcript += &shown(&outcome);
        if outcome.is_err() {
            break;
        }
    }
    want.assert_eq(&transcript);
}

/// Runs one batch under limits of its own.
fn fails(batch: &[&str], grants: Grants, limits: GuestLimits) -> Error {
    let guest = engine().compile(&built("misbehave"), &grants, limits).expect("a guest");
    let mut instance = guest.instance().expect("an instance");
    run(&mut *instance, batch, &[], &mut State::default())
        .map(|outcome: BatchOutcome| shown(&Ok(outcome)))
        .expect_err("it fails")
}

#[test]
fn records_go_in_and_outputs_come_out() {
    check(
        &[&["echo a", "echo b"], &["none"], &["echo c"]],
        expect![[r#"
            > out k=a call=1 ts=1700000000000 p=3 o=10
            > out k=b call=1 ts=1700000000000 p=3 o=11
            > out k=c call=3 ts=1700000000000 p=3 o=10
        "#]],
    );
}

#[test]
fn state_is_read_back_within_the_batch_and_after_the_commit() {
    check(
        &[
            &["get a", "set a 1", "get a", "set a 2", "get a", "delete b"],
            &["get a", "delete a", "get a"],
            &["get a", "setbig a"],
        ],
        expect![[r#"
            > out k=Ok(None)
            > out k=Ok(())
            > out k=Ok(Some("1"))
            > out k=Ok(())
            > out k=Ok(Some("2"))
            > out k=Ok(())
            * a 1
            * a 2
            * b deleted
            > out k=Ok(Some("2"))
            > out k=Ok(())
            > out k=Ok(None)
            * a deleted
            > out k=Ok(None)
            > out k=Err("a value of 2097152 bytes is larger than 1572864")
        "#]],
    );
}

#[test]
fn models_are_asked_by_name() {
    check(
        &[&["predict anomaly 60,4.5,NaN,NaN,NaN,60,2,NaN,NaN,NaN", "predict anomaly 60,4.5", "predict other 1"]],
        expect![[r#"
            > out k=Ok([0.9, 0.1])
            > out k=Err("2 numbers are no rows of 5 features")
            > out k=Err("model `other` is not granted to this function")
            ? anomaly
        "#]],
    );
}

#[test]
fn a_granted_model_that_is_not_there_is_an_error_to_the_guest() {
    let guest = guest("misbehave");
    let mut instance = guest.instance().expect("an instance");
    let outcome = run(&mut *instance, &["predict anomaly 1"], &[], &mut State::default());
    expect![[r#"
        > out k=Err("model `anomaly` is granted, but nothing of this name was pushed yet")
    "#]]
    .assert_eq(&shown(&outcome));
}

#[test]
fn output_lines_are_kept() {
    check(
        &[&["print hello", "eprint oops", "log note"], &["none"]],
        expect![[r#"
            # stdout: hello
            # stderr: oops
            # info: note
        "#]],
    );
}

#[test]
fn a_flood_of_lines_is_bounded() {
    let guest = guest("misbehave");
    let mut instance = guest.instance().expect("an instance");
    let outcome = run(&mut *instance, &["flood"], &[], &mut State::default()).expect("a flood is no failure");
    let bytes: usize = outcome.logs.iter().map(|log| log.message.len()).sum();
    assert!(bytes <= GuestLimits::default().log_bytes_max + 100, "{bytes} bytes were kept");
    expect!["198976 more lines were dropped: the limit of this call was reached"]
        .assert_eq(&outcome.logs.last().expect("the line on the rest").message);
}

#[test]
fn the_world_outside_is_empty() {
    check(
        &[&["env", "clock"]],
        expect![[r#"
            > out k=0 variables, 0 arguments, file: Some(NotFound)
            > out k=1700000000500
        "#]],
    );
}

#[test]
fn a_panic_is_a_trap_with_its_words() {
    check(
        &[&["set a 1", "panic ouch"]],
        expect![[r#"
            ! the function trapped: wasm `unreachable` instruction executed; it wrote: thread '<unnamed>' (1) panicked at misbehave/src/lib.rs:40:28: as told: ouch; in handle-batch [BT0405]
        "#]],
    );
}

#[test]
fn a_trap_is_contained() {
    let error = fails(&["trap"], grants(), limits());
    assert_eq!(error.code, Code::TRAPPED);
    // The engine goes on.
    check(
        &[&["echo a"]],
        expect![[r#"
        > out k=a call=1 ts=1700000000000 p=3 o=10
    "#]],
    );
}

#[test]
fn recursion_without_end_is_a_trap() {
    let error = fails(&["recurse"], grants(), limits());
    assert_eq!(error.code, Code::TRAPPED);
    // Whichever of its two stacks ends first: the machine's, or the one in its memory.
    assert!(error.message.contains("in misbehave::recurse < misbehave::recurse"), "{error}");
}

#[test]
fn a_loop_without_end_meets_its_deadline() {
    let limits = GuestLimits { deadline_ms: 50, ..GuestLimits::default() };
    expect![[r#"
        the function ran longer than its deadline of 50 ms [BT0406]

        hint: raise the function's deadline, or give it smaller batches"#]]
    .assert_eq(&fails(&["loop"], grants(), limits).to_string());
}

#[test]
fn a_sleep_beyond_the_deadline_is_ended() {
    let limits = GuestLimits { deadline_ms: 50, ..GuestLimits::default() };
    assert_eq!(fails(&["sleep 600000"], grants(), limits).code, Code::DEADLINE);
}

#[test]
fn a_short_sleep_is_a_sleep() {
    check(
        &[&["sleep 5", "echo a"]],
        expect![[r#"
        > out k=a call=1 ts=1700000000000 p=3 o=11
    "#]],
    );
}

/// The plane may sit on a runtime with one thread, whose timers nobody drives while a guest runs.
#[test]
fn batches_run_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        check(
            &[&["sleep 5", "print x"]],
            expect![[r#"
        # stdout: x
    "#]],
        )
    });
}

#[test]
fn memory_without_end_meets_its_limit() {
    let limits = GuestLimits { memory_bytes_max: 8 * 1024 * 1024, ..limits() };
    expect![[r#"
        the function asked for more memory than its limit of 8 MiB [BT0407]

        hint: raise the function's memory limit, or give it smaller batches"#]]
    .assert_eq(&fails(&["alloc"], grants(), limits).to_string());
}

#[test]
fn an_instance_larger_than_its_limit_does_not_start() {
    let limits = GuestLimits { memory_bytes_max: 64 * 1024, ..limits() };
    let guest = engine().compile(&built("misbehave"), &grants(), limits).expect("a guest");
    let error = guest.instance().err().expect("no instance");
    assert_eq!(error.code, Code::MEMORY_LIMIT, "{error}");
}

#[test]
fn what_the_host_copies_out_is_bounded() {
    let error = fails(&["amplify"], grants(), limits());
    expect!["the function trapped: too much data is being copied between the host and the guest: fuel allocated for hostcalls has been exhausted [BT0405]"].assert_eq(&error.to_string());
}

#[test]
fn an_answer_that_is_an_error_fails_the_batch() {
    expect!["the function answered: no-luck [BT0408]"]
        .assert_eq(&fails(&["echo a", "fail no-luck"], grants(), limits()).to_string());
}

#[test]
fn a_topic_that_is_not_granted_is_refused() {
    expect![[r#"
        the function gave a record for topic `other`, which it may not produce to [BT0408]

        hint: grant the topic `other` at deploy"#]]
    .assert_eq(&fails(&["topic other"], grants(), limits()).to_string());
}

#[test]
fn state_that_cannot_be_read_fails_the_batch_whatever_the_guest_makes_of_it() {
    let guest = guest("misbehave");
    let mut instance = guest.instance().expect("an instance");
    let mut state = State { broken: true, ..State::default() };
    let error = run(&mut *instance, &["get a"], &[], &mut state).expect_err("the store is closed");
    assert!(error.retryable);
    expect!["the function's state cannot be read: the store is closed [BT0408]"].assert_eq(&error.to_string());
}

#[test]
fn the_faulty_function_traps_as_it_promises() {
    let guest = guest("faulty");
    let mut instance = guest.instance().expect("an instance");
    let mut state = State::default();
    let fifty = ["fine"; 50];
    assert_eq!(run(&mut *instance, &fifty, &[], &mut state).expect("the first fifty").outputs.len(), 50);
    let error = run(&mut *instance, &fifty, &[], &mut state).expect_err("the hundredth traps");
    assert!(error.message.contains("this function traps on record 100 by design"), "{error}");
    let mut fresh = guest.instance().expect("a fresh instance");
    assert!(run(&mut *fresh, &["fine"], &[], &mut state).is_ok());
    let error = run(&mut *fresh, &["some poison here"], &[], &mut state).expect_err("poison traps");
    assert!(error.message.contains("poison at offset 10"), "{error}");
    assert_eq!(error.code, Code::TRAPPED);
}

#[test]
fn the_flagship_finds_anomalies() {
    let guest = guest("anomaly");
    assert!(guest.handles_batches() && guest.handles_http());
    let mut instance = guest.instance().expect("an instance");
    let mut state = State::default();
    let readings = [
        r#"{"machine":"m-1","seq":1,"ts":1700000000000,"temperature":61.5,"vibration":2.5,"speed":1500,"torque":40,"wear":10}"#,
        r#"{"machine":"m-2","seq":9,"ts":1700000000000,"temperature":61.5,"vibration":4.5,"speed":1500,"torque":40,"wear":200}"#,
        "not JSON",
    ];
    let with = run(&mut *instance, &readings, &[model()], &mut state);
    let without =
        run(&mut *instance, &[r#"{"machine":"m-1","seq":2,"temperature":90,"vibration":1}"#], &[], &mut state);
    let shown: String = [with, without]
        .iter()
        .map(|outcome| {
            // State is 41 bytes of numbers; that it is there is enough here.
            shown(outcome)
                .lines()
                .map(|line| if line.starts_with('*') { "* …\n".into() } else { format!("{line}\n") })
                .collect::<String>()
        })
        .collect();
    expect![[r#"
        > machine-anomalies m-2={"anomaly":true,"machine":"m-2","seq":9,"ts":1700000000000,"score":0.9,"temperature":61.5,"vibration":4.5,"source":{"partition":3,"offset":11},"arrived_ms":1700000000000,"by":"model","reason":"model score 0.90 above 0.7"}
        * …
        * …
        # warn: partition 3 offset 12: not a JSON object
        # warn: 1 of 3 readings are malformed and were skipped
        ? anomaly
        > machine-anomalies m-1={"anomaly":true,"machine":"m-1","seq":2,"ts":null,"score":0.775,"temperature":90,"vibration":1,"source":{"partition":3,"offset":10},"arrived_ms":1700000000000,"by":"rules","reason":"temperature 90.0 above 80"}
        * …
        # warn: model `anomaly` is granted, but nothing of this name was pushed yet; local rules decide
    "#]].assert_eq(&shown);
    assert_eq!(state.rows.len(), 2);
    assert!(state.rows.values().all(|value| value.len() == 41));
}
