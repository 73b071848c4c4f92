//! The driver: a request let in, sent, sent again where that is safe, answered, told.
//!
//! The order is [`policy::RoutePolicy`]'s, and the same as `buttress proxy` goes through; this file has the clock, the timers and the
//! services. Whatever it awaits, it can be dropped there: the guards of [`crate::guard`] end what was begun.
//!
//! | what came of an attempt | told to the policies |
//! |---|---|
//! | the service was not ready and failed | as unreached: nothing was sent |
//! | an error | by what `classify` or its chain of sources says: unreached, else reset |
//! | no answer within the attempt's time | as a timeout; its future is dropped |
//! | a body of the caller that broke | as cancelled: it says nothing of the upstream |
//! | an answer of HTTP, or of gRPC with its status in the head | with the head |
//! | an answer of gRPC whose status stands in the trailers | with the trailers ([`crate::body`]) |

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use buttress_policy::{self as policy, Endpoint, Next, Outcome, Time, Why};
use http::{Request, Response, request::Parts};
use tokio::time::Sleep;
use tower_service::Service;

use crate::{
    balanced::Shared,
    body::{Body, Held},
    error::{self, BoxError, Error, Failure, Verdict, chain},
    guard::{Place, Trying, admit},
    headers,
    keep::Keep,
    policy_set::Policy,
    record::{End, Story, Tried},
};

/// A call under way.
struct Driver<S, K, B>
where
    K: Keep<B>,
{
    policy: Policy,
    shared: Arc<Shared<S>>,
    parts: Parts,
    kept: K::Kept,
    grpc: bool,
    place: Place,
    story: Story,
    /// Somebody may have seen the request.
    delivered: bool,
}

/// An attempt that may be sent.
struct Begun<S> {
    about: About,
    service: S,
    timeout: Duration,
}

/// What is known of an attempt when it begins.
struct About {
    trying: Trying,
    endpoint: Arc<Endpoint>,
    picked: Why,
    began: Time,
    hedge: bool,
}

/// An attempt that is over.
struct Ended<R> {
    about: About,
    sent: Result<Response<R>, Failure>,
    outcome: Outcome,
    /// A status of gRPC is still to come, in the trailers.
    open: bool,
    ended: Time,
}

impl<R> Ended<R> {
    fn told(&self) -> Tried {
        let About { trying, endpoint, picked, began, hedge } = &self.about;
        let problem = match &self.sent {
            Ok(_) => String::new(),
            Err(Failure::TimedOut) => "no answer in time".to_owned(),
            Err(Failure::Service(error, _)) => chain(&**error),
        };
        Tried {
            endpoint: Arc::clone(endpoint),
            hedge: *hedge,
            picked: *picked,
            breaker: trying.permit(*began),
            took: self.ended.since(*began),
            outcome: self.outcome,
            problem,
            next: None,
        }
    }
}

/// Makes a call.
pub(crate) async fn call<S, K, B, R>(
    shared: Arc<Shared<S>>,
    keep: K,
    request: Request<B>,
) -> Result<Response<Body<R>>, Error>
where
    K: Keep<B>,
    S: Service<Request<K::Sent>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    R: http_body::Body,
{
    let policy = shared.policy.clone();
    let (parts, body) = request.into_parts();
    let asked = headers::asked(policy.hooks(), &parts);
    let mut story = Story::begin(&policy, &parts);
    let mut place = match admit(&policy, &asked, &mut story).await {
        Ok(place) => place,
        Err(why) => {
            story.end(End::Refused, why);
            return Err(Error::refused(why));
        }
    };
    story.deadline(place.call().left(policy.now()));
    let kept = keep.keep(body, policy.config().retry.body_bytes_max as usize);
    let grpc = headers::is_grpc(&parts.headers);
    Driver::<S, K, B> { policy, shared, parts, kept, grpc, place, story, delivered: false }.tries().await
}

