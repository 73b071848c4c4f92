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
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{AuthenticateRequest, auth_client::AuthClient},
};
use http::{HeaderValue, uri::Scheme};
use tokio::time::timeout;
use tonic::Status;

use super::convert;
use crate::{
    patience::{Patience, lock},
    secure::{self, Connector, Dial, Roots, Tls, Trouble, User},
};

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
    /// No endpoint takes us, for reasons that do not go away: certificates, or who we are. Nothing was sent.
    Refused(Error),
}

/// How the endpoints of an etcd are reached.
pub(super) struct Endpoints {
    addresses: Vec<String>,
    connector: Connector,
    user: Option<User>,
    cleartext: bool,
    current: Mutex<Current>,
    pub(super) deadline: Duration,
}

struct Current {
    at: usize,
    channel: Option<(Channel, Trouble)>,
}

impl Endpoints {
    /// # Errors
    /// `CONFIG` for a list that cannot be used.
    pub(super) fn new(
        list: &[String],
        tls: Option<Tls>,
        user: Option<User>,
        cleartext: bool,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let config = |message: String| Error::new(Code::CONFIG, message);
        if list.is_empty() || list.len() > ENDPOINTS_MAX {
            let message = format!("{} endpoints of an etcd are given, 1 to {ENDPOINTS_MAX} can be", list.len());
            return Err(config(message).hint("give them as http://HOST:PORT, separated by commas"));
        }
        let mut addresses = Vec::new();
        let (mut open, mut safe) = (false, tls.is_some());
        for endpoint in list {
            let address = endpoint.trim().trim_end_matches('/');
            let address = match (address.strip_prefix("http://"), address.strip_prefix("https://")) {
                (Some(address), _) => {
                    open = true;
                    address
                }
                (_, Some(address)) => {
                    safe = true;
                    address
                }
                _ => address,
            };
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.is_none_or(|port| port.parse::<u16>().is_err()) || address.contains(['/', '@', ' ']) {
                return Err(config(format!("endpoint '{endpoint}' is not an address")).hint("http://HOST:PORT"));
            }
            addresses.push(address.to_owned());
        }
        if open && safe {
            return Err(config("some endpoints are to be reached with TLS, and some without".into())
                .hint("write https:// before all of them"));
        }
        let tls = safe.then(|| tls.unwrap_or(Tls { roots: Roots::System, identity: None }));
        let connector = Connector::new(tls, &[b"h2"])?;
        if let Some(user) = &user {
            user.password()?;
        }
        let current = Mutex::new(Current { at: 0, channel: None });
        Ok(Self { addresses, connector, user, cleartext, current, deadline })
    }

    pub(super) fn addresses(&self) -> String {
        self.addresses.join(",")
    }

    /// The present connection, or a new one to the next endpoint that takes one, and which endpoint it is.
    ///
    /// # Errors
    /// Nobody could be connected to, or nobody takes us.
    pub(super) async fn channel(&self) -> Result<(usize, Channel, Trouble), Dial> {
        let start = {
            let current = lock(&self.current);
            match &current.channel {
                Some((channel, trouble)) if !channel.is_closed() => {
                    return Ok((current.at, channel.clone(), trouble.clone()));
                }
                _ => current.at,
            }
        };
        let (mut last, mut refused) = (None, None);
        for step in 0..self.addresses.len() {
            let at = (start + step) % self.addresses.len();
            match self.connect(&self.addresses[at]).await {
                Ok((channel, trouble)) => {
                    *lock(&self.current) = Current { at, channel: Some((channel.clone(), trouble.clone())) };
                    return Ok((at, channel, trouble));
                }
                Err(Dial::Unreachable(why)) => last = Some(why),
                Err(Dial::Refused(error)) => refused = Some(error),
            }
        }
        // One that is only down may take us later.
        Err(match (last, refused) {
            (None, Some(error)) => Dial::Refused(error),
            (Some(why), None) => Dial::Unreachable(why),
            (Some(why), Some(error)) => Dial::Unreachable(format!("{why}; {}", error.message)),
            (None, None) => Dial::Unreachable("no endpoint is known".into()),
        })
    }

