//! The server's side: what is refused, how it is answered, and what it means to the hops before.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use buttress_tower::{
    Hop, Policy, PolicyLayer, RouteConfig, Shed, ShedLayer, Verdict,
    policy::{Priority, bulkhead, rate, shed},
    server_config,
};
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::{Instant, advance};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{MS, last, policy, policy_with};

fn ask() -> Request<Full<Bytes>> {
    Request::get("/").header("x-request-id", "r-7").body(Full::default()).unwrap()
}

fn with(name: &'static str, value: &str) -> Request<Full<Bytes>> {
    let mut request = ask();
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

type Handler = tower::util::BoxCloneService<Request<Full<Bytes>>, Response<Full<Bytes>>, Infallible>;

/// A service that takes so long, and counts whom it has seen.
fn service(policy: &Policy, takes: std::time::Duration) -> (Shed<Handler>, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let handler = service_fn(move |request: Request<Full<Bytes>>| {
        let count = count.clone();
        async move {
            count.fetch_add(1, SeqCst);
            tokio::time::sleep(takes).await;
            let hop = Hop::of(&request).expect("every request says where it stands");
            Ok(Response::new(Full::new(format!("{:?} {}", hop.left(), hop.attempt).into())))
        }
    });
    (ShedLayer::new(policy.clone()).layer(Handler::new(handler)), seen)
}

async fn answer(service: &Shed<Handler>, request: Request<Full<Bytes>>) -> (Response<()>, Bytes) {
    let (parts, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    (Response::from_parts(parts, ()), body.collect().await.unwrap().to_bytes())
}

fn field<'a>(answer: &'a Response<()>, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_says_why_and_that_nobody_has_seen_it() {
    let bulkhead = bulkhead::Config { concurrent: 1, queue: 0 };
    let (policy, records) = policy(RouteConfig { bulkhead, ..server_config() });
    let (service, seen) = service(&policy, 50 * MS);
    let mut first = Box::pin(service.clone().oneshot(ask()));
    assert!(futures::poll!(&mut first).is_pending());
    let (refused, body) = answer(&service, ask()).await;
    assert_eq!((refused.status().as_u16(), field(&refused, "buttress-code")), (503, Some("BT-BLK-FULL")));
    assert_eq!((field(&refused, "retry-after"), field(&refused, "buttress-undelivered")), (Some("1"), Some("1")));
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&problem["code"], &problem["status"], &problem["request_id"]),
        (&"BT-BLK-FULL".into(), &503.into(), &"r-7".into())
    );
    assert!(problem["would_pass"].as_str().unwrap().starts_with("fewer concurrent calls"));
    assert_eq!(last(&records).codes(), ["BT-BLK-FULL"]);
    let (grpc, body) = answer(&service, with("content-type", "application/grpc+proto")).await;
    assert_eq!((grpc.status().as_u16(), field(&grpc, "grpc-status"), body.len()), (200, Some("14"), 0));
    assert_eq!(seen.load(SeqCst), 1);
    assert_eq!(first.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "None 1");
    assert_eq!(policy.view().inflight, 0);
}

