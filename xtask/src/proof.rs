//! TIDY-8: `docs/internals/proof.md` names every invariant of the registry, and no file or command that is not there.
//!
//! A page that promises is worth what it can be held to. Everything in backticks is looked at: an id must be one of the
//! registry's, a path must exist, `cargo xtask …`, `cargo test -p …`, `cargo run -p …` and `buttress …` must be words that
//! these know.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Context;

const PAGE: &str = "docs/internals/proof.md";
const REGISTRY: &str = "crates/core/src/invariants.rs";

pub fn check(root: &Path, packages: &BTreeSet<&str>, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).with_context(|| name.to_owned());
    let known = Known {
        ids: ids(&read(REGISTRY)?),
        xtask: read("xtask/src/main.rs")?,
        cli: read("docs/reference/cli.md")?,
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        root: root.to_owned(),
    };
    wrong.extend(known.judge(&read(PAGE)?));
    Ok(())
}

/// The ids of the registry, from its source: the second word of `NAME = "ID", "sentence";`.
fn ids(source: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let (name, rest) = line.trim().split_once(" = \"")?;
        let (id, _) = rest.split_once("\", \"")?;
        (name == id.replace('-', "_")).then(|| id.to_owned())
    };
    source.lines().filter_map(line).collect()
}

struct Known {
    ids: BTreeSet<String>,
    xtask: String,
    cli: String,
    packages: BTreeSet<String>,
    root: PathBuf,
}

impl Known {
    fn judge(&self, page: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut named = BTreeSet::new();
        for word in quoted(page) {
            if let Some(id) = as_id(word) {
                if !self.ids.contains(id) {
                    wrong.push(format!("TIDY-8: {PAGE} names {id}, which is not in the registry"));
                }
                named.insert(id.to_owned());
            } else if let Some(missing) = self.missing(word) {
                wrong.push(format!("TIDY-8: {PAGE} names `{word}`, but there is no {missing}"));
            }
        }
        wrong.extend(self.ids.difference(&named).map(|id| format!("TIDY-8: {PAGE} says nothing of {id}")));
        wrong
    }

    /// What a path or a command names that is not there.
    fn missing(&self, word: &str) -> Option<String> {
        let words: Vec<&str> = word.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "xtask", verb, ..] => {
                (!self.xtask.contains(&format!("[\"{verb}\""))).then(|| format!("`xtask {verb}`"))
            }
            ["cargo", "test" | "run", rest @ ..] => {
                let package = rest.iter().skip_while(|word| **word != "-p").nth(1)?;
                (!self.packages.contains(*package)).then(|| format!("package {package}"))
            }
            ["buttress", verb, ..] => {
                let command = format!("buttress {verb}");
                let there = self.cli.match_indices(&command).any(|(at, _)| {
                    !self.cli[at + command.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-')
                });
                (!there).then(|| format!("`{command}` in docs/reference/cli.md"))
            }
            [path] if path.contains('/') && !path.contains("://") && !path.starts_with('/') => {
                (!self.root.join(path).exists()).then(|| "such file".to_owned())
            }
            _ => None,
        }
    }
}

/// Everything between single backticks.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn as_id(word: &str) -> Option<&str> {
    let (letters, number) = word.split_once('-')?;
    let right = letters.len() >= 2 && letters.bytes().all(|byte| byte.is_ascii_uppercase());
    (right && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_leaves_out_or_makes_up_is_found() {
        let known = Known {
            ids: ids("invariants! {\n    LOG_1 = \"LOG-1\", \"an index\";\n    ACK_1 = \"ACK-1\", \"an answer\";\n}"),
            xtask: "        [\"tidy\"] => tidy::run(),".into(),
            cli: "buttress demo-data\nbuttress status".into(),
            packages: BTreeSet::from(["xtask".to_owned()]),
            root: Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(),
        };
        let page = "`LOG-1` `LOG-2` `src/main.rs` `src/gone.rs` `cargo xtask tidy` `cargo xtask sing`\n\
                    `cargo test -p xtask` `cargo test -p gone` `buttress status` `buttress demo`";
        assert_eq!(
            known.judge(page),
            [
                "TIDY-8: docs/internals/proof.md names LOG-2, which is not in the registry",
                "TIDY-8: docs/internals/proof.md names `src/gone.rs`, but there is no such file",
                "TIDY-8: docs/internals/proof.md names `cargo xtask sing`, but there is no `xtask sing`",
                "TIDY-8: docs/internals/proof.md names `cargo test -p gone`, but there is no package gone",
                "TIDY-8: docs/internals/proof.md names `buttress demo`, but there is no `buttress demo` in docs/reference/cli.md",
                "TIDY-8: docs/internals/proof.md says nothing of ACK-1",
            ]
        );
    }
}
