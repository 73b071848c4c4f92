//! The search is held against brute force: on thousands of small random histories both must say the same, and both answers
//! must come often. What an answered history's order is must explain it, and what is broken must stay so with every
//! operation that its shortest broken beginning has.

use buttress_core::{Revision, ledger::KeyValue};
use buttress_oracle::{
    keys::{KeyAnswer, KeyCall, KeyGuard, KeyModel},
    linear::{self, Model, Span, Verdict, check_by_force},
};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

fn value(number: u8) -> Bytes {
    Bytes::from(vec![b'a' + number])
}

/// What one client does: pauses before, how long it takes, what it asks, and how the answer is made.
#[derive(Clone, Debug)]
struct Ask {
    wait: u8,
    takes: u8,
    what: u8,
    value: u8,
    guard: u8,
    /// Where between call and answer it takes effect.
    point: u8,
    fate: u8,
    lie: u8,
}

fn ask() -> impl Strategy<Value = Ask> {
    (0..4u8, 1..9u8, 0..6u8, 0..3u8, 0..5u8, any::<u8>(), 0..10u8, 0..40u8).prop_map(
        |(wait, takes, what, value, guard, point, fate, lie)| Ask { wait, takes, what, value, guard, point, fate, lie },
    )
}

/// A key that really carries out what is asked, each at one moment between call and answer; sometimes an answer is lost, and
/// sometimes it lies.
fn spans(clients: &[Vec<Ask>], liars: bool) -> Vec<Span<KeyModel>> {
    struct Event {
        point: u64,
        began: u64,
        ended: u64,
        ask: Ask,
    }
    let mut events = Vec::new();
    for (client, asks) in clients.iter().enumerate() {
        let mut now = 0;
        for ask in asks {
            let began = now + u64::from(ask.wait) * 4 + client as u64;
            let ended = began + u64::from(ask.takes) * 4;
            let point = began * 1000 + u64::from(ask.point) * (ended - began) * 1000 / 256;
            events.push(Event { point, began, ended, ask: ask.clone() });
            now = ended + 1;
        }
    }
    events.sort_by_key(|event| event.point);
    let mut revision = 1;
    let mut now: Option<KeyValue> = None;
    let mut spans = Vec::new();
    for Event { began, ended, ask, .. } in events {
        let lies = liars && ask.lie == 0;
        let lost = ask.fate == 0;
        if ask.what < 2 {
            let found =
                if lies { now.clone().map(|kv| KeyValue { value: value(ask.value), ..kv }) } else { now.clone() };
            // A stale answer tells of a revision before.
            let at = if liars && ask.lie == 1 { revision - 1 } else { revision };
            let answer = Some(KeyAnswer::Got { found, revision: at });
            spans.push(Span { began, ended, call: KeyCall::Get, answer });
            continue;
        }
        let modified = now.as_ref().map_or(0, |kv| kv.mod_revision.0);
        let guards = match ask.guard {
            0 => vec![KeyGuard::Modified(modified)],
            1 => vec![KeyGuard::Modified(0)],
            2 => vec![KeyGuard::Value(value(ask.value))],
            3 => vec![KeyGuard::Version(1), KeyGuard::Modified(revision)],
            _ => vec![],
        };
        let holds = |guard: &KeyGuard| match guard {
            KeyGuard::Modified(wanted) => modified == *wanted,
            KeyGuard::Created(wanted) => now.as_ref().map_or(0, |kv| kv.create_revision.0) == *wanted,
            KeyGuard::Version(wanted) => now.as_ref().map_or(0, |kv| kv.version) == *wanted,
            KeyGuard::Value(wanted) => now.as_ref().is_some_and(|kv| kv.value == *wanted),
        };
        let against = guards.iter().position(|guard| !holds(guard));
        let against = if lies { None } else { against };
        let values = vec![if ask.what == 5 { None } else { Some(value(ask.value)) }];
        // What is lost may have happened or not.
        let happens = against.is_none() && !(lost && ask.fate % 2 == 0 && ask.lie % 2 == 0);
        if happens {
            match &values[0] {
                Some(new) => {
                    revision += 1;
                    let (create, version) = now.as_ref().map_or((revision, 0), |kv| (kv.create_revision.0, kv.version));
                    now = Some(KeyValue {
                        key: Bytes::from_static(b"k"),
                        value: new.clone(),
                        create_revision: Revision(create),
                        mod_revision: Revision(revision),
                        version: version + 1,
                        lease: None,
                    });
                }
                None if now.is_some() => {
                    revision += 1;
                    now = None;
                }
                None => {}
            }
        }
        let told = if ask.lie % 3 == 0 { None } else { Some(revision) };
        let answer = match against {
            _ if lost => None,
            Some(guard) => Some(KeyAnswer::Refused { guard: Some(guard) }),
            None => Some(KeyAnswer::Set { revision: told }),
        };
        let ended = if lost { u64::MAX } else { ended };
        spans.push(Span { began, ended, call: KeyCall::Set { guards, values }, answer });
    }
    spans
}

/// Whether an order is one: every answered operation once, none before what had ended before it began, every answer right.
fn explains(spans: &[Span<KeyModel>], order: &[usize]) -> bool {
    let mut state = KeyModel.init();
    let mut latest = 0;
    for at in order {
        if spans[*at].ended < latest {
            return false;
        }
        latest = latest.max(spans[*at].began);
        match KeyModel.step(&state, &spans[*at].call, spans[*at].answer.as_ref()) {
            Some(next) => state = next,
            None => return false,
        }
    }
    (0..spans.len()).all(|at| {
        let times = order.iter().filter(|placed| **placed == at).count();
        times == 1 || (times == 0 && spans[at].ended == u64::MAX)
    })
}

