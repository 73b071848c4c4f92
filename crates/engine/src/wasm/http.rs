//! The HTTP trigger: one instance per request, on a small pool of threads of the engine's own.
//!
//! Guests compute, and a node's network runs on runtimes with one thread; so a request is handed to the pool and its
//! answer comes back through a channel. The pool bounds what HTTP can take from the machine, its queue bounds what
//! waits, and a caller beyond both is told to come back later. Threads start when they are first needed.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use buttress_core::{
    BoxFuture, Code, Error,
    guest::{HttpAnswer, HttpCall},
};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use tokio::sync::oneshot;
use wasmtime_wasi_http::{
    WasiHttpView,
    p2::{
        bindings::http::types::{ErrorCode, Scheme},
        body::HyperOutgoingBody,
    },
};

use super::{
    batch::patience,
    block,
    engine::{Counters, Inner},
    epoch::Clock,
    failure,
};

/// Largest body that a function may answer with: as much as a node takes.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A thread of the pool that had nothing to do for this long ends.
const THREAD_IDLE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// Threads and what waits for them.
pub(crate) struct Pool {
    shared: Arc<Queue>,
    threads_max: usize,
    queue_max: usize,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // The job's own channel tells its caller; the thread goes on.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.lock();
                continue;
            }
            if state.stopped {
                break;
            }
            state.idle += 1;
            let (after, timeout) = self.work.wait_timeout(state, THREAD_IDLE).unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

impl Pool {
    pub(crate) fn new(threads_max: usize, queue_max: usize) -> Self {
        assert!(threads_max > 0, "a pool without threads serves nobody");
        Self { shared: Arc::default(), threads_max, queue_max }
    }

    /// Queues a job, or gives it back where the queue is full.
    fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        if state.jobs.len() >= self.queue_max {
            return Err(job);
        }
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle {
            drop(state);
            self.shared.work.notify_one();
        } else if state.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new().name("buttress-fn".into()).spawn(move || shared.work());
            match spawned {
                Ok(_) => state.threads += 1,
                // The threads that are there will come to it.
                Err(_) if state.threads > 0 => {}
                Err(_) => return Err(state.jobs.pop_back().expect("pushed above")),
            }
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.work.notify_all();
    }
}

/// Answers one request on the pool. The future may be awaited on any runtime, or on none.
pub(crate) fn call<'a>(inner: Arc<Inner>, request: HttpCall) -> BoxFuture<'a, Result<HttpAnswer, Error>> {
    let (send, receive) = oneshot::channel();
    let shared = Arc::clone(&inner.shared);
    let submitted = shared.pool.submit(Box::new(move || {
        // A caller that has gone, by its own deadline or a closed connection, costs nothing more.
        if send.is_closed() {
            return;
        }
        let _ = send.send(answer(&inner, request));
    }));
    Box::pin(async move {
        let counters = &shared.counters;
        if submitted.is_err() {
            Counters::add(&counters.http_calls_refused, 1);
            return Err(Error::new(Code::OVERLOADED, "more calls wait for functions than the queue holds")
                .hint("retry after a pause")
                .retryable());
        }
        receive.await.unwrap_or_else(|_| {
            Err(Error::new(Code::TRAPPED, "the engine failed while it ran the function; its log has the details"))
        })
    })
}

fn answer(inner: &Inner, request: HttpCall) -> Result<HttpAnswer, Error> {
    let started = Instant::now();
    let answer = run(inner, request);
    let counters = &inner.shared.counters;
    Counters::add(&counters.http_calls, 1);
    Counters::add(&counters.http_calls_failed, u64::from(answer.is_err()));
    Counters::add(&counters.http_micros, started.elapsed().as_micros() as u64);
    answer
}

