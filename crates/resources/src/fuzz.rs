//! What the fuzzer runs: files that anybody may write.

use crate::{
    check, document,
    finding::{Source, render},
    kept, yaml,
};

/// A file of resources. Whatever is told of it points into it; what was read means the same when it is written again.
pub fn file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(documents) = document::read(text) {
        for document in &documents {
            let value = document.json();
            let again = document::read(&yaml::write(&value)).expect("what we write can be read");
            assert_eq!(again.first().map(document::Node::json), Some(value), "{text}");
        }
    }
    let sources = [Source { file: "f".into(), text: text.to_owned() }];
    let reading = check::read(&sources);
    let lines = text.split('\n').count().max(1);
    for finding in &reading.findings {
        assert!(finding.mark.line >= 1 && finding.mark.line as usize <= lines + 1, "{finding:?} of {lines} lines");
        assert!(!finding.says.is_empty());
    }
    for resource in &reading.resources {
        assert!(resource.lines.of("/spec") as usize <= lines);
        let canonical = kept::canonical(&resource.typed);
        let again = resource.kind.read(&canonical).expect("a spec reads what it writes");
        assert_eq!(kept::canonical(&again), canonical);
    }
    let told = render(&reading.findings, &sources, false);
    assert!(told.matches("\n\n").count() >= reading.findings.len(), "{told}");
}

pub fn files() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../testdata/good.yaml")[..],
        include_bytes!("../testdata/keys.yaml"),
        include_bytes!("../testdata/kinds.yaml"),
        include_bytes!("../testdata/together.yaml"),
        include_bytes!("../testdata/types.yaml"),
        include_bytes!("../testdata/values.yaml"),
        b"a: &a [1, 'x', \"y\\n\"]\nb: *a\nc: |\n  text\n  more\nd: >-\n  folded\n",
    ]
    .map(<[u8]>::to_vec)
    .into()
}
