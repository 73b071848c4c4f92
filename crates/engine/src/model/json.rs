//! `buttress.tree-ensemble/1`, the plain form: docs/reference/model-format.md.

use serde::Deserialize;

use super::{
    Problem,
    build::{Description, Mode, Split, Tree},
    forest::Transform,
};

const FORMAT: &str = "buttress.tree-ensemble/1";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    features: Vec<String>,
    #[serde(default)]
    neutral: Vec<Option<f64>>,
    objective: Objective,
    #[serde(default)]
    base: f64,
    trees: Vec<FileTree>,
    /// Anything: how it was trained, what it scores. Never read.
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Objective {
    /// `base + sum`.
    Identity,
    /// `1 / (1 + exp(-(base + sum)))`.
    Logistic,
    /// `base + sum / trees`.
    Mean,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTree {
    feature: Vec<i64>,
    threshold: Vec<f64>,
    left: Vec<i64>,
    right: Vec<i64>,
    value: Vec<f64>,
    #[serde(default)]
    missing_left: Vec<bool>,
}

/// The largest `f32` that is not above `value`: with it `x <= value` holds for exactly the same `f32` x.
fn round_down(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) > value { near.next_down() } else { near }
}

pub(crate) fn read(bytes: &[u8]) -> Result<Description, Problem> {
    /// Only the format, so that a file of another version is told apart from a broken one.
    #[derive(Deserialize)]
    struct Format {
        format: Option<String>,
    }
    if let Ok(Format { format }) = serde_json::from_slice(bytes)
        && format.as_deref() != Some(FORMAT)
    {
        let found = format.map_or("no `format`".into(), |format| format!("the format `{}`", cut(&format)));
        return Err(format!("it has {found}; `{FORMAT}` is read"));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    debug_assert_eq!(file.format, FORMAT);
    let width = file.features.len();
    let trees = file
        .trees
        .iter()
        .enumerate()
        .map(|(number, tree)| read_tree(tree).map_err(|problem| format!("tree {number}: {problem}")))
        .collect::<Result<_, Problem>>()?;
    Ok(Description {
        features: file.features,
        width,
        neutral: file.neutral.iter().map(|neutral| neutral.map(|neutral| neutral as f32)).collect(),
        sums: 1,
        base: vec![file.base as f32],
        average: file.objective == Objective::Mean,
        transform: if file.objective == Objective::Logistic { Transform::Logistic } else { Transform::None },
        trees,
    })
}

fn read_tree(tree: &FileTree) -> Result<Tree, Problem> {
    let count = tree.left.len();
    let lengths = [
        ("feature", tree.feature.len()),
        ("threshold", tree.threshold.len()),
        ("right", tree.right.len()),
        ("value", tree.value.len()),
    ];
    for (name, length) in lengths {
        if length != count {
            return Err(format!("`{name}` has {length} entries and `left` has {count}"));
        }
    }
    if !tree.missing_left.is_empty() && tree.missing_left.len() != count {
        return Err(format!("`missing_left` has {} entries and `left` has {count}", tree.missing_left.len()));
    }
    let nodes = (0..count)
        .map(|node| {
            let (left, right) = (tree.left[node], tree.right[node]);
            if left == -1 && right == -1 {
                return Ok(Split::Leaf(vec![(0, tree.value[node] as f32)]));
            }
            let index = |name: &str, value: i64| {
                usize::try_from(value).map_err(|_| format!("node {node} has {value} in `{name}`"))
            };
            Ok(Split::Branch {
                mode: Mode::LessEqual,
                feature: index("feature", tree.feature[node])?,
                threshold: round_down(tree.threshold[node]),
                holds: index("left", left)?,
                fails: index("right", right)?,
                missing_holds: tree.missing_left.get(node).copied().unwrap_or(false),
            })
        })
        .collect::<Result<_, Problem>>()?;
    Ok(Tree { nodes, root: 0 })
}

/// At most 64 characters of something found in the file.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
