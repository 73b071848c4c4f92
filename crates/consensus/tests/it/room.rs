//! The limit on what waits for its commit: who is let in, and in which order.

use buttress_consensus::{Config, Input, ProposalError, Replica, Restored};
use buttress_core::{Index, Machine, NodeId, Term};
use bytes::Bytes;

#[derive(Default)]
struct Sizes {
    applied: (Index, Term),
}

impl Machine for Sizes {
    type Effects = usize;

    fn applied(&self) -> (Index, Term) {
        self.applied
    }

    fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> usize {
        self.applied = (index, term);
        entry.len()
    }
}

#[test]
fn a_small_proposal_does_not_overtake_a_large_one_that_found_no_room() {
    let config = Config { max_uncommitted_bytes: 100, ..Config::new(NodeId(1), 42) };
    let mut replica = Replica::new(config, Restored::founding(&[NodeId(1)]), Sizes::default()).expect("it starts");
    let mut inbox = Vec::new();
    let (mut refused, mut applied) = (Vec::new(), Vec::new());
    let mut proposed = false;
    for turn in 0..100 {
        inbox.push(Input::Tick);
        let out = replica.step(turn * 50, std::mem::take(&mut inbox));
        inbox.extend(out.persist.map(|persist| Input::Persisted { ticket: persist.ticket }));
        // What a new leader appends for itself waits for no room, but counts until it is committed.
        if !proposed && replica.status().engine.role.is_leader && replica.status().engine.uncommitted_bytes == 0 {
            proposed = true;
            for (tag, len) in [(1, 60), (2, 60), (3, 10), (4, 10)] {
                inbox.push(Input::Propose { tag, data: Bytes::from(vec![0; len]) });
            }
        }
        for (tag, error) in out.failed {
            assert_eq!(error, ProposalError::Overloaded);
            refused.push(tag);
        }
        applied.extend(out.applied.iter().filter_map(|applied| Some((applied.tag?, applied.effects))));
        if !applied.is_empty() {
            break;
        }
    }
    assert_eq!((applied, refused), (vec![(1, 60)], vec![2, 3, 4]));
}
