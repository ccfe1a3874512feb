//! A file that is replaced as a whole: whoever reads it meanwhile sees the old text or the new one, and a crash leaves one of
//! them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The new text, beside the file until it takes its place; gone if it never does.
#[derive(Debug)]
pub(super) struct Replacement {
    beside: PathBuf,
    target: PathBuf,
    /// What the file held when the new text was made of it.
    before: Option<String>,
}

impl Replacement {
    /// Writes `text` beside `target`, for the same readers; for nobody else than the owner if there is no file yet.
    ///
    /// # Errors
    /// The system's.
    pub fn write(target: &Path, before: Option<String>, text: &str) -> io::Result<Self> {
        // A link stays a link.
        let target = if target.exists() { target.canonicalize()? } else { target.to_owned() };
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // The extension tells the format.
        let beside = target.with_file_name(format!(".{}.{name}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        let replacement = Self { beside, target, before };
        if let Ok(known) = fs::metadata(&replacement.target) {
            keep_owner(&file, &known);
            file.set_permissions(known.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(replacement)
    }

    /// Where the new text is now.
    pub fn path(&self) -> &Path {
        &self.beside
    }

    /// Puts it in the file's place.
    ///
    /// # Errors
    /// The system's, and [`io::ErrorKind::Interrupted`] if somebody else has changed the file meanwhile.
    pub fn commit(self) -> io::Result<()> {
        let now = match fs::read_to_string(&self.target) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if now != self.before {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was changed meanwhile; try again"));
        }
        fs::rename(&self.beside, &self.target)?;
        // So that the new name outlives a crash of the machine, where a directory can be synced.
        if let Some(directory) = self.target.parent()
            && let Ok(directory) = File::open(directory)
        {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit there is none.
        let _ = fs::remove_file(&self.beside);
    }
}

/// Only root can give a file away; for anybody else it is theirs already.
#[cfg(unix)]
fn keep_owner(file: &File, known: &fs::Metadata) {
    use std::os::unix::fs::{MetadataExt, fchown};
    let _ = fchown(file, Some(known.uid()), Some(known.gid()));
}

#[cfg(not(unix))]
fn keep_owner(_file: &File, _known: &fs::Metadata) {}
