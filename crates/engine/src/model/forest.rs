//! The evaluator.
//!
//! All trees lie in one array of twelve-byte nodes, siblings side by side, so that a step down a tree is one load, one
//! comparison and one addition, without a branch to mispredict until the leaf. Rows are taken in blocks and each tree
//! is walked for the whole block, so that a tree is loaded into the cache once per block.

use super::build::Description;

/// Rows walked together.
const BLOCK: usize = 64;

/// A branch or a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// Of a branch the threshold; of a leaf its weight, where there is one sum.
    value: f32,
    /// The feature and the flags; [`LEAF`] for a leaf.
    feature: u32,
    /// Of a branch the position of its left child, with the right one behind it; of a leaf the start of its weights.
    next: u32,
}

const FEATURE_MASK: u32 = (1 << 24) - 1;
/// Compare by `==` instead of `<=`.
const EQUAL: u32 = 1 << 24;
/// NaN goes left.
const MISSING_LEFT: u32 = 1 << 25;
/// A leaf; the lower bits are the number of its weights.
const LEAF: u32 = 1 << 31;

impl Node {
    pub(crate) const PLACEHOLDER: Node = Node { value: 0.0, feature: LEAF, next: 0 };

    pub(crate) fn branch(feature: usize, threshold: f32, equal: bool, missing_left: bool, children: usize) -> Self {
        let flags = if equal { EQUAL } else { 0 } | if missing_left { MISSING_LEFT } else { 0 };
        Node { value: threshold, feature: feature as u32 | flags, next: children as u32 }
    }

    pub(crate) fn leaf_weight(weight: f32) -> Self {
        Node { value: weight, feature: LEAF, next: 0 }
    }

    pub(crate) fn leaf_weights(start: usize, count: usize) -> Self {
        Node { value: 0.0, feature: LEAF | count as u32, next: start as u32 }
    }
}

/// From sums to outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    None,
    Logistic,
    Softmax,
    /// One sum `p` becomes the two outputs `1 - p, p`.
    BinaryComplement,
    /// One sum `s` becomes the two outputs `-s, s`.
    BinaryMargin,
    /// One sum `s` becomes the two outputs `σ(-s), σ(s)`.
    BinaryLogistic,
}

#[derive(Debug)]
pub(crate) struct Forest {
    nodes: Vec<Node>,
    weights: Vec<(u32, f32)>,
    roots: Vec<u32>,
    width: usize,
    sums: usize,
    base: Vec<f32>,
    neutral: Vec<Option<f32>>,
    scale: f64,
    transform: Transform,
    /// No node needs more than `<=` with NaN going right.
    plain: bool,
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Forest {
    /// Puts checked parts together; only `build` calls it.
    pub(crate) fn new(nodes: Vec<Node>, weights: Vec<(u32, f32)>, roots: Vec<u32>, from: Description) -> Self {
        let scale = if from.average { 1.0 / roots.len() as f64 } else { 1.0 };
        let base = if from.base.is_empty() { vec![0.0; from.sums] } else { from.base };
        let plain = nodes.iter().all(|node| node.feature & LEAF != 0 || node.feature & (EQUAL | MISSING_LEFT) == 0);
        Self {
            nodes,
            weights,
            roots,
            width: from.width,
            sums: from.sums,
            base,
            neutral: from.neutral,
            scale,
            transform: from.transform,
            plain,
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn outputs(&self) -> usize {
        use Transform::*;
        match self.transform {
            BinaryComplement | BinaryMargin | BinaryLogistic => 2,
            None | Logistic | Softmax => self.sums,
        }
    }

    /// Scores whole rows, appending [`Forest::outputs`] numbers for each.
    pub(crate) fn predict(&self, rows: &[f32], scores: &mut Vec<f32>) {
        assert_eq!(rows.len() % self.width, 0, "the caller checked the shape");
        scores.reserve(rows.len() / self.width * self.outputs());
        let mut filled = Vec::new();
        let mut sums = vec![0.0; BLOCK.min(rows.len() / self.width) * self.sums];
        for block in rows.chunks(BLOCK * self.width) {
            let block = self.fill(block, &mut filled);
            let sums = &mut sums[..block.len() / self.width * self.sums];
            sums.fill(0.0);
            if self.plain {
                self.walk::<true>(block, sums)
            } else {
                self.walk::<false>(block, sums)
            }
            for sums in sums.chunks_exact_mut(self.sums) {
                self.finish(sums, scores);
            }
        }
    }

    /// Puts the neutral values where NaN is.
    fn fill<'a>(&self, block: &'a [f32], filled: &'a mut Vec<f32>) -> &'a [f32] {
        if self.neutral.is_empty() || !block.iter().any(|value| value.is_nan()) {
            return block;
        }
        filled.clear();
        for row in block.chunks_exact(self.width) {
            filled.extend(row.iter().zip(&self.neutral).map(|(value, neutral)| match neutral {
                Some(neutral) if value.is_nan() => *neutral,
                _ => *value,
            }));
        }
        filled
    }

    fn walk<const PLAIN: bool>(&self, block: &[f32], sums: &mut [f64]) {
        for &root in &self.roots {
            for (row, sums) in block.chunks_exact(self.width).zip(sums.chunks_exact_mut(self.sums)) {
                let mut node = self.nodes[root as usize];
                while node.feature & LEAF == 0 {
                    let left = if PLAIN {
                        row[node.feature as usize] <= node.value
                    } else {
                        let x = row[(node.feature & FEATURE_MASK) as usize];
                        let holds = if node.feature & EQUAL != 0 { x == node.value } else { x <= node.value };
                        holds | (x.is_nan() & (node.feature & MISSING_LEFT != 0))
                    };
                    node = self.nodes[(node.next + u32::from(!left)) as usize];
                }
                if self.sums == 1 {
                    sums[0] += f64::from(node.value);
                } else {
                    let count = (node.feature & !LEAF) as usize;
                    for &(sum, weight) in &self.weights[node.next as usize..][..count] {
                        sums[sum as usize] += f64::from(weight);
                    }
                }
            }
        }
    }

    fn finish(&self, sums: &mut [f64], scores: &mut Vec<f32>) {
        for (sum, base) in sums.iter_mut().zip(&self.base) {
            *sum = *sum * self.scale + f64::from(*base);
        }
        match self.transform {
            Transform::None => scores.extend(sums.iter().map(|sum| *sum as f32)),
            Transform::Logistic => scores.extend(sums.iter().map(|sum| logistic(*sum) as f32)),
            Transform::Softmax => {
                let largest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = sums.iter().map(|sum| (sum - largest).exp()).sum();
                scores.extend(sums.iter().map(|sum| ((sum - largest).exp() / total) as f32));
            }
            Transform::BinaryComplement => scores.extend([(1.0 - sums[0]) as f32, sums[0] as f32]),
            Transform::BinaryMargin => scores.extend([-sums[0] as f32, sums[0] as f32]),
            Transform::BinaryLogistic => scores.extend([logistic(-sums[0]) as f32, logistic(sums[0]) as f32]),
        }
    }
}
