//! Consumer groups over sockets: what the machine without IO does is in `testdata/groups`; here is what its host, the log and
//! the wire add.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use buttress_core::{
    BoxFuture, Consistency, Entry, Error, KeyRange, Ledger, LogId, NodeId, Receipt, Revision, Scope, Stream,
    SubmitError,
    entry::TopicSettings,
    ledger::{KeyValues, Watch},
};
use buttress_events::kafka::Options;
use buttress_state::local::{Fault, Local};
use buttress_wire::kafka::{
    ErrorCode, delete_groups::*, describe_groups::*, heartbeat::*, join_group::*, leave_group::*, list_groups::*,
    offset_commit::*, offset_delete::*, offset_fetch::*, produce::ProduceResponse, sync_group::*,
};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::watch;

use crate::support::{Client, Edge, batch, produce};

fn at_once() -> Options {
    Options { group_initial_rebalance_delay: Duration::ZERO, ..Options::default() }
}

/// A consumer's subscription, as clients write it: version 1, topics, user data.
fn subscription(topic: &str) -> Bytes {
    let mut bytes = vec![0, 1, 0, 0, 0, 1];
    bytes.extend((topic.len() as u16).to_be_bytes());
    bytes.extend(topic.as_bytes());
    bytes.extend([0xff; 4]);
    bytes.into()
}

fn join(group: &str, member: &str) -> JoinGroupRequest {
    JoinGroupRequest {
        group_id: group.into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 20_000,
        member_id: member.into(),
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: subscription("plant") }],
        ..JoinGroupRequest::default()
    }
}

