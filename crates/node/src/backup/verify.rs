//! Checks every byte of a backup and says what is inside.

use std::{io::Read, path::Path};

use buttress_core::{Code, Error};

use super::format::{Decoder, Header, Part, Trailer};
use crate::store::{Inspector, Inventory};

/// What is read from a file at once.
const PIECE_BYTES: usize = 256 * 1024;

/// A backup that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub header: Header,
    pub inventory: Inventory,
    pub trailer: Trailer,
    /// Of the file.
    pub bytes: u64,
}

/// Takes a backup's bytes in pieces of any size.
pub struct Verifier {
    decoder: Decoder,
    inspector: Option<Inspector>,
    header: Option<Header>,
}

impl Verifier {
    /// Keeps the values of keys below `prefixes`, for [`Inventory::counts`].
    pub fn new(prefixes: &'static [&'static str]) -> Self {
        Self { decoder: Decoder::default(), inspector: Some(Inspector::new(prefixes)), header: None }
    }

    /// What the backup says of itself, once that has come.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// # Errors
    /// As [`Decoder::next_part`], and `BACKUP_DAMAGED` for a state that does not fit together.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.decoder.push(bytes);
        loop {
            let at = self.decoder.position();
            let Some(part) = self.decoder.next_part()? else { return Ok(()) };
            match part {
                Part::Header(header) => self.header = Some(header),
                Part::Chunk(chunk) => {
                    let inspector = self.inspector.as_mut().expect("taken only at the end");
                    inspector.push(chunk).map_err(|error| not_valid(at, error))?;
                }
                Part::Trailer(_) => {}
            }
        }
    }

    /// # Errors
    /// As [`Self::push`], and `BACKUP_DAMAGED` for one that is not complete.
    pub fn finish(mut self) -> Result<Verified, Error> {
        let trailer = self.decoder.finish()?;
        let at = self.decoder.position();
        let header = self.header.expect("nothing comes before the header, and the trailer came");
        let inspector = self.inspector.take().expect("taken only here");
        let inventory = inspector.finish().map_err(|error| not_valid(at, error))?;
        let of = &inventory.header;
        if (&of.cluster_id, of.index, of.term) != (&header.cluster_id, header.index, header.term) {
            let error = Error::new(Code::CORRUPT, "its header speaks of another state than its body");
            return Err(not_valid(0, error));
        }
        Ok(Verified { header, inventory, trailer, bytes: at })
    }
}

fn not_valid(at: u64, error: Error) -> Error {
    if error.code == Code::FORMAT {
        return error;
    }
    Error::new(Code::BACKUP_DAMAGED, format!("the backup is damaged behind byte {at}: {}", error.message))
        .hint("take another copy or another backup; nothing was written")
}

/// Verifies a file. `progress` hears how many bytes were read.
///
/// # Errors
/// `BACKUP_DAMAGED`, `FORMAT`, `DISK` where it cannot be read.
pub fn verify(
    path: &Path,
    prefixes: &'static [&'static str],
    mut progress: impl FnMut(u64),
) -> Result<Verified, Error> {
    let mut verifier = Verifier::new(prefixes);
    read(path, |piece, at| {
        verifier.push(piece)?;
        progress(at);
        Ok(())
    })?;
    verifier.finish()
}

/// Hands a file's bytes to `each`, with the count of those that came.
pub(super) fn read(path: &Path, mut each: impl FnMut(&[u8], u64) -> Result<(), Error>) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(Code::DISK, format!("cannot read \"{}\": {error}", path.display())).hint("name the backup's file")
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(got) => {
                at += got as u64;
                each(&piece[..got], at)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
