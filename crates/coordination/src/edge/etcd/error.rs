//! What a client is told when something fails: etcd's own codes and texts, for clients match on both.
//!
//! Source: etcd 3.7, `api/v3rpc/rpctypes/error.go`.

use buttress_core::{Code as Ours, Error, SubmitError, ledger::ClusterView, txn::TxnFault};
use tonic::{Code, Status};

macro_rules! texts {
    ($($name:ident = $code:ident, $text:literal;)*) => {$(
        pub const $name: Known = Known { code: Code::$code, text: $text };
    )*};
}

/// An error that etcd's clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub code: Code,
    pub text: &'static str,
}

impl From<Known> for Status {
    fn from(known: Known) -> Self {
        Self::new(known.code, known.text)
    }
}

texts! {
    EMPTY_KEY = InvalidArgument, "etcdserver: key is not provided";
    KEY_NOT_FOUND = InvalidArgument, "etcdserver: key not found";
    VALUE_PROVIDED = InvalidArgument, "etcdserver: value is provided";
    LEASE_PROVIDED = InvalidArgument, "etcdserver: lease is provided";
    TOO_MANY_OPS = InvalidArgument, "etcdserver: too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument, "etcdserver: duplicate key given in txn request";
    INVALID_SORT_OPTION = InvalidArgument, "etcdserver: invalid sort option";
    COMPACTED = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    LEASE_NOT_FOUND = NotFound, "etcdserver: requested lease not found";
    LEASE_EXISTS = FailedPrecondition, "etcdserver: lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange, "etcdserver: too large lease TTL";
    MEMBER_BAD_URLS = InvalidArgument, "etcdserver: given member URLs are invalid";
    PEER_URL_EXISTS = FailedPrecondition, "etcdserver: Peer URLs already exists";
    NOT_ENOUGH_STARTED =
        FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members";
    MEMBER_NOT_FOUND = NotFound, "etcdserver: member not found";
    MEMBER_NOT_LEARNER = FailedPrecondition, "etcdserver: can only promote a learner member";
    LEARNER_NOT_READY =
        FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    REQUEST_TOO_LARGE = InvalidArgument, "etcdserver: request is too large";
    TOO_MANY_REQUESTS = ResourceExhausted, "etcdserver: too many requests";
    ROOT_USER_NOT_EXIST = FailedPrecondition, "etcdserver: root user does not exist";
    USER_EMPTY = InvalidArgument, "etcdserver: user name is empty";
    USER_NOT_FOUND = FailedPrecondition, "etcdserver: user name not found";
    ROLE_EMPTY = InvalidArgument, "etcdserver: role name is empty";
    ROLE_NOT_FOUND = FailedPrecondition, "etcdserver: role name not found";
    AUTH_NOT_ENABLED = FailedPrecondition, "etcdserver: authentication is not enabled";
    NO_LEADER = Unavailable, "etcdserver: no leader";
    NOT_LEADER = FailedPrecondition, "etcdserver: not leader";
    STOPPED = Unavailable, "etcdserver: server stopped";
    TIMEOUT = Unavailable, "etcdserver: request timed out";
    UNHEALTHY = Unavailable, "etcdserver: unhealthy cluster";
    CORRUPT = DataLoss, "etcdserver: corrupt cluster";
    BAD_LEADER_TRANSFEREE = FailedPrecondition, "etcdserver: bad leader transferee";
    INVALID_DOWNGRADE_TARGET = InvalidArgument, "etcdserver: invalid downgrade target version";
    NO_INFLIGHT_DOWNGRADE = FailedPrecondition, "etcdserver: no inflight downgrade job";
    ELECTION_NO_LEADER = Unknown, "election: no leader";
    ELECTION_NOT_LEADER = Unknown, "election: not leader";
    LEADER_FIELD_MISSING = Unknown, "\"leader\" field must be provided";
    MUTEX_SESSION_EXPIRED = Unknown, "mutex: session is expired";
}

/// Why a watch was not created; etcd tells these in `cancel_reason`, without a code.
pub const DUPLICATE_WATCH_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
pub const EMPTY_WATCH_RANGE: &str = "mvcc: watcher range is empty";

/// What an error of the ledger is to a client of etcd.
pub fn status(error: &Error) -> Status {
    let known = match error.code {
        Ours::COMPACTED => COMPACTED,
        Ours::REVISION_FUTURE => FUTURE_REVISION,
        Ours::KEY_UNKNOWN => KEY_NOT_FOUND,
        Ours::LEASE_UNKNOWN => LEASE_NOT_FOUND,
        Ours::LEASE_EXISTS => LEASE_EXISTS,
        Ours::TOO_LARGE => REQUEST_TOO_LARGE,
        Ours::OVERLOADED => TOO_MANY_REQUESTS,
        Ours::NO_LEADER => NO_LEADER,
        Ours::TIMEOUT => TIMEOUT,
        Ours::STOPPED | Ours::REMOVED => STOPPED,
        Ours::DISK_FULL => NO_SPACE,
        Ours::CORRUPT => CORRUPT,
        Ours::MEMBER_UNKNOWN => MEMBER_NOT_FOUND,
        Ours::MEMBER_EXISTS => PEER_URL_EXISTS,
        Ours::QUORUM => NOT_ENOUGH_STARTED,
        Ours::LAGGING => LEARNER_NOT_READY,
        Ours::MEMBERS_BUSY => UNHEALTHY,
        Ours::OLD_MEMBER => return Status::failed_precondition(told(error)),
        Ours::UNSUPPORTED => return Status::unimplemented(told(error)),
        Ours::BAD_REQUEST => return Status::invalid_argument(told(error)),
        _ => return Status::unknown(told(error)),
    };
    known.into()
}

pub fn submit_status(error: SubmitError) -> Status {
    status(&error.into_error())
}

/// An error in one line, with its code and what would help.
fn told(error: &Error) -> String {
    match &error.hint {
        Some(hint) => format!("etcdserver: {} [{}]; {hint}", error.message, error.code),
        None => format!("etcdserver: {} [{}]", error.message, error.code),
    }
}

pub fn txn_status(fault: &TxnFault) -> Status {
    match fault {
        TxnFault::EmptyKey => EMPTY_KEY.into(),
        TxnFault::DuplicateKey(_) => DUPLICATE_KEY.into(),
        TxnFault::ValueProvided => VALUE_PROVIDED.into(),
        TxnFault::LeaseProvided => LEASE_PROVIDED.into(),
        // Nesting so deep is more than etcd's clients can need; to them it is the same complaint.
        TxnFault::TooDeep => TOO_MANY_OPS.into(),
    }
}

/// Refuses what needs a leader where the client asked for that and none is known.
pub fn require_leader(view: &ClusterView) -> Result<(), Status> {
    if view.leader.is_some() { Ok(()) } else { Err(NO_LEADER.into()) }
}
