//! Leases, locks, elections.

use futures::{StreamExt, stream};

use super::*;
use crate::pb::{v3electionpb as election, v3lockpb as lock};

async fn grant(world: &World, ttl: i64, id: i64) -> Result<pb::LeaseGrantResponse, Status> {
    Ok(world.lease().lease_grant(pb::LeaseGrantRequest { ttl, id }).await?.into_inner())
}

async fn revoke(world: &World, id: i64) -> Result<(), Status> {
    world.lease().lease_revoke(pb::LeaseRevokeRequest { id }).await.map(drop)
}

#[tokio::test]
async fn leases_live_are_kept_alive_and_end() {
    let world = World::start().await;
    let chosen = grant(&world, 30, 0).await.unwrap();
    assert!(chosen.id > 0 && chosen.ttl == 30);
    let named = grant(&world, 1, 42).await.unwrap();
    assert_eq!((named.id, named.ttl), (42, 2), "the shortest is two seconds");
    assert_eq!(said(grant(&world, 30, 42).await), "FailedPrecondition etcdserver: lease already exists");
    assert_eq!(said(grant(&world, 9_000_000_001, 1).await), "OutOfRange etcdserver: too large lease TTL");
    assert_eq!(grant(&world, -5, -9).await.unwrap().id, -9);
    revoke(&world, -9).await.unwrap();

    for key in ["b", "a"] {
        let put = pb::PutRequest { key: bytes(key), lease: 42, ..Default::default() };
        world.kv().put(put).await.unwrap();
    }
    let ask = pb::LeaseTimeToLiveRequest { id: 42, keys: true };
    let seen = world.lease().lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((seen.ttl, seen.granted_ttl, seen.keys), (2, 2, vec![bytes("a"), bytes("b")]));
    let all = world.lease().lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
    let mut ids: Vec<i64> = all.leases.iter().map(|lease| lease.id).collect();
    ids.retain(|id| *id != chosen.id);
    assert_eq!((all.leases.len(), ids), (2, vec![42]));

    // Two leases on one stream; the one that is gone says so, and the stream goes on.
    world.local.advance(1500);
    let asks = [42, 77, 42].map(|id| pb::LeaseKeepAliveRequest { id });
    let answers = world.lease().lease_keep_alive(stream::iter(asks)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.map(|a| (a.id, a.ttl)).unwrap()).collect().await;
    assert_eq!(answers, [(42, 2), (77, 0), (42, 2)]);
    world.local.advance(1999);
    assert_eq!(world.lease().lease_time_to_live(ask).await.unwrap().into_inner().ttl, 0, "one millisecond");
    world.local.advance(1);
    let gone = world.lease().lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((gone.ttl, gone.granted_ttl, gone.keys.len()), (-1, 0, 0));
    let keys = pb::RangeRequest { key: bytes("a"), range_end: bytes("c"), ..Default::default() };
    assert_eq!(world.kv().range(keys).await.unwrap().into_inner().count, 0);
    assert_eq!(said(revoke(&world, 42).await), "NotFound etcdserver: requested lease not found");
}

#[tokio::test]
async fn a_lock_goes_from_one_to_the_next_in_the_order_they_came() {
    let world = World::start().await;
    for lease in 1..=3 {
        grant(&world, 60, lease).await.unwrap();
    }
    let request = |lease| lock::LockRequest { name: bytes("l"), lease };
    let first = world.lock().lock(request(1)).await.unwrap().into_inner();
    assert_eq!(first.key, bytes("l/1"));
    // Who has it gets it again.
    assert_eq!(world.lock().lock(request(1)).await.unwrap().into_inner().key, first.key);

    let mut client = world.lock();
    let second = tokio::spawn(async move { client.lock(request(2)).await });
    until_there(&world, "l/2").await;
    let mut client = world.lock();
    let third = tokio::spawn(async move { client.lock(request(3)).await });
    until_there(&world, "l/3").await;
    // The second goes away while it waits, and leaves the line at once.
    second.abort();
    until_gone(&world, "l/2").await;
    assert!(!third.is_finished());
    world.lock().unlock(lock::UnlockRequest { key: first.key }).await.unwrap();
    let third = soon("the lock", third).await.unwrap().unwrap().into_inner();
    assert_eq!(third.key, bytes("l/3"));

    // A holder that dies frees it.
    let mut client = world.lock();
    let fourth = tokio::spawn(async move { client.lock(request(1)).await });
    until_there(&world, "l/1").await;
    revoke(&world, 3).await.unwrap();
    assert_eq!(soon("the lock", fourth).await.unwrap().unwrap().into_inner().key, bytes("l/1"));

    assert_eq!(said(world.lock().lock(request(99)).await), "NotFound etcdserver: requested lease not found");
    // Without a lease the server brings one, of a minute.
    let own = world.lock().lock(lock::LockRequest { name: bytes("m"), lease: 0 }).await.unwrap().into_inner();
    world.local.advance(60_000);
    until_gone(&world, std::str::from_utf8(&own.key).unwrap()).await;
    let nothing = world.lock().unlock(lock::UnlockRequest::default()).await;
    assert_eq!(said(nothing), "InvalidArgument etcdserver: key is not provided");
}

