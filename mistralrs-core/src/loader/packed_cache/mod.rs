//! Packed weights kept on disk (`--packed-cache-dir`), so that the next start reads tiles instead of packing rows.
//!
//! A model has one file there, with the tiles of all its matrices and a header that says of which weight files, in which
//! state, they were made. One that is not what this load would write, whatever the reason, is told in a warning and
//! written again; **never** does anything here fail a load. It is written once all weights are in memory, from there, and
//! under another name until it is whole.
//!
//! [`stored_file`] is what such a file looks like, [`directory`] which of them stay.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mistralrs_quant::{MatrixShape, WeightFormat};

use self::directory::CacheDirectory;
use self::stored_file::{Header, StoredFile};
use super::mapped_file::FileStamp;
use crate::config::PackedCacheConfig;
use crate::layers::WeightMatrix;

mod directory;
mod stored_file;

/// A matrix, by what is packed into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixKey {
    /// Whose rows follow one another.
    pub tensors: Vec<String>,
    /// How the weight files store them.
    pub format: WeightFormat,
    /// Of them all.
    pub shape: MatrixShape,
}

/// The packed weights of one model on disk, while it loads.
pub struct PackedCache {
    directory: CacheDirectory,
    path: PathBuf,
    stamps: Vec<FileStamp>,
    /// `None`: there is no file, or it turned out to be of no use.
    stored: Option<StoredFile>,
    /// What was loaded, so that it can be written.
    matrices: Vec<(MatrixKey, Arc<WeightMatrix>)>,
}

impl PackedCache {
    /// Looks for packed weights of the files that have `stamps`.
    pub fn open(config: &PackedCacheConfig, stamps: Vec<FileStamp>) -> Self {
        let directory = CacheDirectory::new(config);
        let path = directory.file_of(&stamps);
        let stored = StoredFile::open(&path, &stamps).unwrap_or_else(|reason| {
            warn_of_no_use(&path, &reason);
            None
        });
        Self { directory, path, stamps, stored, matrices: Vec::new() }
    }

    /// The matrix, if it is there and intact.
    pub fn read(&mut self, key: &MatrixKey) -> Option<WeightMatrix> {
        match self.stored.as_ref()?.read(key) {
            Ok(matrix) => Some(matrix),
            Err(reason) => {
                warn_of_no_use(&self.path, &reason);
                self.stored = None;
                None
            }
        }
    }

    /// Notes that the model has `matrix`, wherever it came from.
    pub fn loaded(&mut self, key: MatrixKey, matrix: &Arc<WeightMatrix>) {
        self.matrices.push((key, Arc::clone(matrix)));
    }

    /// All weights are in memory: writes them if they were packed.
    pub fn finish(self) {
        match &self.stored {
            Some(stored) => {
                stored.mark_used();
                tracing::info!(path = %self.path.display(), "weights were packed before and read from disk");
            }
            None => match self.write() {
                Ok(num_bytes) => tracing::info!(
                    path = %self.path.display(),
                    megabytes = num_bytes / 1_000_000,
                    "packed weights are kept for the next start"
                ),
                Err(error) => {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "packed weights cannot be kept; the next start packs them again");
                }
            },
        }
    }

    /// The size of the new file.
    fn write(&self) -> io::Result<u64> {
        let header = Header::new(&self.stamps, &self.matrices).encode()?;
        let num_tile_bytes: usize = self.matrices.iter().map(|(_, matrix)| matrix.num_bytes()).sum();
        let num_bytes = (header.len() + num_tile_bytes) as u64;
        self.directory.make_room(&self.path, num_bytes)?;
        self.directory.write(&self.path, |file: &mut File| {
            file.write_all(&header)?;
            self.matrices.iter().try_for_each(|(_, matrix)| file.write_all(matrix.packed_bytes()))
        })?;
        Ok(num_bytes)
    }
}

fn warn_of_no_use(path: &Path, reason: &str) {
    let path = path.display();
    tracing::warn!(%path, reason, "packed weights on disk are of no use; they are packed and written again");
}

#[cfg(test)]
mod tests;
