//! The subscriptions of all sessions as a tree of levels, so that a message costs what its own name costs, not what
//! ten thousand filters cost.

use std::collections::HashMap;

use buttress_wire::mqtt::{Filter, Qos};

/// Subscribers are numbers; the hub knows whose.
pub type Subscriber = u64;

#[derive(Debug, Default)]
pub struct Tree {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// Filters that end here.
    here: Vec<(Subscriber, Qos)>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.here.is_empty()
    }
}

impl Tree {
    /// Adds a subscription, or changes the QoS of an equal one (MQTT-3.8.4-3).
    pub fn insert(&mut self, filter: &Filter, subscriber: Subscriber, qos: Qos) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            node = node.children.get_mut(level).expect("just inserted");
        }
        match node.here.iter_mut().find(|(who, _)| *who == subscriber) {
            Some((_, old)) => *old = qos,
            None => node.here.push((subscriber, qos)),
        }
    }

    pub fn remove(&mut self, filter: &Filter, subscriber: Subscriber) {
        fn walk(node: &mut Node, mut levels: std::str::Split<'_, char>, subscriber: Subscriber) {
            match levels.next() {
                None => node.here.retain(|(who, _)| *who != subscriber),
                Some(level) => {
                    if let Some(child) = node.children.get_mut(level) {
                        walk(child, levels, subscriber);
                        if child.is_empty() {
                            node.children.remove(level);
                        }
                    }
                }
            }
        }
        walk(&mut self.root, filter.split('/'), subscriber);
    }

    /// Appends every subscriber that `name` is meant for, once, with the highest QoS of its matching filters.
    pub fn matches(&self, name: &str, found: &mut Vec<(Subscriber, Qos)>) {
        let start = found.len();
        let levels: Vec<&str> = name.split('/').collect();
        collect(&self.root, &levels, name.starts_with('$'), found);
        if found.len() - start > 1 {
            // Highest QoS first, so that it is the one that stays.
            found[start..].sort_unstable_by_key(|(who, qos)| (*who, std::cmp::Reverse(*qos)));
            let mut at = start;
            for i in start + 1..found.len() {
                if found[i].0 != found[at].0 {
                    at += 1;
                    found[at] = found[i];
                }
            }
            found.truncate(at + 1);
        }
    }
}

/// `dollar`: a leading wildcard does not match (MQTT-4.7.2-1).
fn collect(node: &Node, levels: &[&str], dollar: bool, found: &mut Vec<(Subscriber, Qos)>) {
    if !dollar && let Some(all) = node.children.get("#") {
        found.extend_from_slice(&all.here);
    }
    let Some((first, rest)) = levels.split_first() else {
        found.extend_from_slice(&node.here);
        return;
    };
    if let Some(child) = node.children.get(*first) {
        collect(child, rest, false, found);
    }
    if !dollar && let Some(child) = node.children.get("+") {
        collect(child, rest, false, found);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn filter() -> impl Strategy<Value = Filter> {
        (prop::collection::vec("[ab$+]", 1..4), any::<bool>()).prop_map(|(mut levels, all)| {
            if all {
                levels.push("#".into());
            }
            Filter::try_from(&levels.join("/")[..]).expect("wildcards stand alone")
        })
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec("[abc$]", 1..4).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn finds_what_a_list_of_filters_finds(
            steps in prop::collection::vec((filter(), 0..4u64, any::<bool>(), any::<bool>()), 1..30),
            names in prop::collection::vec(name(), 1..6),
        ) {
            let mut tree = Tree::default();
            let mut model: BTreeMap<(Filter, u64), Qos> = BTreeMap::new();
            for (filter, who, add, high) in steps {
                let qos = if high { Qos::AtLeastOnce } else { Qos::AtMostOnce };
                if add {
                    tree.insert(&filter, who, qos);
                    model.insert((filter, who), qos);
                } else {
                    tree.remove(&filter, who);
                    model.remove(&(filter, who));
                }
            }
            for name in names {
                let mut found = Vec::new();
                tree.matches(&name, &mut found);
                let mut wanted: BTreeMap<u64, Qos> = BTreeMap::new();
                for ((filter, who), qos) in &model {
                    if filter.matches(&name) {
                        let best = wanted.entry(*who).or_insert(*qos);
                        *best = (*best).max(*qos);
                    }
                }
                found.sort_unstable();
                prop_assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "{}", name);
            }
            for ((filter, who), _) in model {
                tree.remove(&filter, who);
            }
            prop_assert!(tree.root.is_empty(), "nothing is left behind");
        }
    }
}
