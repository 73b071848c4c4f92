//! Tree ensembles out of ONNX files, as scikit-learn's, XGBoost's and LightGBM's converters write them.
//!
//! Read is a graph around exactly one `TreeEnsembleClassifier` or `TreeEnsembleRegressor` of `ai.onnx.ml`, with nothing
//! beside it that would change the numbers: `Identity`, `ZipMap`, a `Cast` of the label or between kinds of floats, and
//! a `Mul` by one (LightGBM's converter writes it) are passed over, any other operator is refused by its name. A classifier gives one number per class, as onnxruntime does.
//!
//! Names and neutral values of features may stand in the file's metadata: `buttress.features` and
//! `buttress.neutral`, each a JSON array.
//!
//! Source: <https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html>, and for what that leaves open
//! (two classes with one column of weights) what onnxruntime does, by the golden tests.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Problem,
    build::{Description, Mode, OUTPUTS_MAX, Split, Tree},
    forest::Transform,
    protobuf::{Value, fields},
};

/// `TensorProto.DataType`: the two that hold scores without changing them much.
const FLOAT: i64 = 1;
const DOUBLE: i64 = 11;

/// An attribute of a node.
#[derive(Default)]
struct Attribute<'a> {
    int: Option<i64>,
    text: Option<&'a [u8]>,
    floats: Vec<f32>,
    ints: Vec<i64>,
    texts: Vec<&'a [u8]>,
}

#[derive(Default)]
struct Operator<'a> {
    op: &'a str,
    domain: &'a str,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    attributes: BTreeMap<&'a str, Attribute<'a>>,
}

pub(crate) fn read(bytes: &[u8]) -> Result<Description, Problem> {
    let mut graph = None;
    let mut metadata = BTreeMap::new();
    for field in fields(bytes) {
        match field? {
            (7, value) => graph = Some(value.bytes()?),
            (14, value) => {
                let (key, text) = entry(value.bytes()?)?;
                metadata.insert(key, text);
            }
            _ => {}
        }
    }
    let graph = graph.ok_or("it is neither JSON nor ONNX: there is no graph in it")?;
    let mut tree: Option<Operator<'_>> = None;
    let mut width = None;
    let mut operators = Vec::new();
    // Names of initializers that are the number one.
    let mut ones = BTreeSet::new();
    for field in fields(graph) {
        match field? {
            (1, value) => operators.push(operator(value.bytes()?)?),
            (5, value) => {
                if let (name, Some(1.0)) = scalar(value.bytes()?)? {
                    ones.insert(name);
                }
            }
            (11, value) if width.is_none() => width = columns(value.bytes()?)?,
            _ => {}
        }
    }
    // Values that hold the label of a classifier, which nobody asks for here. Operators stand in order of data flow.
    let mut labels = BTreeSet::new();
    for operator in operators {
        let about_label = operator.inputs.iter().any(|input| labels.contains(input));
        match operator.op {
            "TreeEnsembleClassifier" | "TreeEnsembleRegressor" if operator.domain == "ai.onnx.ml" => {
                if operator.op == "TreeEnsembleClassifier" {
                    labels.extend(operator.outputs.first());
                }
                if tree.replace(operator).is_some() {
                    return Err("it holds more than one tree ensemble".into());
                }
            }
            "Cast" | "Identity" if about_label => labels.extend(operator.outputs),
            "Cast" => {
                let to = operator.attributes.get("to").and_then(|to| to.int);
                if !matches!(to, Some(FLOAT | DOUBLE)) {
                    return Err("it holds a `Cast` that makes something else of its numbers than floats".into());
                }
            }
            "Mul" if operator.inputs.iter().any(|input| ones.contains(input)) => {}
            "Identity" | "ZipMap" => {}
            op => return Err(format!("it holds the operator `{}`, which is not evaluated here", cut(op))),
        }
    }
    let tree = tree.ok_or("it holds no tree ensemble")?;
    let mut description = ensemble(&tree)?;
    let asked = description.width;
    if let Some(width) = width {
        if width < asked {
            return Err(format!("its input has {width} features, and its trees ask for {asked}"));
        }
        description.width = width;
    }
    if let Some(names) = metadata.get("buttress.features") {
        description.features =
            serde_json::from_str(names).map_err(|error| format!("its metadata `buttress.features`: {error}"))?;
        let named = description.features.len();
        if named < asked || width.is_some_and(|width| width != named) {
            return Err(format!("its metadata names {named} features, and it takes {}", description.width));
        }
        description.width = named;
    }
    if let Some(neutral) = metadata.get("buttress.neutral") {
        description.neutral =
            serde_json::from_str(neutral).map_err(|error| format!("its metadata `buttress.neutral`: {error}"))?;
    }
    Ok(description)
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// A `StringStringEntryProto`.
fn entry(bytes: &[u8]) -> Result<(&str, &str), Problem> {
    let (mut key, mut text) = ("", "");
    for field in fields(bytes) {
        match field? {
            (1, value) => key = value.text()?,
            (2, value) => text = value.text()?,
            _ => {}
        }
    }
    Ok((key, text))
}

/// A `NodeProto`.
fn operator(bytes: &[u8]) -> Result<Operator<'_>, Problem> {
    let mut operator = Operator::default();
    for field in fields(bytes) {
        match field? {
            (1, value) => operator.inputs.push(value.text()?),
            (2, value) => operator.outputs.push(value.text()?),
            (4, value) => operator.op = value.text()?,
            (7, value) => operator.domain = value.text()?,
            (5, value) => {
                let (name, attribute) = attribute(value.bytes()?)?;
                operator.attributes.insert(name, attribute);
            }
            _ => {}
        }
    }
    Ok(operator)
}

