use std::collections::VecDeque;

use super::*;

/// A local log, as much of it as a lane sees.
#[derive(Default)]
struct Log {
    start: i64,
    batches: VecDeque<LocalBatch>,
    end: i64,
}

impl Log {
    fn append(&mut self, values: &[&[u8]]) {
        let mut builder = Builder::new();
        for value in values {
            builder.push(1_000, None, Some(value), &[(b"h", Some(b"v"))]);
        }
        let mut bytes = builder.build().expect("there are values").to_vec();
        bytes[..8].copy_from_slice(&self.end.to_be_bytes());
        let last = self.end + values.len() as i64 - 1;
        let batch =
            LocalBatch { base: Offset(self.end), last: Offset(last), max_timestamp_ms: 1_000, bytes: bytes.into() };
        self.batches.push_back(batch);
        self.end = last + 1;
    }

    fn trim(&mut self, before: i64) {
        self.start = before;
        self.batches.retain(|batch| batch.last.0 >= before);
    }

    fn bounds(&self) -> Bounds {
        Bounds { start: Offset(self.start), end: Offset(self.end) }
    }

    fn holding(&self, offset: Offset) -> Option<LocalBatch> {
        self.batches.iter().find(|batch| batch.base <= offset && offset <= batch.last).cloned()
    }

    fn read(&self, from: Offset) -> Result<(Bounds, Vec<LocalBatch>), Error> {
        if from.0 < self.start || from.0 > self.end {
            return Err(Error::new(Code::OFFSET_OUT_OF_RANGE, "not there"));
        }
        Ok((self.bounds(), self.batches.iter().filter(|batch| batch.last >= from).cloned().collect()))
    }
}

/// A target: what it has, and what it refuses.
struct Target {
    values: Vec<Vec<u8>>,
    gaps: Vec<Gap>,
    position: Option<(Offset, String)>,
    batch_bytes_max: usize,
}

impl Target {
    fn new() -> Self {
        Self { values: Vec::new(), gaps: Vec::new(), position: None, batch_bytes_max: usize::MAX }
    }

    fn commit(&mut self, parcel: &Parcel) -> Result<(), Error> {
        if parcel.batches.iter().any(|batch| batch.len() > self.batch_bytes_max) {
            return Err(Error::new(Code::TOO_LARGE, "too large"));
        }
        for batch in &parcel.batches {
            // A Kafka refuses anything else.
            assert_eq!(&batch[..8], [0; 8]);
            let records = BatchView::parse_stored(batch.clone()).unwrap().records().unwrap();
            self.values.extend(records.map(|record| {
                let record = record.unwrap();
                assert_eq!((record.timestamp_ms, record.headers.len()), (1_000, 1));
                record.value.unwrap().to_vec()
            }));
        }
        self.gaps.extend(parcel.gap);
        self.position = Some((parcel.position.next, parcel.position.text()));
        Ok(())
    }
}

fn settings() -> Settings {
    Settings {
        source: Source { edge: "e".into(), topic: "t".into(), partition: 0 },
        lineage: Lineage { topic: [7; 16], adopted: 0 },
        origin: Offset(0),
        parcel_bytes: 1_000_000,
        oversized: Oversized::Stop,
        known: None,
        seed: 3,
    }
}

/// Lets the lane go on until it has nothing to do, or for so many steps; says what it did.
fn run(lane: &mut Lane, log: &Log, target: &mut Target, now: &mut u64, steps: usize) -> Vec<&'static str> {
    let mut did = Vec::new();
    for _ in 0..steps {
        *now += 1;
        match lane.poll(TimeMs(*now)) {
            Action::Claim => {
                did.push("claim");
                lane.claimed(TimeMs(*now), Ok(target.position.clone()));
            }
            Action::Look { mark } => {
                did.push("look");
                lane.looked(TimeMs(*now), Ok((log.bounds(), mark.and_then(|offset| log.holding(offset)))));
            }
            Action::Read { from, .. } => {
                let found = log.read(from);
                let idle = found.as_ref().is_ok_and(|(_, batches)| batches.is_empty());
                lane.read(TimeMs(*now), found);
                if idle && lane.phase() == Phase::Reading {
                    did.push("idle");
                    return did;
                }
                did.push("read");
            }
            Action::Send(parcel) => {
                let outcome = target.commit(&parcel);
                did.push(if outcome.is_ok() { "sent" } else { "refused" });
                lane.sent(TimeMs(*now), outcome);
            }
            Action::Wait { until: Some(until) } => {
                did.push("wait");
                *now = until.0;
            }
            Action::Wait { until: None } => return did,
        }
    }
    did
}

