//! Members, maintenance, users.

use sha2::{Digest, Sha256};

use super::{super::bolt, *};

#[tokio::test]
async fn members_are_listed_and_only_what_fits_is_changed() {
    let world = World::start().await;
    let mut cluster = world.cluster();
    let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    let [member] = &list.members[..] else { panic!("one member: {:?}", list.members) };
    assert_eq!((member.id, member.name.as_str(), member.is_learner), (7, "seven", false));
    assert_eq!(member.peer_ur_ls, ["http://127.0.0.1:2380"]);
    assert_eq!(member.client_ur_ls, [format!("http://{}", world.address)]);

    let urls = |url: &str| vec![url.to_owned()];
    let add = pb::MemberAddRequest { peer_ur_ls: urls("http://10.0.0.4:2380"), is_learner: true };
    let said_of = said(cluster.member_add(add).await);
    assert!(said_of.starts_with("Unimplemented "), "{said_of}");
    // The way out is a command that can be run.
    let command = "buttress cluster join --name NAME --data-dir DIR --peer 10.0.0.4:2380 --learner --serve --server http://127.0.0.1:7380";
    assert!(said_of.ends_with(command), "{said_of}");
    let update = |id, url: &str| pb::MemberUpdateRequest { id, peer_ur_ls: urls(url) };
    let said_of = said(cluster.member_update(update(7, "http://10.0.0.4:2380")).await);
    assert!(said_of.contains("cluster replace seven --with NEW --server http://127.0.0.1:7380"), "{said_of}");
    let unknown = said(cluster.member_update(update(9, "http://10.0.0.4:2380")).await);
    assert_eq!(unknown, "NotFound etcdserver: member not found");
    let bad = "InvalidArgument etcdserver: given member URLs are invalid";
    assert_eq!(said(cluster.member_add(pb::MemberAddRequest::default()).await), bad);
    for url in ["", "10.0.0.4:2380", "http://10.0.0.4", "ftp://10.0.0.4:2380", "http://10.0.0.4:2380/path"] {
        assert_eq!(said(cluster.member_update(update(7, url)).await), bad, "{url}");
    }
    let remove = cluster.member_remove(pb::MemberRemoveRequest { id: 9 }).await;
    assert_eq!(said(remove), "NotFound etcdserver: member not found");
    let remove = cluster.member_remove(pb::MemberRemoveRequest { id: 7 }).await;
    let text = "FailedPrecondition etcdserver: re-configuration failed due to not enough started members";
    assert_eq!(said(remove), text);
    let promote = cluster.member_promote(pb::MemberPromoteRequest { id: 7 }).await;
    assert_eq!(said(promote), "FailedPrecondition etcdserver: can only promote a learner member");
    let promote = cluster.member_promote(pb::MemberPromoteRequest { id: 8 }).await;
    assert_eq!(said(promote), "NotFound etcdserver: member not found");
}

#[tokio::test]
async fn status_hashes_and_the_rest_of_maintenance() {
    let world = World::start().await;
    world.put("a", "1").await;
    let mut maintenance = world.maintenance();
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.0", "3.7.0"));
    assert_eq!((status.leader, status.raft_term, status.is_learner), (7, 2, false));
    assert!(status.raft_index > 0 && status.raft_applied_index > 0 && status.errors.is_empty());
    assert_eq!((status.db_size, status.db_size_in_use), (4096, 4096));
    assert_eq!(status.downgrade_info, Some(pb::DowngradeInfo::default()));

    let hash = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((hash.hash_revision, hash.compact_revision), (2, 0));
    world.put("a", "2").await;
    let then = maintenance.hash_kv(pb::HashKvRequest { revision: 2 }).await.unwrap().into_inner();
    assert_eq!(then.hash, hash.hash, "the past does not change");
    let now = maintenance.hash(pb::HashRequest {}).await.unwrap().into_inner();
    assert_ne!(now.hash, hash.hash);
    let future = maintenance.hash_kv(pb::HashKvRequest { revision: 99 }).await;
    assert_eq!(said(future), "OutOfRange etcdserver: mvcc: required revision is a future revision");

    assert!(maintenance.alarm(pb::AlarmRequest::default()).await.unwrap().into_inner().alarms.is_empty());
    assert_eq!(said(maintenance.defragment(pb::DefragmentRequest {}).await), "ok");
    assert_eq!(said(maintenance.move_leader(pb::MoveLeaderRequest { target_id: 7 }).await), "ok");
    let bad = maintenance.move_leader(pb::MoveLeaderRequest { target_id: 8 }).await;
    assert_eq!(said(bad), "FailedPrecondition etcdserver: bad leader transferee");
    world.local.elect(Some(NodeId(8)));
    let not = maintenance.move_leader(pb::MoveLeaderRequest { target_id: 7 }).await;
    assert_eq!(said(not), "FailedPrecondition etcdserver: not leader");
    let cancel = pb::DowngradeRequest { action: 2, version: String::new() };
    let none = "FailedPrecondition etcdserver: no inflight downgrade job";
    assert_eq!(said(maintenance.downgrade(cancel).await), none);
}