/// The name of a `TensorProto` and, where it is one float, its value.
fn scalar(bytes: &[u8]) -> Result<(&str, Option<f32>), Problem> {
    let (mut name, mut floats, mut raw, mut kind) = ("", Vec::new(), None, 0);
    for field in fields(bytes) {
        match field? {
            (2, value) => kind = value.int()?,
            (4, value) => value.floats(&mut floats)?,
            (8, value) => name = value.text()?,
            (9, value) => raw = <[u8; 4]>::try_from(value.bytes()?).ok(),
            _ => {}
        }
    }
    let float = match (floats[..].as_ref(), raw) {
        ([float], None) => Some(*float),
        ([], Some(raw)) => Some(f32::from_le_bytes(raw)),
        _ => None,
    };
    Ok((name, float.filter(|_| kind == FLOAT)))
}

/// An `AttributeProto`.
fn attribute(bytes: &[u8]) -> Result<(&str, Attribute<'_>), Problem> {
    let mut name = "";
    let mut attribute = Attribute::default();
    for field in fields(bytes) {
        match field? {
            (1, value) => name = value.text()?,
            (3, value) => attribute.int = Some(value.int()?),
            (4, value) => attribute.text = Some(value.bytes()?),
            (7, value) => value.floats(&mut attribute.floats)?,
            (8, value) => value.ints(&mut attribute.ints)?,
            (9, value) => attribute.texts.push(value.bytes()?),
            _ => {}
        }
    }
    Ok((name, attribute))
}

/// The number of columns of an input, a `ValueInfoProto`, where it is fixed.
fn columns(bytes: &[u8]) -> Result<Option<usize>, Problem> {
    /// The last value of one field, as bytes.
    fn inside(bytes: &[u8], number: u64) -> Result<Option<&[u8]>, Problem> {
        let mut found = None;
        for field in fields(bytes) {
            let (at, value) = field?;
            if at == number {
                found = Some(value.bytes()?);
            }
        }
        Ok(found)
    }
    let Some(kind) = inside(bytes, 2)? else { return Ok(None) };
    let Some(tensor) = inside(kind, 1)? else { return Ok(None) };
    let Some(shape) = inside(tensor, 2)? else { return Ok(None) };
    let mut dimensions = Vec::new();
    for field in fields(shape) {
        if let (1, value) = field? {
            let mut size = None;
            for field in fields(value.bytes()?) {
                if let (1, Value::Varint(value)) = field? {
                    size = usize::try_from(value).ok().filter(|size| *size > 0);
                }
            }
            dimensions.push(size);
        }
    }
    match dimensions[..] {
        [_, columns] => Ok(columns),
        _ => Err(format!("its input has {} dimensions; rows of features have two", dimensions.len())),
    }
}

