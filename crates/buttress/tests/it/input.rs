//! Wrong input: each is refused with a code and a hint before anything is started.

use std::path::Path;

use expect_test::{Expect, expect};

use super::support::*;

/// What a command that must fail says, with the directory's name left out.
fn says(args: &[&str], dir: &Path, expected: Expect) {
    let dir = format!("{}/", dir.display());
    expected.assert_eq(&failed(&run(args)).replace(&dir, ""));
}

#[test]
fn a_node_names_what_is_wrong_with_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let config = path.to_str().unwrap();
    let serve = ["serve", "--config", config];
    says(
        &serve,
        dir.path(),
        expect![[r#"
        error: cannot read "node.toml": No such file or directory (os error 2) [BT0701]

        hint: name a file with --config; `buttress dev` writes one for every node it starts
    "#]],
    );
    std::fs::write(&path, "[node]\nid = 1\ndata_dri = \"d\"\n").unwrap();
    says(
        &serve,
        dir.path(),
        expect![[r#"
        error: node.toml:3: unknown field `data_dri`, expected one of `id`, `data_dir`, `insecure`, `join` [BT0701]

        hint: did you mean "data_dir"?
    "#]],
    );
    std::fs::write(&path, b"\xff\xfe\x00").unwrap();
    assert!(failed(&run(&serve)).contains("[BT0701]"));
}

#[test]
fn a_data_file_that_cannot_be_played_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.csv");
    let file = path.to_str().unwrap();
    let demo = ["demo", "--data", file, "--map", "temperature=T,speed=S,torque=Q,wear=W", "--label", "F"];
    says(
        &demo,
        dir.path(),
        expect![[r#"
        error: cannot read 'data.csv': No such file or directory (os error 2) [BT0703]

        hint: give the path of a CSV file with a header line
    "#]],
    );
    std::fs::write(&path, "T,S,Q,W,F\n").unwrap();
    says(
        &demo,
        dir.path(),
        expect![[r#"
        error: 'data.csv' has no rows [BT0703]

        hint: below the header there must be at least one reading
    "#]],
    );
    std::fs::write(&path, "T,S,Q,F\n1,2,3,0\n").unwrap();
    says(
        &demo,
        dir.path(),
        expect![[r#"
        error: 'data.csv' has no column 'W' [BT0703]

        hint: did you mean 'T'? the columns are: T, S, Q, F
    "#]],
    );
    std::fs::write(&path, "T,S,Q,W,F\n1,2,3,4,0\n1,fast,3,4,0\n").unwrap();
    says(
        &demo,
        dir.path(),
        expect![[r#"
        error: 'data.csv' line 3, column 'S': 'fast' is not a number [BT0703]

        hint: map a column of numbers, or leave the field empty where nothing was measured
    "#]],
    );
    let model = [&demo[..], &["--model", file]].concat();
    std::fs::write(&path, "T,S,Q,W,F\n1,2,3,4,0\n").unwrap();
    let refused = failed(&run(&model));
    assert!(refused.contains("[BT0502]") && !refused.contains("page:"), "{refused}");
}

#[test]
fn servers_that_are_not_there_codes_that_do_not_exist_and_flags_that_are_wrong() {
    let none = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{none}");
    let commands: [&[&str]; 7] = [
        &["topic", "list"],
        &["consume", "t"],
        &["fn", "list"],
        &["fn", "logs", "f"],
        &["model", "list"],
        &["cluster", "status"],
        &["topic", "delete", "t"],
    ];
    for command in commands {
        let refused = failed(&run(&[command, &["--server", &server]].concat()));
        assert!(refused.contains("[BT0705]") && refused.contains("hint: is it running?"), "{command:?}: {refused}");
    }
    let refused = failed(&run(&["topic", "list", "--server", "https://a"]));
    assert!(refused.contains("is not a server address [BT0701]"), "{refused}");
    assert!(failed(&run(&["explain", "BT9999"])).contains("[BT0602]"));
    assert!(ok(&run(&["explain", "bt0301"])).starts_with("# BT0301: "));
    for wrong in [&["topic", "list", "--colour"][..], &["dev", "--nodes", "0"], &["demo", "--duration", "5y"]] {
        assert!(failed(&run(wrong)).starts_with("error: "), "{wrong:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::Stdio;
    let mut child =
        buttress().args(["explain", "BT0301"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let end = child.wait_with_output().unwrap();
    assert_eq!((end.status.code(), stderr(&end)), (Some(0), String::new()));
}
