//! A disk in memory that forgets, tears, fails, fills up and rots.
//!
//! For every file it keeps what a sync has made durable and the ranges written since. A loss of power keeps any subset of
//! the 512-byte sectors that were written and not synced (or everything up to one byte), and a prefix of the changes to
//! the directory that were not synced. A process that dies loses nothing: the page cache survives it.
//!
//! Damage is done to what is durable: a byte flips, a sector turns to zeros or to the content of another one. The last
//! write of the newest segment is spared, because behind it there is nothing that could prove that it was ever whole; it
//! is the one thing that no checksum can tell from a torn write.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use buttress_wal::disk::{Disk, DiskFile, Open};

use crate::rng::Rng;

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
    /// Where the latest write began.
    last_write: usize,
}

impl Inode {
    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for (from, to) in self.dirty.drain(..) {
            self.durable[from..to].copy_from_slice(&self.now[from..to]);
        }
    }
}

#[derive(Debug)]
enum DirChange {
    Link(String, u64),
    Rename(String, String),
    Remove(String),
}

fn apply(names: &mut BTreeMap<String, u64>, change: &DirChange) {
    match change {
        DirChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        DirChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        DirChange::Remove(name) => {
            names.remove(name);
        }
    }
}

/// What is wrong with a disk whose fuse has blown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Writes and syncs give an error.
    Broken,
    Full,
}

#[derive(Debug)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<DirChange>,
    next_inode: u64,
    /// Writes, syncs and directory changes that still succeed, and what comes then.
    fuse: Option<(u64, Ailment)>,
    /// A write that blows the fuse stores a part of its bytes first.
    rng: Rng,
    syncs: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// A way to damage what is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bits of one byte flip.
    Flip,
    /// A sector reads as zeros.
    Zeros,
    /// A write went astray: a sector holds what belongs into another one.
    Misdirected,
}

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            next_inode: 1,
            fuse: None,
            rng: Rng::new(seed),
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the disk's users do not panic")
    }

    /// After so many more writes, syncs and changes of the directory, every one fails.
    pub fn fail_after(&self, operations: u64, ailment: Ailment) {
        self.state().fuse = Some((operations, ailment));
    }

    pub fn is_failing(&self) -> bool {
        self.state().fuse.is_some()
    }

    /// From now on everything succeeds.
    pub fn mend(&self) {
        self.state().fuse = None;
    }

    /// Loses power: keeps what is durable and, of what is not, as much as chance wants.
    pub fn lose_power(&self, rng: &mut Rng) {
        let state = &mut *self.state();
        let kept = rng.below(state.changes.len() as u64 + 1) as usize;
        let mut names = std::mem::take(&mut state.durable_names);
        state.changes[..kept].iter().for_each(|change| apply(&mut names, change));
        state.changes.clear();
        for inode in state.inodes.values_mut() {
            // Either single sectors of the unsynced writes are lost, or all behind one byte are.
            let cut = rng.below(3) == 0;
            let cut_at = rng.below(inode.now.len() as u64 + 1) as usize;
            for (from, to) in std::mem::take(&mut inode.dirty) {
                let mut at = from;
                while at < to {
                    let next = (at / SECTOR + 1) * SECTOR;
                    let mut end = next.min(to).min(inode.now.len());
                    if cut {
                        end = end.min(cut_at.max(at));
                    }
                    if end > at && (cut || rng.below(3) > 0) {
                        if inode.durable.len() < end {
                            inode.durable.resize(end, 0);
                        }
                        inode.durable[at..end].copy_from_slice(&inode.now[at..end]);
                    }
                    at = next;
                }
            }
            inode.now.clone_from(&inode.durable);
        }
        state.inodes.retain(|number, _| names.values().any(|named| named == number));
        state.names.clone_from(&names);
        state.durable_names = names;
    }

    /// Damages something durable in the log, but for the last write of its newest segment; says what, if there was
    /// anything.
    pub fn damage(&self, damage: Damage, rng: &mut Rng) -> Option<String> {
        let state = &mut *self.state();
        let logs: Vec<(String, u64)> = state
            .durable_names
            .iter()
            .filter(|(name, _)| name.starts_with("wal-"))
            .map(|(name, inode)| (name.clone(), *inode))
            .collect();
        let newest = logs.last()?.1;
        let reach = |number: u64, inode: &Inode| match number == newest {
            true => inode.last_write.min(inode.durable.len()),
            false => inode.durable.len(),
        };
        let (name, number) = logs[rng.below(logs.len() as u64) as usize].clone();
        let end = reach(number, state.inodes.get(&number)?);
        let (from, to, with) = match damage {
            Damage::Flip => {
                let at = rng.below(end.max(1) as u64) as usize;
                let byte = *state.inodes[&number].durable.get(at)?;
                (at, at + 1, vec![byte ^ (1 << rng.below(8))])
            }
            Damage::Zeros => {
                let at = rng.below((end / SECTOR).max(1) as u64) as usize * SECTOR;
                (at, at + SECTOR, vec![0; SECTOR])
            }
            Damage::Misdirected => {
                let at = rng.below((end / SECTOR).max(1) as u64) as usize * SECTOR;
                let other = &state.inodes[&logs[rng.below(logs.len() as u64) as usize].1];
                let source = rng.below((other.durable.len() / SECTOR).max(1) as u64) as usize * SECTOR;
                (at, at + SECTOR, other.durable.get(source..source + SECTOR)?.to_vec())
            }
        };
        if to > end {
            return None;
        }
        let inode = state.inodes.get_mut(&number).expect("looked at above");
        if inode.durable[from..to] == with[..] {
            return None;
        }
        inode.durable[from..to].copy_from_slice(&with);
        if to <= inode.now.len() {
            inode.now[from..to].copy_from_slice(&with);
        }
        Some(format!("{damage:?} at byte {from} of {name}"))
    }

    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }
}