#[test]
fn batches_are_forwarded_as_they_lie_there_and_the_position_goes_with_them() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a", b"b"]);
    log.append(&[b"c"]);
    let mut lane = Lane::new(settings());
    assert_eq!(run(&mut lane, &log, &mut target, &mut now, 100), ["claim", "look", "read", "sent", "idle"]);
    assert_eq!(target.values, [b"a", b"b", b"c"]);
    assert_eq!(lane.next(), Some(Offset(3)));
    expect_test::expect!["buttress-uplink/1 lineage=07070707070707070707070707070707.0 mark=2:"]
        .assert_eq(&target.position.as_ref().unwrap().1.rsplit_once(':').map(|(head, _)| format!("{head}:")).unwrap());
    // Another process goes on where this one was.
    log.append(&[b"d"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(target.values.len(), 4);
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_by_the_next_claim() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 3);
    let Action::Send(parcel) = lane.poll(TimeMs(now)) else { panic!("a parcel is due") };
    target.commit(&parcel).unwrap();
    lane.sent(TimeMs(now), Err(Error::new(Code::TIMEOUT, "no answer").retryable()));
    assert_eq!(lane.phase(), Phase::Waiting);
    assert_eq!(lane.trouble().unwrap().error.code, Code::TIMEOUT);
    assert_eq!(run(&mut lane, &log, &mut target, &mut now, 100), ["wait", "claim", "look", "idle"]);
    assert_eq!(target.values.len(), 1);
    assert!(lane.trouble().is_none());
}

#[test]
fn what_retention_took_is_told_in_the_commit_that_skips_it() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    for value in [b"a", b"b", b"c", b"d"] {
        log.append(&[value]);
    }
    log.trim(2);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(target.gaps, [Gap { from: Offset(0), to: Offset(2), reason: Reason::Retention }]);
    assert_eq!(target.values, [b"c", b"d"]);
    // Overtaken while it followed, and nothing left at all.
    log.append(&[b"e"]);
    log.append(&[b"f"]);
    log.trim(6);
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(target.gaps[1], Gap { from: Offset(4), to: Offset(6), reason: Reason::Retention });
    assert_eq!(target.position.as_ref().unwrap().0, Offset(6));
    assert_eq!((lane.tally().gaps, lane.tally().gap_records), (2, 4));
}

#[test]
fn retention_that_cuts_a_batch_leaves_its_rest() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a", b"b", b"c"]);
    log.trim(1);
    run(&mut Lane::new(settings()), &log, &mut target, &mut now, 100);
    assert_eq!(target.values, [b"b", b"c"]);
    assert_eq!(target.gaps, [Gap { from: Offset(0), to: Offset(1), reason: Reason::Retention }]);
}

#[test]
fn of_two_clones_the_one_that_sends_first_goes_on_and_the_other_is_told() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 100);
    let mut twin = Log { end: log.end, batches: log.batches.clone(), ..Log::default() };
    log.append(&[b"mine"]);
    twin.append(&[b"others"]);
    let mut clone = Lane::new(settings());
    run(&mut clone, &twin, &mut target, &mut now, 100);
    assert_eq!(target.values, [&b"a"[..], b"others"]);
    // The first one is fenced by the target, claims again, and finds another batch before the position.
    run(&mut lane, &log, &mut target, &mut now, 1);
    lane.sent(TimeMs(now), Err(Error::new(Code::EPOCH_STALE, "fenced")));
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(lane.phase(), Phase::Diverged);
    assert_eq!(lane.trouble().unwrap().error.code, Code::UPLINK_DIVERGED);
    assert_eq!(target.values.len(), 2);
}