impl<S, K, B, R> Driver<S, K, B>
where
    K: Keep<B>,
    S: Service<Request<K::Sent>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    R: http_body::Body,
{
    /// Makes attempts until one is answered or no other may follow.
    async fn tries(mut self) -> Result<Response<Body<R>>, Error> {
        // What the caller is answered if no further attempt follows.
        let mut last: Option<Result<Response<R>, Failure>> = None;
        loop {
            let begun = match self.begin(false) {
                Ok(begun) => begun,
                Err(why) => return self.refuse(why, last),
            };
            let done = self.attempt_or_hedge(begun).await;
            self.delivered |= !done.outcome.undelivered;
            if done.outcome.succeeded() == Some(true) {
                return self.succeed(done);
            }
            // The policies hear of the end before they say what follows: this failure may have opened the breaker.
            let tried = self.story.listened().then(|| done.told());
            let Ended { about, sent, outcome, ended, .. } = done;
            about.trying.end(ended, &outcome);
            let next = if K::whole(&self.kept) || outcome.kind == policy::outcome::Kind::Cancelled {
                self.policy.route().next(ended, self.policy.draw(), self.place.call(), &outcome)
            } else {
                Next::GiveUp(Why::RetryBody { attempt: self.place.call().attempts().into() })
            };
            let (Next::Retry { why, .. } | Next::GiveUp(why)) = next;
            if let Some(tried) = tried {
                self.story.tried(|| Tried { next: Some(why), ..tried });
            }
            match next {
                Next::Retry { after, .. } => {
                    last = Some(sent);
                    tokio::time::sleep(after).await;
                }
                Next::GiveUp(why) => return self.give_up(why, sent),
            }
        }
    }

    /// Chooses an endpoint and takes what an attempt needs.
    fn begin(&mut self, hedge: bool) -> Result<Begun<S>, Why> {
        let endpoints = self.shared.endpoints();
        let (policy, now) = (&self.policy, self.policy.now());
        let call = self.place.call();
        let pick = policy.route().pick(now, policy.draw(), &endpoints.set, call)?;
        let attempt = policy.route().attempt_started(now, policy.draw(), call, &endpoints.set, pick.at)?;
        let (endpoint, timeout) = (Arc::clone(attempt.endpoint()), attempt.timeout);
        let trying = Trying::new(policy, &endpoints.set, attempt);
        let about = About { trying, endpoint, picked: pick.why, began: now, hedge };
        Ok(Begun { about, service: endpoints.service(pick.at), timeout })
    }

    /// The request as it is sent now.
    fn request(&mut self, timeout: Duration) -> Request<K::Sent> {
        let mut parts = self.parts.clone();
        let call = self.place.call();
        let left = call.left(self.policy.now()).map(|left| left.min(timeout));
        headers::mark(&mut parts, call.attempt_to_send(), left);
        Request::from_parts(parts, K::sent(&mut self.kept))
    }

    fn send(
        &mut self,
        begun: Begun<S>,
    ) -> impl Future<Output = (About, Result<Response<R>, Unanswered>)> + use<S, K, B, R> {
        let request = self.request(begun.timeout);
        async move {
            let Begun { about, mut service, timeout } = begun;
            let sent = tokio::time::timeout(timeout, async move {
                poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| Unanswered::NotReady(error.into()))?;
                service.call(request).await.map_err(|error| Unanswered::Error(error.into()))
            });
            (about, sent.await.unwrap_or(Err(Unanswered::TimedOut)))
        }
    }

    /// What an attempt that has ended means.
    fn judge(&self, (about, sent): (About, Result<Response<R>, Unanswered>)) -> Ended<R> {
        let ended = self.policy.now();
        let broken = K::broken(&self.kept);
        let (sent, outcome, open) = match sent {
            Ok(response) => {
                let (outcome, open) = headers::judge(response.status().as_u16(), response.headers(), self.grpc);
                (Ok(response), outcome, open)
            }
            Err(Unanswered::TimedOut) => (Err(Failure::TimedOut), Outcome::timeout(), false),
            Err(Unanswered::NotReady(error)) => {
                let outcome = Outcome::unreached();
                (Err(Failure::Service(error, outcome)), outcome, false)
            }
            Err(Unanswered::Error(error)) => {
                let classify = self.policy.hooks().classify.as_ref();
                let outcome = match classify.and_then(|classify| classify(&*error)) {
                    _ if broken => Outcome::cancelled(),
                    Some(outcome) => outcome,
                    None => error::outcome(&*error),
                };
                (Err(Failure::Service(error, outcome)), outcome, false)
            }
        };
        Ended { about, sent, outcome, open, ended }
    }

    /// One attempt, and others beside it where the route hedges and the first is slow. What comes first and is good counts.
    async fn attempt_or_hedge(&mut self, begun: Begun<S>) -> Ended<R> {
        let now = self.policy.now();
        let hedging = self.policy.route().hedge(now, self.place.call()).ok();
        let first = self.send(begun);
        let Some(mut after) = hedging else {
            let sent = first.await;
            return self.judge(sent);
        };
        let mut running = vec![Box::pin(first)];
        let mut timer = Some(Box::pin(tokio::time::sleep(after)));
        loop {
            match turn(&mut running, &mut timer).await {
                Turn::Ended(at, sent) => {
                    drop(running.remove(at));
                    let ended = self.judge(sent);
                    // The others are dropped, which cancels them.
                    if ended.outcome.succeeded() == Some(true) || running.is_empty() {
                        return ended;
                    }
                    self.delivered |= !ended.outcome.undelivered;
                    self.story.tried(|| ended.told());
                    ended.about.trying.end(ended.ended, &ended.outcome);
                }
                Turn::Slow => {
                    timer = None;
                    let now = self.policy.now();
                    // Two can read a body only when all of it is here.
                    if !K::complete(&self.kept) || self.policy.route().hedge_now(now, self.place.call(), after).is_err()
                    {
                        continue;
                    }
                    let Ok(begun) = self.begin(true) else { continue };
                    running.push(Box::pin(self.send(begun)));
                    if let Ok(more) = self.policy.route().hedge(now, self.place.call()) {
                        after = more;
                        timer = Some(Box::pin(tokio::time::sleep(more)));
                    }
                }
            }
        }
    }

    fn succeed(mut self, done: Ended<R>) -> Result<Response<Body<R>>, Error> {
        self.story.tried(|| done.told());
        let Ended { about, sent, outcome, open, ended } = done;
        let Ok(mut response) = sent else { unreachable!("a failure is no success") };
        let attempts = self.place.call().attempts();
        let why = Why::RetryNeedless { attempt: attempts.into() };
        self.story.end(End::Answered(response.status().as_u16()), why);
        if attempts > 1 {
            response.extensions_mut().insert(Verdict { why, attempts, undelivered: false, spent: false });
        }
        let open = if open {
            Some((about.trying, ended))
        } else {
            about.trying.end(ended, &outcome);
            None
        };
        Ok(response.map(|body| Body::new(body, Held::new(self.place, open))))
    }

    /// No attempt may begin. Where one was answered before, that answer stands.
    fn refuse(mut self, why: Why, last: Option<Result<Response<R>, Failure>>) -> Result<Response<Body<R>>, Error> {
        match last {
            Some(sent) => self.give_up(why, sent),
            None => {
                self.story.end(End::Refused, why);
                Err(Error::refused(why))
            }
        }
    }

    /// The last attempt failed, and none follows.
    fn give_up(mut self, why: Why, sent: Result<Response<R>, Failure>) -> Result<Response<Body<R>>, Error> {
        let call = self.place.call();
        let (attempts, undelivered) = (call.attempts(), !self.delivered);
        let verdict = Verdict { why, attempts, undelivered, spent: call.mark_retried() && !undelivered };
        match sent {
            Ok(mut response) => {
                self.story.end(End::Answered(response.status().as_u16()), why);
                response.extensions_mut().insert(verdict);
                Ok(response.map(|body| Body::new(body, Held::new(self.place, None))))
            }
            Err(failure) => {
                self.story.end(End::Failed, why);
                Err(Error::failed(verdict, failure))
            }
        }
    }
}

/// An attempt without an answer.
enum Unanswered {
    TimedOut,
    NotReady(BoxError),
    Error(BoxError),
}

enum Turn<T> {
    /// Which of them, and with what.
    Ended(usize, T),
    /// None so far.
    Slow,
}

/// The first of these that ends, or the timer.
async fn turn<F: Future>(running: &mut [Pin<Box<F>>], timer: &mut Option<Pin<Box<Sleep>>>) -> Turn<F::Output> {
    poll_fn(|cx| {
        for (at, one) in running.iter_mut().enumerate() {
            if let Poll::Ready(ended) = one.as_mut().poll(cx) {
                return Poll::Ready(Turn::Ended(at, ended));
            }
        }
        match timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Turn::Slow),
            _ => Poll::Pending,
        }
    })
    .await
}
