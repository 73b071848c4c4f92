//! Disks that misbehave on purpose: one in memory that can crash, and a wrapper that fails a real one.
//!
//! [`MemDisk`] keeps for every file what a sync has made durable and the writes since. A crash keeps an arbitrary
//! subset of the 512-byte sectors that were written and not synced, and a prefix of the directory changes that were
//! not synced. All choices come from the seed.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
};

use super::disk::{Disk, DiskFile, Open};

const SECTOR: usize = 512;

/// A small generator of numbers for the choices of a crash (splitmix64).
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum DirChange {
    Link(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<DirChange>,
    next_inode: u64,
    /// Writes and syncs that still succeed; negative: all do.
    fuse: i64,
    /// A write that blows the fuse stores a part of its bytes first.
    random: Seeded,
    /// What a blown fuse gives.
    full: bool,
    dead: bool,
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

/// A disk in memory, without subdirectories.
#[derive(Debug)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

impl MemDisk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            next_inode: 1,
            fuse: -1,
            random: Seeded::new(seed),
            full: false,
            dead: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("the disk's users do not panic")
    }

    /// After `operations` more writes, syncs and directory changes, every one fails.
    pub fn fail_after(&self, operations: u64, full: bool) {
        let mut state = self.state();
        state.fuse = operations as i64;
        state.full = full;
    }

    /// Loss of power: what the disk has when it comes back. Files that are open stay on the lost disk.
    pub fn crash(&self, seed: u64) -> MemDisk {
        let mut random = Seeded::new(seed);
        let mut state = self.state();
        state.dead = true;
        let kept = random.below(state.changes.len() as u64 + 1) as usize;
        let mut names = state.durable_names.clone();
        state.changes[..kept].iter().for_each(|change| apply(&mut names, change));
        let mut inodes = BTreeMap::new();
        for (number, inode) in &state.inodes {
            let mut bytes = inode.durable.clone();
            // Either the sectors of the unsynced writes are lost at random, or all behind one byte are.
            let cut = random.below(3) == 0;
            let cut_at = random.below(inode.now.len() as u64 + 1) as usize;
            for &(from, to) in &inode.dirty {
                let mut at = from;
                while at < to {
                    let end = ((at / SECTOR + 1) * SECTOR).min(to);
                    let end = if cut { end.min(cut_at.max(at)) } else { end };
                    if end > at && (cut || random.below(3) > 0) {
                        let end = end.min(inode.now.len());
                        if end > at {
                            bytes.resize(bytes.len().max(end), 0);
                            bytes[at..end].copy_from_slice(&inode.now[at..end]);
                        }
                    }
                    at = (at / SECTOR + 1) * SECTOR;
                }
            }
            inodes.insert(*number, Inode { now: bytes.clone(), durable: bytes, dirty: Vec::new() });
        }
        MemDisk {
            state: Arc::new(Mutex::new(State {
                inodes,
                durable_names: names.clone(),
                names,
                changes: Vec::new(),
                next_inode: state.next_inode,
                fuse: -1,
                random,
                full: false,
                dead: false,
            })),
        }
    }

    /// Flips bits of one byte that is on the disk.
    pub fn rot(&self, path: &str, at: u64) {
        let mut state = self.state();
        let inode = state.names[path];
        let inode = state.inodes.get_mut(&inode).expect("names point to inodes");
        inode.now[at as usize] ^= 0x5a;
        inode.durable[at as usize] ^= 0x5a;
    }

    pub fn file(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[&state.names[path]].now.clone()
    }
}

impl State {
    /// Counts a change; an error once the fuse has blown.
    fn burn(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("power is lost"));
        }
        match self.fuse {
            0 if self.full => Err(io::ErrorKind::StorageFull.into()),
            0 => Err(io::Error::other("injected")),
            fuse => {
                self.fuse = if fuse > 0 { fuse - 1 } else { fuse };
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

impl Disk for MemDisk {
    fn list(&self, _dir: &str) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None if mode == Open::Create => {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change(DirChange::Link(path.to_owned(), inode))?;
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(MemFile { inode, state: self.state.clone() }))
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
        let mut state = self.state();
        state.burn()?;
        state.changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }
}

struct MemFile {
    inode: u64,
    state: Arc<Mutex<State>>,
}

impl MemFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("the disk's users do not panic"))
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|s| Ok(s.inodes[&self.inode].now.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(|s| {
            let bytes = &s.inodes[&self.inode].now;
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
            let len = if burnt.is_ok() { buf.len() } else { s.random.below(buf.len() as u64 + 1) as usize };
            let dead = s.dead;
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            let (from, to) = (at as usize, at as usize + len);
            if len > 0 && !dead {
                inode.now.resize(inode.now.len().max(to), 0);
                inode.now[from..to].copy_from_slice(&buf[..len]);
                inode.dirty.push((from, to));
            }
            burnt
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|s| {
            s.burn()?;
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            inode.now.resize(len as usize, 0);
            inode.durable.truncate(len as usize);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|s| {
            s.burn()?;
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            inode.durable = inode.now.clone();
            inode.dirty.clear();
            Ok(())
        })
    }
}

/// Passes everything to another disk until its fuse has burnt down; then writes and syncs fail. It also remembers how long
/// each file was when it was last synced, which a test can hold against what is promised.
pub struct FailingDisk<D> {
    inner: D,
    fuse: Arc<AtomicI64>,
    full: bool,
    synced: SyncedLengths,
}

/// Path → length at the last sync.
pub type SyncedLengths = Arc<Mutex<BTreeMap<String, u64>>>;

impl<D: Disk> FailingDisk<D> {
    /// `fuse` counts down with every write and sync; at zero they fail. Negative: they never do.
    pub fn new(inner: D, fuse: Arc<AtomicI64>, full: bool) -> Self {
        Self { inner, fuse, full, synced: Arc::default() }
    }

    /// Adds what it learns to what is known already.
    pub fn with_synced(self, synced: SyncedLengths) -> Self {
        Self { synced, ..self }
    }
}

fn burn(fuse: &AtomicI64, full: bool) -> io::Result<()> {
    let left = fuse.fetch_update(SeqCst, SeqCst, |left| if left > 0 { Some(left - 1) } else { None });
    match left {
        Err(0) if full => Err(io::ErrorKind::StorageFull.into()),
        Err(0) => Err(io::Error::other("injected")),
        _ => Ok(()),
    }
}

impl<D: Disk> Disk for FailingDisk<D> {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.open(path, mode)?;
        let (fuse, synced) = (self.fuse.clone(), self.synced.clone());
        Ok(Arc::new(FailingFile { path: path.to_owned(), inner, fuse, full: self.full, synced }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        self.inner.create_dir(dir)
    }

    fn remove_dir_all(&self, dir: &str) -> io::Result<()> {
        self.inner.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        self.inner.sync_dir(dir)
    }
}

struct FailingFile {
    path: String,
    synced: SyncedLengths,
    inner: Arc<dyn DiskFile>,
    fuse: Arc<AtomicI64>,
    full: bool,
}

impl DiskFile for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }

    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        self.inner.write_all_at(buf, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        burn(&self.fuse, self.full)?;
        let len = self.inner.len()?;
        self.inner.sync_data()?;
        self.synced.lock().expect("nothing panics while it holds this lock").insert(self.path.clone(), len);
        Ok(())
    }
}
