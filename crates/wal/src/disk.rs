//! The few file operations that the log and the record segments need, behind a trait, so that a test can fail them,
//! tear them, lose what was not synced, or rot what was.
//!
//! Paths are relative to the disk's root and use `/`. Nothing here retries: an error of a write or a sync is final for
//! whoever gets it, because the kernel may have dropped the dirty pages that the error was about.

use std::{
    fmt, fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use buttress_core::{Code, Error};

/// Whether a file must exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Read,
    /// For reading and writing; the file exists.
    Write,
    /// For reading and writing; made if it does not exist, kept as it is if it does.
    Create,
}

/// A directory tree of files.
pub trait Disk: Send + Sync + 'static {
    /// Names of the entries of a directory, sorted; none if it does not exist.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, path: &str) -> io::Result<()>;
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    fn remove_dir_all(&self, dir: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in the directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// An open file with positional access.
pub trait DiskFile: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads up to `buf.len()` bytes; zero only at the end of the file.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// `fdatasync`: the bytes and the length survive a loss of power.
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads until `buf` is full or the file ends, and says how many bytes there were.
pub fn read_full(file: &dyn DiskFile, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// Turns an operating system error into one that says what to do.
pub fn disk_error(what: impl fmt::Display, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Code::DISK_FULL, format!("{what}: the disk is full")).hint(
                "free space on the data directory's disk, then start the node again; nothing acknowledged is lost",
            )
        }
        _ => Error::new(Code::DISK, format!("{what}: {error}"))
            .hint("check the disk and the kernel log; replace the node under a new member id if the disk is bad"),
    }
}

/// A corruption error with the usual way out.
pub fn corrupt(what: impl fmt::Display) -> Error {
    Error::new(Code::CORRUPT, what.to_string())
        .hint("do not repair the directory by hand: remove this member and add it again under a new id with an empty directory")
}

/// Makes a directory with its parents. The names of those that are new are synced, or a loss of power could take the whole
/// directory with everything that was synced inside.
fn make_durable_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    fs::create_dir_all(dir)?;
    for new in missing {
        let parent = new.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// The real file system below one directory, which is locked against other processes while this lives.
pub struct DirDisk {
    root: PathBuf,
    lock: fs::File,
}

/// The lock is given back, not only closed. A process that this one starts holds a copy of the descriptor from its fork
/// until it runs its program, and closing ours would leave the directory locked for that long.
impl Drop for DirDisk {
    fn drop(&mut self) {
        // The system gives it back at the latest when the last copy is closed.
        let _ = self.lock.unlock();
    }
}

impl DirDisk {
    /// Makes the directory where needed and locks it.
    ///
    /// # Errors
    /// `DIR_LOCKED` if another process, or another part of this one, has it open; `DISK` otherwise.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        make_durable_dir(&root).map_err(|e| disk_error(format_args!("cannot make {}", root.display()), &e))?;
        let path = root.join("LOCK");
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| disk_error(format_args!("cannot open {}", path.display()), &e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, lock }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::new(Code::DIR_LOCKED, format!("{} is in use by another process", root.display()))
                    .hint("stop the other node, or give this one a directory of its own as node.data_dir"))
            }
            Err(fs::TryLockError::Error(e)) => Err(disk_error(format_args!("cannot lock {}", path.display()), &e)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    #[cfg(test)]
    pub(crate) fn lock_copy(&self) -> fs::File {
        self.lock.try_clone().expect("a descriptor can be copied")
    }
}

impl Disk for DirDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => {
                for entry in entries {
                    names.push(entry?.file_name().to_string_lossy().into_owned());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &str, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(mode != Open::Read)
            .create(mode == Open::Create)
            .truncate(false)
            .open(self.root.join(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        fs::create_dir_all(self.root.join(dir))
    }

    fn remove_dir_all(&self, dir: &str) -> io::Result<()> {
        fs::remove_dir_all(self.root.join(dir))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        fs::File::open(self.root.join(dir))?.sync_all()
    }
}

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buf, at)
    }

    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(buf, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
