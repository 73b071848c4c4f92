//! Resources from files to where they are kept: `apply`, `get`, `describe`, `diff`, `delete`, `edit`, and the paths
//! `/v1/resources` of a node.
//!
//! **One way for all.** Files are read and held against each other as a whole ([`files`]); what is there is read
//! ([`place`]); both give a plan that can be shown ([`plan`]); then it is carried out. Topics, models and functions go
//! to their planes, one request each, because their planes keep them; routes and listeners are written in one entry,
//! all or none ([`store`]). Nothing is written while anything of the files is wrong.
//!
//! **Lost updates.** A plan holds the revision of everything that it read, and the entry is guarded with them. Who
//! wrote in between makes the entry fail with BT1008, whichever node or etcd it is.
//!
//! **Unknown outcomes.** An apply that was cut off in the middle is repeated: what was written before is found to be as
//! wanted and left alone.

pub mod cli;
mod files;
pub mod http;
mod lint;
mod past;
mod place;
mod plan;
mod replay;
pub mod route;
pub mod store;
mod what_if;
