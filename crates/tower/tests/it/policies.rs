//! Each policy through the client.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use buttress_tower::{
    End, Hop, Policy, PolicyLayer, RouteConfig, Verdict,
    policy::{
        Event, KeyRate, Outcome, adaptive, balance, breaker, budget, bulkhead, deadline, hash, hedge, rate, retry,
        throttle,
    },
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, advance};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::*;

fn no_retries() -> retry::Config {
    retry::Config { attempts: 1, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_brief_failure_is_hidden_and_told() {
    let upstream = Upstream::statuses(&[503]);
    let (policy, records) = policy(RouteConfig::default());
    let client = client(&policy, &upstream, &["a", "b"]);
    let answer = ask(&client, get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (200, b"ok".as_slice()));
    assert_eq!(answer.extensions().get::<Verdict>().unwrap().attempts, 2);
    assert_eq!(
        [0, 1].map(|at| upstream.seen(at).field("buttress-attempt").map(str::to_owned)),
        [None, Some("2".into())]
    );
    assert_ne!(upstream.seen(0).endpoint, upstream.seen(1).endpoint);
    assert_eq!(upstream.seen(1).body, "order");
    let record = last(&records);
    assert_eq!(
        record.codes(),
        ["BT-ADM-OK", "BT-BAL-P2C", "BT-BRK-CLOSED", "BT-RTY-GO", "BT-BAL-ONLY", "BT-BRK-CLOSED", "BT-RTY-DONE"]
    );
    assert_eq!((record.end, record.plain()), (End::Answered(200), false));
    let says = record.to_string();
    assert!(
        says.starts_with("GET /orders/7: answered 200 after") && says.contains("status 503; attempt 2 of 3 follows"),
        "{says}"
    );
    ask(&client, get()).await.unwrap();
    assert!(last(&records).plain());
}

#[tokio::test(start_paused = true)]
async fn a_post_that_may_have_had_an_effect_is_not_sent_again_and_one_that_never_arrived_is() {
    let upstream = Upstream::statuses(&[503]);
    let client_of = |upstream: &Arc<Upstream>| client(&policy(RouteConfig::default()).0, upstream, &["a"]);
    let answer = ask(&client_of(&upstream), request(Method::POST)).await.unwrap();
    let verdict = answer.extensions().get::<Verdict>().unwrap();
    assert_eq!((answer.status().as_u16(), verdict.why.code(), verdict.spent), (503, "BT-RTY-EFFECT", false));
    let reset = Upstream::always(Does::Fails(ErrorKind::ConnectionReset));
    let error = ask(&client_of(&reset), request(Method::POST)).await.unwrap_err();
    assert_eq!(
        (error.why().code(), error.code(), reset.asked(), error.undelivered()),
        ("BT-RTY-EFFECT", "BT0907", 1, false)
    );
    let dead = Upstream::always(Does::Fails(ErrorKind::ConnectionRefused));
    let error = ask(&client_of(&dead), request(Method::POST)).await.unwrap_err();
    assert_eq!(
        (error.why().code(), error.code(), dead.asked(), error.undelivered()),
        ("BT-RTY-ATTEMPTS", "BT0906", 3, true)
    );
    let keyed = Upstream::statuses(&[503]);
    let mut request = request(Method::POST);
    request.headers_mut().insert("idempotency-key", "7".parse().unwrap());
    assert_eq!(told(&client_of(&keyed), request).await, Ok(200));
}

#[tokio::test(start_paused = true)]
async fn hops_do_not_multiply_retries() {
    let upstream = Upstream::always(Does::Answers(503));
    let (policy, records) = policy(RouteConfig::default());
    let client = client(&policy, &upstream, &["a"]);
    let mut inbound = get();
    inbound.headers_mut().insert("buttress-attempt", "2".parse().unwrap());
    assert_eq!(told(&client, inbound).await, Ok(503));
    assert_eq!((last(&records).why.unwrap().code(), upstream.asked()), ("BT-RTY-HOP", 1));
    assert_eq!(upstream.seen(0).field("buttress-attempt"), Some("2"), "it stays a retry for every hop behind");
    // By the request that a service answers.
    let mut served = Request::new(());
    served.extensions_mut().insert(Hop { deadline: None, attempt: 3 });
    let mut passed = get();
    Hop::pass(&served, &mut passed);
    assert_eq!(told(&client, passed).await, Ok(503));
    assert_eq!(
        (last(&records).why.unwrap().code(), upstream.seen(1).field("buttress-attempt")),
        ("BT-RTY-HOP", Some("3"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_over_all_attempts_and_goes_on_to_the_next_hop() {
    let upstream = Upstream::always(Does::Hangs);
    let deadline = deadline::Config { total: Some(300 * MS), attempt: Some(100 * MS), ..Default::default() };
    let (policy, records) = policy(RouteConfig { deadline, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    let began = Instant::now();
    let error = ask(&client, get()).await.unwrap_err();
    assert!(error.is_timeout() && error.status() == 504, "{error}");
    assert_eq!((began.elapsed(), upstream.asked()), (300 * MS, 3));
    assert_eq!(upstream.seen(0).field("buttress-timeout-ms"), Some("100"));
    assert_eq!(last(&records).end, End::Failed);
    assert_eq!(upstream.running.load(SeqCst), 0, "nothing of it runs on");
    // The caller of gRPC gives less.
    let mut request = request(Method::POST);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request.headers_mut().insert("grpc-timeout", "40m".parse().unwrap());
    let began = Instant::now();
    assert!(ask(&client, request).await.unwrap_err().is_timeout());
    assert_eq!((began.elapsed(), upstream.seen(3).field("grpc-timeout")), (40 * MS, Some("40000000n")));
    let mut late = get();
    late.extensions_mut().insert(Hop { deadline: Some(Instant::now()), attempt: 1 });
    assert_eq!(told(&client, late).await, Err("BT-DLN-PAST"));
}

#[tokio::test(start_paused = true)]
async fn retries_stay_within_their_budget() {
    let upstream = Upstream::always(Does::Answers(503));
    let budget = budget::Config { share: 0.2, per_second_min: 0.0, ..Default::default() };
    let (policy, records) = policy(RouteConfig { budget, breaker: None, limiter: None, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    for _ in 0..100 {
        ask(&client, get()).await.unwrap();
    }
    assert!((101..=120).contains(&upstream.asked()), "{}", upstream.asked());
    assert!(records.lock().unwrap().iter().any(|record| record.why.unwrap().code() == "BT-RTY-BUDGET"));
}

#[tokio::test(start_paused = true)]
async fn the_first_good_answer_of_a_hedged_call_counts_and_the_other_attempt_is_dropped() {
    let upstream = Upstream::new(|at, _| (if at == 200 { 5_000 * MS } else { 10 * MS }, Does::Answers(200)));
    let (policy, records) = policy(RouteConfig { hedge: Some(hedge::Config::default()), ..Default::default() });
    let client = client(&policy, &upstream, &["a", "b"]);
    for _ in 0..200 {
        ask(&client, get()).await.unwrap();
    }
    let began = Instant::now();
    assert_eq!(told(&client, get()).await, Ok(200));
    assert!(began.elapsed() < 30 * MS, "{:?}", began.elapsed());
    assert_ne!(upstream.seen(200).endpoint, upstream.seen(201).endpoint);
    let record = last(&records);
    assert_eq!((record.attempts.len(), record.attempts[0].hedge), (1, true), "{record}");
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_fails_leaves_the_first_attempt_its_time() {
    let upstream = Upstream::new(|at, _| match at {
        200 => (100 * MS, Does::Answers(200)),
        201 => (MS, Does::Answers(503)),
        _ => (10 * MS, Does::Answers(200)),
    });
    let (policy, records) = policy(RouteConfig { hedge: Some(hedge::Config::default()), ..Default::default() });
    let client = client(&policy, &upstream, &["a", "b"]);
    for _ in 0..200 {
        ask(&client, get()).await.unwrap();
    }
    let began = Instant::now();
    assert_eq!(told(&client, get()).await, Ok(200));
    assert_eq!((began.elapsed(), last(&records).attempts.len()), (100 * MS, 2));
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_refuses_and_probes() {
    let upstream = Upstream::new(|at, _| (MS, Does::Answers(if at < 20 { 500 } else { 200 })));
    let states = Arc::new(Mutex::new(Vec::new()));
    let heard = states.clone();
    let (policy, _) = policy_with(RouteConfig::default(), move |builder| {
        builder.on_event(move |event| {
            if let Event::Breaker(state) = event {
                heard.lock().unwrap().push(*state);
            }
        })
    });
    let client = client(&policy, &upstream, &["a"]);
    for _ in 0..20 {
        assert_eq!(told(&client, get()).await, Ok(500));
    }
    let error = ask(&client, get()).await.unwrap_err();
    assert!(error.is_refusal() && error.undelivered() && error.attempts() == 0, "{error:?}");
    assert_eq!((error.why().code(), error.code(), error.status()), ("BT-BRK-OPEN", "BT-BRK-OPEN", 503));
    assert!(error.would_pass().contains("later, as a probe"), "{}", error.would_pass());
    assert_eq!(upstream.asked(), 20);
    advance(2_000 * MS).await;
    for _ in 0..4 {
        assert_eq!(told(&client, get()).await, Ok(200));
    }
    assert_eq!(*states.lock().unwrap(), [breaker::State::Open, breaker::State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_has_ended_and_whoever_waits_gets_it() {
    let upstream = Upstream::statuses(&[]);
    let bulkhead = bulkhead::Config { concurrent: 1, queue: 1 };
    let (policy, records) = policy(RouteConfig { bulkhead, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    let first = client.clone().oneshot(get()).await.unwrap();
    assert_eq!(policy.view().inflight, 1);
    let second = tokio::spawn({
        let client = client.clone();
        async move { told(&client, get()).await }
    });
    tokio::task::yield_now().await;
    assert_eq!((policy.view().queued, told(&client, get()).await), (1, Err("BT-BLK-FULL")));
    assert_eq!(read(first.into_body()).await, "ok");
    assert_eq!(second.await.unwrap(), Ok(200));
    assert_eq!(last(&records).codes()[..2], ["BT-BLK-QUEUED", "BT-ADM-OK"]);
    let third = client.clone().oneshot(get()).await.unwrap();
    let began = Instant::now();
    assert_eq!(told(&client, get()).await, Err("BT-BLK-WAITED"));
    assert_eq!(began.elapsed(), 100 * MS);
    drop(third);
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_adaptive_limit_is_a_limit() {
    let upstream = Upstream::always(Does::Hangs);
    let limiter = adaptive::Config { initial: 2, min: 1, ..Default::default() };
    let bulkhead = bulkhead::Config { queue: 0, ..Default::default() };
    let (policy, _) = policy(RouteConfig { limiter: Some(limiter), bulkhead, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    let mut running: Vec<_> = (0..2).map(|_| Box::pin(client.clone().oneshot(get()))).collect();
    for one in &mut running {
        assert!(futures::poll!(one).is_pending());
    }
    assert_eq!(told(&client, get()).await, Err("BT-LIM-FULL"));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_where_others_do_not_is_left_out() {
    let upstream = Upstream::new(|_, endpoint| (MS, Does::Answers(if endpoint == "bad" { 503 } else { 200 })));
    let ejected = Arc::new(Mutex::new(Vec::new()));
    let heard = ejected.clone();
    let in_turn = balance::Config { balancer: balance::Balancer::Turn, ..Default::default() };
    let (policy, _) =
        policy_with(RouteConfig { retry: no_retries(), balance: in_turn, ..Default::default() }, |builder| {
            builder.on_event(move |event| {
                if let Event::Endpoint(endpoint, why) = event {
                    heard.lock().unwrap().push((endpoint.name().to_owned(), why.code()));
                }
            })
        });
    let client = client(&policy, &upstream, &["a", "b", "bad"]);
    for _ in 0..200 {
        ask(&client, get()).await.unwrap();
    }
    let ejected = ejected.lock().unwrap();
    assert_eq!(ejected[0].0, "bad", "{ejected:?}");
    assert!(upstream.asked_of("bad") < 30, "{}", upstream.asked_of("bad"));
}

#[tokio::test(start_paused = true)]
async fn the_faster_of_two_endpoints_gets_more_calls() {
    let upstream =
        Upstream::new(|_, endpoint| (if endpoint == "slow" { 200 * MS } else { 5 * MS }, Does::Answers(200)));
    let (policy, _) = policy(RouteConfig::default());
    let client = client(&policy, &upstream, &["slow", "fast"]);
    for _ in 0..100 {
        ask(&client, get()).await.unwrap();
    }
    assert!(upstream.asked_of("fast") > 3 * upstream.asked_of("slow"), "{}", upstream.asked_of("fast"));
}

#[tokio::test(start_paused = true)]
async fn rates_are_limited_for_all_and_for_each_key() {
    let upstream = Upstream::statuses(&[]);
    let key_rate = Some(KeyRate { rate: rate::Config { per_second: 1.0, burst: 1 }, keys: 100 });
    let rate = Some(rate::Config { per_second: 1.0, burst: 3 });
    let (policy, _) = policy_with(RouteConfig { rate, key_rate, ..Default::default() }, |builder| {
        builder.describe(|parts, asked| {
            asked.rate_key = parts.headers.get("x-tenant").map_or(0, |tenant| hash(tenant.as_bytes()));
        })
    });
    let client = client(&policy, &upstream, &["a"]);
    let of = |tenant: &str| {
        let mut request = get();
        request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
        request
    };
    assert_eq!(told(&client, of("a")).await, Ok(200));
    let error = ask(&client, of("a")).await.unwrap_err();
    assert_eq!((error.why().code(), error.status()), ("BT-RAT-LIMIT", 429));
    assert_eq!(told(&client, of("b")).await, Ok(200));
    assert_eq!(told(&client, get()).await, Ok(200));
    assert_eq!(told(&client, get()).await, Err("BT-RAT-LIMIT"), "three in all");
    advance(1_000 * MS).await;
    assert_eq!(told(&client, of("a")).await, Ok(200));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_nothing_is_hardly_asked_any_more() {
    let upstream = Upstream::always(Does::Answers(503));
    let throttle = Some(throttle::Config::default());
    let (policy, records) =
        policy(RouteConfig { throttle, breaker: None, retry: no_retries(), limiter: None, ..Default::default() });
    let client = client(&policy, &upstream, &["a"]);
    for _ in 0..300 {
        let _ = ask(&client, get()).await;
    }
    assert!(upstream.asked() < 150, "{}", upstream.asked());
    assert_eq!(last(&records).why.unwrap().code(), "BT-THR-CLIENT");
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

type Streamed = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::convert::Infallible>>>>;

fn streamed(pieces: usize) -> Request<Streamed> {
    let pieces: Vec<_> = (0..pieces).map(|_| Ok(Frame::data(Bytes::from_static(&[7; 1024])))).collect();
    Request::put("/").body(StreamBody::new(futures::stream::iter(pieces))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_streamed_body_is_sent_again_while_it_is_small_enough_to_be_kept() {
    let upstream = Upstream::statuses(&[503, 200, 503]);
    let (policy, _) = policy(RouteConfig::default());
    let client = PolicyLayer::new(policy.clone()).buffered().layer(upstream.at("a"));
    let answer = client.clone().oneshot(streamed(10)).await.unwrap();
    assert_eq!((answer.status().as_u16(), upstream.seen(1).body.len()), (200, 10 * 1024));
    drop(answer);
    let answer = client.clone().oneshot(streamed(65)).await.unwrap();
    assert_eq!((answer.status().as_u16(), upstream.seen(2).body.len(), upstream.asked()), (503, 65 * 1024, 3));
    assert_eq!(answer.extensions().get::<Verdict>().unwrap().why.code(), "BT-RTY-BODY");
    drop(answer);
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_of_the_caller_that_breaks_says_nothing_of_the_upstream() {
    let upstream = Upstream::statuses(&[]);
    let (policy, records) = policy(RouteConfig::default());
    let client = PolicyLayer::new(policy.clone()).buffered().layer(upstream.at("a"));
    let pieces: Vec<Result<Frame<Bytes>, std::io::Error>> = vec![Err(ErrorKind::BrokenPipe.into())];
    let broken = Request::put("/").body(StreamBody::new(futures::stream::iter(pieces))).unwrap();
    client.clone().oneshot(broken).await.err().unwrap();
    assert_eq!(last(&records).attempts[0].outcome, Outcome::cancelled());
    assert_eq!(policy.view().breaker.unwrap().calls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_list_keeps_what_is_known_and_down_endpoints_are_left_out() {
    let upstream = Upstream::statuses(&[]);
    let (policy, _) = policy(RouteConfig::default());
    let client = client(&policy, &upstream, &["a", "b"]);
    let held = client.clone().oneshot(get()).await.unwrap();
    let known = upstream.seen(0).endpoint;
    client.change([("c", 1), (known.as_str(), 1)], |name| upstream.at(name));
    assert!(client.set_down(&known, true) && !client.set_down("x", true));
    let before = upstream.asked();
    for _ in 0..10 {
        ask(&client, get()).await.unwrap();
    }
    assert_eq!(upstream.asked_of("c"), upstream.asked() - before);
    drop(held);
    client.change([], |_| unreachable!());
    assert_eq!(told(&client, get()).await, Err("BT-BAL-NONE"));
    quiet(&policy, &client.endpoints(), &upstream).unwrap();
}

/// One message and these trailers.
fn grpc(
    status: Option<&'static str>,
) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>>> {
    let trailers = status.map(|status| {
        Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]))
    });
    let frames = [Some(Frame::data(Bytes::from_static(b"message"))), trailers].into_iter().flatten().map(Ok);
    StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>()))
}

#[tokio::test(start_paused = true)]
async fn a_call_of_grpc_is_judged_by_its_trailers() {
    let failed = |status: Option<&'static str>, read: bool| async move {
        let (policy, _) = policy(RouteConfig::default());
        let answering =
            service_fn(
                move |_: Request<Full<Bytes>>| async move { Ok::<_, std::io::Error>(Response::new(grpc(status))) },
            );
        let client = PolicyLayer::new(policy.clone()).layer(answering);
        let mut request = request(Method::POST);
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answer = client.clone().oneshot(request).await.unwrap();
        assert_eq!(client.endpoints().get(0).inflight(), 1, "its end is open");
        if read {
            drop(answer.into_body().collect().await.unwrap())
        } else {
            drop(answer)
        }
        assert_eq!((client.endpoints().get(0).inflight(), policy.view().inflight), (0, 0));
        let view = policy.view().breaker.unwrap();
        (view.calls, view.in_a_row)
    };
    assert_eq!(failed(Some("0"), true).await, (1, 0));
    assert_eq!(failed(Some("14"), true).await, (1, 1));
    assert_eq!(failed(None, true).await, (1, 1), "no status is a failure");
    assert_eq!(failed(Some("0"), false).await, (0, 0), "whoever does not read it to its end says nothing");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_was_sent_nothing_and_its_readiness_is_within_the_deadline() {
    #[derive(Clone)]
    struct Never(bool);
    impl tower::Service<Request<Full<Bytes>>> for Never {
        type Response = Response<Full<Bytes>>;
        type Error = std::io::Error;
        type Future = std::future::Ready<Result<Self::Response, std::io::Error>>;
        fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), std::io::Error>> {
            if self.0 { std::task::Poll::Ready(Err(std::io::Error::other("closed"))) } else { std::task::Poll::Pending }
        }
        fn call(&mut self, _request: Request<Full<Bytes>>) -> Self::Future {
            unreachable!("it was never ready")
        }
    }
    let ask = |fails: bool| {
        let policy = Policy::builder(RouteConfig::default()).seed(1).build().unwrap();
        PolicyLayer::new(policy).layer(Never(fails)).oneshot(request(Method::POST))
    };
    let error = ask(true).await.err().unwrap();
    assert_eq!((error.attempts(), error.undelivered(), error.code()), (3, true, "BT0906"));
    let began = Instant::now();
    assert!(ask(false).await.err().unwrap().is_timeout());
    assert_eq!(began.elapsed(), Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn whoever_knows_an_error_better_says_what_it_means() {
    let upstream = Upstream::always(Does::Fails(ErrorKind::HostUnreachable));
    let (policy, _) = policy_with(RouteConfig::default(), |builder| {
        builder.classify(|error| error.downcast_ref::<std::io::Error>().map(|_| Outcome::unreached()))
    });
    let client = client(&policy, &upstream, &["a"]);
    assert_eq!(told(&client, request(Method::POST)).await, Err("BT-RTY-ATTEMPTS"));
    assert_eq!(upstream.asked(), 3);
}

#[test]
fn settings_that_make_no_sense_are_all_named() {
    let config = RouteConfig {
        retry: retry::Config { attempts: 0, ..Default::default() },
        bulkhead: bulkhead::Config { concurrent: 0, queue: 0 },
        ..Default::default()
    };
    let says = Policy::new(config).unwrap_err().to_string();
    assert!(says.contains("retry.attempts is 0") && says.contains("bulkhead.concurrent is 0"), "{says}");
}
