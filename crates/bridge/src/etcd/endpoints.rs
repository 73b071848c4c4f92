//! The nodes of an etcd, and what is done when one does not answer.
//!
//! One connection at a time, to one endpoint; it stays there as long as that works. After a fault the next endpoint of the
//! list is tried, so that a node that is down, paused or cut off from the others costs one timeout. A connection that is
//! refused costs nothing.
//!
//! [`Endpoints::call`] repeats, until its deadline, what may be repeated: what changes nothing, and what its caller makes
//! recognisable. Between rounds over all endpoints it waits, longer each time.

use std::{sync::Mutex, time::Duration};

use buttress_core::{Code, Error};
use buttress_etcd_proto::client::Channel;
use tokio::time::timeout;
use tonic::Status;

use crate::patience::{Patience, lock};

/// Endpoints of one etcd. A cluster has seven voters at most, and a few learners.
pub const ENDPOINTS_MAX: usize = 32;
/// Connecting to one endpoint. A machine that is off does not refuse.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// One attempt of one call; the server gives up on a proposal after five seconds and an election timeout.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_secs(7);

/// What became of one attempt that did not succeed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// etcd has answered that it will not.
    Answer(Status),
    /// No answer, or one that leaves open what happened.
    Open(String),
}

pub(super) struct Endpoints {
    addresses: Vec<String>,
    current: Mutex<Current>,
    pub(super) deadline: Duration,
}

struct Current {
    at: usize,
    channel: Option<Channel>,
}

impl Endpoints {
    /// # Errors
    /// `CONFIG` for a list that cannot be used.
    pub(super) fn new(list: &[String], deadline: Duration) -> Result<Self, Error> {
        let config = |message: String| Error::new(Code::CONFIG, message);
        if list.is_empty() || list.len() > ENDPOINTS_MAX {
            let message = format!("{} endpoints of an etcd are given, 1 to {ENDPOINTS_MAX} can be", list.len());
            return Err(config(message).hint("give them as http://HOST:PORT, separated by commas"));
        }
        let mut addresses = Vec::new();
        for endpoint in list {
            let address = endpoint.trim().trim_end_matches('/');
            if address.starts_with("https://") {
                let error =
                    Error::new(Code::UNSUPPORTED, format!("endpoint '{endpoint}' wants TLS, which is not there yet"));
                return Err(
                    error.hint("reach the etcd through a local proxy that speaks TLS, over http://127.0.0.1:PORT")
                );
            }
            let address = address.strip_prefix("http://").unwrap_or(address);
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.is_none_or(|port| port.parse::<u16>().is_err()) || address.contains(['/', '@', ' ']) {
                return Err(config(format!("endpoint '{endpoint}' is not an address")).hint("http://HOST:PORT"));
            }
            addresses.push(address.to_owned());
        }
        Ok(Self { addresses, current: Mutex::new(Current { at: 0, channel: None }), deadline })
    }

    pub(super) fn addresses(&self) -> String {
        self.addresses.join(",")
    }

    /// The present connection, or a new one to the next endpoint that takes one, and which endpoint it is.
    ///
    /// # Errors
    /// Nobody could be connected to.
    pub(super) async fn channel(&self) -> Result<(usize, Channel), String> {
        let start = {
            let current = lock(&self.current);
            match &current.channel {
                Some(channel) if !channel.is_closed() => return Ok((current.at, channel.clone())),
                _ => current.at,
            }
        };
        let mut last = String::new();
        for step in 0..self.addresses.len() {
            let at = (start + step) % self.addresses.len();
            match timeout(CONNECT_MAX, Channel::connect(&self.addresses[at])).await {
                Ok(Ok(channel)) => {
                    *lock(&self.current) = Current { at, channel: Some(channel.clone()) };
                    return Ok((at, channel));
                }
                Ok(Err(error)) => last = format!("{}: {error}", self.addresses[at]),
                Err(_) => last = format!("{}: no connection in {CONNECT_MAX:?}", self.addresses[at]),
            }
        }
        Err(last)
    }

    /// What was asked of this endpoint did not work: the next call goes to another.
    pub(super) fn leave(&self, at: usize) {
        let mut current = lock(&self.current);
        if current.at == at {
            *current = Current { at: (at + 1) % self.addresses.len(), channel: None };
        }
    }

    /// One attempt on one endpoint.
    pub(super) async fn attempt<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Attempt>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let (at, channel) = self.channel().await.map_err(Attempt::NotSent)?;
        let fault = match timeout(ATTEMPT_MAX, call(channel)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) if is_answer(&status) => return Err(Attempt::Fault(Fault::Answer(status))),
            Ok(Err(status)) => Fault::Open(format!("{}: {}", self.addresses[at], status.message())),
            Err(_) => Fault::Open(format!("{}: no answer in {ATTEMPT_MAX:?}", self.addresses[at])),
        };
        self.leave(at);
        Err(Attempt::Fault(fault))
    }

    /// Repeats a call that may be repeated until it is answered, or the deadline has passed.
    ///
    /// # Errors
    /// etcd's own answer, or what was last in the way.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let mut patience = Patience::new(self.deadline);
        loop {
            let open = match self.attempt(&call).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Fault(Fault::Answer(status))) => return Err(Fault::Answer(status)),
                Err(Attempt::Fault(Fault::Open(why)) | Attempt::NotSent(why)) => why,
            };
            if !patience.pause().await {
                return Err(Fault::Open(open));
            }
        }
    }
}

/// What became of an attempt.
pub(super) enum Attempt {
    /// Nobody was there to send it to.
    NotSent(String),
    Fault(Fault),
}

/// Whether etcd has decided. `Unavailable` may come after a proposal was made: "request timed out", "leader changed".
fn is_answer(status: &Status) -> bool {
    use tonic::Code as Grpc;
    !matches!(
        status.code(),
        Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Cancelled | Grpc::Unknown | Grpc::Internal | Grpc::Aborted
    )
}