#[tokio::test(start_paused = true)]
async fn what_matters_less_is_shed_first() {
    let bulkhead = bulkhead::Config { concurrent: 4, queue: 0 };
    let shed = shed::Config { shares: [1.0, 0.75, 0.5, 0.25], ..Default::default() };
    let (policy, _) = policy_with(RouteConfig { bulkhead, shed, ..server_config() }, |builder| {
        builder.priority_header(HeaderName::from_static("x-priority"))
    });
    let (service, _) = service(&policy, 50 * MS);
    let mut running = Vec::new();
    for priority in ["3", "2", "1", "0"] {
        let mut call = Box::pin(service.clone().oneshot(with("x-priority", priority)));
        assert!(futures::poll!(&mut call).is_pending(), "{priority}");
        running.push(call);
        if priority != "0" {
            let (refused, _) = answer(&service, with("x-priority", priority)).await;
            assert_eq!(field(&refused, "buttress-code"), Some("BT-SHD-PRIORITY"));
        }
    }
    assert_eq!(policy.view().inflight, 4);
    drop(running);
    assert_eq!(policy.view().inflight, 0);
    assert_eq!(Priority::new(9), Priority::BULK);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_the_callers_and_what_is_late_is_not_begun_or_cut_off() {
    let (policy, records) = policy(server_config());
    let (service, seen) = service(&policy, 50 * MS);
    let (answered, body) = answer(&service, with("buttress-timeout-ms", "80")).await;
    assert_eq!((answered.status().as_u16(), body.as_ref()), (200, b"Some(30ms) 1".as_slice()));
    let (late, body) = answer(&service, with("buttress-timeout-ms", "0")).await;
    assert_eq!((late.status().as_u16(), field(&late, "buttress-code")), (504, Some("BT-DLN-PAST")));
    assert!(field(&late, "buttress-undelivered").is_some() && !body.is_empty());
    assert_eq!(seen.load(SeqCst), 1);
    let began = Instant::now();
    let (cut, _) = answer(&service, with("buttress-timeout-ms", "20")).await;
    assert_eq!((cut.status().as_u16(), began.elapsed()), (504, 20 * MS));
    assert!(field(&cut, "buttress-undelivered").is_none(), "the service has seen it");
    assert_eq!(last(&records).attempts[0].problem, "no answer in time");
    assert_eq!(policy.view().inflight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_answered_with_429_and_ends() {
    let rate = Some(rate::Config { per_second: 1.0, burst: 1 });
    let (policy, _) = policy(RouteConfig { rate, ..server_config() });
    let (service, _) = service(&policy, MS);
    assert_eq!(answer(&service, ask()).await.0.status().as_u16(), 200);
    let (refused, _) = answer(&service, ask()).await;
    assert_eq!((refused.status().as_u16(), field(&refused, "buttress-code")), (429, Some("BT-RAT-LIMIT")));
    advance(1_000 * MS).await;
    assert_eq!(answer(&service, ask()).await.0.status().as_u16(), 200);
}

/// A service that answers by asking another one, with the layers on both sides of both.
#[tokio::test(start_paused = true)]
async fn hops_tell_each_other_about_time_and_attempts() {
    let (inner_policy, _) =
        policy(RouteConfig { bulkhead: bulkhead::Config { concurrent: 1, queue: 0 }, ..server_config() });
    let (inner, seen) = service(&inner_policy, 10 * MS);
    let asking = PolicyLayer::new(policy(RouteConfig::default()).0).layer(inner.clone());
    let outer = ShedLayer::new(policy(server_config()).0).layer(service_fn(move |request: Request<Full<Bytes>>| {
        let asking = asking.clone();
        async move {
            let mut onward = Request::post("/inner").body(Full::<Bytes>::default()).unwrap();
            Hop::pass(&request, &mut onward);
            match asking.oneshot(onward).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(Response::from_parts(parts, Full::new(body)))
                }
                Err(error) => {
                    let (parts, body) = error.response(request.headers()).into_parts();
                    Ok(Response::from_parts(parts, Full::new(body.collect().await.unwrap().to_bytes())))
                }
            }
        }
    }));
    let ask_outer = |request| async {
        let (parts, body) = outer.clone().oneshot(request).await.unwrap().into_parts();
        (Response::from_parts(parts, ()), body.collect().await.unwrap().to_bytes())
    };
    let mut retry = with("buttress-timeout-ms", "100");
    retry.headers_mut().insert("buttress-attempt", "2".parse().unwrap());
    let (answered, body) = ask_outer(retry).await;
    assert_eq!((answered.status().as_u16(), body.as_ref()), (200, b"Some(90ms) 2".as_slice()));
    // The inner one is full: surely nobody has seen it, so the client in the middle sends even a POST again.
    let mut busy = Box::pin(inner.clone().oneshot(ask()));
    assert!(futures::poll!(&mut busy).is_pending());
    let before = seen.load(SeqCst);
    let (refused, _) = ask_outer(with("buttress-timeout-ms", "5")).await;
    assert_eq!((refused.status().as_u16(), seen.load(SeqCst)), (503, before));
    assert_eq!(field(&refused, "buttress-code"), Some("BT-BLK-FULL"));
    assert_eq!(field(&refused, "buttress-undelivered"), Some("1"));
    assert!(refused.extensions().get::<Verdict>().unwrap().undelivered);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_is_handed_on_as_it_is() {
    let (policy, records) = policy(server_config());
    let failing = service_fn(|_: Request<()>| async { Err::<Response<Full<Bytes>>, _>("out of order") });
    let service = ShedLayer::new(policy.clone()).layer(failing);
    assert_eq!(service.oneshot(Request::new(())).await.err(), Some("out of order"));
    assert_eq!((last(&records).attempts.len(), policy.view().inflight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_at_any_await_leaves_nothing_behind() {
    for polls in 0..12 {
        let bulkhead = bulkhead::Config { concurrent: 1, queue: 1 };
        let (policy, _) = policy(RouteConfig { bulkhead, ..server_config() });
        let (service, _) = service(&policy, 4 * MS);
        let mut first = Some(Box::pin(service.clone().oneshot(ask())));
        let mut second = Box::pin(service.clone().oneshot(ask()));
        for _ in 0..polls {
            if let Some(call) = &mut first
                && futures::poll!(call).is_ready()
            {
                first = None;
            }
            if futures::poll!(&mut second).is_ready() {
                break;
            }
            advance(MS).await;
        }
        drop((first, second));
        let view = policy.view();
        assert_eq!((view.inflight, view.queued), (0, 0), "after {polls}");
    }
}