impl State {
    /// Counts a change; an error once the fuse has blown.
    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            None => Ok(()),
            Some((0, Ailment::Full)) => Err(io::ErrorKind::StorageFull.into()),
            Some((0, Ailment::Broken)) => Err(io::Error::other("injected")),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn change(&mut self, change: DirChange) -> io::Result<()> {
        self.burn()?;
        apply(&mut self.names, &change);
        self.changes.push(change);
        Ok(())
    }
}

impl Disk for SimDisk {
    fn list(&self, _dir: &str) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None if mode == Open::Create => {
                let inode = state.next_inode;
                state.change(DirChange::Link(path.to_owned(), inode))?;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { inode, state: self.state.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(DirChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.state().change(DirChange::Remove(path.to_owned()))
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_dir_all(&self, _dir: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        let state = &mut *self.state();
        state.burn()?;
        for change in state.changes.drain(..) {
            if let DirChange::Remove(name) = &change
                && let Some(inode) = state.durable_names.get(name)
            {
                state.inodes.remove(inode);
            }
            apply(&mut state.durable_names, &change);
        }
        Ok(())
    }
}

struct SimFile {
    inode: u64,
    state: Arc<Mutex<State>>,
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        f(&mut self.state.lock().expect("the disk's users do not panic"))
    }
}

fn inode(state: &mut State, number: u64) -> io::Result<&mut Inode> {
    state.inodes.get_mut(&number).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|s| Ok(inode(s, self.inode)?.now.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(|s| {
            let bytes = &inode(s, self.inode)?.now;
            let from = (at as usize).min(bytes.len());
            let n = buf.len().min(bytes.len() - from);
            buf[..n].copy_from_slice(&bytes[from..from + n]);
            Ok(n)
        })
    }

    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.with(|s| {
            let burnt = s.burn();
            // A write that fails may have stored a part.
            let len = if burnt.is_ok() { buf.len() } else { s.rng.below(buf.len() as u64 + 1) as usize };
            let inode = inode(s, self.inode)?;
            let (from, to) = (at as usize, at as usize + len);
            if len > 0 {
                if inode.now.len() < to {
                    inode.now.resize(to, 0);
                }
                inode.now[from..to].copy_from_slice(&buf[..len]);
                inode.dirty.push((from, to));
                inode.last_write = from;
            }
            burnt
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|s| {
            s.burn()?;
            let inode = inode(s, self.inode)?;
            inode.now.resize(len as usize, 0);
            inode.durable.truncate(len as usize);
            inode.dirty.retain(|(_, to)| *to as u64 <= len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|s| {
            s.burn()?;
            s.syncs += 1;
            inode(s, self.inode)?.sync();
            Ok(())
        })
    }
}
