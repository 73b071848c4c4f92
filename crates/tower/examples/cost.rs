//! What the policies cost a call, in nanoseconds: a service that answers at once, by itself and behind [`PolicyLayer`].
//!
//!     cargo run --release -p buttress-tower --example cost
//!
//! Each line is the best of five rounds: what disturbs one makes it longer, never shorter.

use std::{convert::Infallible, hint::black_box, time::Instant};

use buttress_tower::{Balanced, Policy, PolicyLayer, RouteConfig};
use http::{Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};

const CALLS: u32 = 200_000;

async fn best<S>(what: &str, mut service: S)
where
    S: Service<Request<String>>,
{
    let mut least = f64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        for _ in 0..CALLS {
            let request = Request::get("/charges/7").body(String::new()).expect("it is a request");
            let Ok(ready) = service.ready().await else { unreachable!("it is always ready") };
            // Dropped here, body and all, which ends the call.
            drop(black_box(ready.call(request).await));
        }
        least = least.min(began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
    }
    println!("{what:44} {least:9.0} ns");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let upstream =
        service_fn(|request: Request<String>| async { Ok::<_, Infallible>(Response::new(request.into_body())) });
    best("a service by itself, and the request", upstream).await;
    best(
        "behind PolicyLayer, default settings",
        PolicyLayer::new(Policy::new(RouteConfig::default())?).layer(upstream),
    )
    .await;
    let ten: Vec<String> = (0..10).map(|n| format!("10.0.0.{n}:80")).collect();
    let list = ten.iter().map(|name| (name.as_str(), 1));
    best("Balanced over ten endpoints", Balanced::new(Policy::new(RouteConfig::default())?, list, |_| upstream)).await;
    let watched = Policy::builder(RouteConfig::default()).on_decision(|record| _ = black_box(record)).build()?;
    best("PolicyLayer with a record of each call", PolicyLayer::new(watched).layer(upstream)).await;
    Ok(())
}