#[tokio::test]
async fn authentication_is_off_and_says_so() {
    let world = World::start().await;
    let mut auth = world.auth();
    let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
    assert!(!status.enabled);
    let login = pb::AuthenticateRequest { name: "root".into(), password: "x".into() };
    let off = "FailedPrecondition etcdserver: authentication is not enabled";
    assert_eq!(said(auth.authenticate(login).await), off);
    let enable = auth.auth_enable(pb::AuthEnableRequest {}).await;
    assert_eq!(said(enable), "FailedPrecondition etcdserver: root user does not exist");
    assert_eq!(said(auth.auth_disable(pb::AuthDisableRequest {}).await), "ok");
    assert!(auth.user_list(pb::AuthUserListRequest {}).await.unwrap().into_inner().users.is_empty());
    assert!(auth.role_list(pb::AuthRoleListRequest {}).await.unwrap().into_inner().roles.is_empty());
    let user = pb::AuthUserGetRequest { name: "root".into() };
    assert_eq!(said(auth.user_get(user).await), "FailedPrecondition etcdserver: user name not found");
    let role = pb::AuthRoleGetRequest { role: "root".into() };
    assert_eq!(said(auth.role_get(role).await), "FailedPrecondition etcdserver: role name not found");
    let user = pb::AuthUserAddRequest::default();
    assert_eq!(said(auth.user_add(user).await), "InvalidArgument etcdserver: user name is empty");
    let user = pb::AuthUserAddRequest { name: "root".into(), ..Default::default() };
    assert!(said(auth.user_add(user).await).starts_with("Unimplemented "));
}

#[tokio::test]
async fn a_snapshot_is_a_file_of_etcds_with_its_checksum_behind_it() {
    let world = World::start().await;
    for n in 0..200 {
        world.put(&format!("k/{n}"), &"v".repeat(1000)).await;
    }
    let mut pieces = world.maintenance().snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    // What comes later is not in it.
    world.put("later", "1").await;
    let (mut file, mut last, mut told) = (Vec::new(), None::<pb::SnapshotResponse>, Vec::new());
    while let Some(piece) = soon("a piece", pieces.message()).await.unwrap() {
        if let Some(before) = last.replace(piece) {
            file.extend_from_slice(&before.blob);
            told.push((file.len() as u64, before.remaining_bytes));
        }
    }
    assert!(told.iter().all(|(sent, left)| sent + left == file.len() as u64), "every piece says how much is left");
    let checksum = last.unwrap();
    assert_eq!((checksum.remaining_bytes, &checksum.blob[..]), (0, &Sha256::digest(&file)[..]));
    assert_eq!(bolt::reader::Reader::read(&file)["key"].len(), 200);
}

#[tokio::test]
async fn snapshots_that_nobody_takes_are_bounded_and_end() {
    let world = World::start().await;
    for n in 0..600 {
        world.put(&format!("k/{n}"), &"v".repeat(8000)).await;
    }
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(world.maintenance().snapshot(pb::SnapshotRequest {}).await.unwrap());
    }
    let third = world.maintenance().snapshot(pb::SnapshotRequest {}).await;
    assert_eq!(said(third), "ResourceExhausted etcdserver: too many requests");
    drop(running);
    // Their places are free again once the threads that read for them have seen it.
    soon("room", async {
        while world.maintenance().snapshot(pb::SnapshotRequest {}).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