fn sync(joined: &JoinGroupResponse, group: &str, parts: &[(&str, &[u8])]) -> SyncGroupRequest {
    let part = |(member, part): &(&str, &[u8])| SyncGroupRequestAssignment {
        member_id: (*member).into(),
        assignment: Bytes::copy_from_slice(part),
    };
    SyncGroupRequest {
        group_id: group.into(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        assignments: parts.iter().map(part).collect(),
        ..SyncGroupRequest::default()
    }
}

/// Joins alone, and takes everything.
async fn alone(client: &mut Client, version: i16, group: &str) -> JoinGroupResponse {
    let mut joined: JoinGroupResponse = client.ask(version, &join(group, "")).await;
    if joined.error_code == ErrorCode::MEMBER_ID_REQUIRED {
        joined = client.ask(version, &join(group, &joined.member_id)).await;
    }
    assert_eq!(joined.error_code, ErrorCode::NONE, "version {version}");
    let request = sync(&joined, group, &[(&joined.member_id, b"all")]);
    let synced: SyncGroupResponse = client.ask(version.min(5), &request).await;
    assert_eq!((synced.error_code, &synced.assignment[..]), (ErrorCode::NONE, &b"all"[..]));
    joined
}

async fn beat(client: &mut Client, group: &str, joined: &JoinGroupResponse) -> ErrorCode {
    let request = HeartbeatRequest {
        group_id: group.into(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        ..HeartbeatRequest::default()
    };
    let answer: HeartbeatResponse = client.ask(4, &request).await;
    answer.error_code
}

fn commit(group: &str, who: Option<&JoinGroupResponse>, offsets: &[(i32, i64, i32, &str)]) -> OffsetCommitRequest {
    let partition = |(index, offset, epoch, metadata): &(i32, i64, i32, &str)| OffsetCommitRequestPartition {
        partition_index: *index,
        committed_offset: *offset,
        committed_leader_epoch: *epoch,
        committed_metadata: Some((*metadata).into()),
    };
    OffsetCommitRequest {
        group_id: group.into(),
        generation_id_or_member_epoch: who.map_or(-1, |joined| joined.generation_id),
        member_id: who.map_or(String::new(), |joined| joined.member_id.clone()),
        topics: vec![OffsetCommitRequestTopic {
            name: "plant".into(),
            partitions: offsets.iter().map(partition).collect(),
        }],
        ..OffsetCommitRequest::default()
    }
}

async fn committed(client: &mut Client, version: i16, request: &OffsetCommitRequest) -> Vec<ErrorCode> {
    let answer: OffsetCommitResponse = client.ask(version, request).await;
    answer.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).collect()
}

/// What is committed, as `partition:offset@epoch"metadata"`.
async fn fetched(client: &mut Client, version: i16, group: &str, partitions: Option<&[i32]>) -> String {
    let mut request = OffsetFetchRequest::default();
    if version < 8 {
        let topic =
            |indexes: &[i32]| OffsetFetchRequestTopic { name: "plant".into(), partition_indexes: indexes.into() };
        request.group_id = group.into();
        request.topics = partitions.map(|indexes| vec![topic(indexes)]);
    } else {
        let topic =
            |indexes: &[i32]| OffsetFetchRequestTopics { name: "plant".into(), partition_indexes: indexes.into() };
        let topics = partitions.map(|indexes| vec![topic(indexes)]);
        request.groups = vec![OffsetFetchRequestGroup { group_id: group.into(), topics, ..Default::default() }];
    }
    let answer: OffsetFetchResponse = client.ask(version, &request).await;
    let mut lines = Vec::new();
    for p in answer.topics.iter().flat_map(|t| &t.partitions) {
        let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
        lines.push(format!("{}:{offset}@{epoch}{:?}", p.partition_index, p.metadata.as_ref().unwrap()));
    }
    for p in answer.groups.iter().flat_map(|g| &g.topics).flat_map(|t| &t.partitions) {
        let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
        lines.push(format!("{}:{offset}@{epoch}{:?}", p.partition_index, p.metadata.as_ref().unwrap()));
    }
    let error = answer.groups.first().map_or(answer.error_code, |group| group.error_code);
    if error.is_error() { error.to_string() } else { lines.join(" ") }
}

async fn filled(edge: &Edge, partitions: u32) -> Client {
    edge.local.create_topic("plant", partitions, TopicSettings::default());
    let mut client = edge.client().await;
    for partition in 0..partitions as i32 {
        let values = ["r"; 100];
        let _: ProduceResponse = client.ask(9, &produce("plant", vec![(partition, batch(&values))])).await;
    }
    client
}

#[tokio::test]
async fn a_group_in_every_version() {
    let edge = Edge::with(at_once()).await;
    let mut client = edge.client().await;
    for version in 0..=9 {
        let group = format!("g{version}");
        let joined = alone(&mut client, version, &group).await;
        assert_eq!((joined.generation_id, joined.leader == joined.member_id), (1, true));
        assert_eq!(joined.protocol_name.as_deref(), Some("range"));
        assert_eq!(joined.members.len(), 1);
        assert_eq!(joined.members[0].metadata, subscription("plant"));
        for version in 0..=4 {
            let request = HeartbeatRequest {
                group_id: group.clone(),
                generation_id: 1,
                member_id: joined.member_id.clone(),
                ..HeartbeatRequest::default()
            };
            let answer: HeartbeatResponse = client.ask(version, &request).await;
            assert_eq!(answer.error_code, ErrorCode::NONE);
        }
        let identity = MemberIdentity { member_id: joined.member_id.clone(), ..MemberIdentity::default() };
        let request = LeaveGroupRequest {
            group_id: group.clone(),
            member_id: if version < 3 { joined.member_id.clone() } else { String::new() },
            members: if version < 3 { Vec::new() } else { vec![identity] },
        };
        let left: LeaveGroupResponse = client.ask(version.min(5), &request).await;
        assert_eq!(left.error_code, ErrorCode::NONE);
        assert!(left.members.iter().all(|member| member.error_code == ErrorCode::NONE));
        assert_eq!(beat(&mut client, &group, &joined).await, ErrorCode::UNKNOWN_MEMBER_ID);
    }
    edge.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_join_is_said() {
    let edge = Edge::with(at_once()).await;
    let mut client = edge.client().await;
    let mut code = async |version, request: JoinGroupRequest| {
        let answer: JoinGroupResponse = client.ask(version, &request).await;
        answer.error_code
    };
    assert_eq!(code(3, join("", "")).await, ErrorCode::INVALID_GROUP_ID);
    assert_eq!(code(3, join(&"g".repeat(1_025), "")).await, ErrorCode::INVALID_GROUP_ID);
    for session_timeout_ms in [-1, 0, 5_999, 1_800_001] {
        let request = JoinGroupRequest { session_timeout_ms, ..join("g", "") };
        assert_eq!(code(3, request).await, ErrorCode::INVALID_SESSION_TIMEOUT);
    }
    assert_eq!(code(3, join("g", "nobody")).await, ErrorCode::UNKNOWN_MEMBER_ID);
    let none = JoinGroupRequest { protocols: Vec::new(), ..join("g", "") };
    assert_eq!(code(3, none).await, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
    let protocol = JoinGroupRequestProtocol { name: "p".into(), metadata: Bytes::new() };
    let many = JoinGroupRequest { protocols: vec![protocol; 65], ..join("g", "") };
    assert_eq!(code(3, many).await, ErrorCode::INVALID_REQUEST);
    let metadata = Bytes::from(vec![0; 897 * 1024]);
    let protocols = vec![JoinGroupRequestProtocol { name: "p".into(), metadata }];
    let large = JoinGroupRequest { protocols, ..join("g", "") };
    assert_eq!(code(3, large).await, ErrorCode::GROUP_MAX_SIZE_REACHED);
    let instance = JoinGroupRequest { group_instance_id: Some("i".repeat(250)), ..join("g", "") };
    assert_eq!(code(5, instance).await, ErrorCode::INVALID_REQUEST);
    // Nothing of all this has left a group behind.
    let listed: ListGroupsResponse = client.ask(5, &ListGroupsRequest::default()).await;
    assert_eq!(listed.groups, []);
    // Nobody answers for a group but the leader.
    edge.local.elect(Some(NodeId(2)));
    let answer: JoinGroupResponse = client.ask(3, &join("g", "")).await;
    assert_eq!(answer.error_code, ErrorCode::NOT_COORDINATOR);
    assert_eq!(fetched(&mut client, 7, "g", Some(&[0])).await, "NOT_COORDINATOR");
    edge.stop().await;
}

#[tokio::test]
async fn two_members_share_a_topic() {
    let edge = Edge::with(at_once()).await;
    let mut a = filled(&edge, 2).await;
    let mut b = edge.client().await;
    let first = alone(&mut a, 3, "g").await;
    assert_eq!(
        committed(&mut a, 9, &commit("g", Some(&first), &[(0, 5, 1, ""), (1, 7, 1, "")])).await,
        [ErrorCode::NONE, ErrorCode::NONE]
    );

    // The second one waits for the first, which hears of it with its heartbeat.
    let asked = b.send(3, &join("g", "")).await;
    while beat(&mut a, "g", &first).await != ErrorCode::REBALANCE_IN_PROGRESS {
        tokio::task::yield_now().await;
    }
    let second: JoinGroupResponse = a.ask(3, &join("g", &first.member_id)).await;
    let (id, joined): (_, JoinGroupResponse) = b.receive(3).await;
    assert_eq!((id, joined.generation_id, second.generation_id), (asked, 2, 2));
    assert_eq!((joined.members.len(), second.members.len()), (0, 2), "the leader knows everybody");

    b.send(3, &sync(&joined, "g", &[])).await;
    let parts = [(&second.member_id[..], &b"zero"[..]), (&joined.member_id, b"one")];
    let synced: SyncGroupResponse = a.ask(3, &sync(&second, "g", &parts)).await;
    let (_, also): (_, SyncGroupResponse) = b.receive(3).await;
    assert_eq!((&synced.assignment[..], &also.assignment[..]), (&b"zero"[..], &b"one"[..]));

    // What the first generation says now is too late.
    let late = commit("g", Some(&first), &[(0, 3, 1, "")]);
    assert_eq!(committed(&mut a, 9, &late).await, [ErrorCode::ILLEGAL_GENERATION]);
    assert_eq!(fetched(&mut b, 9, "g", Some(&[0, 1])).await, r#"0:5@1"" 1:7@1"""#);
    edge.stop().await;
}

#[tokio::test]
async fn offsets_come_back_as_they_were_committed() {
    let edge = Edge::with(at_once()).await;
    let mut client = filled(&edge, 3).await;
    for version in 2..=9 {
        let group = format!("g{version}");
        let offsets = [(0, 10, 7, "note: with a colon"), (2, 100, -1, "")];
        let codes = committed(&mut client, version, &commit(&group, None, &offsets)).await;
        assert_eq!(codes, [ErrorCode::NONE, ErrorCode::NONE]);
        let epoch = if version < 6 { -1 } else { 7 };
        for fetch in 1..=9 {
            let epoch = if fetch < 5 { -1 } else { epoch };
            let all = format!(r#"0:10@{epoch}"note: with a colon" 1:-1@-1"" 2:100@-1"""#);
            assert_eq!(fetched(&mut client, fetch, &group, Some(&[0, 1, 2])).await, all);
            if fetch >= 2 {
                let known = format!(r#"0:10@{epoch}"note: with a colon" 2:100@-1"""#);
                assert_eq!(fetched(&mut client, fetch, &group, None).await, known);
            }
        }
    }
    assert_eq!(fetched(&mut client, 9, "unheard-of", None).await, "");
    assert_eq!(fetched(&mut client, 9, "unheard-of", Some(&[0, 9])).await, r#"0:-1@-1"" 9:-1@-1"""#);
    assert_eq!(fetched(&mut client, 9, "", None).await, "INVALID_GROUP_ID");

    // What stands against one partition does not hold the others up.
    let long = "x".repeat(4_097);
    let offsets =
        [(0, 50, 1, "good"), (1, 101, 1, ""), (2, 3, 1, &long[..]), (2, -1, 1, ""), (9, 1, 1, ""), (1, 100, 1, "end")];
    let codes = committed(&mut client, 9, &commit("g", None, &offsets)).await;
    assert_eq!(
        codes,
        [
            ErrorCode::NONE,
            ErrorCode::OFFSET_OUT_OF_RANGE,
            ErrorCode::OFFSET_METADATA_TOO_LARGE,
            ErrorCode::OFFSET_OUT_OF_RANGE,
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
            ErrorCode::NONE
        ]
    );
    assert_eq!(fetched(&mut client, 9, "g", None).await, r#"0:50@1"good" 1:100@1"end""#);
    assert_eq!(committed(&mut client, 9, &commit("", None, &offsets[..1])).await, [ErrorCode::INVALID_GROUP_ID]);

    // Several groups at once.
    let ask = |group: &str| OffsetFetchRequestGroup { group_id: group.into(), topics: None, ..Default::default() };
    let request = OffsetFetchRequest { groups: vec![ask("g"), ask("g2"), ask("none")], ..Default::default() };
    let answer: OffsetFetchResponse = client.ask(8, &request).await;
    let found: Vec<_> = answer.groups.iter().map(|g| (&g.group_id[..], g.topics.len())).collect();
    assert_eq!(found, [("g", 1), ("g2", 1), ("none", 0)]);

    // A topic that goes takes the offsets along, also where another of its name comes.
    let delete = buttress_core::TopicChange::Delete { name: "plant".into() };
    edge.local.apply(buttress_core::Entry { topics: vec![delete], ..Default::default() });
    edge.local.create_topic("plant", 3, TopicSettings::default());
    assert_eq!(fetched(&mut client, 9, "g", None).await, "");
    edge.stop().await;
}

#[tokio::test]
async fn a_change_of_leader_rebalances_nobody() {
    let edge = Edge::with(at_once()).await;
    let mut client = filled(&edge, 1).await;
    let joined = alone(&mut client, 9, "g").await;
    assert_eq!(committed(&mut client, 9, &commit("g", Some(&joined), &[(0, 9, 1, "")])).await, [ErrorCode::NONE]);

    // This node loses the lead and gets it back; the group is what the log has.
    edge.local.elect(Some(NodeId(2)));
    while beat(&mut client, "g", &joined).await != ErrorCode::NOT_COORDINATOR {
        tokio::task::yield_now().await;
    }
    edge.local.reopen();
    edge.local.elect(Some(NodeId(1)));
    while beat(&mut client, "g", &joined).await == ErrorCode::NOT_COORDINATOR {
        tokio::task::yield_now().await;
    }
    assert_eq!(beat(&mut client, "g", &joined).await, ErrorCode::NONE);
    let synced: SyncGroupResponse = client.ask(5, &sync(&joined, "g", &[])).await;
    assert_eq!((synced.error_code, &synced.assignment[..]), (ErrorCode::NONE, &b"all"[..]));
    assert_eq!(committed(&mut client, 9, &commit("g", Some(&joined), &[(0, 11, 1, "")])).await, [ErrorCode::NONE]);
    assert_eq!(fetched(&mut client, 9, "g", Some(&[0])).await, r#"0:11@1"""#);

    // One that joins while the lead goes is told to look for the coordinator.
    let mut other = edge.client().await;
    other.send(3, &join("g", "")).await;
    while beat(&mut client, "g", &joined).await != ErrorCode::REBALANCE_IN_PROGRESS {
        tokio::task::yield_now().await;
    }
    edge.local.elect(None);
    let (_, told): (_, JoinGroupResponse) = other.receive(3).await;
    assert_eq!(told.error_code, ErrorCode::NOT_COORDINATOR);
    edge.stop().await;
}

/// Two edges over one log, both of which believe that they lead: as when the old leader does not know yet.
#[tokio::test]
async fn a_coordinator_that_was_replaced_cannot_move_anything() {
    let old = Edge::with(at_once()).await;
    let mut at_old = filled(&old, 1).await;
    let joined = alone(&mut at_old, 3, "g").await;
    assert_eq!(committed(&mut at_old, 9, &commit("g", Some(&joined), &[(0, 10, 1, "")])).await, [ErrorCode::NONE]);

    let new = Edge::over(old.local.clone(), |deps| buttress_events::kafka::Deps { options: at_once(), ..deps }).await;
    let mut at_new = new.client().await;
    // The new one read the group when it began; its first member goes, another one comes.
    assert_eq!(beat(&mut at_new, "g", &joined).await, ErrorCode::NONE);
    let request = LeaveGroupRequest { group_id: "g".into(), member_id: joined.member_id.clone(), members: vec![] };
    let left: LeaveGroupResponse = at_new.ask(2, &request).await;
    assert_eq!(left.error_code, ErrorCode::NONE);
    let other = alone(&mut at_new, 3, "g").await;
    assert_eq!(committed(&mut at_new, 9, &commit("g", Some(&other), &[(0, 20, 1, "")])).await, [ErrorCode::NONE]);

    // The old one still knows the old member, but the log does not.
    assert_eq!(beat(&mut at_old, "g", &joined).await, ErrorCode::NONE);
    let late = committed(&mut at_old, 9, &commit("g", Some(&joined), &[(0, 11, 1, "")])).await;
    assert!(matches!(late[0], ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::COORDINATOR_LOAD_IN_PROGRESS), "{late:?}");
    assert_eq!(fetched(&mut at_new, 9, "g", Some(&[0])).await, r#"0:20@1"""#);
    old.stop().await;
    new.stop().await;
}

/// A ledger that keeps entries with cursors until it may let them go.
struct Slow {
    local: Arc<Local>,
    kept: watch::Sender<usize>,
    may_go: watch::Receiver<bool>,
}

impl Ledger for Slow {
    fn submit(&self, entry: Entry) -> BoxFuture<'_, Result<Receipt, SubmitError>> {
        Box::pin(async move {
            if !entry.cursors.is_empty() {
                self.kept.send_modify(|kept| *kept += 1);
                let _ = self.may_go.clone().wait_for(|may| *may).await;
            }
            self.local.submit(entry).await
        })
    }

    fn read(&self, range: KeyRange, limit: usize, how: Consistency) -> BoxFuture<'_, Result<KeyValues, Error>> {
        self.local.read(range, limit, how)
    }

    fn state(&self, space: &str, keys: Vec<Bytes>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, Error>> {
        self.local.state(space, keys)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        self.local.watch(range, from)
    }

    fn scope(&self) -> Scope {
        Ledger::scope(&*self.local)
    }
}

/// The old coordinator has sent a commit off and nobody has answered; the member goes on in its generation at the new one.
#[tokio::test]
async fn a_commit_that_an_earlier_coordinator_sent_off_does_not_take_the_group_back() {
    let first = Edge::with(at_once()).await;
    let mut at_first = filled(&first, 1).await;
    let joined = alone(&mut at_first, 3, "g").await;
    let (kept, mut keeps) = watch::channel(0);
    let (go, may_go) = watch::channel(false);
    let slow = Arc::new(Slow { local: first.local.clone(), kept, may_go });
    let over = |ledger: Arc<dyn Ledger>| {
        Edge::over(first.local.clone(), move |deps| buttress_events::kafka::Deps { ledger, options: at_once(), ..deps })
    };
    let old = over(slow).await;
    let mut at_old = old.client().await;
    let (member, late) = (joined.clone(), commit("g", Some(&joined), &[(0, 5, 1, "")]));
    let late = tokio::spawn(async move {
        let codes = committed(&mut at_old, 9, &late).await;
        (codes, at_old)
    });
    keeps.wait_for(|kept| *kept == 1).await.unwrap();

    let new = over(first.local.clone()).await;
    let mut at_new = new.client().await;
    assert_eq!(beat(&mut at_new, "g", &member).await, ErrorCode::NONE);
    assert_eq!(committed(&mut at_new, 9, &commit("g", Some(&member), &[(0, 9, 1, "")])).await, [ErrorCode::NONE]);
    go.send_replace(true);
    let (codes, _at_old) = late.await.unwrap();
    // Whoever still waits for it may send it again, if it still wants to; it is not done for him.
    let again = [ErrorCode::NOT_COORDINATOR, ErrorCode::COORDINATOR_LOAD_IN_PROGRESS];
    assert!(again.contains(&codes[0]), "{codes:?}");
    assert_eq!(fetched(&mut at_new, 9, "g", Some(&[0])).await, r#"0:9@1"""#);
    first.stop().await;
    old.stop().await;
    new.stop().await;
}

/// A save whose outcome is not known: the members are told to come again, and find the group as the log has it.
#[tokio::test]
async fn a_save_that_fails_is_not_believed() {
    let edge = Edge::with(at_once()).await;
    let mut client = edge.client().await;
    let timeout = buttress_core::Error::new(buttress_core::Code::TIMEOUT, "no quorum");
    for fault in [Fault::Lost(timeout.clone()), Fault::Unanswered(timeout)] {
        let was_saved = matches!(fault, Fault::Unanswered(_));
        let joined: JoinGroupResponse = client.ask(3, &join("g", "")).await;
        edge.local.fail_next(fault);
        let request = sync(&joined, "g", &[(&joined.member_id, b"all")]);
        let synced: SyncGroupResponse = client.ask(3, &request).await;
        assert_eq!(synced.error_code, ErrorCode::COORDINATOR_NOT_AVAILABLE);
        let mut code = ErrorCode::COORDINATOR_LOAD_IN_PROGRESS;
        while code == ErrorCode::COORDINATOR_LOAD_IN_PROGRESS {
            code = beat(&mut client, "g", &joined).await;
        }
        assert_eq!(code, if was_saved { ErrorCode::NONE } else { ErrorCode::UNKNOWN_MEMBER_ID });
    }
    edge.stop().await;
}

#[tokio::test]
async fn groups_are_listed_described_and_deleted() {
    let edge = Edge::with(at_once()).await;
    let mut client = filled(&edge, 2).await;
    let joined = alone(&mut client, 9, "live").await;
    committed(&mut client, 9, &commit("live", Some(&joined), &[(0, 1, 1, "")])).await;
    committed(&mut client, 9, &commit("offsets", None, &[(0, 1, 1, ""), (1, 2, 1, "")])).await;

    for version in 0..=5 {
        let answer: ListGroupsResponse = client.ask(version, &ListGroupsRequest::default()).await;
        let line =
            |g: &ListedGroup| format!("{} {:?} {:?} {:?}", g.group_id, g.protocol_type, g.group_state, g.group_type);
        let lines: Vec<_> = answer.groups.iter().map(line).collect();
        match version {
            5 => assert_eq!(lines, [r#"live "consumer" "Stable" "classic""#, r#"offsets "" "Empty" "classic""#]),
            4 => assert_eq!(lines, [r#"live "consumer" "Stable" """#, r#"offsets "" "Empty" """#]),
            _ => assert_eq!(lines, [r#"live "consumer" "" """#, r#"offsets "" "" """#]),
        }
    }
    let filter = ListGroupsRequest { states_filter: vec!["stable".into()], types_filter: vec!["Classic".into()] };
    let answer: ListGroupsResponse = client.ask(5, &filter).await;
    assert_eq!(answer.groups.len(), 1);

    for version in 0..=6 {
        let groups = vec!["live".into(), "offsets".into(), "gone".into()];
        let answer: DescribeGroupsResponse =
            client.ask(version, &DescribeGroupsRequest { groups, ..Default::default() }).await;
        let [live, offsets, gone] = &answer.groups[..] else { panic!("{answer:?}") };
        assert_eq!((&live.group_state[..], &live.protocol_data[..]), ("Stable", "range"));
        let member = &live.members[0];
        assert_eq!((&member.member_id, &member.client_host[..]), (&joined.member_id, "/127.0.0.1"));
        assert_eq!((&member.member_assignment[..], &member.member_metadata), (&b"all"[..], &subscription("plant")));
        assert_eq!((&offsets.group_state[..], offsets.members.len()), ("Empty", 0));
        let code = if version < 6 { ErrorCode::NONE } else { ErrorCode::GROUP_ID_NOT_FOUND };
        assert_eq!((&gone.group_state[..], gone.error_code), ("Dead", code));
    }

    // Offsets of topics that a living member reads stay.
    let mut forget = async |group: &str, partitions: &[i32]| {
        let partition = |index: &i32| OffsetDeleteRequestPartition { partition_index: *index };
        let partitions = partitions.iter().map(partition).collect();
        let topics = vec![OffsetDeleteRequestTopic { name: "plant".into(), partitions }];
        let answer: OffsetDeleteResponse = client.ask(0, &OffsetDeleteRequest { group_id: group.into(), topics }).await;
        let codes = answer.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).collect::<Vec<_>>();
        (answer.error_code, codes)
    };
    assert_eq!(forget("live", &[0]).await, (ErrorCode::NONE, vec![ErrorCode::GROUP_SUBSCRIBED_TO_TOPIC]));
    let codes = vec![ErrorCode::NONE, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION];
    assert_eq!(forget("offsets", &[0, 7]).await, (ErrorCode::NONE, codes));
    assert_eq!(forget("gone", &[0]).await, (ErrorCode::GROUP_ID_NOT_FOUND, vec![]));
    assert_eq!(fetched(&mut client, 9, "offsets", None).await, r#"1:2@1"""#);

    for version in 0..=2 {
        let groups_names = vec!["live".into(), "offsets".into(), String::new()];
        let answer: DeleteGroupsResponse = client.ask(version, &DeleteGroupsRequest { groups_names }).await;
        let codes: Vec<_> = answer.results.iter().map(|r| r.error_code).collect();
        let second = if version == 0 { ErrorCode::NONE } else { ErrorCode::GROUP_ID_NOT_FOUND };
        assert_eq!(codes, [ErrorCode::NON_EMPTY_GROUP, second, ErrorCode::INVALID_GROUP_ID]);
    }
    assert_eq!(fetched(&mut client, 9, "offsets", None).await, "");
    assert_eq!(edge.local.positions("kafka:offsets"), []);
    // A name that is free again begins anew.
    assert_eq!(committed(&mut client, 9, &commit("offsets", None, &[(1, 5, 1, "")])).await, [ErrorCode::NONE]);
    edge.stop().await;
}

/// A group of an edge is not a function's, whatever it is called.
#[tokio::test]
async fn a_group_cannot_touch_a_functions_cursor() {
    let edge = Edge::with(at_once()).await;
    let mut client = filled(&edge, 1).await;
    let log = LogId(1);
    let cursor = buttress_core::Cursor {
        group: "fn:judge".into(),
        log,
        next: buttress_core::Offset(3),
        metadata: String::new(),
    };
    edge.local.apply(buttress_core::Entry { cursors: vec![cursor], ..Default::default() });
    assert_eq!(committed(&mut client, 9, &commit("fn:judge", None, &[(0, 50, 1, "")])).await, [ErrorCode::NONE]);
    assert_eq!(edge.local.cursor("fn:judge", log), Some(buttress_core::Offset(3)));
    edge.stop().await;
}

#[derive(Clone, Debug)]
enum Deed {
    /// A client (of three) at one of two edges.
    Join(usize, usize),
    Commit(usize, usize, i64),
    Leave(usize, usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let place = || (0..3usize, 0..2usize);
    prop_oneof![
        2 => place().prop_map(|(who, edge)| Deed::Join(who, edge)),
        4 => (place(), 1..4i64).prop_map(|((who, edge), step)| Deed::Commit(who, edge, step)),
        1 => place().prop_map(|(who, edge)| Deed::Leave(who, edge)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// GROUP-1 with two edges that both believe that they coordinate. Members of a group of one each: whoever gets the whole
    /// topic reads where the group is and goes on from there, whether it is still its member or not. The group never goes
    /// back.
    #[test]
    fn offsets_never_go_back(deeds in proptest::collection::vec(deed(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let first = Edge::with(at_once()).await;
            let clients = filled(&first, 1).await;
            let second =
                Edge::over(first.local.clone(), |deps| buttress_events::kafka::Deps { options: at_once(), ..deps }).await;
            let mut ways = [clients, second.client().await];
            let mut duties: BTreeMap<usize, (JoinGroupResponse, i64)> = BTreeMap::new();
            let mut last = 0;
            for deed in deeds {
                match deed {
                    Deed::Join(who, edge) => {
                        let way = &mut ways[edge];
                        // Whoever is a member there leaves first, so that nobody waits for anybody.
                        let described: DescribeGroupsResponse =
                            way.ask(5, &DescribeGroupsRequest { groups: vec!["g".into()], ..Default::default() }).await;
                        for member in described.groups[0].members.clone() {
                            let request =
                                LeaveGroupRequest { group_id: "g".into(), member_id: member.member_id, members: vec![] };
                            let _: LeaveGroupResponse = way.ask(2, &request).await;
                        }
                        let request = JoinGroupRequest { rebalance_timeout_ms: 300, ..join("g", "") };
                        let joined: JoinGroupResponse = way.ask(3, &request).await;
                        if joined.error_code.is_error() {
                            continue;
                        }
                        let request = sync(&joined, "g", &[(&joined.member_id, b"all")]);
                        let synced: SyncGroupResponse = way.ask(3, &request).await;
                        if synced.error_code.is_error() {
                            continue;
                        }
                        let at = first.local.cursor("kafka:g", LogId(1)).map_or(0, |offset| offset.0);
                        duties.insert(who, (joined, at));
                    }
                    Deed::Commit(who, edge, step) => {
                        let Some((joined, at)) = duties.get_mut(&who) else { continue };
                        let next = (*at + step).min(100);
                        let codes =
                            committed(&mut ways[edge], 9, &commit("g", Some(joined), &[(0, next, 1, "")])).await;
                        if codes == [ErrorCode::NONE] {
                            *at = next;
                        }
                    }
                    Deed::Leave(who, edge) => {
                        let Some((joined, _)) = duties.get(&who) else { continue };
                        let member_id = joined.member_id.clone();
                        let request = LeaveGroupRequest { group_id: "g".into(), member_id, members: vec![] };
                        let _: LeaveGroupResponse = ways[edge].ask(2, &request).await;
                    }
                }
                let now = first.local.cursor("kafka:g", LogId(1)).map_or(0, |offset| offset.0);
                assert!(now >= last, "the group went back from {last} to {now}");
                last = now;
            }
            first.stop().await;
            second.stop().await;
        });
    }
}
