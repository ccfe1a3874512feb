//! Which packed weights stay on disk: as many as fit, those used last.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::PackedCacheConfig;
use crate::loader::mapped_file::FileStamp;

/// Files with this extension are ours to delete.
const EXTENSION: &str = "packed-weights";

/// Of a file that is being written.
const UNFINISHED_EXTENSION: &str = "unfinished-packed-weights";

/// After so long nobody is writing any more: the process was killed.
const MAX_WRITING_TIME: Duration = Duration::from_hours(1);

/// Characters of a weight file's name that go into a packed file's; names have a limit of 255 bytes.
const MAX_STEM_CHARS: usize = 40;

/// The directory of `--packed-cache-dir`.
pub(super) struct CacheDirectory(PackedCacheConfig);

/// A file of packed weights, not that of the model which loads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OtherFile {
    path: PathBuf,
    num_bytes: u64,
    /// When it was written or read last.
    used: SystemTime,
}

impl CacheDirectory {
    pub(super) fn new(config: &PackedCacheConfig) -> Self {
        Self(config.clone())
    }

    /// Where the packed weights of the files that have `stamps` are: the same place when they change.
    pub(super) fn file_of(&self, stamps: &[FileStamp]) -> PathBuf {
        let mut hasher = crc32fast::Hasher::new();
        for stamp in stamps {
            hasher.update(stamp.path.as_os_str().as_encoded_bytes());
            // No path has a zero in it.
            hasher.update(&[0]);
        }
        let stem = stamps.first().and_then(|stamp| stamp.path.file_stem()).unwrap_or_default().to_string_lossy();
        let stem: String = stem.chars().take(MAX_STEM_CHARS).collect();
        self.0.directory.join(format!("{stem}-{:08x}.{EXTENSION}", hasher.finalize()))
    }

    /// Deletes what there is at `path`, and other files until one of `num_bytes` has room; makes the directory if there is
    /// none.
    ///
    /// # Errors
    /// There is no room for so much, or the directory cannot be read or made.
    pub(super) fn make_room(&self, path: &Path, num_bytes: u64) -> io::Result<()> {
        let Some(room) = self.0.max_bytes.checked_sub(num_bytes) else {
            let max_bytes = self.0.max_bytes;
            return Err(io::Error::other(format!(
                "they are {num_bytes} bytes, and --packed-cache-size allows {max_bytes}"
            )));
        };
        fs::create_dir_all(&self.0.directory)?;
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.0.directory)? {
            let entry = entry?;
            let found = entry.path();
            // Another process may have deleted it meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(UNIX_EPOCH);
            let extension = found.extension().and_then(OsStr::to_str);
            if found == path || extension == Some(UNFINISHED_EXTENSION) && used + MAX_WRITING_TIME < SystemTime::now() {
                remove(&found);
            } else if extension == Some(EXTENSION) {
                others.push(OtherFile { path: found, num_bytes: metadata.len(), used });
            }
        }
        for other in to_delete(others, room) {
            tracing::info!(path = %other.path.display(), "packed weights that were not used for longest make room");
            remove(&other.path);
        }
        Ok(())
    }

    /// Has `write` fill a new file, which is at `path` when it is whole and on disk; an older one is there until then.
    ///
    /// # Errors
    /// Those of the file system. Nothing is left.
    pub(super) fn write(&self, path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        let unfinished = path.with_extension(format!("{}-{nanos}.{UNFINISHED_EXTENSION}", std::process::id()));
        // New, lest two processes of one number (in containers) write to one file.
        let mut file = File::create_new(&unfinished)?;
        let written = write(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&unfinished, path));
        if written.is_err() {
            remove(&unfinished);
        } else if let Err(error) = File::open(&self.0.directory).and_then(|directory| directory.sync_all()) {
            tracing::debug!(%error, "after a power cut packed weights may be missing");
        }
        written
    }
}

/// What must go of `others` so that the rest takes no more than `room`: those not used for longest.
fn to_delete(mut others: Vec<OtherFile>, room: u64) -> Vec<OtherFile> {
    others.sort_by_key(|other| Reverse(other.used));
    let mut num_bytes = 0;
    let fits = |other: &&OtherFile| {
        num_bytes += other.num_bytes;
        num_bytes <= room
    };
    let num_kept = others.iter().take_while(fits).count();
    others.split_off(num_kept)
}

/// Another process may have been faster.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file of packed weights cannot be deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_not_used_for_longest_go_until_the_rest_has_room() {
        // In no order; each was used at the second that names it.
        let others = [(3, 10), (1, 5), (2, 20)].map(|(second, num_bytes)| OtherFile {
            path: PathBuf::from(second.to_string()),
            num_bytes,
            used: UNIX_EPOCH + Duration::from_secs(second),
        });
        let deleted = |room: u64| {
            let deleted = to_delete(others.to_vec(), room);
            deleted.iter().map(|other| other.path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(deleted(35), "");
        assert_eq!(deleted(34), "1");
        assert_eq!(deleted(29), "2 1");
        assert_eq!(deleted(9), "3 2 1");
        assert_eq!(to_delete(Vec::new(), 0), []);
    }

    #[test]
    fn what_a_killed_process_left_is_deleted_and_strange_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let config = PackedCacheConfig { directory: directory.path().to_owned(), max_bytes: 100 };
        let file = |name: &str, age: Duration| {
            let path = directory.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(1000).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        file("a.7-7.unfinished-packed-weights", 2 * MAX_WRITING_TIME);
        file("b.8-8.unfinished-packed-weights", Duration::ZERO);
        file("c.packed-weights", Duration::ZERO);
        file("model.gguf", 2 * MAX_WRITING_TIME);
        CacheDirectory::new(&config).make_room(&directory.path().join("d.packed-weights"), 1).unwrap();
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["b.8-8.unfinished-packed-weights", "model.gguf"]);
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let config = PackedCacheConfig { directory: directory.path().to_owned(), max_bytes: 100 };
        let path = directory.path().join("a.packed-weights");
        fs::write(&path, "older").unwrap();
        let full = |file: &mut File| io::Write::write_all(file, b"half").and(Err(io::ErrorKind::StorageFull.into()));
        let error = CacheDirectory::new(&config).write(&path, full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"older");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
