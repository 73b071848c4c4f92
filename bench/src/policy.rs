//! What deciding costs: the hot path of a route as a gateway drives it, and its parts, in nanoseconds.
//!
//! One thread with everything to itself, and then one per core on the same route, since a route is shared. No network, no
//! request: only what the policies add to one.

use std::{hint::black_box, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use buttress_policy::{
    Admit, EndpointSet, Next, Outcome, Request, Rng, RouteConfig, RoutePolicy, Time, breaker, budget, hash, hedge,
    rate, throttle,
};
use serde_json::json;

/// The clock costs something too, and belongs to the driver: here time is counted on, 20 µs per call.
const STEP_NANOS: u64 = 20_000;

struct Case {
    name: &'static str,
    what: &'static str,
    nanos: f64,
}

pub fn run(args: &[String]) -> Result<()> {
    let (mut calls, mut json) = (2_000_000u64, false);
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("`{flag}` needs a value"))?;
        match flag.as_str() {
            "--calls" => calls = value.parse().with_context(|| format!("--calls takes a number, not \"{value}\""))?,
            "--output" if value == "json" => json = true,
            "--output" if value == "table" => json = false,
            _ => bail!("no such option: {flag} {value}"),
        }
    }
    ensure!((1_000..=1_000_000_000).contains(&calls), "--calls is {calls}, and must be from 1000 to 1000000000");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let full = RouteConfig {
        hedge: Some(hedge::Config::default()),
        rate: Some(rate::Config { per_second: 1e9, burst: 1_000_000 }),
        throttle: Some(throttle::Config::default()),
        ..RouteConfig::default()
    };
    let mut cases = vec![
        case("call, defaults", "admit, pick, attempt, its end, next, done", calls, |calls| {
            calls_on(&route(RouteConfig::default()), &set(10), calls, 1);
        }),
        case("call, everything on", "the same with hedge, rate limit and throttle", calls, |calls| {
            calls_on(&route(full), &set(10), calls, 1);
        }),
        case("call, one in ten fails", "with retries", calls, |calls| {
            calls_on(&route(RouteConfig::default()), &set(10), calls, 10);
        }),
    ];
    let shared = (route(RouteConfig::default()), set(10));
    let per_thread = case("call, all cores", "one route, a thread per core; per call and core", calls, |calls| {
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| calls_on(&shared.0, &shared.1, calls, 1));
            }
        });
    });
    cases.push(per_thread);
    cases.extend(parts(calls));
    if json {
        let cases: Vec<_> =
            cases.iter().map(|case| json!({"name": case.name, "what": case.what, "ns": case.nanos})).collect();
        println!("{}", json!({"calls": calls, "cores": cores, "cases": cases}));
        return Ok(());
    }
    println!("{calls} calls each, {cores} cores\n");
    for case in &cases {
        println!("{:<26} {:>8.1} ns   {}", case.name, case.nanos, case.what);
    }
    Ok(())
}

fn case(name: &'static str, what: &'static str, calls: u64, run: impl Fn(u64)) -> Case {
    run(calls / 10);
    // The best of three: what disturbs a run makes it longer, never shorter.
    let once = || {
        let begun = Instant::now();
        run(calls);
        begun.elapsed().as_secs_f64() * 1e9 / calls as f64
    };
    let nanos = (0..3).map(|_| once()).fold(f64::INFINITY, f64::min);
    Case { name, what, nanos }
}

fn route(config: RouteConfig) -> RoutePolicy {
    RoutePolicy::new(config).expect("the settings of the benchmark are valid")
}

fn set(endpoints: usize) -> EndpointSet {
    let names: Vec<String> = (0..endpoints).map(|n| format!("10.0.0.{n}:80")).collect();
    EndpointSet::new(names.iter().map(|name| (name.as_str(), 1)))
}

/// Whole calls, as a driver makes them. Every `fails`th attempt fails; none where it is 1.
fn calls_on(route: &RoutePolicy, set: &EndpointSet, calls: u64, fails: u64) {
    let (mut rng, mut now) = (Rng::new(7), 0);
    let request = Request { idempotent: true, ..Request::default() };
    let mut attempts = 0u64;
    for _ in 0..calls {
        now += STEP_NANOS;
        let begun = Time::from_nanos(now);
        let Admit::Go(mut call, why) = route.admit(begun, black_box(&request)) else { continue };
        black_box(why);
        let mut at = begun;
        loop {
            attempts += 1;
            let Ok(pick) = route.pick(at, rng.draw(), set, &call) else { break };
            let Ok(attempt) = route.attempt_started(at, rng.draw(), &mut call, set, pick.at) else { break };
            black_box(pick.why);
            let ended = Time::from_nanos(at.nanos() + 1_000_000 + (rng.draw() & 0xf_ffff));
            let outcome =
                if fails > 1 && attempts.is_multiple_of(fails) { Outcome::http(503) } else { Outcome::http(200) };
            route.attempt_ended(ended, rng.draw(), set, attempt, black_box(&outcome), |event| _ = black_box(event));
            match route.next(ended, rng.draw(), &mut call, &outcome) {
                Next::Retry { after, .. } => at = ended.plus(after),
                Next::GiveUp(why) => {
                    black_box(why);
                    break;
                }
            }
        }
        route.done(begun, call, |woken| _ = black_box(woken));
    }
}

fn parts(calls: u64) -> Vec<Case> {
    let time = |n: u64| Time::from_nanos(n * STEP_NANOS);
    let breaker = breaker::Breaker::new(breaker::Config::default());
    let budget = budget::Budget::new(budget::Config::default());
    let limit = rate::Limit::new(rate::Config { per_second: 1e9, burst: 1_000_000 });
    let keyed = rate::Keyed::new(rate::Config { per_second: 1e6, burst: 1_000 }, 100_000);
    let keys: Vec<u64> = (0..10_000u32).map(|n| hash(&n.to_le_bytes())).collect();
    let (good, latency) = (Outcome::http(200), std::time::Duration::from_millis(1));
    vec![
        case("breaker", "permit and success, closed", calls, |calls| {
            for n in 0..calls {
                if let Ok(permit) = breaker.acquire(time(n)) {
                    black_box(breaker.record(time(n), n, permit, &good, latency));
                }
            }
        }),
        case("budget", "a request", calls, |calls| (0..calls).for_each(|n| budget.request(time(n)))),
        case("rate", "a token", calls, |calls| (0..calls).for_each(|n| _ = black_box(limit.take(time(n), 1)))),
        case("rate of a key", "a token of one of 10,000 keys", calls, |calls| {
            for n in 0..calls {
                _ = black_box(keyed.take(time(n), keys[n as usize % keys.len()], 1));
            }
        }),
    ]
}
