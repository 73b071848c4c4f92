//! One process of the demo: a service with its workers and its faults, the gateway, or the coordinator.
//!
//! A service has so many workers, a queue before them, and no idea that a caller has left: what was taken is carried out.
//! It looks into its book first, so only what is not there yet costs work; a repeated request still waits for its turn, and
//! one that is repeated before the first was carried out costs as much again. Faults are switched by whoever runs the demo:
//! slower work, failures before the work, and answers that are lost after it, which is the worst, because the caller
//! cannot know.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use super::{
    call::Caller,
    coordinator::Coordinator,
    desk::Desk,
    ledger::{Commit, Ledger},
    shape::{EVENTS, Event, FENCE_FIELD, KEY_FIELD, Order, Role, Side, definition, keys},
};
use crate::{
    demo::feed::now_ms,
    logging,
    mock::fate::{FailWith, Latency, Plan, duration},
    serve::parent_gone,
};

const CONNECTIONS_MAX: usize = 4_096;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long the gateway waits for the order service, as long as a step of the saga may take.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
pub struct PartArgs {
    #[arg(value_enum)]
    pub role: Role,
    #[arg(long, value_enum)]
    pub side: Side,
    /// Nodes of the log, by their HTTP addresses.
    #[arg(long, value_delimiter = ',', required = true)]
    pub nodes: Vec<String>,
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where others are, or the proxies before them: ROLE=HOST:PORT.
    #[arg(long, value_name = "ROLE=HOST:PORT")]
    pub to: Vec<String>,
    /// Requests that are worked on at once.
    #[arg(long, default_value_t = 4)]
    pub workers: u16,
    /// Requests that wait for a worker; more are refused at once.
    #[arg(long, default_value_t = 64)]
    pub queue: u64,
    /// How long the work for one request takes.
    #[arg(long, default_value = "0ms", value_parser = duration)]
    pub work: Duration,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What is wrong with a service.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The share of requests that fail before anything is done.
    pub fail: f64,
    /// The share of answers that are lost after it was done.
    pub lose: f64,
    /// By how much longer the work takes.
    pub slower: f64,
}

impl Fault {
    pub const NONE: Fault = Fault { fail: 0.0, lose: 0.0, slower: 1.0 };
}

enum Work {
    Gateway { order: String },
    Order,
    Desk(Desk),
    Coordinator(Arc<Coordinator>),
}

struct Part {
    args: PartArgs,
    ledger: Arc<Ledger>,
    caller: Arc<Caller>,
    work: Work,
    workers: Semaphore,
    fault: Mutex<Fault>,
    started: Instant,
    requests: AtomicU64,
    waiting: AtomicU64,
    busy: AtomicU64,
    done: AtomicU64,
}

/// Runs until its standard input ends.
pub fn run(args: PartArgs) -> crate::cli::Answer {
    logging::init(logging::Format::Json, "info");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        tokio::select! {
            served = serve(args) => served,
            () = parent_gone() => Ok(()),
        }
    });
    // Not waited for: a thread that reads standard input does not come back before that ends.
    runtime.shutdown_background();
    if let Err(error) = &result {
        tracing::error!(%error, code = error.code.0, "the part ended");
    }
    result?;
    Ok(true)
}

async fn serve(args: PartArgs) -> Result<(), Error> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Error::new(Code::PORT_TAKEN, format!("cannot listen on {}: {error}", args.listen)).hint("run the demo again")
    })?;
    let mut to = BTreeMap::new();
    for pair in &args.to {
        let Some((role, address)) = pair.split_once('=') else {
            let message = format!("\"{pair}\" does not say who is where");
            return Err(Error::new(Code::CONFIG, message).hint("for example --to order=127.0.0.1:3000"));
        };
        to.insert(role.to_owned(), address.to_owned());
    }
    let ledger = Arc::new(Ledger::new(args.nodes.clone(), args.role as usize));
    let caller = Arc::new(Caller::new(args.side == Side::Without));
    let work = match args.role {
        Role::Gateway => {
            let order = to.get(Role::Order.word()).cloned();
            let hint = "add --to order=HOST:PORT";
            Work::Gateway {
                order: order.ok_or_else(|| Error::new(Code::CONFIG, "the gateway has no order service").hint(hint))?,
            }
        }
        Role::Order => {
            define(&ledger).await?;
            Work::Order
        }
        Role::Coordinator => {
            Work::Coordinator(Coordinator::take_over(args.side, ledger.clone(), caller.clone(), to).await?)
        }
        Role::Inventory | Role::Payment | Role::Shipping => Work::Desk(Desk::new(args.role, args.side)),
    };
    let coordinator = match &work {
        Work::Coordinator(coordinator) => Some(coordinator.clone()),
        _ => None,
    };
    let part = Arc::new(Part {
        workers: Semaphore::new(args.workers.into()),
        args,
        ledger,
        caller,
        work,
        fault: Mutex::new(Fault::NONE),
        started: Instant::now(),
        requests: AtomicU64::new(0),
        waiting: AtomicU64::new(0),
        busy: AtomicU64::new(0),
        done: AtomicU64::new(0),
    });
    match coordinator {
        Some(coordinator) => tokio::select! {
            ended = coordinator.run() => ended,
            () = accept(listener, part) => Ok(()),
        },
        None => {
            accept(listener, part).await;
            Ok(())
        }
    }
}

