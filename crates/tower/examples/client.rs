//! Calls an upstream again and again, and tells what the policies did.
//!
//!     buttress mock --listen 127.0.0.1:3000 --fail 30% --seed 1
//!     cargo run -p buttress-tower --example client -- 127.0.0.1:3000
//!
//! Name several endpoints, and stop one of them on the way.

use std::time::Duration;

use buttress_tower::{Balanced, Origin, Policy, RouteConfig};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::ServiceExt;

/// Of calls when no number is named.
const CALLS: usize = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut calls = CALLS;
    let mut endpoints = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(number) => calls = number,
            Err(_) => endpoints.push(argument),
        }
    }
    if endpoints.is_empty() {
        return Err("name the endpoints: client HOST:PORT [HOST:PORT …] [CALLS]".into());
    }
    let policy = Policy::builder(RouteConfig::default())
        .on_decision(|record| {
            if !record.plain() {
                println!("{record}\n");
            }
        })
        .build()?;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    for name in &endpoints {
        Origin::http((), name).map_err(|error| format!("\"{name}\" is not HOST:PORT: {error}"))?;
    }
    let list = endpoints.iter().map(|name| (name.as_str(), 1));
    let orders = Balanced::new(policy.clone(), list, |name| {
        Origin::http(client.clone(), name).expect("every name was looked at above")
    });

    let (mut good, mut bad, mut refused) = (0, 0, 0);
    for number in 0..calls {
        let request = http::Request::get(format!("/orders/{number}")).body(Full::default())?;
        match orders.clone().oneshot(request).await {
            Ok(answer) => {
                let status = answer.status();
                // The call's place is given back when its body has ended.
                answer.into_body().collect().await?;
                if status.is_success() { good += 1 } else { bad += 1 }
            }
            Err(error) if error.is_refusal() => refused += 1,
            Err(_) => bad += 1,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let view = policy.view();
    let state = view.breaker.map_or("off", |breaker| breaker.state.word());
    println!(
        "{calls} calls: {good} answered well, {bad} failed, {refused} refused; {} retries in the last ten seconds; the breaker is {state}",
        view.budget.extras
    );
    Ok(())
}
