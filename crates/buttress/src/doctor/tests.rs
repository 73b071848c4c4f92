//! Judgements over made-up clusters, as a person reads them.

use expect_test::{Expect, expect};

use super::{Level, Observation, Observed, checks::Wish, examine};
use crate::vitals::{Digest, Files, LeaderSeen, Memory, Peer, Space, Vitals, Wal};

const NOW: u64 = 1_800_000_000_000;

/// Three voters on three hosts, the first leads, all well.
fn healthy() -> Observed {
    let member = |id: u64| {
        let vitals = Vitals {
            version: "0.1.0".into(),
            cluster_id: "c".into(),
            node: id,
            now_ms: NOW,
            up_ms: 3_600_000,
            leader: Some(1),
            term: 3,
            committed: 5_000,
            applied: 5_000,
            voters: vec![1, 2, 3],
            peers: if id == 1 {
                [2, 3].map(|id| Peer { id, matched: 5_000, active: true, snapshot: false }).into()
            } else {
                Vec::new()
            },
            leaders: vec![LeaderSeen { at_ms: NOW - 3_600_000, leader: Some(1), term: 3 }],
            wal: Wal { syncs: 4_000, sync_p50_us: 512, sync_p99_us: 2_048, queued_bytes: 0 },
            disk: Some(Space { total_bytes: 100 << 30, free_bytes: 60 << 30 }),
            memory: Some(Memory { resident_bytes: 90 << 20, total_bytes: 8 << 30, available_bytes: 5 << 30 }),
            files: Some(Files { open: 60, limit: 65_536 }),
            digests: (70..78).map(|n| Digest { from: 64 * n, to: 64 * n + 63, hash: format!("{n:016x}") }).collect(),
            ..Vitals::default()
        };
        let store = crate::vitals::Store { checkpoint_index: 4_900, ..Default::default() };
        Observation {
            id,
            name: format!("node-{id}"),
            peer: format!("10.0.0.{id}:7001"),
            http: format!("10.0.0.{id}:7380"),
            vitals: Some(Vitals { store, ..vitals }),
            error: None,
            clock: Some((id as f64, 2.0)),
        }
    };
    Observed { cluster_id: "c".into(), members: (1..=3).map(member).collect(), configured: None, now_ms: NOW }
}

fn vitals(observed: &mut Observed, node: usize) -> &mut Vitals {
    observed.members[node - 1].vitals.as_mut().expect("it answered")
}

fn silence(observed: &mut Observed, node: usize) {
    let member = &mut observed.members[node - 1];
    (member.vitals, member.clock, member.error) = (None, None, Some("connection refused".into()));
}

/// What is found beyond a healthy cluster.
fn check(change: impl FnOnce(&mut Observed), what_if: &[&str], expected: &Expect) {
    let mut observed = healthy();
    change(&mut observed);
    let wishes: Vec<Wish> = what_if.iter().map(|wish| Wish::parse(wish).unwrap()).collect();
    let findings = match examine(&observed, &wishes) {
        Ok(findings) => findings,
        Err(error) => return expected.assert_eq(&error.to_string()),
    };
    let shown = findings
        .iter()
        .filter(|finding| finding.level > Level::Ok)
        .map(|f| format!("{} {}: {}\n    -> {}\n", f.level.word(), f.id, f.evidence, f.remedy));
    expected.assert_eq(&shown.collect::<String>());
}

