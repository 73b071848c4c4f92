//! Which directory of the store counts, and whose it is.
//!
//! `CURRENT` is a small text file that is replaced atomically. It names the store's directory, so a received snapshot
//! takes the old one's place in one step. Every other `store-…` directory is a leftover and is removed when the store
//! is opened.

use std::{fmt::Write as _, path::PathBuf, sync::Arc};

use buttress_core::{Code, Error};

use crate::wal::{
    Identity,
    disk::{Disk, Open, corrupt, disk_error, read_full},
};

pub const FORMAT: u32 = 1;
const CURRENT: &str = "CURRENT";
/// Longer than any that was ever written.
const CURRENT_BYTES_MAX: usize = 4096;

/// The directory that holds the store's directories.
pub struct Root {
    pub path: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    pub number: u64,
    /// The directory is being made for the first time and holds nothing yet.
    pub fresh: bool,
}

pub fn dir_name(number: u64) -> String {
    format!("store-{number:016x}")
}

pub fn dir_number(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("store-")?;
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok())?
}

fn encode(identity: &Identity, current: &Current) -> String {
    let mut text = format!("buttress-store {FORMAT}\n");
    let state = if current.fresh { "fresh" } else { "ready" };
    let _ = writeln!(text, "cluster {}\nnode {}", identity.cluster_id, identity.node);
    let _ = writeln!(text, "directory {} {state}", dir_name(current.number));
    let crc = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc {crc:08x}");
    text
}

/// Reads the text of `CURRENT`.
///
/// # Errors
/// `CORRUPT`, `FORMAT`, `WRONG_CLUSTER`.
pub fn decode(bytes: &[u8], identity: &Identity) -> Result<Current, Error> {
    let bad = || corrupt("the store's CURRENT file is damaged");
    let text = std::str::from_utf8(bytes).map_err(|_| bad())?;
    // The first line is the same in every format, and only it: the rest of a newer one, its checksum too, may be anything.
    let format = text.lines().next().and_then(|line| line.strip_prefix("buttress-store "));
    let format: u32 = format.and_then(|format| format.parse().ok()).ok_or_else(bad)?;
    if format > FORMAT {
        return Err(Error::new(Code::FORMAT, format!("the store has format {format}, this version knows {FORMAT}"))
            .hint("run the version of buttress that wrote this directory, or a later one"));
    }
    let body = text.len().checked_sub("crc 00000000\n".len()).ok_or_else(bad)?;
    let (body, crc) = text.split_at_checked(body).ok_or_else(bad)?;
    let crc = crc.strip_prefix("crc ").and_then(|c| c.strip_suffix('\n')).ok_or_else(bad)?;
    if format != FORMAT || u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(body.as_bytes())) {
        return Err(bad());
    }
    let mut lines = body.lines().skip(1);
    let mut field = |name: &str| -> Result<&str, Error> {
        lines.next().and_then(|l| l.strip_prefix(name)).and_then(|l| l.strip_prefix(' ')).ok_or_else(bad)
    };
    let cluster = field("cluster")?;
    let node = field("node")?;
    if cluster != identity.cluster_id || node != identity.node.to_string() {
        return Err(Error::new(
            Code::WRONG_CLUSTER,
            format!(
                "the store belongs to node {node} of cluster \"{cluster}\", not to node {} of cluster \"{}\"",
                identity.node, identity.cluster_id
            ),
        )
        .hint("start the node with the data directory that is its own, or with an empty one under a new node id"));
    }
    let (name, state) = field("directory")?.split_once(' ').ok_or_else(bad)?;
    let number = dir_number(name).ok_or_else(bad)?;
    match state {
        "fresh" => Ok(Current { number, fresh: true }),
        "ready" => Ok(Current { number, fresh: false }),
        _ => Err(bad()),
    }
}

impl Root {
    pub fn read_current(&self) -> Result<Option<Current>, Error> {
        let failed = |e: std::io::Error| disk_error("cannot read the store's CURRENT file", &e);
        let file = match self.disk.open(CURRENT, Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = vec![0; CURRENT_BYTES_MAX];
        let got = read_full(&*file, &mut bytes, 0).map_err(failed)?;
        decode(&bytes[..got], &self.identity).map(Some)
    }

    pub fn write_current(&self, current: &Current) -> Result<(), Error> {
        let write = || -> std::io::Result<()> {
            let file = self.disk.open("CURRENT.tmp", Open::Create)?;
            file.set_len(0)?;
            file.write_all_at(encode(&self.identity, current).as_bytes(), 0)?;
            file.sync_data()?;
            self.disk.rename("CURRENT.tmp", CURRENT)?;
            self.disk.sync_dir("")
        };
        write().map_err(|e| disk_error("cannot write the store's CURRENT file", &e))
    }

    /// Numbers of all store directories.
    pub fn numbers(&self) -> Result<Vec<u64>, Error> {
        let names = self.disk.list("").map_err(|e| disk_error("cannot list the store's directory", &e))?;
        Ok(names.iter().filter_map(|n| dir_number(n)).collect())
    }

    pub fn remove(&self, number: u64) -> Result<(), Error> {
        self.disk.remove_dir_all(&dir_name(number)).map_err(|e| disk_error("cannot remove an old store directory", &e))
    }

    pub fn rows_path(&self, number: u64) -> PathBuf {
        self.path.join(dir_name(number)).join("rows")
    }
}
