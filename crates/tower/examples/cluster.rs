//! Two services that share a limit in etcd: each gets as much of it as its calls are of all, and together they keep the rate.
//!
//!     buttress dev --output json     # or an etcd; "etcd" in what it prints is the address
//!     cargo run -p buttress-tower --features etcd --example cluster -- http://127.0.0.1:2379 50 20 3
//!
//! The numbers are the limit in calls a second, seconds, and how many times as often the first service is called.

use std::{convert::Infallible, time::Duration};

use buttress_tower::{Policy, ShedLayer, cluster::ClusterLimit, etcd::Etcd, policy::lease::Config, server_config};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        return Err("name the store: cluster http://HOST:PORT [CALLS_A_SECOND] [SECONDS] [TIMES]".into());
    };
    let per_second: f64 = arguments.next().map_or(Ok(50.0), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let times: u32 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    // A pool of its own each time, so that it begins full.
    let key = format!("/limits/example-{}", std::process::id());
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let config = Config::new(per_second, per_second.ceil() as u32);
    let mut services = Vec::new();
    for name in ["a", "b"] {
        let limit = ClusterLimit::new(&key, config)?;
        let etcd = Etcd::new(client.clone(), &address)?;
        tokio::spawn(limit.follow(etcd, |error| eprintln!("no tokens: {error}")));
        let policy = Policy::builder(server_config()).cluster_limit(limit).build()?;
        let service = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let every = if name == "a" { 1 } else { times };
        services.push((name, ShedLayer::new(policy).layer(service), every, 0u64, 0u64));
    }
    let (end, mut round) = (Instant::now() + Duration::from_secs(seconds), 0);
    while Instant::now() < end {
        round += 1;
        for (_, service, every, served, refused) in &mut services {
            if round % *every != 0 {
                continue;
            }
            let answer = service.clone().oneshot(Request::new(())).await?;
            if answer.status() == StatusCode::OK { *served += 1 } else { *refused += 1 }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for (name, .., served, refused) in &services {
        println!("service {name}: {served} served, {refused} refused");
    }
    let served: u64 = services.iter().map(|(.., served, _)| served).sum();
    let granted = f64::from(config.burst) + per_second * seconds as f64;
    // The bound of `policy::lease`.
    let most = granted + (services.len() as f64) * 1.5 * f64::from(config.slice);
    println!("together {served}; the limit gives {granted:.0}, and at most {most:.0}");
    if served as f64 > most { Err("more than the bound".into()) } else { Ok(()) }
}
