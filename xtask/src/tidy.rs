//! The rules of the tree, checked from `cargo metadata` and the files themselves.
//!
//! TIDY-1: crates depend only in the direction of the design. TIDY-2: pure crates have no dependency that could read a
//! clock, a socket, a file or a random number. TIDY-3: every crate opens by saying what it is. TIDY-4: links in the
//! repository's pages lead somewhere. TIDY-5: no page or source names a path of somebody's machine. TIDY-6: every
//! dependency of the workspace has its line in `docs/internals/dependencies.md`. TIDY-7: the product is built without
//! the feature that can make it wrong on purpose (`core::mutant`). TIDY-8: the proof page names every
//! invariant, and nothing that is not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::proof;

/// What each of our crates may depend on among ours.
const DIRECTION: &[(&str, &[&str])] = &[
    ("buttress-core", &[]),
    ("buttress-consensus", &["buttress-core"]),
    ("buttress-state", &["buttress-core"]),
    ("buttress-wire", &["buttress-core"]),
    ("buttress-oracle", &["buttress-core"]),
    ("buttress-wal", &["buttress-core", "buttress-consensus"]),
    ("buttress-node", &["buttress-core", "buttress-consensus", "buttress-state", "buttress-wal"]),
    ("buttress-model", &["buttress-core", "buttress-state", "buttress-wire", "buttress-functions"]),
    (
        "buttress-sim",
        &[
            "buttress-core",
            "buttress-consensus",
            "buttress-state",
            "buttress-wal",
            "buttress-oracle",
            "buttress-uplink",
            "buttress-wire",
        ],
    ),
    ("buttress-uplink", &["buttress-core", "buttress-wire"]),
    ("buttress-saga", &["buttress-core"]),
    ("buttress-policy", &[]),
    ("buttress-resources", &["buttress-core"]),
    ("buttress-engine", &["buttress-core"]),
    ("buttress-events", &["buttress-core", "buttress-wire"]),
    ("buttress-functions", &["buttress-core", "buttress-wire"]),
    ("buttress-etcd-proto", &[]),
    ("buttress-http2", &[]),
    ("buttress-coordination", &["buttress-core", "buttress-wire", "buttress-etcd-proto", "buttress-http2"]),
    ("buttress-bridge", &["buttress-core", "buttress-wire", "buttress-etcd-proto"]),
    ("buttress-gateway", &["buttress-core", "buttress-policy", "buttress-resources"]),
    // What a user's service takes in: it must not bring the rest along.
    ("buttress-tower", &["buttress-policy"]),
    (
        "buttress",
        &[
            "buttress-core",
            "buttress-wire",
            "buttress-node",
            "buttress-engine",
            "buttress-events",
            "buttress-functions",
            "buttress-coordination",
            "buttress-bridge",
            "buttress-oracle",
            "buttress-policy",
            "buttress-uplink",
            "buttress-gateway",
            "buttress-resources",
            "buttress-saga",
            // For the clients of `buttress chaos`.
            "buttress-etcd-proto",
        ],
    ),
    (
        "buttress-bench",
        &[
            "buttress-core",
            "buttress-consensus",
            "buttress-state",
            "buttress-node",
            "buttress-engine",
            "buttress-policy",
            "buttress-wire",
            "buttress-etcd-proto",
        ],
    ),
    (
        "buttress-fuzz",
        &[
            "buttress-core",
            "buttress-consensus",
            "buttress-state",
            "buttress-wal",
            "buttress-wire",
            "buttress-node",
            "buttress-engine",
            "buttress-events",
            "buttress-functions",
            "buttress-coordination",
            "buttress-bridge",
            "buttress-policy",
            "buttress-uplink",
            "buttress-gateway",
            "buttress-resources",
            "buttress-saga",
            "buttress-http2",
        ],
    ),
    ("xtask", &[]),
];

/// The only outside dependencies of the pure crates. `raft` draws a random number for election timeouts; the adapter
/// overrides each one (ADR 0001).
const PURE: &[(&str, &[&str])] = &[
    ("buttress-core", &["bytes", "byteview", "thiserror"]),
    ("buttress-consensus", &["bytes", "thiserror", "raft", "slog"]),
    ("buttress-state", &["bytes", "thiserror"]),
    ("buttress-wire", &["bytes", "thiserror", "crc32c", "flate2", "lz4_flex", "ruzstd", "snap"]),
    ("buttress-oracle", &["bytes"]),
    ("buttress-uplink", &["bytes"]),
    ("buttress-saga", &["serde", "serde_json", "sha2"]),
    ("buttress-policy", &[]),
    ("buttress-resources", &["saphyr-parser", "schemars", "serde", "serde_json"]),
    ("buttress-http2", &["bytes"]),
    ("buttress-sim", &["bytes", "mimalloc"]),
];

pub fn run() -> anyhow::Result<()> {
    let root = root();
    let packages = packages(&root)?;
    let mut wrong = Vec::new();
    direction(&packages, &mut wrong);
    crate_docs(&root, &mut wrong)?;
    pages(&root, &mut wrong)?;
    dependencies_explained(&root, &packages, &mut wrong)?;
    if !with_mutants(&root, &["--package", "buttress"])?.is_empty() {
        wrong.push("TIDY-7: the product would be built with the feature mutants".to_owned());
    }
    proof::check(&root, &packages.keys().map(String::as_str).collect(), &mut wrong)?;
    if wrong.is_empty() {
        println!("tidy: {} crates, nothing to mend", packages.len());
        return Ok(());
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    bail!("{} rules broken", wrong.len())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}

/// Our packages with their normal dependencies.
fn packages(root: &Path) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(root)
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().context("metadata lists packages")? {
        let normal = package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null());
        packages.insert(text(&package["name"]), normal.map(|d| text(&d["name"])).collect());
    }
    Ok(packages)
}

