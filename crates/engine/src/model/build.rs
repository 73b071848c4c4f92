//! Checks a described ensemble and lays it out for evaluation.
//!
//! The description comes from a file, so nothing of it is believed: every index is checked, every node must be
//! reached exactly once from its tree's root (so there are no cycles and no nodes shared), depth is bounded, and
//! numbers must be finite where arithmetic needs them.

use super::{
    Problem,
    forest::{Forest, Node, Transform},
};

/// Deepest tree. Evaluation is a loop, so this bounds time and not stack.
pub(crate) const DEPTH_MAX: usize = 256;
/// Most features per row.
pub(crate) const WIDTH_MAX: usize = 4096;
/// Most outputs per row.
pub(crate) const OUTPUTS_MAX: usize = 1024;

/// How a node compares its feature with its threshold; the first child is for "holds".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    LessEqual,
    Less,
    GreaterEqual,
    Greater,
    Equal,
    NotEqual,
}

#[derive(Clone, Debug)]
pub(crate) enum Split {
    Branch {
        mode: Mode,
        feature: usize,
        threshold: f32,
        /// Positions in the tree's nodes: where the comparison holds, and where not.
        holds: usize,
        fails: usize,
        /// NaN goes where the comparison holds, whatever it says.
        missing_holds: bool,
    },
    /// Output and weight, any number of them.
    Leaf(Vec<(usize, f32)>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Split>,
    pub(crate) root: usize,
}

/// An ensemble as a reader found it.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Empty where the format has no names.
    pub(crate) features: Vec<String>,
    pub(crate) width: usize,
    /// What stands in for NaN, per feature; empty where nothing does.
    pub(crate) neutral: Vec<Option<f32>>,
    /// Sums that trees add to.
    pub(crate) sums: usize,
    /// Start of each sum; empty for zero.
    pub(crate) base: Vec<f32>,
    /// Divide the sums by the number of trees.
    pub(crate) average: bool,
    pub(crate) transform: Transform,
    pub(crate) trees: Vec<Tree>,
}

impl Forest {
    pub(crate) fn build(description: Description) -> Result<Forest, Problem> {
        let Description { width, sums, ref base, ref neutral, .. } = description;
        if width == 0 || width > WIDTH_MAX {
            return Err(format!("it has {width} features; 1 to {WIDTH_MAX} are taken"));
        }
        if sums == 0 || sums > OUTPUTS_MAX {
            return Err(format!("it has {sums} outputs; 1 to {OUTPUTS_MAX} are taken"));
        }
        if description.trees.is_empty() {
            return Err("it has no trees".into());
        }
        if !base.is_empty() && base.len() != sums {
            return Err(format!("it has {} base values for {sums} outputs", base.len()));
        }
        if let Some(value) = base.iter().find(|value| !value.is_finite()) {
            return Err(format!("a base value is {value}"));
        }
        if !neutral.is_empty() && neutral.len() != width {
            return Err(format!("it has {} neutral values for {width} features", neutral.len()));
        }
        if neutral.iter().flatten().any(|value| !value.is_finite()) {
            return Err("a neutral value is not finite".into());
        }
        let mut layout = Layout { width, sums, nodes: Vec::new(), weights: Vec::new() };
        let mut roots = Vec::with_capacity(description.trees.len());
        for (number, tree) in description.trees.iter().enumerate() {
            let root = layout.tree(tree).map_err(|problem| format!("tree {number}: {problem}"))?;
            roots.push(root);
        }
        Ok(Forest::new(layout.nodes, layout.weights, roots, description))
    }
}

struct Layout {
    width: usize,
    sums: usize,
    nodes: Vec<Node>,
    weights: Vec<(u32, f32)>,
}

impl Layout {
    /// Lays one tree out breadth first with siblings side by side, and gives the position of its root.
    fn tree(&mut self, tree: &Tree) -> Result<u32, Problem> {
        let count = tree.nodes.len();
        if tree.root >= count {
            return Err(format!("its root {} is not one of its {count} nodes", tree.root));
        }
        let first = self.nodes.len();
        if first + count > (u32::MAX / 2) as usize {
            return Err("the ensemble has too many nodes".into());
        }
        let mut seen = vec![false; count];
        seen[tree.root] = true;
        self.nodes.push(Node::PLACEHOLDER);
        // (node of the tree, its position in the layout, its depth)
        let mut queue = std::collections::VecDeque::from([(tree.root, first, 0)]);
        while let Some((node, at, depth)) = queue.pop_front() {
            if depth > DEPTH_MAX {
                return Err(format!("it is deeper than {DEPTH_MAX}"));
            }
            match &tree.nodes[node] {
                Split::Leaf(weights) => self.nodes[at] = self.leaf(node, weights)?,
                &Split::Branch { mode, feature, threshold, holds, fails, missing_holds } => {
                    if feature >= self.width {
                        return Err(format!("node {node} asks feature {feature} of {}", self.width));
                    }
                    if threshold.is_nan() {
                        return Err(format!("node {node} has NaN as its threshold"));
                    }
                    for child in [holds, fails] {
                        match seen.get_mut(child) {
                            None => return Err(format!("node {node} has the child {child} of {count} nodes")),
                            Some(seen @ false) => *seen = true,
                            Some(true) => return Err(format!("node {child} has more than one parent")),
                        }
                    }
                    let children = self.nodes.len();
                    self.nodes.extend([Node::PLACEHOLDER; 2]);
                    // Every mode becomes `<=` or `==`: for floats `x < t` is `x <= the next smaller t`, and the
                    // opposite comparisons swap the children, with NaN sent where it would have gone.
                    let (equal, threshold, swapped, missing_left) = match mode {
                        Mode::LessEqual => (false, threshold, false, missing_holds),
                        Mode::Less => (false, threshold.next_down(), false, missing_holds),
                        Mode::Greater => (false, threshold, true, !missing_holds),
                        Mode::GreaterEqual => (false, threshold.next_down(), true, !missing_holds),
                        Mode::Equal => (true, threshold, false, missing_holds),
                        // NaN differs from everything.
                        Mode::NotEqual => (true, threshold, true, false),
                    };
                    let (left, right) = if swapped { (fails, holds) } else { (holds, fails) };
                    self.nodes[at] = Node::branch(feature, threshold, equal, missing_left, children);
                    queue.push_back((left, children, depth + 1));
                    queue.push_back((right, children + 1, depth + 1));
                }
            }
        }
        if let Some(node) = seen.iter().position(|seen| !seen) {
            return Err(format!("node {node} is not reached from the root"));
        }
        Ok(first as u32)
    }

    fn leaf(&mut self, node: usize, weights: &[(usize, f32)]) -> Result<Node, Problem> {
        for &(sum, weight) in weights {
            if sum >= self.sums {
                return Err(format!("leaf {node} adds to output {sum} of {}", self.sums));
            }
            if !weight.is_finite() {
                return Err(format!("leaf {node} has the weight {weight}"));
            }
        }
        if self.sums == 1 {
            return Ok(Node::leaf_weight(weights.iter().map(|(_, weight)| weight).sum()));
        }
        let start = self.weights.len();
        self.weights.extend(weights.iter().map(|&(sum, weight)| (sum as u32, weight)));
        Ok(Node::leaf_weights(start, weights.len()))
    }
}
