//! Whatever a call awaits, it can be dropped there: places, tickets, attempts and probes all come back.

use std::{io::ErrorKind, pin::Pin, time::Duration};

use buttress_tower::{
    Balanced, End, Error, Policy, RouteConfig,
    policy::{breaker, bulkhead, deadline, hedge},
};
use http::Response;
use proptest::prelude::*;
use tokio::time::advance;
use tower::ServiceExt;

use crate::support::*;

type Calling = Pin<Box<dyn Future<Output = Result<Response<buttress_tower::Body<Sent>>, Error>> + Send>>;

fn begin(client: &Balanced<Endpoint>) -> Calling {
    Box::pin(client.clone().oneshot(get()))
}

/// Retries with pauses, a queue, a hedge after a millisecond, a breaker that opens soon.
fn config() -> RouteConfig {
    RouteConfig {
        deadline: deadline::Config { total: Some(500 * MS), attempt: Some(100 * MS), ..Default::default() },
        bulkhead: bulkhead::Config { concurrent: 2, queue: 3 },
        hedge: Some(hedge::Config { samples_min: 1, share: 1.0, ..Default::default() }),
        breaker: Some(breaker::Config { calls_min: 4, probes: 1, open_for: 50 * MS, ..Default::default() }),
        ..Default::default()
    }
}

/// Polls a call this often, a millisecond apart, and drops it. Tells whether it had ended before.
async fn dropped_after(polls: usize, mut call: Calling) -> bool {
    for _ in 0..polls {
        if let std::task::Poll::Ready(ended) = futures::poll!(&mut call) {
            drop(ended);
            return true;
        }
        advance(MS).await;
    }
    false
}

/// A call that has no rival: answered late after failures, so that it awaits attempts, pauses and a hedge.
#[tokio::test(start_paused = true)]
async fn a_call_is_dropped_at_every_await() {
    let mut polls = 0;
    loop {
        let upstream = Upstream::new(|at, _| match at {
            0 => (MS, Does::Answers(200)),
            1 => (3 * MS, Does::Answers(503)),
            2 => (4 * MS, Does::Fails(ErrorKind::ConnectionReset)),
            _ => (20 * MS, Does::Answers(200)),
        });
        let (policy, records) = policy(config());
        let client = client(&policy, &upstream, &["a", "b", "c"]);
        ask(&client, get()).await.unwrap();
        let ended = dropped_after(polls, begin(&client)).await;
        quiet(&policy, &client.endpoints(), &upstream).unwrap_or_else(|says| panic!("after {polls} polls {says}"));
        if ended {
            assert!(matches!(last(&records).end, End::Answered(200)));
            break;
        }
        if polls > 0 {
            assert_eq!(last(&records).end, End::Left, "who left is told too");
        }
        polls += 1;
    }
    assert!(polls > 20, "it waited for attempts, a pause and a hedge: {polls}");
}

/// One that waits for the place of another, dropped before it got the place, before it heard of it, and when it has begun.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_is_dropped_before_and_after_it_got_its_place() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum When {
        Waits,
        HasPlace,
        Begun,
    }
    for when in [When::Waits, When::HasPlace, When::Begun] {
        let upstream = Upstream::always(Does::Hangs);
        let bulkhead = bulkhead::Config { concurrent: 1, queue: 3 };
        let (policy, _) = policy(RouteConfig { bulkhead, ..Default::default() });
        let client = client(&policy, &upstream, &["a"]);
        let (mut first, mut second, mut third) = (begin(&client), begin(&client), begin(&client));
        for call in [&mut first, &mut second, &mut third] {
            assert!(futures::poll!(call).is_pending());
        }
        let standing = || (policy.view().inflight, policy.view().queued, upstream.asked());
        assert_eq!(standing(), (1, 2, 1));
        if when == When::Waits {
            drop(second);
            assert_eq!(standing(), (1, 1, 1));
            drop(first);
        } else {
            drop(first);
            assert_eq!(standing(), (1, 1, 1), "the second has the place, and has not heard of it");
            if when == When::Begun {
                assert!(futures::poll!(&mut second).is_pending());
                assert_eq!(standing(), (1, 1, 2));
            }
            drop(second);
        }
        let before = upstream.asked();
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!(standing(), (1, 0, before + 1), "{when:?}: the third has it now");
        drop(third);
        quiet(&policy, &client.endpoints(), &upstream).unwrap();
    }
}

