//! What the etcd edge may ask of the node beside the ledger.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use buttress_coordination::edge::etcd::Admin;
use buttress_core::{BoxFuture, Error, NodeId};
use buttress_node::runtime::{Handle, MemberRequest};

pub struct NodeAdmin {
    pub node: Arc<Handle>,
    pub data_dir: PathBuf,
}

impl NodeAdmin {
    fn change(&self, request: MemberRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.node.change_members(request).await.map(drop) })
    }
}

impl Admin for NodeAdmin {
    fn remove(&self, id: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        self.change(MemberRequest::Remove { id })
    }

    fn promote(&self, id: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        self.change(MemberRequest::Promote { id, force: false })
    }

    fn transfer(&self, to: NodeId) -> BoxFuture<'_, Result<(), Error>> {
        self.change(MemberRequest::Transfer { to: Some(to), from: None })
    }

    fn disk_bytes(&self) -> BoxFuture<'_, u64> {
        let dir = self.data_dir.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || bytes_below(&dir)).await.unwrap_or_default() })
    }
}

/// The sizes of all files below a directory; what cannot be read, because it was just removed for one, counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
