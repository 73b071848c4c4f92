//! A short run of `chaos consensus` on real processes: it holds, it says so, and it leaves nothing behind.

use super::support::*;

#[test]
fn a_short_run_holds_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("chaos.html");
    let output = buttress()
        .env("TMPDIR", dir.path())
        .args(["chaos", "consensus", "--minutes", "0.2", "--nodes", "3", "--network", "proxy", "--seed", "3"])
        .args(["--only", "kill-leader,cut-out", "--output", "json", "--report"])
        .arg(&page)
        .output()
        .expect("the binary was built for this test");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", stdout(&output), stderr(&output)));
    assert_eq!(report["violations"], serde_json::json!([]), "{}", stderr(&output));
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()));
    assert!(report["operations"].as_u64().unwrap() > 100, "{report}");
    let played: u64 = report["faults"].as_array().unwrap().iter().map(|fault| fault["times"].as_u64().unwrap()).sum();
    assert!(played > 0, "{report}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("everything held"));
    assert_eq!(processes_of(dir.path()), Vec::<u32>::new());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["chaos.html"]);
}

#[test]
fn a_fault_that_is_not_known_is_refused_with_those_that_are() {
    let refused = failed(&run(&["chaos", "consensus", "--only", "earthquake"]));
    assert!(
        refused.contains("there is no fault \"earthquake\" [BT0701]") && refused.contains("kill-leader"),
        "{refused}"
    );
}