/// Puts the saga's definition into the log, under its hash.
async fn define(ledger: &Ledger) -> Result<(), Error> {
    let definition = definition();
    definition.check()?;
    let key = keys::definition(&definition.hash());
    while ledger.get(&key).await?.is_none() {
        let entry = json!({
            "guards": [{"key": key, "mod_revision": 0}],
            "puts": [{"key": key, "value": definition.encode()}],
        });
        ledger.submit(&entry).await?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, part: Arc<Part>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {}
            Ok((stream, _)) => {
                let part = part.clone();
                connections.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let service = service_fn(move |request| answer(part.clone(), request));
                    // An error ends the connection: a caller that left, or an answer that is lost on purpose.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_DEADLINE)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Said to hyper, so that it ends the connection.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost on purpose")
    }
}

impl std::error::Error for Lost {}

async fn answer(part: Arc<Part>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Lost> {
    let (head, body) = request.into_parts();
    let field =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (key, fence) = (field(KEY_FIELD), field(FENCE_FIELD));
    let path = head.uri.path().to_owned();
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return Ok(told(StatusCode::BAD_REQUEST, &json!({"message": "the body did not come, or is too large"})));
    };
    let body = body.to_bytes();
    if head.method == Method::GET {
        return Ok(match path.as_str() {
            "/stats" => told(StatusCode::OK, &part.stats()),
            _ => told(StatusCode::NOT_FOUND, &json!({"message": format!("nothing is served at {path}")})),
        });
    }
    if path == "/fault" {
        return Ok(match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) if !(0.0..=1_000.0).contains(&fault.slower) => {
                told(StatusCode::BAD_REQUEST, &json!({"message": "give \"slower\" from 0 to 1000"}))
            }
            Ok(fault) => {
                *part.fault.lock().expect("no panic under this lock") = fault;
                told(StatusCode::OK, &json!(fault))
            }
            Err(error) => told(StatusCode::BAD_REQUEST, &json!({"message": error.to_string()})),
        });
    }
    // A task of its own: a caller that leaves does not stop what was begun.
    let carried_out = tokio::spawn(async move { part.take(&path, &key, &fence, &body).await });
    match carried_out.await {
        Ok(Some((status, value))) => Ok(told(status, &value)),
        Ok(None) => Err(Lost),
        Err(_) => Ok(told(StatusCode::INTERNAL_SERVER_ERROR, &json!({"message": "the service has a bug"}))),
    }
}

