//! The world itself: seeds pass, repeat bit for bit, and read well.

use buttress_sim::{Lines, Options, minimise::minimise, run_seed, schedule::Schedule, workload::ALL};
use expect_test::expect_file;

#[test]
fn seeds_pass() {
    for seed in 1..=10 {
        let outcome = run_seed(seed, &Options { lines: Lines::Last(40), ..Options::default() });
        let lines = outcome.lines.join("\n");
        assert_eq!(outcome.failure, None, "cargo xtask sim {seed}\n{lines}");
        assert!(outcome.counts["acknowledged"] > 0 && outcome.counts["converged"] == 1, "seed {seed} did nothing");
    }
}

#[test]
fn a_seed_repeats_bit_for_bit() {
    for seed in [3, 8] {
        let kept = run_seed(seed, &Options { lines: Lines::All, ..Options::default() });
        let again = run_seed(seed, &Options { lines: Lines::All, ..Options::default() });
        let silent = run_seed(seed, &Options::default());
        assert_eq!(kept.lines, again.lines);
        assert_eq!(kept.trace_hash, again.trace_hash);
        assert_eq!(kept.trace_hash, silent.trace_hash, "whether lines are kept makes no difference");
        assert_eq!(kept.counts, silent.counts);
    }
    assert_ne!(run_seed(3, &Options::default()).trace_hash, run_seed(4, &Options::default()).trace_hash);
}

#[test]
fn a_seed_that_does_not_fail_has_nothing_to_shrink() {
    assert!(minimise(1, &Options::default(), 10, |_| ()).is_none());
}

/// The event log of a small history, without the messages, and without the uplink, whose lane asks again and again.
#[test]
fn the_event_log_reads_well() {
    let seed = 1;
    let all = Schedule::draw(seed).faults.len();
    let options = Options {
        lines: Lines::All,
        without: (1..all).collect(),
        heal_at: Some(2_500_000),
        ops_max: Some(6),
        workloads: ALL.iter().map(|(name, ..)| *name).filter(|name| *name != "uplink").map(str::to_owned).collect(),
    };
    let outcome = run_seed(seed, &options);
    assert_eq!(outcome.failure, None);
    let quiet = |line: &&String| {
        let kind = line.split_whitespace().nth(2).unwrap_or_default();
        !["send", "take", "persist", "synced", "applied", "lost", "cut"].contains(&kind)
    };
    let shown: Vec<&str> = outcome.lines.iter().filter(quiet).map(String::as_str).collect();
    expect_file!["testdata/event_log.txt"].assert_eq(&(shown.join("\n") + "\n"));
}
