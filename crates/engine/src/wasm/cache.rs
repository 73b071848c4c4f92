//! Machine code of components on disk, so that a restart or a second node on this machine does not compile again.
//!
//! A file is named by the digest of the component and by the compatibility hash of the engine (version, settings,
//! CPU features), so that a new engine never takes an old one's code. Loading machine code is trusting it: the files
//! are written only by this module, into a directory that only this user may enter; they carry a digest of their
//! own, so that a torn or rotten file is compiled again rather than run; and nothing here ever comes from a user.
//! The digest finds accidents, not an attacker who can write the directory: he could replace the program as well.
#![allow(unsafe_code)]

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

/// Files kept; the ones least recently written go first. A component of 200 KB is 600 KB of machine code.
pub const CACHE_FILES_MAX: usize = 64;

const MAGIC: &[u8; 8] = b"BTCWASM1";
const HEADER_BYTES: usize = 8 + 32;

pub(crate) struct Cache {
    dir: PathBuf,
    engine_hash: u64,
}

impl Cache {
    /// Makes the directory.
    pub(crate) fn open(dir: &Path, engine: &wasmtime::Engine) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { dir: dir.to_owned(), engine_hash: hasher.finish() })
    }

    fn path(&self, digest: &str) -> PathBuf {
        let digest = digest.trim_start_matches("sha256:");
        self.dir.join(format!("{digest}-{:016x}.cwasm", self.engine_hash))
    }

    /// The machine code of a component, if it is there and whole.
    pub(crate) fn load(&self, engine: &wasmtime::Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let file = fs::read(&path).ok()?;
        let loaded = file
            .split_at_checked(HEADER_BYTES)
            .filter(|(header, code)| header.starts_with(MAGIC) && header[8..] == Sha256::digest(code)[..])
            .and_then(|(_, code)| {
                // SAFETY: this module wrote the file from `Component::serialize` of this very engine version (the
                // name carries its compatibility hash, and wasmtime checks version and settings again), and the
                // digest shows that it is unchanged since.
                unsafe { Component::deserialize(engine, code) }.ok()
            });
        if loaded.is_none() {
            tracing::warn!(path = %path.display(), "a file of the component cache is damaged and is made again");
            let _ = fs::remove_file(&path);
        }
        loaded
    }

    /// Keeps the machine code of a component. The file appears whole or not at all.
    pub(crate) fn store(&self, digest: &str, component: &Component) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let code = component.serialize().map_err(io::Error::other)?;
        let temporary = self.dir.join(format!("{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let written = (|| {
            let mut file = fs::File::create_new(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(&Sha256::digest(&code))?;
            file.write_all(&code)?;
            fs::rename(&temporary, self.path(digest))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        self.shrink();
        written
    }

    /// Removes the oldest files over [`CACHE_FILES_MAX`], and what crashes left behind.
    fn shrink(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        files.sort();
        let over = files.len().saturating_sub(CACHE_FILES_MAX);
        for (_, path) in &files[..over] {
            let _ = fs::remove_file(path);
        }
    }
}
