//! The uplink: store and forward from a log at the edge to a Kafka or a Buttress somewhere else. This crate decides; it
//! reads nothing, sends nothing and has no clock. A runtime in the binary carries out what a [`Lane`] asks for, and the
//! simulator does the same with a target that crashes.
//!
//! The local topic *is* the queue, and the position lives *in the target*, committed together with the records that it
//! stands behind. So nothing that the edge remembers matters: whoever starts a lane reads where to go on from the target.
//!
//! The way of a batch: [`Lane::poll`] asks to claim the target's position ([`Action::Claim`]) → to look at the local log
//! ([`Action::Look`]): is it the log that the position speaks of? → to read ([`Action::Read`]) → the batches become a
//! [`Parcel`] as they lie there, with the position behind them and, where retention was faster than the link, a [`Gap`] that
//! says so → [`Turns`] and the [`Bucket`] say whose parcel goes next and when ([`Action::Send`]) → the target commits the
//! whole parcel or nothing of it. Whatever else happens, the lane claims again.
//!
//! It never moves a position but with what the position says, never skips a record without a gap record in the same
//! commit, and never sends into a position that was written from another log.

mod lane;

pub mod gap;
pub mod position;

mod bucket;
mod turns;

pub mod fuzz;

pub use bucket::Bucket;
pub use gap::{Gap, Reason};
pub use lane::{
    Action, Bounds, Lane, LocalBatch, Oversized, PARCEL_BYTES_DEFAULT, PARCEL_BYTES_MAX, Parcel, Phase, Settings,
    Source, Tally, Trouble,
};
pub use position::{Lineage, Mark, Position};
pub use turns::{CLASSES, Priority, Turns};
