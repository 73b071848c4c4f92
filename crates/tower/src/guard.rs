//! What was begun is ended, also when the future of a call is dropped: the promises that the policies ask of a driver.
//!
//! | guard | dropped without a word |
//! |---|---|
//! | [`Queued`] | the ticket is given up; a place that it got meanwhile goes back |
//! | [`Place`] | the place goes back, and whoever waits for it is woken |
//! | [`Trying`] | the attempt was cancelled, which says nothing of the endpoint; a probe's place is free |

use std::sync::Arc;

use buttress_policy::{self as policy, Admit, Attempt, Call, EndpointSet, Outcome, Time, Why, Woken};
use tokio::sync::oneshot;

use crate::{policy_set::Policy, record::Story};

/// A call that was let in.
pub(crate) struct Place {
    policy: Policy,
    call: Option<Call>,
}

impl Place {
    pub fn call(&mut self) -> &mut Call {
        self.call.as_mut().expect("the call is there until the place is dropped")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.policy.done(call);
        }
    }
}

/// An attempt under way.
pub(crate) struct Trying {
    policy: Policy,
    set: Arc<EndpointSet>,
    attempt: Option<Attempt>,
}

impl Trying {
    pub fn new(policy: &Policy, set: &Arc<EndpointSet>, attempt: Attempt) -> Self {
        Self { policy: policy.clone(), set: Arc::clone(set), attempt: Some(attempt) }
    }

    /// Why the breaker let it through.
    pub fn permit(&self, at: Time) -> Option<Why> {
        self.policy.route().explain_permit(at, self.attempt.as_ref()?)
    }

    pub fn now(&self) -> Time {
        self.policy.now()
    }

    pub fn end(mut self, at: Time, outcome: &Outcome) {
        self.ended(at, outcome);
    }

    fn ended(&mut self, at: Time, outcome: &Outcome) {
        let Some(attempt) = self.attempt.take() else { return };
        let policy = &self.policy;
        policy.route().attempt_ended(at, policy.draw(), &self.set, attempt, outcome, |event| policy.event(&event));
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if self.attempt.is_some() {
            self.ended(self.policy.now(), &Outcome::cancelled());
        }
    }
}

/// A place in the queue.
struct Queued {
    policy: Policy,
    heard: oneshot::Receiver<Woken>,
    waits: Option<(policy::Ticket, Call)>,
}

impl Queued {
    fn take(&mut self) -> (policy::Ticket, Call) {
        self.waits.take().expect("a call waits once")
    }

    /// Waits no longer. Where it has a place by now, the call is handed over.
    fn give_up(&mut self) -> Result<Call, Why> {
        let (ticket, call) = self.take();
        self.policy.give_up(ticket, &mut self.heard).map(|()| call)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.waits.is_some()
            && let Ok(call) = self.give_up()
        {
            self.policy.done(call);
        }
    }
}

/// Asks for a place, and waits for it where there is a queue.
pub(crate) async fn admit(policy: &Policy, asked: &policy::Request, story: &mut Story) -> Result<Place, Why> {
    policy.hooks().cluster_limits()?;
    let place = |call| Place { policy: policy.clone(), call: Some(call) };
    let (call, ticket, until) = match policy.route().admit(policy.now(), asked) {
        Admit::Go(call, why) => {
            story.admitted(why);
            return Ok(place(call));
        }
        Admit::Refuse(why) => return Err(why),
        Admit::Wait { call, ticket, until, why } => {
            story.admitted(why);
            (call, ticket, until)
        }
    };
    let heard = policy.wait(ticket.0);
    let mut queued = Queued { policy: policy.clone(), heard, waits: Some((ticket, call)) };
    let end = policy.clock().instant(until);
    let call = match tokio::time::timeout_at(end, &mut queued.heard).await {
        Ok(Ok(Woken::In(_))) => queued.take().1,
        Ok(Ok(Woken::Out(_, why))) => {
            drop(queued.take());
            return Err(why);
        }
        // Its time is over. The other end of the channel lies with the policies until it is told.
        Ok(Err(_)) | Err(_) => queued.give_up()?,
    };
    let mut place = place(call);
    story.admitted(policy.route().resume(policy.now(), place.call())?);
    Ok(place)
}
