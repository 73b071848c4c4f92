//! The binary as a user meets it: real processes on loopback, real files, and what is left of both when things go wrong.

mod backups;
mod chaos;
mod cluster;
mod engines;
mod etcd;
mod input;
mod kv;
mod locks;
mod members;
mod orders;
mod proxy;
mod resources;
mod support;
mod uplink;