fn ensemble(operator: &Operator<'_>) -> Result<Description, Problem> {
    let none = Attribute::default();
    let get = |name: &str| operator.attributes.get(name).unwrap_or(&none);
    for name in operator.attributes.keys() {
        if name.ends_with("_as_tensor") {
            return Err(format!("its attribute `{}` holds doubles; convert it with floats", cut(name)));
        }
    }
    let classifier = operator.op == "TreeEnsembleClassifier";
    let average = match get("aggregate_function").text {
        None | Some(b"SUM") => false,
        Some(b"AVERAGE") => true,
        Some(other) => return Err(format!("it aggregates by `{}`", cut(&String::from_utf8_lossy(other)))),
    };
    let post = match get("post_transform").text {
        None | Some(b"NONE") => Transform::None,
        Some(b"LOGISTIC") => Transform::Logistic,
        Some(b"SOFTMAX") => Transform::Softmax,
        Some(other) => {
            return Err(format!("it transforms its scores by `{}`", cut(&String::from_utf8_lossy(other))));
        }
    };
    let outputs = if classifier {
        get("classlabels_int64s").ints.len().max(get("classlabels_strings").texts.len())
    } else {
        usize::try_from(get("n_targets").int.unwrap_or(1)).map_err(|_| "it has fewer than no targets")?
    };
    if outputs == 0 || outputs > OUTPUTS_MAX {
        return Err(format!("it has {outputs} outputs; 1 to {OUTPUTS_MAX} are taken"));
    }
    let prefix = if classifier { "class" } else { "target" };
    let weights = Weights {
        trees: &get(&format!("{prefix}_treeids")).ints,
        nodes: &get(&format!("{prefix}_nodeids")).ints,
        outputs: &get(&format!("{prefix}_ids")).ints,
        weights: &get(&format!("{prefix}_weights")).floats,
    };
    let counts = [weights.trees.len(), weights.nodes.len(), weights.outputs.len(), weights.weights.len()];
    if counts.iter().any(|count| *count != counts[0]) {
        return Err(format!("its weights are lists of different lengths: {counts:?}"));
    }
    let mut base = get("base_values").floats.clone();

    // Two classes and one column of weights: the column is the second class, whatever its number says.
    let columns: BTreeSet<i64> = weights.outputs.iter().copied().collect();
    let binary = classifier && outputs == 2 && columns.len() == 1;
    let (sums, transform) = if binary {
        // onnxruntime takes weights that are all positive for probabilities.
        let probabilities = weights.weights.iter().all(|weight| *weight >= 0.0);
        if base.len() == 2 {
            base.remove(0);
        }
        let transform = match post {
            Transform::Logistic if !probabilities => Transform::BinaryLogistic,
            Transform::None if !probabilities => Transform::BinaryMargin,
            Transform::None => Transform::BinaryComplement,
            _ => return Err("it has two classes, one column of weights and an unusual transformation".into()),
        };
        (1, transform)
    } else {
        (outputs, post)
    };
    let trees = trees(&get, &weights, binary)?;
    let width = trees.iter().flat_map(|tree| &tree.nodes).fold(1, |width, node| match node {
        Split::Branch { feature, .. } => width.max(feature.saturating_add(1)),
        Split::Leaf(_) => width,
    });
    Ok(Description { features: Vec::new(), width, neutral: Vec::new(), sums, base, average, transform, trees })
}

struct Weights<'a> {
    trees: &'a [i64],
    nodes: &'a [i64],
    outputs: &'a [i64],
    weights: &'a [f32],
}

