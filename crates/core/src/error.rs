//! Errors that people and programs can act on: a stable code, what happened, and what would be right.

use std::fmt;

/// A stable error code. `docs/reference/errors/<code>.md` holds meaning, cause and remedy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub &'static str);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        impl Code {
            $(#[doc = $meaning] pub const $name: Code = Code($code);)*
            /// Every code with its one-line meaning, for the docs and for `explain`.
            pub const ALL: &'static [(Code, &'static str)] = &[$((Code($code), $meaning)),*];
        }
    };
}

codes! {
    // 01xx: the log and its cluster
    NO_LEADER = "BT0101", "no leader is known; the request may be retried";
    TIMEOUT = "BT0102", "the commit did not come within the deadline; its outcome is unknown";
    STOPPED = "BT0103", "this node is stopping";
    REFUSED = "BT0104", "a guard did not hold, so nothing of the entry was applied";
    TOO_LARGE = "BT0105", "the request is larger than a named limit";
    OVERLOADED = "BT0106", "a bounded queue is full; retry after a pause";
    WRONG_CLUSTER = "BT0107", "the data directory or peer belongs to another cluster";
    COMPACTED = "BT0108", "the history of keys before this revision is gone";
    LEASE_UNKNOWN = "BT0109", "there is no such lease, or it has ended";
    LEASE_EXISTS = "BT0110", "a lease of this id is alive";
    REMOVED = "BT0111", "this node was removed from the cluster";
    MEMBER_UNKNOWN = "BT0112", "the cluster has no member of this name or id";
    MEMBER_EXISTS = "BT0113", "a member of this name or address exists";
    MEMBERS_BUSY = "BT0114", "an earlier change of members is not finished";
    QUORUM = "BT0115", "the change would leave the cluster without a quorum";
    LAGGING = "BT0116", "the member has not caught up";
    REVISION_FUTURE = "BT0117", "the key space has not reached this revision";
    KEY_UNKNOWN = "BT0118", "there is no such key, whose value or lease was to be kept";
    OLD_MEMBER = "BT0119", "a member runs a version that cannot read this yet";
    LOCK_LOST = "BT0120", "the lock was lost while the command ran";
    // 02xx: disk
    DISK = "BT0201", "a disk operation failed and the node stopped";
    DISK_FULL = "BT0202", "the disk is full";
    CORRUPT = "BT0203", "stored bytes fail their checksum and are not a torn tail";
    FORMAT = "BT0204", "the data directory was written by a newer version";
    DIR_LOCKED = "BT0205", "another process uses the data directory";
    BACKUP_DAMAGED = "BT0206", "the backup is damaged or not complete";
    DIR_NOT_EMPTY = "BT0207", "the data directory of a restore holds something already";
    RESTORE_UNFINISHED = "BT0208", "a restore into the data directory did not finish";
    // 03xx: topics and records
    TOPIC_UNKNOWN = "BT0301", "there is no topic of this name";
    TOPIC_EXISTS = "BT0302", "a topic of this name exists";
    TOPIC_INVALID = "BT0303", "the topic's name or settings are not valid";
    BATCH_INVALID = "BT0304", "the record batch is malformed or fails its checksum";
    OFFSET_OUT_OF_RANGE = "BT0305", "the offset is not in the partition";
    SEQUENCE_GAP = "BT0306", "a sequence number was skipped; resend from the expected one";
    EPOCH_STALE = "BT0307", "a newer epoch of this producer exists";
    RECORD_INVALID = "BT0308", "the record's body is not what the topic expects";
    // 04xx: functions
    FUNCTION_UNKNOWN = "BT0401", "there is no function of this name";
    COMPONENT_INVALID = "BT0402", "the bytes are not a WebAssembly component";
    IMPORT_NOT_GRANTED = "BT0403", "the component imports what was not granted";
    EXPORT_MISSING = "BT0404", "the component lacks the export its trigger needs";
    TRAPPED = "BT0405", "the function trapped";
    DEADLINE = "BT0406", "the function ran past its deadline";
    MEMORY_LIMIT = "BT0407", "the function asked for more memory than its limit";
    FUNCTION_FAILED = "BT0408", "the function answered with an error";
    // 05xx: models
    MODEL_UNKNOWN = "BT0501", "there is no model of this name";
    MODEL_INVALID = "BT0502", "the bytes are not a model this node can evaluate";
    MODEL_SHAPE = "BT0503", "the input does not have the features the model expects";
    // 06xx: requests
    BAD_REQUEST = "BT0601", "the request is malformed";
    NOT_FOUND = "BT0602", "nothing is served at this path";
    METHOD = "BT0603", "the path does not take this method";
    UNSUPPORTED = "BT0604", "this part of the protocol is not served yet";
    // 07xx: configuration, command line and data
    CONFIG = "BT0701", "a configuration key or value is not valid";
    PORT_TAKEN = "BT0702", "the address is in use";
    DATA_FILE = "BT0703", "the data file cannot be played";
    LIMITS = "BT0704", "a limit of the operating system is too low";
    UNREACHABLE = "BT0705", "the server cannot be reached";
    TLS = "BT0706", "no safe connection can be agreed on";
    CREDENTIALS = "BT0707", "the server does not take the user or the password";
    FORBIDDEN = "BT0708", "the user may not do this";
    // 08xx: uplinks
    UPLINK_UNKNOWN = "BT0801", "there is no uplink of this name";
    UPLINK_EXISTS = "BT0802", "an uplink of this name exists";
    UPLINK_INVALID = "BT0803", "the uplink's settings are not valid";
    UPLINK_DIVERGED = "BT0804", "the target's position speaks of another log than this gateway has";
    UPLINK_POSITION = "BT0805", "the position in the target was not left there by an uplink";
    UPLINK_SECRET = "BT0806", "the uplink names a secret that is not for uplinks";
    // 09xx: traffic
    HTTP_MALFORMED = "BT0901", "the request is not HTTP as RFC 9110 and 9112 say";
    HTTP_AMBIGUOUS = "BT0902", "two readers could see different requests in these bytes";
    HTTP_HEAD_TOO_LARGE = "BT0903", "the request's head is larger than what is read";
    HTTP_HEAD_TIMEOUT = "BT0904", "the request's head did not come whole in time";
    HTTP_UNSUPPORTED = "BT0905", "the request asks for a part of HTTP that is not served";
    UPSTREAM_UNREACHABLE = "BT0906", "no connection to the upstream could be made";
    UPSTREAM_BROKE_OFF = "BT0907", "the upstream broke off before it answered";
    UPSTREAM_MALFORMED = "BT0908", "the upstream's answer is not HTTP";
    UPSTREAM_DEADLINE = "BT0909", "the upstream did not answer within the deadline";
    CLIENT_BROKE_OFF = "BT0910", "the client broke off in the middle of its request";
    UPSTREAM_FAILED = "BT0911", "the upstream itself answered with an error";
    UPSTREAM_CUT = "BT0912", "the upstream broke off in the middle of its answer";
    REQUEST_UNKNOWN = "BT0913", "no record of this request is kept";
    CLIENT_LEFT = "BT0914", "the client left before its answer began";
    ROUTE_NONE = "BT0920", "no route takes this request";
    ROUTES_INVALID = "BT0921", "routes cannot be carried out as they are written";
    FAULT_ON_PURPOSE = "BT0922", "the route fails this request on purpose";
    CALLER_UNKNOWN = "BT0923", "the request does not say who calls, and its route asks for it";
    CREDENTIALS_REFUSED = "BT0924", "what the request brings to say who calls is not good";
    CALLER_FORBIDDEN = "BT0925", "the caller is known, and may not do this";
    KEYS_UNREAD = "BT0926", "the keys that tokens are checked with were never read";
    // 10xx: resources
    YAML_MALFORMED = "BT1001", "the text is not YAML, or holds a part of YAML that is not taken";
    KIND_UNKNOWN = "BT1002", "there is no kind of resource of this name";
    FIELD_UNKNOWN = "BT1003", "the kind has no key of this name at this place";
    FIELD_TYPE = "BT1004", "the value is not what its key takes";
    FIELD_MISSING = "BT1005", "a key that the kind asks for is missing";
    RESOURCE_INVALID = "BT1006", "a value of the resource cannot be, or values do not go together";
    MATCH_CONFLICT = "BT1007", "another route asks for exactly the same requests";
    RESOURCE_CHANGED = "BT1008", "the resource was changed by somebody else since it was read";
    RESOURCE_UNKNOWN = "BT1009", "there is no resource of this kind and name";
    UPSTREAM_TLS = "BT0930", "the upstream and the proxy do not agree on TLS";
    CERTIFICATE = "BT0931", "a certificate or key cannot be used";
    TLS_EXPECTED = "BT0932", "HTTP without TLS came to a port of TLS";
}

/// What went wrong, whose code it has, whether trying again can help, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// Lower case, no full stop, with the offending value quoted.
    pub message: String,
    /// The command, key or value that helps.
    pub hint: Option<String>,
    pub retryable: bool,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, retryable: false }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