#[test]
fn a_restored_gateway_sends_nothing_until_its_log_is_adopted() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    for value in [b"a", b"b", b"c"] {
        log.append(&[value]);
    }
    run(&mut Lane::new(settings()), &log, &mut target, &mut now, 100);
    // A backup of the time after the first record; then other records come.
    let mut restored = Log::default();
    restored.append(&[b"a"]);
    for value in [b"x", b"y", b"z"] {
        restored.append(&[value]);
    }
    let mut lane = Lane::new(settings());
    run(&mut lane, &restored, &mut target, &mut now, 100);
    assert_eq!(lane.phase(), Phase::Diverged);
    assert_eq!(target.values.len(), 3);
    let adopted = Settings { lineage: Lineage { adopted: 1, ..settings().lineage }, origin: Offset(1), ..settings() };
    run(&mut Lane::new(adopted.clone()), &restored, &mut target, &mut now, 100);
    assert_eq!(target.values, [b"a", b"b", b"c", b"x", b"y", b"z"]);
    // Once only: the position is of the new lineage now.
    run(&mut Lane::new(adopted), &restored, &mut target, &mut now, 100);
    assert_eq!(target.values.len(), 6);
    // And the lane of before is the one that is told.
    let mut old = Lane::new(settings());
    run(&mut old, &log, &mut target, &mut now, 100);
    assert_eq!(old.phase(), Phase::Diverged);
}

#[test]
fn what_is_too_large_is_cut_down_to_a_record_and_then_waited_for_or_told() {
    let large = vec![b'x'; 5_000];
    let small = vec![b'y'; 300];
    for oversized in [Oversized::Stop, Oversized::Gap] {
        let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
        target.batch_bytes_max = 1_000;
        log.append(&[&small]);
        log.append(&[&small, &small, &small, &small, &small]);
        log.append(&[&small, &large, &small]);
        log.append(&[&small]);
        let mut lane = Lane::new(Settings { oversized, ..settings() });
        run(&mut lane, &log, &mut target, &mut now, 300);
        match oversized {
            Oversized::Stop => {
                assert_eq!(target.values.len(), 7);
                let trouble = lane.trouble().unwrap();
                assert_eq!(trouble.error.code, Code::TOO_LARGE);
                assert!(trouble.error.hint.as_ref().unwrap().contains("--oversized gap"));
                // Whoever raises the limit gets all of it.
                target.batch_bytes_max = 10_000;
                run(&mut lane, &log, &mut target, &mut now, 300);
                assert_eq!((target.values.len(), target.gaps.len()), (10, 0));
            }
            Oversized::Gap => {
                assert_eq!(target.values, vec![small.clone(); 9]);
                assert_eq!(target.gaps, [Gap { from: Offset(7), to: Offset(8), reason: Reason::TooLarge }]);
            }
        }
    }
}

#[test]
fn a_batch_that_cannot_be_read_is_a_gap() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    log.append(&[b"b", b"c"]);
    log.append(&[b"d"]);
    log.batches[1].bytes = Bytes::from_static(b"rot");
    run(&mut Lane::new(settings()), &log, &mut target, &mut now, 100);
    assert_eq!(target.values, [b"a", b"d"]);
    assert_eq!(target.gaps, [Gap { from: Offset(1), to: Offset(3), reason: Reason::Unreadable }]);
}

#[test]
fn a_lane_waits_longer_each_time_and_no_longer_than_the_limit() {
    let mut lane = Lane::new(settings());
    let mut now = TimeMs(0);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        assert_eq!(lane.poll(now), Action::Claim);
        lane.claimed(now, Err(Error::new(Code::UNREACHABLE, "no link").retryable()));
        let Action::Wait { until: Some(until) } = lane.poll(now) else { panic!("it waits") };
        pauses.push(until.0 - now.0);
        now = until;
    }
    assert!(pauses[0] <= 100 && pauses.iter().all(|pause| (50..=15_000).contains(pause)), "{pauses:?}");
    assert!(pauses[19] >= 7_500);
    let trouble = lane.trouble().unwrap();
    assert_eq!((trouble.since, trouble.attempts), (TimeMs(0), 19));
    lane.claimed(now, Ok(None));
    assert_eq!(lane.phase(), Phase::Waiting);
    lane.retry();
    assert_eq!(lane.poll(now), Action::Claim);
}

