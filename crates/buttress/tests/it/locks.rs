//! `buttress lock` against real nodes: one at a time, tokens that grow, a command that is stopped when the lock is lost.

use std::{path::Path, process::Child};

use super::support::*;

fn lock(args: &[&str], server: &str) -> Child {
    let mut command = buttress();
    command.args(["lock"]).args(&args[..2]).args(["--server", server]).args(&args[2..]);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command.spawn().unwrap()
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_lock_is_held_by_one_at_a_time_through_the_death_of_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 3);
    let leader = dev.leader(0);
    let server = dev.http((leader + 1) % 3);
    let file = dir.path().join("held");
    // Whoever holds it writes its token twice; in between nobody else may write.
    let job = format!("echo $BUTTRESS_LOCK_TOKEN >> {0}; sleep 0.3; echo $BUTTRESS_LOCK_TOKEN >> {0}", file.display());
    let holders: Vec<Child> =
        (0..5).map(|_| lock(&["run", "nightly", "--ttl", "10s", "--", "sh", "-c", &job], &server)).collect();
    until("the first holds it", || (!lines(&file).is_empty()).then_some(()));
    signal(node_process(dir.path(), &format!("node-{}", leader + 1)).expect("it runs"), "KILL");
    for holder in holders {
        let ended = holder.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let told = lines(&file);
    let tokens: Vec<u64> = told.iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(tokens.len(), 10);
    assert!(tokens.chunks(2).all(|pair| pair[0] == pair[1]), "two at once: {tokens:?}");
    assert!(tokens.chunks(2).is_sorted_by(|a, b| a[0] < b[0]), "a token did not grow: {tokens:?}");
    let nobody = run(&["lock", "who", "nightly", "--server", &server]);
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn exit_codes_queue_and_loss() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = dev.http(0);
    let own = lock(&["run", "a", "--", "sh", "-c", "exit 7"], &server).wait().unwrap();
    assert_eq!(own.code(), Some(7));

    let held = dir.path().join("held");
    let job = format!("trap 'echo term >> {0}; exit 0' TERM; echo held >> {0}; sleep 60 & wait", held.display());
    let holder = lock(&["run", "a", "--ttl", "2s", "--", "sh", "-c", &job], &server);
    until("it is held", || (lines(&held) == ["held"]).then_some(()));
    let other = lock(&["run", "a", "--wait", "200ms", "--", "true"], &server).wait_with_output().unwrap();
    assert_eq!(other.status.code(), Some(1), "{}", String::from_utf8_lossy(&other.stderr));
    assert!(String::from_utf8_lossy(&other.stderr).contains("waiting for a: 1 ahead"));
    let who = ok(&run(&["lock", "who", "a", "--server", &server]));
    assert_eq!(who.matches("holds").count(), 1, "{who}");

    // The node is gone, so the lease cannot be kept: the command is told before the lease ends.
    drop(dev);
    let ended = holder.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("[BT0120]"), "{said}");
    assert_eq!(lines(&held), ["held", "term"]);
}

#[test]
fn a_semaphore_lets_so_many_in() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), 1);
    let server = dev.http(0);
    let (file, go) = (dir.path().join("in"), dir.path().join("go"));
    let job = format!("echo in >> {}; while [ ! -e {} ]; do sleep 0.05; done", file.display(), go.display());
    let jobs: Vec<Child> =
        (0..3).map(|_| lock(&["semaphore", "pool", "--limit", "2", "--", "sh", "-c", &job], &server)).collect();
    let who = until("two hold it and one waits", || {
        let who = stdout(&run(&["lock", "who", "pool", "--limit", "2", "--server", &server]));
        (who.matches("waits").count() == 1 && lines(&file).len() == 2).then_some(who)
    });
    assert_eq!(who.matches("holds").count(), 2, "{who}");
    std::fs::write(&go, "").unwrap();
    for mut job in jobs {
        assert!(job.wait().unwrap().success());
    }
    assert_eq!(lines(&file).len(), 3);
}
