//! Consumer groups.
//!
//! The cluster's leader coordinates every group. What has to survive it is in the log: a group's last stable generation with
//! its members ([`record`]), and its offsets, which are cursors of the log's own. Everything else (who is just joining, whose
//! session ends when) is in the memory of one task per node ([`coordinator`]), which drives a machine without IO per group
//! ([`group`]). A new leader reads the records and goes on; members notice that their coordinator is another one, and no
//! rebalance.
//!
//! An offset moves only under the generation that the log holds: the entry guards on the revision of the group's record. So a
//! member that missed a rebalance, or a node that does not know yet that it leads no more, cannot take a group back (GROUP-1).
//!
//! | file | answers |
//! |---|---|
//! | [`membership`] | JoinGroup, SyncGroup, Heartbeat, LeaveGroup |
//! | [`offsets`] | OffsetCommit, OffsetFetch, OffsetDelete |
//! | [`admin`] | ListGroups, DescribeGroups, DeleteGroups |

pub(super) mod admin;
pub(super) mod coordinator;
mod group;
pub(super) mod membership;
pub(super) mod offsets;
mod record;
#[cfg(test)]
mod tests;

use buttress_core::{Code, SubmitError};
use buttress_wire::kafka::ErrorCode;

use super::error::Fault;

pub use group::MEMBERS_MAX;

/// Groups of a cluster; a record of a group without members takes a few dozen bytes.
pub const GROUPS_MAX: usize = 10_000;
/// Bytes of a group's name. With the prefix of its key it stays far below the limit of a key.
pub const GROUP_ID_BYTES_MAX: usize = 1_024;
/// Bytes of a group instance id, as of a topic's name.
pub const INSTANCE_ID_BYTES_MAX: usize = 249;
/// Bytes of a client id that are kept with a member; the rest is cut off.
pub const CLIENT_ID_BYTES_MAX: usize = 249;
/// Protocols that one member may bring; clients bring one to three.
pub const PROTOCOLS_MAX: usize = 64;
/// Session timeouts that members may ask for. Kafka's `group.min.session.timeout.ms` and `group.max.session.timeout.ms`.
pub const SESSION_MS: std::ops::RangeInclusive<i32> = 6_000..=1_800_000;
/// Bytes of the text that is committed with an offset. Kafka's `offset.metadata.max.bytes`.
pub const OFFSET_METADATA_BYTES_MAX: usize = 4_096;

/// A name that can be a group's.
fn check_group_id(group: &str) -> Result<(), ErrorCode> {
    if group.is_empty() || group.len() > GROUP_ID_BYTES_MAX { Err(ErrorCode::INVALID_GROUP_ID) } else { Ok(()) }
}

/// The group's name among the log's cursors, apart from those of functions.
fn cursor_group(group: &str) -> String {
    format!("kafka:{group}")
}

/// What a client is told when the log did not take what was to be done for its group: it looks for the coordinator again, and
/// comes back.
fn coordinator_fault(error: &SubmitError) -> ErrorCode {
    match error.code() {
        Code::NO_LEADER | Code::STOPPED | Code::REFUSED => ErrorCode::NOT_COORDINATOR,
        Code::TIMEOUT | Code::OVERLOADED | Code::UNREACHABLE => ErrorCode::COORDINATOR_NOT_AVAILABLE,
        _ => Fault::from(error.clone().into_error()).code,
    }
}

/// What decodes as a record encodes to the same again, and makes a group that can live.
pub(super) fn fuzz_record(bytes: bytes::Bytes) {
    let size = bytes.len();
    let Ok(record) = record::Record::decode(bytes) else { return };
    let encoded = record.encode();
    // Numbers may have been written longer than needed, so encoding may shorten, never lengthen.
    assert!(encoded.len() <= size);
    assert_eq!(record::Record::decode(encoded).as_ref(), Ok(&record));
    let mut group = group::Group::restore(group::Times { initial_delay_ms: 3_000 }, record, 0);
    for now in [0, 1_000_000, u64::MAX] {
        group.step(now, group::Input::Tick);
    }
    assert!(!group.is_gone());
}

pub(super) fn fuzz_subscription(bytes: &bytes::Bytes) {
    admin::names_topic(bytes, "plant");
}