#[tokio::test]
async fn who_loses_its_lease_in_line_does_not_get_the_lock() {
    let world = World::start().await;
    grant(&world, 60, 1).await.unwrap();
    grant(&world, 60, 2).await.unwrap();
    let request = |lease| lock::LockRequest { name: bytes("l"), lease };
    let first = world.lock().lock(request(1)).await.unwrap().into_inner();
    let mut client = world.lock();
    let second = tokio::spawn(async move { client.lock(request(2)).await });
    until_there(&world, "l/2").await;
    revoke(&world, 2).await.unwrap();
    world.lock().unlock(lock::UnlockRequest { key: first.key }).await.unwrap();
    let answer = soon("an answer", second).await.unwrap();
    assert_eq!(said(answer), "Unknown mutex: session is expired");
}

#[tokio::test]
async fn elections_have_one_leader_whose_words_are_observed() {
    let world = World::start().await;
    grant(&world, 60, 1).await.unwrap();
    grant(&world, 60, 2).await.unwrap();
    let name = || bytes("e");
    let campaign = move |lease, value: &str| election::CampaignRequest { name: name(), lease, value: bytes(value) };
    let ask = || election::LeaderRequest { name: name() };
    assert_eq!(said(world.election().leader(ask()).await), "Unknown election: no leader");
    let mut observed = world.election().observe(ask()).await.unwrap().into_inner();

    let one = world.election().campaign(campaign(1, "one")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!((one.key.clone(), one.lease), (bytes("e/1"), 1));
    let mut client = world.election();
    let two = tokio::spawn(async move { client.campaign(campaign(2, "two")).await });
    until_there(&world, "e/2").await;
    let heard = async |stream: &mut tonic::Streaming<election::LeaderResponse>| {
        let answer = soon("a word of the leader", stream.next()).await.unwrap().unwrap();
        String::from_utf8(answer.kv.unwrap().value.to_vec()).unwrap()
    };
    assert_eq!(heard(&mut observed).await, "one");
    let proclaim = |leader: &election::LeaderKey, value: &str| election::ProclaimRequest {
        leader: Some(leader.clone()),
        value: bytes(value),
    };
    world.election().proclaim(proclaim(&one, "one again")).await.unwrap();
    assert_eq!(heard(&mut observed).await, "one again");
    let leading = world.election().leader(ask()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!(leading.value, bytes("one again"));
    // The same lease campaigns with something else to say.
    world.election().campaign(campaign(1, "one, once more")).await.unwrap();
    assert_eq!(heard(&mut observed).await, "one, once more");

    let resign = election::ResignRequest { leader: Some(one.clone()) };
    world.election().resign(resign.clone()).await.unwrap();
    let two = soon("the next leader", two).await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!(two.key, bytes("e/2"));
    assert_eq!(heard(&mut observed).await, "two");
    assert_eq!(said(world.election().proclaim(proclaim(&one, "x")).await), "Unknown election: not leader");
    assert_eq!(said(world.election().resign(resign).await), "ok");
    let missing = world.election().proclaim(election::ProclaimRequest::default()).await;
    assert_eq!(said(missing), "Unknown \"leader\" field must be provided");
    // Its lease ends, and with it what it said.
    revoke(&world, 2).await.unwrap();
    assert_eq!(said(world.election().leader(ask()).await), "Unknown election: no leader");
}

async fn until_there(world: &World, key: &str) {
    count_is(world, key, 1).await;
}

async fn until_gone(world: &World, key: &str) {
    count_is(world, key, 0).await;
}

async fn count_is(world: &World, key: &str, wanted: i64) {
    soon(key, async {
        let request = || pb::RangeRequest { key: bytes(key), count_only: true, ..Default::default() };
        while world.kv().range(request()).await.expect("a read").into_inner().count != wanted {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
