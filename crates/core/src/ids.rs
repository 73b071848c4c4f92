//! Newtypes, so that a term is never taken for an index.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A member of the cluster. Never zero, never reused for another machine or another disk.
    NodeId(u64)
);
id!(
    /// A Raft term.
    Term(u64)
);
id!(
    /// The position of an entry in the replicated log, from 1.
    Index(u64)
);
id!(
    /// The revision of the key space after a commit, as etcd counts it: it grows by one for an entry that changes keys.
    Revision(u64)
);
id!(
    /// The position of a record in a partition, from 0.
    Offset(i64)
);
id!(
    /// The number of one partition of one topic, unique in the cluster and never reused.
    LogId(u32)
);
id!(
    /// A lease.
    LeaseId(i64)
);
id!(
    /// Milliseconds since the Unix epoch, as read by the node that proposes.
    TimeMs(u64)
);

impl Index {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
