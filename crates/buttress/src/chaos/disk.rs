//! A disk that can be full: a tmpfs of its own under one node's data directory.
//!
//! It is filled by making it as small as what it holds, and emptied by making it large again. So a node meets a real
//! ENOSPC from the kernel, and no memory is spent on ballast. It needs root; where it cannot be had, the fault is reported
//! as not run, with the reason.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use buttress_core::{Code, Error};

use super::network::is_gone;

/// What the node may use in peace.
const BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// The mount's source names us, so that the next run finds what a killed one has left.
const SOURCE: &str = "buttress-chaos-";

pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// # Errors
    /// `CONFIG` with what the system says.
    pub fn mount(path: &Path) -> Result<Self, Error> {
        sweep();
        std::fs::create_dir_all(path).map_err(|error| Error::new(Code::DISK, error.to_string()))?;
        let source = format!("{SOURCE}{}", std::process::id());
        let size = format!("size={BYTES}");
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), source.as_ref(), path])?;
        Ok(Self { path: path.to_owned() })
    }

    /// Leaves no room for one more page.
    ///
    /// # Errors
    /// `CONFIG` with what the system says.
    pub fn fill(&self) -> Result<(), Error> {
        let stat = rustix::fs::statvfs(&self.path).map_err(|error| Error::new(Code::DISK, error.to_string()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize;
        // Between the look and the change the node may have taken more; then the kernel refuses, and a little more is given.
        let sizes = [0, 64, 256, 1024, 4096].map(|more| used.max(4096) + more * 4096);
        let mut last = None;
        for size in sizes {
            match self.resize(size) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("every size was refused"))
    }

    /// # Errors
    /// `CONFIG` with what the system says.
    pub fn empty(&self) -> Result<(), Error> {
        self.resize(BYTES)
    }

    fn resize(&self, bytes: u64) -> Result<(), Error> {
        let options = format!("remount,size={bytes}");
        run("mount", &["-o".as_ref(), options.as_ref(), &self.path])
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, for a node that is being killed may still hold a file.
        let _ = run("umount", &["-l".as_ref(), &self.path]);
    }
}

fn run(program: &str, args: &[&Path]) -> Result<(), Error> {
    let failed =
        |what: String| Error::new(Code::CONFIG, format!("{program} {}: {what}", args[args.len() - 1].display()));
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Unmounts what processes that are gone have left.
fn sweep() {
    for (source, path) in mounts(&std::fs::read_to_string("/proc/mounts").unwrap_or_default()) {
        if source.strip_prefix(SOURCE).and_then(|pid| pid.parse().ok()).is_some_and(is_gone) {
            let _ = run("umount", &["-l".as_ref(), path.as_ref()]);
        }
    }
}

fn mounts(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn mounts_are_read() {
        let text = "buttress-chaos-12 /tmp/d/node-1 tmpfs rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(mounts(text).collect::<Vec<_>>(), [("buttress-chaos-12", "/tmp/d/node-1"), ("proc", "/proc")]);
    }

    #[test]
    fn a_full_disk_refuses_and_an_empty_one_takes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = match SmallDisk::mount(&dir.path().join("d")) {
            Ok(disk) => disk,
            Err(error) => {
                // Without root there is nothing to test; the fault itself is then reported as not run.
                eprintln!("no tmpfs here: {error}");
                return;
            }
        };
        let path = dir.path().join("d/file");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        disk.fill().unwrap();
        let grow =
            || std::fs::File::options().append(true).open(&path).and_then(|mut file| file.write_all(&[2; 100_000]));
        assert_eq!(grow().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        disk.empty().unwrap();
        grow().unwrap();
    }
}