fn run(inner: &Inner, call: HttpCall) -> Result<HttpAnswer, Error> {
    let Some(proxy) = &inner.proxy else {
        return Err(Error::new(Code::EXPORT_MISSING, "the component does not export `wasi:http/incoming-handler`")
            .hint("give it a topic as its trigger"));
    };
    let deadline_ms = inner.limits.deadline_ms;
    let request = request(&call)?;
    let mut store = inner.store();
    store.data_mut().start(&call.models, call.now_ms);
    store.set_epoch_deadline(Clock::ticks(deadline_ms));
    let output = store.data().output.clone();

    let (send, receive) = oneshot::channel();
    let mut parts = None;
    let ran = {
        let _running = inner.shared.clock.run();
        let _timers = inner.shared.timers().enter();
        let internal = |error: wasmtime::Error| Error::new(Code::BAD_REQUEST, failure::quote(&error.to_string()));
        let mut http = store.data_mut().http();
        let incoming = http.new_incoming_request(Scheme::Http, request).map_err(internal)?;
        let out = http.new_response_outparam(send).map_err(internal)?;
        let mut collect = pin!(collect(receive));
        let ran = {
            let mut guest = pin!(async {
                let proxy = proxy.instantiate_async(&mut store).await?;
                proxy.wasi_http_incoming_handler().call_handle(&mut store, incoming, out).await
            });
            // The guest writes its body while we read it: both must move.
            let both = poll_fn(|context| {
                if parts.is_none()
                    && let Poll::Ready(collected) = collect.as_mut().poll(context)
                {
                    parts = Some(collected);
                }
                guest.as_mut().poll(context)
            });
            block::on(tokio::time::timeout(patience(deadline_ms), both))
        };
        let ran = match ran {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failure::explain(&error, store.data())),
            Err(_) => Err(failure::deadline(deadline_ms)),
        };
        // With the store go the guest's ends of the body and of the answer, so that collecting comes to its end.
        drop(store);
        if ran.is_ok() && parts.is_none() {
            parts = Some(block::on(collect));
        }
        ran
    };
    ran?;
    let (head, body) = parts.expect("collected above")?;
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
        .collect();
    Ok(HttpAnswer { status: head.status.as_u16(), headers, body, logs: output.take() })
}

fn request(call: &HttpCall) -> Result<::http::Request<Full<Bytes>>, Error> {
    let bad = |error: &dyn std::fmt::Display| {
        Error::new(Code::BAD_REQUEST, format!("the request cannot be handed to a function: {error}"))
    };
    let mut request = ::http::Request::builder().method(call.method.as_str()).uri(call.uri.as_str());
    for (name, value) in &call.headers {
        request = request.header(name.as_str(), &value[..]);
    }
    let mut request = request.body(Full::new(call.body.clone())).map_err(|error| bad(&error))?;
    // wasi:http wants an authority; a caller that names none means this node.
    if request.uri().authority().is_none() && !request.headers().contains_key(::http::header::HOST) {
        request.headers_mut().insert(::http::header::HOST, ::http::HeaderValue::from_static("localhost"));
    }
    Ok(request)
}

type Answered = Result<::http::Response<HyperOutgoingBody>, ErrorCode>;
type Parts = (::http::response::Parts, Bytes);

/// Waits for the head of the answer and reads its body, bounded.
async fn collect(receive: oneshot::Receiver<Answered>) -> Result<Parts, Error> {
    let failed = |message: String| Error::new(Code::FUNCTION_FAILED, message);
    let response = match receive.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => return Err(failed(format!("the function answered with the error {code:?}"))),
        Err(_) => return Err(failed("the function ended without an answer".into())),
    };
    let (head, body) = response.into_parts();
    let mut body = pin!(body);
    let mut bytes = BytesMut::new();
    if let Some(exact) = body.size_hint().exact() {
        bytes.reserve((exact as usize).min(64 * 1024));
    }
    while let Some(frame) = body.as_mut().frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) if bytes.len() + data.len() > ANSWER_BYTES_MAX => {
                return Err(failed(format!("the function's answer is larger than {ANSWER_BYTES_MAX} bytes")));
            }
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            // Trailers have no place in the answer.
            Ok(Err(_)) => {}
            Err(error) => return Err(failed(format!("the function's answer broke off: {error:?}"))),
        }
    }
    Ok((head, bytes.freeze()))
}
