//! Plays the scripts of `testdata/` and compares what comes out. `UPDATE_EXPECT=1` writes it down instead.

use std::{fmt::Write as _, path::Path};

use crate::lab::Lab;

fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let script = std::fs::read_to_string(&path).expect("the script is there");
    let mut lab = Lab::default();
    let mut played = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(played, "{line}\n{}", lab.run(command).trim_end()).expect("a string takes everything");
            if played.ends_with("\n\n") {
                played.pop();
            }
        } else if line.starts_with('#') || line.is_empty() {
            writeln!(played, "{line}").expect("a string takes everything");
        }
    }
    expect_test::expect_file![path].assert_eq(&played);
}

#[test]
fn election() {
    play("election.txt");
}

#[test]
fn replication() {
    play("replication.txt");
}

#[test]
fn loss_of_leader() {
    play("loss_of_leader.txt");
}

#[test]
fn snapshot() {
    play("snapshot.txt");
}

#[test]
fn members() {
    play("members.txt");
}

#[test]
fn lost_tail() {
    play("lost_tail.txt");
}

#[test]
fn book() {
    play("book.txt");
}
