//! The layer decides as the proxy does: the same script played through it, and through the policies in the order in which
//! `crates/gateway/src/call.rs` asks them, gives the same codes, in the same order, from the same random numbers.

use std::{io::ErrorKind, time::Duration};

use buttress_tower::{
    RouteConfig,
    policy::{
        Admit, EndpointSet, Next, Outcome, Request, Rng, RoutePolicy, Time, balance, breaker, budget, deadline,
        outlier, retry, throttle,
    },
};

use crate::support::*;

/// Timers of tokio end on a whole millisecond.
fn slept(now: Time, span: Duration) -> Time {
    Time::from_millis(now.plus(span).nanos().div_ceil(1_000_000))
}

fn outcome(does: Does) -> Outcome {
    match does {
        Does::Answers(status) => Outcome::http(status),
        Does::Fails(ErrorKind::ConnectionRefused) => Outcome::unreached(),
        Does::Fails(_) => Outcome::reset(),
        Does::Hangs => Outcome::timeout(),
    }
}

/// One call as the proxy drives it.
fn proxied(
    route: &RoutePolicy,
    set: &EndpointSet,
    rng: &mut Rng,
    now: &mut Time,
    script: &mut impl FnMut() -> (Duration, Does),
) -> Vec<&'static str> {
    let mut codes = Vec::new();
    let mut call = match route.admit(*now, &Request { idempotent: true, ..Request::default() }) {
        Admit::Go(call, why) => {
            codes.push(why.code());
            call
        }
        Admit::Refuse(why) => return vec![why.code()],
        Admit::Wait { .. } => unreachable!("one call at a time"),
    };
    loop {
        let begun = route.pick(*now, rng.draw(), set, &call).and_then(|pick| {
            let attempt = route.attempt_started(*now, rng.draw(), &mut call, set, pick.at)?;
            Ok((pick, attempt))
        });
        let (pick, attempt) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                codes.push(why.code());
                break;
            }
        };
        codes.push(pick.why.code());
        codes.extend(route.explain_permit(*now, &attempt).map(|why| why.code()));
        let (takes, does) = script();
        // What ends on the same millisecond is taken for an answer.
        let outcome = if slept(*now, takes) > slept(*now, attempt.timeout) {
            *now = slept(*now, attempt.timeout);
            Outcome::timeout()
        } else {
            *now = slept(*now, takes);
            outcome(does)
        };
        if outcome.succeeded() == Some(true) {
            route.attempt_ended(*now, rng.draw(), set, attempt, &outcome, |_| {});
            codes.push("BT-RTY-DONE");
            break;
        }
        // The proxy ends the attempt first; so does the layer.
        route.attempt_ended(*now, rng.draw(), set, attempt, &outcome, |_| {});
        match route.next(*now, rng.draw(), &mut call, &outcome) {
            Next::Retry { after, why } => {
                codes.push(why.code());
                *now = slept(*now, after);
            }
            Next::GiveUp(why) => {
                codes.push(why.code());
                break;
            }
        }
    }
    route.done(*now, call, |_| {});
    codes
}

fn configs() -> Vec<RouteConfig> {
    let plain = RouteConfig::default();
    vec![
        plain,
        RouteConfig {
            deadline: deadline::Config { total: Some(300 * MS), attempt: Some(40 * MS), ..Default::default() },
            ..plain
        },
        RouteConfig {
            breaker: Some(breaker::Config { consecutive: 4, open_for: 200 * MS, ..Default::default() }),
            ..plain
        },
        RouteConfig {
            budget: budget::Config { share: 0.1, per_second_min: 0.0, ..Default::default() },
            breaker: None,
            ..plain
        },
        RouteConfig { throttle: Some(throttle::Config { calls_min: 5, ..Default::default() }), breaker: None, ..plain },
        RouteConfig {
            balance: balance::Config { balancer: balance::Balancer::Turn, ..Default::default() },
            outlier: Some(outlier::Config { consecutive: 2, gateway: 2, compare: false, ..Default::default() }),
            retry: retry::Config { attempts: 5, jitter: retry::Jitter::Decorrelated, ..Default::default() },
            ..plain
        },
    ]
}

#[tokio::test(start_paused = true)]
async fn the_layer_and_the_proxy_decide_alike() {
    let mut seen = std::collections::BTreeSet::new();
    for (number, config) in configs().into_iter().enumerate() {
        for seed in 0..20 {
            let script = move || {
                let mut rng = Rng::new(seed * 1_000 + number as u64);
                move || {
                    let does = match rng.below(10) {
                        0..4 => Does::Answers(200),
                        4..7 => Does::Answers(503),
                        7 => Does::Fails(ErrorKind::ConnectionReset),
                        8 => Does::Fails(ErrorKind::ConnectionRefused),
                        _ => Does::Answers(500),
                    };
                    (Duration::from_millis(rng.below(50)), does)
                }
            };
            let (route, set, mut rng) =
                (RoutePolicy::new(config).unwrap(), EndpointSet::new([("a", 1), ("b", 1), ("c", 1)]), Rng::new(seed));
            let (mut now, mut by_proxy) = (Time::ZERO, script());
            let mut by_layer = script();
            let upstream = Upstream::new(move |_, _| by_layer());
            let (policy, records) = policy_with(config, |builder| builder.seed(seed));
            let client = client(&policy, &upstream, &["a", "b", "c"]);
            for call in 0..60 {
                let wanted = proxied(&route, &set, &mut rng, &mut now, &mut by_proxy);
                let _ = ask(&client, get()).await;
                let got = last(&records).codes();
                assert_eq!(got, wanted, "config {number}, seed {seed}, call {call}");
                seen.extend(got);
                tokio::time::sleep(3 * MS).await;
                now = slept(now, 3 * MS);
            }
        }
    }
    for code in [
        "BT-ADM-OK",
        "BT-BAL-P2C",
        "BT-BAL-TURN",
        "BT-BRK-OPEN",
        "BT-BRK-PROBE",
        "BT-BRK-CONSECUTIVE",
        "BT-RTY-GO",
        "BT-RTY-ATTEMPTS",
        "BT-RTY-BUDGET",
        "BT-RTY-DONE",
        "BT-RTY-STATUS",
        "BT-THR-CLIENT",
    ] {
        assert!(seen.contains(code), "the scripts never led to {code}: {seen:?}");
    }
}