/// A call that was told to leave the queue, and is dropped before it heard so, never had a place to give back.
#[tokio::test(start_paused = true)]
async fn a_call_that_was_told_to_go_gives_no_place_back() {
    let upstream = Upstream::always(Does::Hangs);
    let bulkhead = bulkhead::Config { concurrent: 1, queue: 3 };
    let (policy, _) = policy(RouteConfig { bulkhead, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    let (mut first, mut second) = (begin(&client), begin(&client));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    assert_eq!(policy.view().queued, 1);
    // Its time is over, but it was not polled; the first one leaves and says so to it.
    advance(1_000 * MS).await;
    drop(first);
    assert_eq!((policy.view().inflight, policy.view().queued), (0, 0));
    drop(second);
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
    let mut next = begin(&client);
    assert!(futures::poll!(&mut next).is_pending());
    assert_eq!(policy.view().inflight, 1);
}

/// The one probe of a half-open breaker is dropped, and the next call is the probe.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_leaves_its_place_to_the_next() {
    let upstream = Upstream::new(|at, _| match at {
        0..20 => (Duration::ZERO, Does::Answers(500)),
        20 => (Duration::ZERO, Does::Hangs),
        _ => (Duration::ZERO, Does::Answers(200)),
    });
    let breaker = Some(breaker::Config { probes: 1, jitter: 0.0, ..Default::default() });
    let (policy, _) = policy(RouteConfig { breaker, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    for _ in 0..20 {
        assert_eq!(told(&client, get()).await, Ok(500));
    }
    assert_eq!(told(&client, get()).await, Err("BT-BRK-OPEN"));
    advance(1_000 * MS).await;
    let mut probe = begin(&client);
    assert!(futures::poll!(&mut probe).is_pending());
    assert_eq!(told(&client, get()).await, Err("BT-BRK-HALF"));
    drop(probe);
    assert_eq!(told(&client, get()).await, Ok(200));
    assert_eq!(policy.view().breaker.unwrap().state, breaker::State::Closed);
}

/// Threads that share one client, whose calls meet in its queue and are dropped at any moment of it.
#[test]
fn threads_that_drop_calls_leave_nothing_behind() {
    let upstream = Upstream::new(|at, _| (Duration::from_micros(at as u64 % 7 * 300), Does::Answers(200)));
    let bulkhead = bulkhead::Config { concurrent: 2, queue: 64 };
    let (policy, _) = policy(RouteConfig { bulkhead, limiter: None, ..Default::default() });
    let client = client(&policy, &upstream, &["a", "b"]);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    let mut rng = buttress_tower::policy::Rng::new(thread);
                    for _ in 0..60 {
                        let calls = (0..6).map(|_| {
                            let patience = Duration::from_micros(rng.below(6_000));
                            tokio::time::timeout(patience, client.clone().oneshot(get()))
                        });
                        futures::future::join_all(calls.collect::<Vec<_>>()).await;
                    }
                });
            });
        }
    });
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
    assert!(upstream.asked() > 0);
}

/// What somebody does with calls.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Begin,
    Poll(usize),
    Drop(usize),
    Advance(u64),
    /// Reads nothing more of an answer.
    DropAnswer(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => Just(Deed::Begin),
        6 => (0usize..8).prop_map(Deed::Poll),
        2 => (0usize..8).prop_map(Deed::Drop),
        3 => (1u64..40).prop_map(Deed::Advance),
        2 => (0usize..8).prop_map(Deed::DropAnswer),
    ]
}

fn does() -> impl Strategy<Value = (Duration, Does)> {
    let does = prop_oneof![
        4 => Just(Does::Answers(200)),
        2 => Just(Does::Answers(503)),
        1 => Just(Does::Answers(404)),
        1 => Just(Does::Fails(ErrorKind::ConnectionReset)),
        1 => Just(Does::Fails(ErrorKind::ConnectionRefused)),
        1 => Just(Does::Hangs),
    ];
    (0u32..60, does).prop_map(|(after, does)| (after * MS, does))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any number of calls, begun, polled, dropped, answered and read in any order.
    #[test]
    fn whatever_is_dropped_everything_comes_back(
        deeds in prop::collection::vec(deed(), 1..120),
        script in prop::collection::vec(does(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let checked = runtime.block_on(async move {
            let upstream = Upstream::new(move |at, _| script[at % script.len()]);
            let (policy, records) = policy(config());
            let client = client(&policy, &upstream, &["a", "b"]);
            let (mut calls, mut answers, mut begun): (Vec<Calling>, Vec<_>, usize) = (Vec::new(), Vec::new(), 0);
            for deed in deeds {
                match deed {
                    Deed::Begin if calls.len() < 8 => calls.push(begin(&client)),
                    Deed::Poll(at) if at < calls.len() => {
                        if let std::task::Poll::Ready(ended) = futures::poll!(&mut calls[at]) {
                            drop(calls.remove(at));
                            begun += 1;
                            answers.extend(ended.ok());
                        }
                    }
                    Deed::Drop(at) if at < calls.len() => drop(calls.remove(at)),
                    Deed::Advance(ms) => advance(Duration::from_millis(ms)).await,
                    Deed::DropAnswer(at) if at < answers.len() => drop(answers.remove(at)),
                    _ => {}
                }
                bounded(&policy)?;
            }
            drop((calls, answers));
            quiet(&policy, &client.endpoints(), &upstream)?;
            let told = records.lock().unwrap().iter().filter(|record| record.end != End::Left).count();
            if told != begun {
                return Err(format!("{begun} calls ended, and {told} records say so"));
            }
            // The breaker's probe is free: after its time some call passes.
            advance(Duration::from_secs(60)).await;
            let mut probe = begin(&client);
            match futures::poll!(&mut probe) {
                std::task::Poll::Ready(Err(error)) if error.is_refusal() => Err(format!("{error}")),
                _ => Ok(()),
            }
        });
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

fn bounded(policy: &Policy) -> Result<(), String> {
    let view = policy.view();
    if view.inflight <= 2 && view.queued <= 3 { Ok(()) } else { Err(format!("{view:?}")) }
}