    /// A connection to one endpoint, on which we are who we say that we are.
    async fn connect(&self, address: &str) -> Result<(Channel, Trouble), Dial> {
        let wire = self.connector.connect(address, CONNECT_MAX).await?;
        let trouble = wire.trouble();
        let scheme = if self.connector.is_secure() { Scheme::HTTPS } else { Scheme::HTTP };
        let late = |_| Dial::Unreachable(format!("{address}: no HTTP/2 in {CONNECT_MAX:?}"));
        let channel = timeout(CONNECT_MAX, Channel::over(wire, address, scheme)).await.map_err(late)?;
        let channel = channel.map_err(|error| match secure::tls_error(address, &error) {
            Some(error) => Dial::Refused(error),
            None => Dial::Unreachable(format!("{address}: {error}")),
        })?;
        let Some(user) = &self.user else { return Ok((channel, trouble)) };
        secure::check_cleartext(address, self.connector.is_secure(), self.cleartext).map_err(Dial::Refused)?;
        let password = user.password().map_err(Dial::Refused)?;
        let asked = AuthenticateRequest { name: user.name.clone(), password: password.text().to_owned() };
        let mut client = AuthClient::new(channel.clone());
        let late = |_| Dial::Unreachable(format!("{address}: no answer in {ATTEMPT_MAX:?}"));
        let token = match timeout(ATTEMPT_MAX, client.authenticate(asked)).await.map_err(late)? {
            Ok(answer) => answer.into_inner().token,
            // As etcd's own client does it: where nobody is asked who they are, nobody says so.
            Err(status) if status.message().contains("authentication is not enabled") => {
                return Ok((channel, trouble));
            }
            Err(status) => {
                return Err(match refused(address, &trouble).await {
                    Some(error) => Dial::Refused(error),
                    None if is_answer(&status) => {
                        let Error { code, message, hint, retryable } = convert::error(&status);
                        let message = format!("user '{}': {message}", user.name);
                        Dial::Refused(Error { code, message, hint, retryable })
                    }
                    None => Dial::Unreachable(format!("{address}: {}", status.message())),
                });
            }
        };
        let mut token = HeaderValue::try_from(token)
            .map_err(|_| Dial::Unreachable(format!("{address}: its token is none that can be sent")))?;
        token.set_sensitive(true);
        Ok((channel.with_token(token), trouble))
    }

    /// What was asked of this endpoint did not work: the next call goes to another.
    pub(super) fn leave(&self, at: usize) {
        let mut current = lock(&self.current);
        if current.at == at {
            *current = Current { at: (at + 1) % self.addresses.len(), channel: None };
        }
    }

    /// The token is not good any more: a new connection to the same endpoint gets a new one. Tokens end after five minutes
    /// without use, and when somebody changes users or roles.
    pub(super) fn forget(&self, at: usize) {
        let mut current = lock(&self.current);
        if current.at == at {
            current.channel = None;
        }
    }

    pub(super) fn is_stale(&self, status: &Status) -> bool {
        const STALE: [&str; 4] = [
            "invalid auth token",
            "revision of auth store is old",
            "revision in auth token is old",
            "user name is empty",
        ];
        self.user.is_some() && STALE.iter().any(|text| status.message().contains(text))
    }

    /// Why this endpoint refuses us for good, if that is why a call has failed.
    pub(super) async fn refusal(&self, at: usize, trouble: &Trouble) -> Option<Error> {
        match self.connector.is_secure() {
            true => refused(&self.addresses[at], trouble).await,
            false => None,
        }
    }

    /// One attempt on one endpoint.
    pub(super) async fn attempt<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Attempt>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let (at, channel, trouble) = self.channel().await.map_err(|dial| match dial {
            Dial::Unreachable(why) => Attempt::NotSent(why),
            Dial::Refused(error) => Attempt::Fault(Fault::Refused(error)),
        })?;
        let fault = match timeout(ATTEMPT_MAX, call(channel)).await {
            Ok(Ok(answer)) => return Ok(answer),
            // Whoever is not known is refused before anything is done.
            Ok(Err(status)) if self.is_stale(&status) => {
                self.forget(at);
                return Err(Attempt::NotSent(format!("{}: {}", self.addresses[at], status.message())));
            }
            Ok(Err(status)) if is_answer(&status) => return Err(Attempt::Fault(Fault::Answer(status))),
            Ok(Err(status)) => match self.refusal(at, &trouble).await {
                Some(error) => Fault::Refused(error),
                None => Fault::Open(format!("{}: {}", self.addresses[at], status.message())),
            },
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
                Err(Attempt::Fault(fault @ (Fault::Answer(_) | Fault::Refused(_)))) => return Err(fault),
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

async fn refused(address: &str, trouble: &Trouble) -> Option<Error> {
    for _ in 0..16 {
        if let Some(error) = trouble.explain(address) {
            return Some(error);
        }
        // The task of the connection may not have come to its end yet.
        tokio::task::yield_now().await;
    }
    None
}

/// Whether etcd has decided. `Unavailable` may come after a proposal was made: "request timed out", "leader changed".
fn is_answer(status: &Status) -> bool {
    use tonic::Code as Grpc;
    !matches!(
        status.code(),
        Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Cancelled | Grpc::Unknown | Grpc::Internal | Grpc::Aborted
    )
}
