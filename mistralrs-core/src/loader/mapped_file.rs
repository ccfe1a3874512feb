//! A model file in the address space: read in place, dropped page by page as its tensors are copied.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::LoadError;

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    stamp: Option<FileStamp>,
}

/// Which file, and in which state: one that was written since has another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Without links and dots.
    pub path: PathBuf,
    num_bytes: u64,
    modified: SystemTime,
}

impl MappedFile {
    /// # Errors
    /// [`LoadError::Io`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let io_error = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        // SAFETY: the map is read-only and lives only while the model loads. Should another process cut the file off
        // in that time, the kernel ends this process (SIGBUS): weights are not replaced in place by any known tool.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(Self { map, stamp: FileStamp::new(path, &file).ok() })
    }

    /// What tells it from others, and from itself at another time; `None` where the system does not say.
    pub fn stamp(&self) -> Option<FileStamp> {
        self.stamp.clone()
    }

    /// `bytes` were copied: their pages may leave memory, so that a load does not hold the weights twice. Bytes of another
    /// file are left alone.
    pub fn release(&self, bytes: &[u8]) {
        if !self.map.as_ptr_range().contains(&bytes.as_ptr()) {
            return;
        }
        let start = bytes.as_ptr().addr() - self.map.as_ptr().addr();
        #[cfg(unix)]
        {
            use memmap2::UncheckedAdvice;
            // SAFETY: the map is shared and read-only: a page that is dropped comes back from the file unchanged.
            let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, bytes.len()) };
            if let Err(error) = advised {
                tracing::debug!(%error, "pages of a copied tensor stay mapped");
            }
        }
        #[cfg(not(unix))]
        let _ = start;
    }
}

impl FileStamp {
    /// Of `file`, which was opened at `path`.
    fn new(path: &Path, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { path: path.canonicalize()?, num_bytes: metadata.len(), modified: metadata.modified()? })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
