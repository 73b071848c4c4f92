//! The cache of machine code.

use std::{path::Path, sync::atomic::Ordering};

use buttress_core::Engine;
use buttress_engine::{Options, WasmEngine};

use crate::support::{State, built, grants, limits, run};

fn engine(dir: &Path, pooling: bool) -> WasmEngine {
    WasmEngine::new(Options { cache_dir: Some(dir.into()), pooling, ..Options::default() }).expect("an engine")
}

fn counts(engine: &WasmEngine) -> (u64, u64) {
    let counters = engine.counters();
    (counters.components_compiled.load(Ordering::Relaxed), counters.components_from_cache.load(Ordering::Relaxed))
}

fn works(engine: &WasmEngine) {
    let guest = engine.compile(&built("faulty"), &grants(), limits()).expect("a guest");
    let mut instance = guest.instance().expect("an instance");
    assert_eq!(run(&mut *instance, &["a"], &[], &mut State::default()).expect("it runs").outputs.len(), 1);
}

#[test]
fn a_component_is_compiled_once_and_damage_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = engine(dir.path(), true);
    works(&first);
    assert_eq!(counts(&first), (1, 0));
    let second = engine(dir.path(), true);
    works(&second);
    assert_eq!(counts(&second), (0, 1));

    let file = std::fs::read_dir(dir.path()).expect("the directory").next().expect("one file").expect("it").path();
    let mut bytes = std::fs::read(&file).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).expect("rot");
    let third = engine(dir.path(), true);
    works(&third);
    assert_eq!(counts(&third), (1, 0), "a rotten file is compiled again");
    std::fs::write(&file, &bytes[..20]).expect("a torn file");
    let fourth = engine(dir.path(), true);
    works(&fourth);
    assert_eq!(counts(&fourth), (1, 0), "a torn file is compiled again");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 1, "nothing temporary is left");
}

#[test]
fn instances_run_without_the_pool() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = engine(dir.path(), false);
    assert!(!engine.is_pooled());
    works(&engine);
}