#[test]
fn a_healthy_cluster_has_no_finding_and_every_check_says_why() {
    check(|_| {}, &[], &expect![[""]]);
    let findings = examine(&healthy(), &[]).unwrap();
    let shown: String = findings.iter().map(|f| format!("{} {}: {}\n", f.id, f.check, f.evidence)).collect();
    expect![[r#"
        DOC-01 every member answers: 3 of 3
        DOC-02 all know one leader: node-1: node-1, node-2, node-3
        DOC-03 the number of voters: 3 voters: 1 may fail
        DOC-04 voters fail one by one: 1 of 3 voters are at 10.0.0.3: node-3
        DOC-05 clocks agree: node-3 is 2 ms ahead of node-1, give or take 4 ms
        DOC-06 disks sync quickly: p99 of an fsync since the start is at most: node-1 2.0 ms, node-2 2.0 ms, node-3 2.0 ms
        DOC-07 members keep up: at most 0 entries behind index 5000
        DOC-08 leaders stay: 0 changes of leader in 10 minutes, as node-3 saw it
        DOC-09 learners become voters: no learners
        DOC-10 disks have room: node-1 has 60.0 GiB of 100.0 GiB free; node-2 has 60.0 GiB of 100.0 GiB free; node-3 has 60.0 GiB of 100.0 GiB free
        DOC-11 there is memory left: node-1 takes 90.0 MiB, 5.0 GiB of 8.0 GiB are available; node-2 takes 90.0 MiB, 5.0 GiB of 8.0 GiB are available; node-3 takes 90.0 MiB, 5.0 GiB of 8.0 GiB are available
        DOC-12 file descriptors: node-1 has 60 of 65536 open; node-2 has 60 of 65536 open; node-3 has 60 of 65536 open
        DOC-13 no backlog: node-1 log 0 B, not filed 0 B, 100 entries behind the checkpoint; node-2 log 0 B, not filed 0 B, 100 entries behind the checkpoint; node-3 log 0 B, not filed 0 B, 100 entries behind the checkpoint
        DOC-14 one version runs: 0.1.0: node-1, node-2, node-3
        DOC-15 replicas are equal (STATE-1): 8 stretches of entries from 4480 to 4991 are equal wherever two members have them
        DOC-16 reads are as strong as needed: 0 linearizable and 0 serializable reads of keys since the start
        DOC-18 a step keeps the quorum: removing any one voter would be possible
    "#]].assert_eq(&shown);
}

#[test]
fn members_that_are_gone() {
    check(
        |o| silence(o, 3),
        &[],
        &expect![[r#"
        WARNING DOC-01: node-3 (connection refused); 2 of 3 voters answer, 2 are needed
            -> start it, or look at its log; a member whose disk is gone is replaced under a new id
    "#]],
    );
    check(
        |o| {
            silence(o, 2);
            silence(o, 3);
            vitals(o, 1).leader = None;
        },
        &[],
        &expect![[r#"
            CRITICAL DOC-01: node-2 (connection refused), node-3 (connection refused); 1 of 3 voters answer, 2 are needed
                -> start it, or look at its log; a member whose disk is gone is replaced under a new id
            CRITICAL DOC-02: no leader: node-1
                -> an election may be under way: look again; otherwise see that all voters reach each other's peer address
        "#]],
    );
}

#[test]
fn numbers_of_voters_and_where_they_are() {
    check(
        |o| {
            o.members.truncate(1);
            vitals(o, 1).voters = vec![1];
            vitals(o, 1).peers.clear();
        },
        &[],
        &expect![[r#"
            WARNING DOC-03: 1 voter: 0 may fail
                -> with one voter the loss of one disk loses everything since the last backup; have three
        "#]],
    );
    check(
        |o| {
            o.members.truncate(2);
            (1..=2).for_each(|node| vitals(o, node).voters = vec![1, 2]);
            vitals(o, 1).peers.truncate(1);
        },
        &[],
        &expect![[r#"
            WARNING DOC-03: 2 voters: 0 may fail
                -> an even number survives no more failures than one less; add one or remove one
        "#]],
    );
    check(
        |o| o.members.iter_mut().for_each(|m| m.http = format!("127.0.0.1:{}", m.id)),
        &[],
        &expect![[r#"
        info DOC-04: 3 of 3 voters are at 127.0.0.1: node-1, node-2, node-3
            -> a cluster on one machine is for trying things out: its disk, its kernel and its power fail at once
    "#]],
    );
    check(
        |o| o.members[1].http = "10.0.0.1:7381".into(),
        &[],
        &expect![[r#"
        WARNING DOC-04: 2 of 3 voters are at 10.0.0.1: node-1, node-2
            -> move voters to hosts that do not share power, disk or kernel, so that one failure leaves a quorum
    "#]],
    );
}

#[test]
fn clocks_disks_and_space() {
    check(
        |o| o.members[2].clock = Some((900.0, 3.0)),
        &[],
        &expect![[r#"
        WARNING DOC-05: node-3 is 899 ms ahead of node-1, give or take 5 ms
            -> run chrony or another NTP client on every node; the cluster's time follows the leader's clock
    "#]],
    );
    check(|o| o.members[2].clock = Some((900.0, 800.0)), &[], &expect![[""]]);
    check(
        |o| vitals(o, 1).wal.sync_p99_us = 262_144,
        &[],
        &expect![[r#"
        WARNING DOC-06: p99 of an fsync since the start is at most: node-1 262 ms, node-2 2.0 ms, node-3 2.0 ms
            -> give the log a disk of its own, or a better one; see who else writes with iotop
        WARNING DOC-06: the leader node-1 takes 262 ms, node-2 takes 2.0 ms
            -> hand leadership over: buttress cluster transfer node-2
    "#]],
    );
    check(
        |o| {
            vitals(o, 2).disk = Some(Space { total_bytes: 100 << 30, free_bytes: 1 << 30 });
            vitals(o, 3).disk = Some(Space { total_bytes: 100 << 30, free_bytes: 9 << 30 });
            vitals(o, 3).memory =
                Some(Memory { resident_bytes: 7 << 30, total_bytes: 8 << 30, available_bytes: 100 << 20 });
            vitals(o, 1).files = Some(Files { open: 1_000, limit: 1_024 });
            vitals(o, 2).files = Some(Files { open: 60, limit: 1_024 });
        },
        &[],
        &expect![[r#"
            CRITICAL DOC-10: node-2 has 1.0 GiB of 100.0 GiB free; node-3 has 9.0 GiB of 100.0 GiB free
                -> enlarge the disk, or shorten retention; a node whose disk is full stops itself
            WARNING DOC-11: node-3 takes 7.0 GiB, 100.0 MiB of 8.0 GiB are available
                -> give it more, or move other processes away; a node that swaps loses its leadership
            WARNING DOC-12: node-1 has 1000 of 1024 open; node-2 has 60 of 1024 open
                -> raise it: LimitNOFILE=65536 in the unit, or ulimit -n 65536 before the start
        "#]],
    );
}

#[test]
fn what_goes_on_between_the_members() {
    check(
        |o| {
            vitals(o, 2).applied = 100;
            vitals(o, 1).committed = 50_000;
            vitals(o, 1).applied = 50_000;
            vitals(o, 1).store.checkpoint_index = 49_000;
            vitals(o, 1).peers[0].snapshot = true;
            vitals(o, 1).peers[1].active = false;
        },
        &[],
        &expect![[r#"
            WARNING DOC-07: node-2 is 49900 entries behind and gets a snapshot, node-3 is 45000 entries behind
                -> look at its disk, processor and network; until it has caught up it counts for little if another fails
            WARNING DOC-07: the leader does not hear node-3, and we do
                -> see that the peer addresses are reachable between the nodes, in both directions
        "#]],
    );
    check(
        |o| {
            let leaders = |n: u64| LeaderSeen { at_ms: NOW - 1_000 * n, leader: Some(n % 3 + 1), term: 20 - n };
            vitals(o, 2).leaders = (0..6).rev().map(leaders).collect();
            vitals(o, 3).version = "0.2.0".into();
            vitals(o, 1).store.log_bytes = 300 << 20;
            vitals(o, 1).reads.linearizable = 5_000;
        },
        &[],
        &expect![[r#"
            WARNING DOC-08: 5 changes of leader in 10 minutes, as node-2 saw it
                -> a slow disk (DOC-06), an overloaded processor or a bad network makes leaders lose their followers
            WARNING DOC-13: node-1 log 300.0 MiB, not filed 0 B, 100 entries behind the checkpoint
                -> the disk does not keep up with what is written (DOC-06), or a follower is far behind (DOC-07)
            WARNING DOC-14: 0.1.0: node-1, node-2; 0.2.0: node-3
                -> finish the rolling upgrade; two versions are for the time of an upgrade only
            info DOC-16: 5000 linearizable and 0 serializable reads of keys since the start
                -> where an answer that is milliseconds old will do, consistency=serializable asks nobody
        "#]],
    );
    check(
        |o| {
            let mut learner = o.members[2].clone();
            (learner.id, learner.name, learner.http) = (4, "node-4".into(), "10.0.0.4:7380".into());
            learner.vitals.as_mut().unwrap().node = 4;
            o.members.push(learner);
            (1..=4).for_each(|node| vitals(o, node).learners = vec![4]);
        },
        &[],
        &expect![[r#"
            WARNING DOC-09: node-4 kept up for 10 minutes and is still no voter
                -> buttress cluster promote NAME, unless it is a learner on purpose
        "#]],
    );
    check(
        |o| vitals(o, 2).digests[3].hash = "bad".into(),
        &[],
        &expect![[r#"
        CRITICAL DOC-15: entries 4672 to 4735 wrote different things: node-1 0000000000000049, node-2 bad, node-3 0000000000000049
            -> stop the member that stands alone and replace it under a new id; keep its directory, and report it
    "#]],
    );
    check(
        |o| {
            let told = |id: u64| (id, format!("node-{id}"), format!("10.0.0.{id}:7380"));
            o.configured = Some(vec![told(1), told(2), (4, "node-4".into(), "10.0.0.4:1".into())]);
            vitals(o, 2).cluster_id = "other".into();
        },
        &[],
        &expect![[r#"
            CRITICAL DOC-01: at 10.0.0.2:7380 answers node 2 of cluster "other"
                -> correct the addresses in the members' list, or stop whoever listens there
            info DOC-17: only in the file: 4 at 10.0.0.4:1; only in the cluster: 3 at 10.0.0.3:7380
                -> members that joined later live in the log; correct the file where an address is wrong
        "#]],
    );
}

#[test]
fn looking_ahead_shows_the_arithmetic() {
    check(
        |_| {},
        &["remove=node-2"],
        &expect![[r#"
        info DOC-18: removing node-2: now 3 voters, 3 reachable, 2 needed: 1 may fail; then 2 voters, 2 reachable, 2 needed: none may fail
            -> it can be done, but 2 of 2 voters are reachable: none of them may fail then
    "#]],
    );
    check(
        |o| silence(o, 3),
        &["remove=node-2"],
        &expect![[r#"
        WARNING DOC-01: node-3 (connection refused); 2 of 3 voters answer, 2 are needed
            -> start it, or look at its log; a member whose disk is gone is replaced under a new id
        WARNING DOC-18: removing node-2: now 3 voters, 2 reachable, 2 needed: none may fail; then 2 voters, 1 reachable, 2 needed: nothing can commit
            -> it would be refused: it leaves 2 voters of whom 1 is reachable; a quorum is 2
    "#]],
    );
    check(
        |o| silence(o, 3),
        &["add=node-4", "remove=3"],
        &expect![[r#"
        WARNING DOC-01: node-3 (connection refused); 2 of 3 voters answer, 2 are needed
            -> start it, or look at its log; a member whose disk is gone is replaced under a new id
        info DOC-18: adding node-4 and removing 3: now 3 voters, 2 reachable, 2 needed: none may fail; then 3 voters, 3 reachable, 2 needed: 1 may fail (both sets must agree meanwhile)
            -> it can be done
    "#]],
    );
    check(
        |_| {},
        &["remove=node-9"],
        &expect![[r#"
        there is no member "node-9" [BT0701]

        hint: members: node-1, node-2, node-3"#]],
    );
    for wrong in ["remove", "remove=", "destroy=node-1"] {
        assert!(Wish::parse(wrong).is_err());
    }
}