fn direction(packages: &BTreeMap<String, BTreeSet<String>>, wrong: &mut Vec<String>) {
    let rule = |table: &'static [(&str, &'static [&str])], name: &str| {
        table.iter().find(|(known, _)| *known == name).map(|(_, allowed)| *allowed)
    };
    for (name, dependencies) in packages {
        let Some(allowed) = rule(DIRECTION, name) else {
            wrong.push(format!(
                "TIDY-1: crate {name} has no place in the direction of dependencies (xtask/src/tidy.rs)"
            ));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| packages.contains_key(*d)) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("TIDY-1: {name} must not depend on {dependency}"));
            }
        }
        if let Some(pure) = rule(PURE, name) {
            for dependency in dependencies.iter().filter(|d| !packages.contains_key(*d)) {
                if !pure.contains(&dependency.as_str()) {
                    wrong.push(format!("TIDY-2: the pure crate {name} must not depend on {dependency}"));
                }
            }
        }
    }
}

fn crate_docs(root: &Path, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root.join("crates"))? {
        let lib = entry?.path().join("src/lib.rs");
        let text = std::fs::read_to_string(&lib).with_context(|| lib.display().to_string())?;
        let words = text.lines().take_while(|line| line.starts_with("//!")).map(str::len).sum::<usize>();
        if words < 80 {
            wrong.push(format!("TIDY-3: {} does not say what the crate is", lib.strip_prefix(root)?.display()));
        }
    }
    Ok(())
}

/// Every file that git tracks or would track.
fn tracked(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("cannot start git")?;
    let list = String::from_utf8(output.stdout)?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn pages(root: &Path, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    // Put together here, so that this file does not match itself.
    let machine_paths = ["/wo", "/ho", "/ro"].map(|start| start.to_owned()).into_iter().zip(["rk/", "me/", "ot/"]);
    let machine_paths: Vec<String> = machine_paths.map(|(start, end)| start + end).collect();
    for name in tracked(root)? {
        let Ok(text) = std::fs::read_to_string(root.join(&name)) else { continue };
        for path in &machine_paths {
            if let Some(at) = text.lines().position(|line| line.contains(path.as_str())) {
                wrong.push(format!("TIDY-5: {}:{} names a path of somebody's machine", name.display(), at + 1));
            }
        }
        if name.extension().is_some_and(|e| e == "md") {
            links(root, &name, &text, wrong);
        }
    }
    Ok(())
}

fn links(root: &Path, page: &Path, text: &str, wrong: &mut Vec<String>) {
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let file = target.split('#').next().unwrap_or_default();
        if file.is_empty() || file.contains("://") || file.contains(' ') {
            continue;
        }
        let path = root.join(page.parent().unwrap_or(Path::new(""))).join(file);
        if !path.exists() {
            wrong.push(format!("TIDY-4: {} links to {file}, which does not exist", page.display()));
        }
    }
}

fn dependencies_explained(
    root: &Path,
    packages: &BTreeMap<String, BTreeSet<String>>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    let page = std::fs::read_to_string(root.join("docs/internals/dependencies.md"))?;
    let outside: BTreeSet<&String> = packages.values().flatten().filter(|d| !packages.contains_key(*d)).collect();
    for dependency in outside {
        if !page.contains(&format!("| `{dependency}` |")) {
            wrong.push(format!("TIDY-6: `{dependency}` has no line in docs/internals/dependencies.md"));
        }
    }
    Ok(())
}

/// Our packages that would be built with the feature `mutants`, as cargo resolves these arguments.
fn with_mutants(root: &Path, arguments: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}|{f}"])
        .args(arguments)
        .current_dir(root)
        .output()
        .context("cannot start cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let packages = text.lines().filter_map(|line| line.split_once('|'));
    let wrong = packages.filter(|(package, features)| {
        let features = features.split_whitespace().next().unwrap_or_default();
        package.starts_with("buttress") && features.split(',').any(|feature| feature == "mutants")
    });
    Ok(wrong.filter_map(|(package, _)| package.split(' ').next()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn the_product_knows_no_mutants_and_the_check_would_see_them() {
        let of = |arguments: &[&str]| with_mutants(&root(), arguments).unwrap();
        assert_eq!(of(&["--package", "buttress"]), BTreeSet::new());
        assert_eq!(of(&["--workspace"]), BTreeSet::new(), "nor does anything that is built beside it");
        let seen = of(&["--package", "buttress-wal", "--features", "mutants"]);
        assert!(seen.contains("buttress-core") && seen.contains("buttress-consensus"), "{seen:?}");
    }

    #[test]
    fn a_wrong_edge_and_an_impure_dependency_are_found() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let packages = BTreeMap::from([
            ("buttress-core".to_owned(), set(&["bytes", "tokio"])),
            ("buttress-events".to_owned(), set(&["buttress-node"])),
            ("buttress-node".to_owned(), set(&[])),
        ]);
        let mut wrong = Vec::new();
        direction(&packages, &mut wrong);
        assert_eq!(
            wrong,
            [
                "TIDY-2: the pure crate buttress-core must not depend on tokio",
                "TIDY-1: buttress-events must not depend on buttress-node"
            ]
        );
    }
}
