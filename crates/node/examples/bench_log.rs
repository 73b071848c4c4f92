//! What the log and the store cost against the bare disk: `cargo run --release -p buttress-node --example bench_log [DIR]`.
//!
//! Alternates rounds of a raw append + fdatasync loop, the write-ahead log, and log and store together, so that a disk
//! whose speed drifts treats all alike; prints the median of the rounds and the memory of an open, empty store.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use buttress_core::{Index, LogId, NodeId, Offset, Store, Term, TimeMs, WriteBatch, store::StoredBatch};
use buttress_node::{
    store::{self, DiskStore},
    wal::{Batch, DirDisk, Identity, LogEntry, Options, Wal},
};
use bytes::Bytes;

const ROUNDS: usize = 5;

fn identity() -> Identity {
    Identity { cluster_id: "bench".into(), node: NodeId(1) }
}

fn raw(dir: &Path, len: usize, count: usize) -> f64 {
    let mut file = File::create(dir.join("raw")).expect("the directory is writable");
    let data = vec![7u8; len];
    let started = Instant::now();
    for _ in 0..count {
        file.write_all(&data).expect("there is space");
        file.sync_data().expect("the disk syncs");
    }
    started.elapsed().as_secs_f64() / count as f64
}

/// The log, and the store too where there is one.
struct Log {
    wal: Wal,
    store: Option<DiskStore>,
    index: u64,
}

impl Log {
    fn run(&mut self, len: usize, count: usize) -> f64 {
        let data = Bytes::from(vec![7u8; len]);
        let mut batch = Batch::default();
        let clock = Instant::now();
        let started = Instant::now();
        for _ in 0..count {
            self.index += 1;
            let (index, term) = (Index(self.index), Term(1));
            batch.entry(0, &LogEntry { index, term, kind: 0, data: data.clone() });
            self.wal.commit(&mut batch).expect("there is space");
            batch.clear();
            if let Some(store) = &mut self.store {
                let offset = Offset(self.index as i64 - 1);
                store.write(WriteBatch {
                    index,
                    term,
                    appends: vec![StoredBatch {
                        log: LogId(1),
                        base_offset: offset,
                        last_offset: offset,
                        max_timestamp_ms: 0,
                        index,
                        committed_at: TimeMs(0),
                        bytes: data.clone(),
                    }],
                    ..WriteBatch::default()
                });
                if store.maybe_checkpoint(clock.elapsed().as_millis() as u64) {
                    let durable = Index(store.stats().checkpoint_index.load(Relaxed));
                    self.wal.forget_before(0, durable).expect("the disk works");
                }
            } else if self.index.is_multiple_of(100) {
                self.wal.forget_before(0, index).expect("the disk works");
            }
        }
        started.elapsed().as_secs_f64() / count as f64
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn main() {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("buttress-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory is writable");
    let before = resident_kib();
    let open = |name: &str, with_store: bool| {
        let disk = Arc::new(DirDisk::open(dir.join(name)).expect("the directory is free"));
        let (wal, _) = Wal::open(disk, identity(), Options::default()).expect("the log opens");
        let store = with_store.then(|| {
            DiskStore::open(dir.join(format!("{name}-store")), identity(), store::Options::default(), |_| {})
                .expect("the store opens")
        });
        Log { wal, store, index: 0 }
    };
    let mut both = open("both", true);
    println!("open and empty: {} KiB resident, {} KiB of them before", resident_kib(), before);
    let mut alone = open("alone", false);
    for (len, count) in [(4 * 1024, 400), (1024 * 1024, 100)] {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            times[0].push(raw(&dir, len, count));
            times[1].push(alone.run(len, count));
            times[2].push(both.run(len, count));
        }
        let [raw, wal, both] = times.map(median);
        let mib = len as f64 / 1024.0 / 1024.0;
        println!(
            "{:>5} KiB: raw {:.0} µs ({:.0} MiB/s) · log {:.0} µs, ratio {:.2} · log and store {:.0} µs, ratio {:.2}",
            len / 1024,
            raw * 1e6,
            mib / raw,
            wal * 1e6,
            raw / wal,
            both * 1e6,
            raw / both
        );
    }
    println!("after the run: {} KiB resident", resident_kib());
    drop((both, alone));
    let _ = std::fs::remove_dir_all(&dir);
}