/// Nodes come as parallel lists over all trees; each is known by the numbers of its tree and of itself.
fn trees<'a>(
    get: &dyn Fn(&str) -> &'a Attribute<'a>,
    weights: &Weights<'_>,
    binary: bool,
) -> Result<Vec<Tree>, Problem> {
    let tree_ids = &get("nodes_treeids").ints;
    let count = tree_ids.len();
    let ints = |name: &str| -> Result<&'a [i64], Problem> {
        let ints = &get(name).ints;
        same(name, ints.len(), count).map(|()| &ints[..])
    };
    let node_ids = ints("nodes_nodeids")?;
    let feature_ids = ints("nodes_featureids")?;
    let true_ids = ints("nodes_truenodeids")?;
    let false_ids = ints("nodes_falsenodeids")?;
    let values = &get("nodes_values").floats;
    same("nodes_values", values.len(), count)?;
    let modes = &get("nodes_modes").texts;
    same("nodes_modes", modes.len(), count)?;
    let missing = &get("nodes_missing_value_tracks_true").ints;
    if !missing.is_empty() {
        same("nodes_missing_value_tracks_true", missing.len(), count)?;
    }

    // Position of each node within its tree, and the trees in the order of their numbers.
    let mut positions = BTreeMap::new();
    let mut sizes: BTreeMap<i64, usize> = BTreeMap::new();
    for (tree, node) in tree_ids.iter().zip(node_ids) {
        let size = sizes.entry(*tree).or_default();
        if positions.insert((*tree, *node), *size).is_some() {
            return Err(format!("node {node} of tree {tree} is there twice"));
        }
        *size += 1;
    }
    let mut leaves: BTreeMap<(i64, i64), Vec<(usize, f32)>> = BTreeMap::new();
    for (at, weight) in weights.weights.iter().enumerate() {
        let (tree, node) = (weights.trees[at], weights.nodes[at]);
        if !positions.contains_key(&(tree, node)) {
            return Err(format!("a weight is for node {node} of tree {tree}, which is not there"));
        }
        let output = if binary { 0 } else { weights.outputs[at] };
        let output = usize::try_from(output).map_err(|_| format!("a weight is for output {output}"))?;
        leaves.entry((tree, node)).or_default().push((output, *weight));
    }

    let mut trees: BTreeMap<i64, (Tree, Vec<bool>)> =
        sizes.iter().map(|(tree, size)| (*tree, (Tree::default(), vec![false; *size]))).collect();
    for at in 0..count {
        let (tree_id, node_id) = (tree_ids[at], node_ids[at]);
        let place = |what: String| format!("node {node_id} of tree {tree_id} {what}");
        let (tree, has_parent) = trees.get_mut(&tree_id).expect("made from the same list");
        let mode = match modes[at] {
            b"LEAF" => {
                tree.nodes.push(Split::Leaf(leaves.remove(&(tree_id, node_id)).unwrap_or_default()));
                continue;
            }
            b"BRANCH_LEQ" => Mode::LessEqual,
            b"BRANCH_LT" => Mode::Less,
            b"BRANCH_GTE" => Mode::GreaterEqual,
            b"BRANCH_GT" => Mode::Greater,
            b"BRANCH_EQ" => Mode::Equal,
            b"BRANCH_NEQ" => Mode::NotEqual,
            other => return Err(place(format!("has the mode `{}`", cut(&String::from_utf8_lossy(other))))),
        };
        let mut child = |id: i64| {
            let position = *positions
                .get(&(tree_id, id))
                .ok_or_else(|| place(format!("has the child {id}, which is not there")))?;
            has_parent[position] = true;
            Ok::<_, Problem>(position)
        };
        tree.nodes.push(Split::Branch {
            mode,
            feature: usize::try_from(feature_ids[at])
                .map_err(|_| place(format!("asks feature {}", feature_ids[at])))?,
            threshold: values[at],
            holds: child(true_ids[at])?,
            fails: child(false_ids[at])?,
            missing_holds: missing.get(at).is_some_and(|missing| *missing != 0),
        });
    }
    if let Some((tree, node)) = leaves.into_keys().next() {
        return Err(format!("node {node} of tree {tree} has a weight and is no leaf"));
    }
    trees
        .into_iter()
        .map(|(id, (mut tree, has_parent))| {
            tree.root = has_parent
                .iter()
                .position(|has| !has)
                .ok_or_else(|| format!("tree {id} has no root: its nodes go in a circle"))?;
            Ok(tree)
        })
        .collect()
}

fn same(name: &str, length: usize, count: usize) -> Result<(), Problem> {
    if length == count { Ok(()) } else { Err(format!("`{name}` has {length} entries for {count} nodes")) }
}