impl Part {
    /// Waits for a worker, works, and answers; nothing where the answer is lost.
    async fn take(&self, path: &str, key: &str, fence: &str, body: &[u8]) -> Option<(StatusCode, Value)> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let order: Order = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => {
                return Some((StatusCode::BAD_REQUEST, json!({"message": format!("this is no order: {error}")})));
            }
        };
        if self.waiting.load(Ordering::Relaxed) >= self.args.queue {
            self.busy.fetch_add(1, Ordering::Relaxed);
            return Some((StatusCode::SERVICE_UNAVAILABLE, json!({"message": "too many wait already"})));
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let worker = self.workers.acquire().await.expect("it is never closed");
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let fault = *self.fault.lock().expect("no panic under this lock");
        let work = self.args.work.mul_f64(fault.slower);
        let plan = |seed: u64, share: f64| Plan {
            fail: share,
            fail_with: FailWith::Reset,
            latency: Latency { p50: work, p99: work * 2 },
            brownout: None,
            seed,
        };
        let fate = plan(self.args.seed, fault.fail).fate(number, self.started.elapsed());
        let way_back = plan(!self.args.seed, fault.lose).fate(number, self.started.elapsed());
        if fate.fails {
            tokio::time::sleep(fate.latency).await;
            return Some((StatusCode::SERVICE_UNAVAILABLE, json!({"message": "failed on purpose"})));
        }
        let answer = match self.carry_out(path, key, fence, &order, fate.latency).await {
            Ok(answer) => answer,
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, json!({"code": error.code.0, "message": error.message})),
        };
        drop(worker);
        self.done.fetch_add(u64::from(answer.0.is_success()), Ordering::Relaxed);
        (!way_back.fails).then_some(answer)
    }

    async fn carry_out(
        &self,
        path: &str,
        key: &str,
        fence: &str,
        order: &Order,
        work: Duration,
    ) -> Result<(StatusCode, Value), Error> {
        match &self.work {
            Work::Gateway { order: address } if path == "/orders" => {
                let body = serde_json::to_value(order).expect("an order is plain data");
                let key = if key.is_empty() { order.id.as_str() } else { key };
                let called = self.caller.post(address, "/orders", key, None, &body, ORDER_TIMEOUT).await;
                Ok(match called {
                    Ok(answer) => (answer.status, answer.json()),
                    Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, json!({"message": problem})),
                })
            }
            Work::Order if path == "/orders" => self.place(order).await,
            Work::Desk(desk) => {
                let found = desk.look(&self.ledger, order).await?;
                if !desk.has_settled(path, found.as_ref())? {
                    tokio::time::sleep(work).await;
                }
                desk.ask(&self.ledger, path, fence, order, found).await
            }
            _ => Ok((StatusCode::NOT_FOUND, json!({"message": format!("nothing is served at {path}")}))),
        }
    }

    /// Writes the order, tells of it, and starts its saga, in one entry.
    async fn place(&self, order: &Order) -> Result<(StatusCode, Value), Error> {
        let side = self.args.side;
        let row = keys::row(side, Role::Order, &order.id);
        let placed = json!({"order": order.id});
        let input = serde_json::to_value(order).expect("an order is plain data");
        let written = input.to_string();
        let started = buttress_saga::Record::Started {
            saga: order.id.clone(),
            definition: definition().hash(),
            input,
            at_ms: now_ms() as u64,
        };
        let entry = json!({
            "guards": [{"key": row, "mod_revision": 0}],
            "puts": [
                {"key": row, "value": written},
                {"key": keys::open(side, &order.id), "value": buttress_saga::encode(&[started])},
            ],
            "appends": [Event::new("OrderCreated", &order.id, Role::Order).append(EVENTS, side)],
        });
        loop {
            match self.ledger.submit(&entry).await? {
                Commit::Applied { .. } => return Ok((StatusCode::ACCEPTED, placed)),
                Commit::Refused { .. } => break,
                Commit::Unknown if self.ledger.get(&row).await?.is_some() => break,
                Commit::Unknown => {}
            }
        }
        // It is there: the same order once more, or another one under its name.
        let kept = self.ledger.get(&row).await?;
        Ok(match kept.is_some_and(|kept| kept.value == written) {
            true => (StatusCode::ACCEPTED, placed),
            false => (StatusCode::CONFLICT, json!({"message": "another order has this id"})),
        })
    }

    fn stats(&self) -> Value {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let fault = *self.fault.lock().expect("no panic under this lock");
        let sagas = match &self.work {
            Work::Coordinator(coordinator) => {
                let figures = &coordinator.figures;
                json!({"open": get(&figures.open), "ended": get(&figures.ended), "resumed": get(&figures.resumed)})
            }
            _ => Value::Null,
        };
        json!({
            "side": self.args.side, "role": self.args.role, "pid": std::process::id(), "requests": get(&self.requests),
            "waiting": get(&self.waiting), "busy": get(&self.busy), "done": get(&self.done), "fault": fault,
            "calls": get(&self.caller.calls), "attempts": get(&self.caller.attempts), "sagas": sagas,
        })
    }
}

fn told(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
