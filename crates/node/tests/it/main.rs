//! Real nodes in one process: what a cluster promises, through stops, kills, cut links and failing disks.

mod backups;
mod clocks;
mod contract;
mod etcd;
mod faults;
mod formats;
mod healthy;
mod lanes;
mod members;
mod recovery;
mod world;
