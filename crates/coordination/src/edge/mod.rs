//! The protocols of coordination clients.

pub mod etcd;