#[test]
fn a_paused_lane_ends_what_is_on_its_way_and_begins_nothing() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 3);
    lane.pause(true);
    assert_eq!(run(&mut lane, &log, &mut target, &mut now, 100), ["sent"]);
    log.append(&[b"b"]);
    assert!(run(&mut lane, &log, &mut target, &mut now, 100).is_empty());
    assert_eq!(lane.phase(), Phase::Paused);
    lane.pause(false);
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(target.values.len(), 2);
}

#[test]
fn a_position_that_somebody_else_left_stops_the_lane() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    target.position = Some((Offset(0), "consumer".into()));
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!((lane.phase(), lane.trouble().unwrap().error.code), (Phase::Diverged, Code::UPLINK_POSITION));
}

#[test]
fn small_batches_are_put_together_and_large_ones_stay_as_they_are() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    let large = vec![b'x'; 20_000];
    for value in [b"a", b"b", b"c"] {
        log.append(&[value]);
    }
    log.append(&[&large]);
    log.append(&[b"d"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 3);
    let Action::Send(parcel) = lane.poll(TimeMs(now)) else { panic!("a parcel is due") };
    assert_eq!(parcel.batches.len(), 3);
    // As they lie there, but for where they begin.
    for (sent, kept) in parcel.batches[1..].iter().zip(log.batches.range(3..)) {
        assert_eq!((&sent[..8], &sent[16..]), (&[0; 8][..], &kept.bytes[16..]));
    }
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!(target.values, [&b"a"[..], b"b", b"c", &large, b"d"]);
}

#[test]
fn a_position_that_the_target_has_forgotten_is_not_taken_for_a_first_start() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    let mut lane = Lane::new(Settings { known: Some(Offset(1)), ..settings() });
    run(&mut lane, &log, &mut target, &mut now, 100);
    assert_eq!((lane.phase(), lane.trouble().unwrap().error.code), (Phase::Diverged, Code::UPLINK_POSITION));
    assert!(target.values.is_empty());
}

#[test]
fn an_idle_lane_commits_its_position_again_before_a_kafka_forgets_it() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    log.append(&[b"a"]);
    let mut lane = Lane::new(settings());
    run(&mut lane, &log, &mut target, &mut now, 100);
    now += REFRESH_MS;
    let left = target.position.take();
    assert_eq!(run(&mut lane, &log, &mut target, &mut now, 2), ["read", "sent"]);
    assert_eq!((target.position, target.values.len()), (left, 1));
}

#[test]
fn gaps_that_follow_each_other_do_not_hold_each_other_up() {
    let (mut log, mut target, mut now) = (Log::default(), Target::new(), 0);
    target.batch_bytes_max = 1_000;
    let large = vec![b'x'; 5_000];
    log.append(&[b"gone"]);
    log.append(&[&large, &large, b"a", &large]);
    log.append(&[&large]);
    log.append(&[b"b"]);
    log.trim(1);
    let mut lane = Lane::new(Settings { oversized: Oversized::Gap, ..settings() });
    run(&mut lane, &log, &mut target, &mut now, 300);
    assert_eq!(target.values, [b"a", b"b"]);
    let told: Vec<_> = target.gaps.iter().map(|gap| (gap.from.0, gap.to.0, gap.reason.text())).collect();
    assert_eq!(
        told,
        [(0, 1, "retention"), (1, 2, "too-large"), (2, 3, "too-large"), (4, 5, "too-large"), (5, 6, "too-large")]
    );
    // Whoever resumes here finds the batch before the position.
    assert!(lane.tally().claims > 4);
}
