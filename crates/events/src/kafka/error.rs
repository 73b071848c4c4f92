//! Our error codes as Kafka's, in one table.
//!
//! What a Kafka client does with an error is decided by its number: it retries, asks for metadata first, or gives up.
//! So the table maps by what the client should do next, and the text carries our code and hint.

use buttress_core::{Code, Error};
use buttress_wire::{kafka::ErrorCode, records::RecordError};

/// Code, Kafka's code, and what a client does with it.
const TABLE: &[(Code, ErrorCode)] = &[
    // Ask for metadata, then retry.
    (Code::NO_LEADER, ErrorCode::NOT_LEADER_OR_FOLLOWER),
    (Code::STOPPED, ErrorCode::NOT_LEADER_OR_FOLLOWER),
    (Code::TOPIC_UNKNOWN, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
    (Code::DISK, ErrorCode::KAFKA_STORAGE_ERROR),
    (Code::DISK_FULL, ErrorCode::KAFKA_STORAGE_ERROR),
    (Code::CORRUPT, ErrorCode::KAFKA_STORAGE_ERROR),
    // Retry.
    (Code::TIMEOUT, ErrorCode::REQUEST_TIMED_OUT),
    (Code::OVERLOADED, ErrorCode::REQUEST_TIMED_OUT),
    (Code::UNREACHABLE, ErrorCode::REQUEST_TIMED_OUT),
    // Give up on this batch or request.
    (Code::TOO_LARGE, ErrorCode::MESSAGE_TOO_LARGE),
    (Code::BATCH_INVALID, ErrorCode::CORRUPT_MESSAGE),
    (Code::RECORD_INVALID, ErrorCode::INVALID_RECORD),
    (Code::TOPIC_EXISTS, ErrorCode::TOPIC_ALREADY_EXISTS),
    (Code::TOPIC_INVALID, ErrorCode::INVALID_TOPIC_EXCEPTION),
    (Code::OFFSET_OUT_OF_RANGE, ErrorCode::OFFSET_OUT_OF_RANGE),
    (Code::SEQUENCE_GAP, ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER),
    (Code::EPOCH_STALE, ErrorCode::INVALID_PRODUCER_EPOCH),
    (Code::BAD_REQUEST, ErrorCode::INVALID_REQUEST),
    (Code::REFUSED, ErrorCode::INVALID_REQUEST),
    (Code::UNSUPPORTED, ErrorCode::INVALID_REQUEST),
    (Code::CONFIG, ErrorCode::INVALID_CONFIG),
];

/// An error as it goes into a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: ErrorCode,
    pub message: Option<String>,
}

impl Fault {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: super::message(message) }
    }
}

impl From<ErrorCode> for Fault {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let known = TABLE.iter().find(|(code, _)| *code == error.code);
        Self::new(known.map_or(ErrorCode::UNKNOWN_SERVER_ERROR, |(_, kafka)| *kafka), error.to_string())
    }
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        let code = match &error {
            RecordError::TooLarge(_) => ErrorCode::MESSAGE_TOO_LARGE,
            RecordError::Codec(_) => ErrorCode::UNSUPPORTED_COMPRESSION_TYPE,
            // A batch that is cut is no batch to Kafka either. It must not be called corrupt, for then clients send it again.
            RecordError::Length { stated, actual } if usize::try_from(*stated).is_ok_and(|stated| stated > *actual) => {
                ErrorCode::INVALID_RECORD
            }
            RecordError::Magic(_)
            | RecordError::Short(_)
            | RecordError::Count { .. }
            | RecordError::Record { .. }
            | RecordError::Trailing(_)
            | RecordError::Empty => ErrorCode::INVALID_RECORD,
            RecordError::Length { .. } | RecordError::Crc { .. } | RecordError::Packed(_) | RecordError::Bomb => {
                ErrorCode::CORRUPT_MESSAGE
            }
        };
        Self::new(code, Error::from(error).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_stands_in_the_table_twice() {
        for (at, (code, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[at + 1..].iter().all(|(other, _)| other != code), "{code} is mapped twice");
        }
    }

    #[test]
    fn every_code_that_the_log_gives_is_mapped() {
        for code in [
            Code::NO_LEADER,
            Code::TIMEOUT,
            Code::STOPPED,
            Code::REFUSED,
            Code::TOO_LARGE,
            Code::OVERLOADED,
            Code::DISK,
            Code::DISK_FULL,
            Code::TOPIC_UNKNOWN,
            Code::TOPIC_EXISTS,
            Code::TOPIC_INVALID,
            Code::BATCH_INVALID,
            Code::OFFSET_OUT_OF_RANGE,
        ] {
            assert_ne!(Fault::from(Error::new(code, "x")).code, ErrorCode::UNKNOWN_SERVER_ERROR, "{code}");
        }
        assert_eq!(Fault::from(Error::new(Code::TRAPPED, "x")).code, ErrorCode::UNKNOWN_SERVER_ERROR);
    }
}
