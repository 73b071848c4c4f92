//! Files of `testdata` and what is told of them: `UPDATE_EXPECT=1 cargo test -p buttress-resources` writes it anew.

use std::path::Path;

use expect_test::expect_file;

use crate::{
    check::read,
    finding::{Source, render},
};

#[test]
fn files_are_told_as_a_good_compiler_tells() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let text = std::fs::read_to_string(dir.join(&name)).unwrap();
        let sources = [Source { file: name.clone(), text }];
        let reading = read(&sources);
        let mut told = render(&reading.findings, &sources, false);
        for resource in &reading.resources {
            let (kind, line) = (resource.kind.name(), resource.origin.line);
            told.push_str(&format!("{kind} {} at line {line}\n", resource.name));
        }
        assert_eq!(name.starts_with("good"), reading.is_ok(), "{name}: {told}");
        expect_file![dir.join(name.replace(".yaml", ".txt"))].assert_eq(&told);
    }
}
