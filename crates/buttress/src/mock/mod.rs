//! `buttress mock`: an upstream that is as slow and as unreliable as it is told, for tests of what stands before it.
//!
//! It speaks HTTP/1.1 and HTTP/2 without TLS on one port, and answers gRPC: any unary method is answered with an empty
//! message, or with UNAVAILABLE. What becomes of a request is drawn in [`fate`]. A request's body is read and dropped.

pub mod fate;

use std::{
    cell::Cell,
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    cli::{
        Answer,
        args::{MockArgs, Output},
    },
    dev::{interrupted, seed},
};
use fate::{FailWith, Plan};

const CONNECTIONS_MAX: usize = 10_000;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const PREFACE_BEGIN: &[u8] = b"PRI";
/// How long requests may take when it stops.
const GRACE: Duration = Duration::from_secs(2);

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Mock {
    plan: Plan,
    started: Instant,
    requests: Cell<u64>,
    failed: Cell<u64>,
}

pub fn run(args: &MockArgs) -> Answer {
    crate::logging::init(crate::logging::Format::Text, "warn");
    let plan = Plan {
        fail: args.fail,
        fail_with: args.fail_with,
        latency: args.latency,
        brownout: args.brownout,
        seed: args.seed.map_or_else(seed, Ok)?,
    };
    plan.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(args.listen, args.output, plan))
}

async fn serve(listen: SocketAddr, output: Output, plan: Plan) -> Answer {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Error::new(Code::PORT_TAKEN, format!("cannot listen on {listen}: {error}")).hint("name another with --listen")
    })?;
    let address = listener.local_addr()?;
    let end = interrupted();
    match output {
        Output::Json => crate::cli::show::json(&json!({"listen": address.to_string(), "seed": plan.seed}))?,
        Output::Table => {
            println!("mock: http://{address}  (HTTP/1.1, HTTP/2 without TLS, gRPC; --seed {})", plan.seed);
            eprintln!("next: buttress proxy --to {address}");
        }
    }
    let mock = Rc::new(Mock { plan, started: Instant::now(), requests: Cell::new(0), failed: Cell::new(0) });
    let mut connections = JoinSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {}
            Ok((stream, _)) => {
                connections.spawn_local(connection(mock.clone(), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    let (requests, failed) = (mock.requests.get(), mock.failed.get());
    match output {
        Output::Json => crate::cli::show::json(&json!({"requests": requests, "failed": failed}))?,
        Output::Table => eprintln!("{requests} requests, {failed} of them failed on purpose"),
    }
    Ok(true)
}

async fn connection(mock: Rc<Mock>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut begin = [0u8; PREFACE_BEGIN.len()];
    let http2 = loop {
        match tokio::time::timeout(HEAD_DEADLINE, stream.peek(&mut begin)).await {
            Ok(Ok(0) | Err(_)) | Err(_) => return,
            Ok(Ok(read)) if begin[..read] != PREFACE_BEGIN[..read] => break false,
            Ok(Ok(read)) if read == PREFACE_BEGIN.len() => break true,
            // The rest is on its way.
            Ok(Ok(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let service = service_fn(|request| answer(mock.clone(), request));
    // An error ends the connection, which is all there is to it: a reset on purpose, or a client that left.
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .max_concurrent_streams(1024)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Said to hyper, so that it ends the connection.
#[derive(Debug)]
struct ResetOnPurpose;

impl std::fmt::Display for ResetOnPurpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset on purpose")
    }
}

impl std::error::Error for ResetOnPurpose {}

async fn answer(mock: Rc<Mock>, request: Request<Incoming>) -> Result<Response<Body>, ResetOnPurpose> {
    let number = mock.requests.get();
    mock.requests.set(number + 1);
    let fate = mock.plan.fate(number, mock.started.elapsed());
    let (parts, mut body) = request.into_parts();
    let is_grpc =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    // The fate counts from the request's arrival; its body comes in meanwhile.
    let due = tokio::time::Instant::now() + fate.latency;
    let mut received = 0;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    // A timer ticks in milliseconds, and would make one of nothing.
    if due > tokio::time::Instant::now() {
        tokio::time::sleep_until(due).await;
    }
    if fate.fails {
        mock.failed.set(mock.failed.get() + 1);
    }
    Ok(match (fate.fails, mock.plan.fail_with, is_grpc) {
        (true, FailWith::Reset, _) => return Err(ResetOnPurpose),
        (fails, _, true) => grpc(fails),
        (true, FailWith::Status(status), false) => {
            let told = json!({"request": number, "failed": "on purpose", "brownout": fate.browned_out});
            http(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), &told)
        }
        (false, _, false) => {
            let (method, path) = (parts.method.as_str(), parts.uri.path());
            http(
                StatusCode::OK,
                &json!({"request": number, "method": method, "path": path, "received_bytes": received}),
            )
        }
    })
}

fn http(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string() + "\n")).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An empty message, which every message type can be read from; or a response of trailers only.
fn grpc(fails: bool) -> Response<Body> {
    let mut status = HeaderMap::new();
    status.insert("grpc-status", HeaderValue::from_static(if fails { "14" } else { "0" }));
    let mut response = if fails {
        status.insert("grpc-message", HeaderValue::from_static("failed on purpose"));
        let mut response = Response::new(http_body_util::Empty::new().boxed_unsync());
        response.headers_mut().extend(status);
        response
    } else {
        let message = Ok(Frame::data(Bytes::from_static(&[0; 5])));
        Response::new(StreamBody::new(futures::stream::iter([message, Ok(Frame::trailers(status))])).boxed_unsync())
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