fn agree(spans: &[Span<KeyModel>]) -> Result<bool, TestCaseError> {
    let forced = check_by_force(&KeyModel, spans);
    match linear::check(&KeyModel, spans, linear::BUDGET_STEPS) {
        Verdict::Linearizable(order) => {
            prop_assert!(forced, "{spans:?} in {order:?}");
            prop_assert!(explains(spans, &order), "{spans:?} in {order:?}");
        }
        Verdict::Broken(why) => {
            prop_assert!(!forced, "{spans:?}: {why:?}");
            // The culprit's beginning is broken, and without the culprit's answer it is not.
            let until = spans[why.culprit].ended;
            let beginning = |until: u64| -> Vec<Span<KeyModel>> {
                let begun = spans.iter().filter(|span| span.began <= until);
                begun
                    .map(|span| Span {
                        began: span.began,
                        ended: if span.ended <= until { span.ended } else { u64::MAX },
                        call: span.call.clone(),
                        answer: span.answer.clone(),
                    })
                    .collect()
            };
            prop_assert!(!check_by_force(&KeyModel, &beginning(until)));
            prop_assert!(check_by_force(&KeyModel, &beginning(until - 1)));
        }
        Verdict::Undecided { steps } => prop_assert!(false, "undecided after {steps}"),
    }
    Ok(forced)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_really_happened_is_found_linearizable(clients in vec(vec(ask(), 0..3), 1..4)) {
        let spans = spans(&clients, false);
        prop_assume!(spans.len() <= 6);
        prop_assert!(agree(&spans)?, "{spans:?}");
    }

    #[test]
    fn search_and_brute_force_agree_about_liars(clients in vec(vec(ask(), 0..3), 1..4)) {
        let spans = spans(&clients, true);
        prop_assume!(spans.len() <= 6);
        agree(&spans)?;
    }
}

/// Answers that have nothing to do with each other: most such histories are broken, and some are not.
#[test]
fn search_and_brute_force_agree_about_noise_and_both_answers_are_common() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut roll = |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 33) % limit
    };
    let mut seen = [0, 0];
    for _ in 0..4000 {
        let spans: Vec<Span<KeyModel>> = (0..2 + roll(4))
            .map(|_| {
                let began = roll(12);
                let ended = if roll(8) == 0 { u64::MAX } else { began + 1 + roll(8) };
                // No two moments are the same.
                let (began, ended) = (began * 100 + roll(100), ended.saturating_mul(100).saturating_add(roll(100)));
                if roll(2) == 0 {
                    let revision = 1 + roll(3);
                    let found = (roll(3) > 0).then(|| KeyValue {
                        key: Bytes::from_static(b"k"),
                        value: value(roll(2) as u8),
                        create_revision: Revision(2),
                        mod_revision: Revision(revision.max(2)),
                        version: revision.max(2) - 1,
                        lease: None,
                    });
                    let answer = (ended < u64::MAX).then_some(KeyAnswer::Got { found, revision });
                    Span { began, ended, call: KeyCall::Get, answer }
                } else {
                    let guards = if roll(3) == 0 { vec![KeyGuard::Modified(roll(3))] } else { vec![] };
                    let values = vec![(roll(4) > 0).then(|| value(roll(2) as u8))];
                    let answer = match (roll(3), guards.len()) {
                        (0, 1) => KeyAnswer::Refused { guard: Some(0) },
                        (1, _) => KeyAnswer::Set { revision: None },
                        _ => KeyAnswer::Set { revision: Some(1 + roll(3)) },
                    };
                    let answer = (ended < u64::MAX).then_some(answer);
                    Span { began, ended, call: KeyCall::Set { guards, values }, answer }
                }
            })
            .collect();
        seen[usize::from(agree(&spans).expect("both say the same"))] += 1;
    }
    assert!(seen.iter().all(|times| *times > 400), "{seen:?}");
}

/// Hundreds of operations at once, and many whose answer was lost: what the memory of the search is for.
#[test]
fn long_histories_are_judged_in_few_steps() {
    let mut clients = Vec::new();
    for client in 0..8_u8 {
        let asks = (0..100_u8).map(|number| Ask {
            wait: (number.wrapping_mul(7).wrapping_add(client)) % 4,
            takes: 1 + (number.wrapping_mul(13).wrapping_add(client * 3)) % 8,
            what: (number.wrapping_mul(5).wrapping_add(client)) % 6,
            value: number % 3,
            guard: number.wrapping_add(client) % 5,
            point: number.wrapping_mul(97).wrapping_add(client),
            fate: number.wrapping_mul(3).wrapping_add(client) % 10 + u8::from(number % 4 > 0),
            lie: 7,
        });
        clients.push(asks.collect());
    }
    let spans = spans(&clients, false);
    let lost = spans.iter().filter(|span| span.ended == u64::MAX).count();
    assert!(spans.len() == 800 && lost > 10, "{} operations, {lost} lost", spans.len());
    match linear::check(&KeyModel, &spans, linear::BUDGET_STEPS) {
        Verdict::Linearizable(order) => assert!(explains(&spans, &order)),
        verdict => panic!("{verdict:?}"),
    }
}
