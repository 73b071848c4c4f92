//! Real nodes in one process: what a cluster promises, through stops, kills, cut links and failing disks.

mod faults;
mod healthy;
mod lanes;
mod recovery;
mod world;
