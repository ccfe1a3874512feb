//! The file of one model: 28 bytes that say what it is, a header in JSON, the tiles of all matrices.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use mistralrs_quant::{PIECE_BYTES, TILE_LAYOUT};
use serde::{Deserialize, Serialize};

use super::MatrixKey;
use crate::layers::WeightMatrix;
use crate::loader::mapped_file::FileStamp;

const MAGIC: [u8; 8] = *b"mrsTiles";

/// Changes with what is described here; what tiles look like has a number of its own.
const FILE_LAYOUT: u32 = 1;

/// Reads back as another number on a machine with the other order of bytes.
const BYTE_ORDER: u32 = 0x0102_0304;

const PREFIX_BYTES: usize = 28;

/// Ten times what a model of 65,536 tensors, the most that is read, would need.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// What a file says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// The weight files it was made of.
    files: Vec<FileStamp>,
    matrices: Vec<StoredMatrix>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMatrix {
    tensors: Vec<String>,
    format: String,
    num_outputs: usize,
    num_inputs: usize,
    /// From where the tiles begin.
    offset: u64,
    num_bytes: u64,
    checksum: u64,
}

/// An open file whose header fits the weight files.
pub(super) struct StoredFile {
    file: File,
    /// Where the tiles begin.
    start: u64,
    matrices: HashMap<Vec<String>, StoredMatrix>,
}

impl Header {
    pub(super) fn new(stamps: &[FileStamp], matrices: &[(MatrixKey, Arc<WeightMatrix>)]) -> Self {
        let mut end = 0;
        let stored = |(key, matrix): &(MatrixKey, Arc<WeightMatrix>)| {
            let (offset, num_bytes) = (end, matrix.num_bytes() as u64);
            end += num_bytes;
            StoredMatrix {
                tensors: key.tensors.clone(),
                format: key.format.name().to_owned(),
                num_outputs: key.shape.num_outputs,
                num_inputs: key.shape.num_inputs,
                offset,
                num_bytes,
                checksum: checksum(matrix.packed_bytes()),
            }
        };
        Self { files: stamps.to_vec(), matrices: matrices.iter().map(stored).collect() }
    }

    /// As it stands in the file, prefix and all.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let len = u32::try_from(json.len()).map_err(|_| ErrorKind::FileTooLarge)?;
        let mut bytes = MAGIC.to_vec();
        for number in [FILE_LAYOUT, TILE_LAYOUT, BYTE_ORDER, len, crc32fast::hash(&json)] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    /// The header of `file`, which has `num_bytes`, and where it ends; or why there is none.
    fn read(file: &File, num_bytes: u64) -> Result<(Self, u64), String> {
        let mut prefix = [0; PREFIX_BYTES];
        read_at(file, 0, &mut prefix).map_err(|error| unreadable(&error))?;
        let (magic, numbers) = prefix.split_at(MAGIC.len());
        let [file_layout, tile_layout, byte_order, len, crc] =
            std::array::from_fn(|index| u32::from_ne_bytes(numbers.as_chunks().0[index]));
        if magic != MAGIC {
            return Err("it holds something else".to_owned());
        }
        if (file_layout, tile_layout, byte_order) != (FILE_LAYOUT, TILE_LAYOUT, BYTE_ORDER) {
            return Err("another version of this program or another kind of machine has written it".to_owned());
        }
        if u64::from(len) > num_bytes.min(MAX_HEADER_BYTES) {
            return Err(format!("it is cut off or damaged: its header claims {len} bytes"));
        }
        let mut json = vec![0; len as usize];
        read_at(file, PREFIX_BYTES as u64, &mut json).map_err(|error| unreadable(&error))?;
        if crc32fast::hash(&json) != crc {
            return Err("its header is damaged".to_owned());
        }
        let header = serde_json::from_slice(&json).map_err(|error| format!("its header is damaged: {error}"))?;
        Ok((header, PREFIX_BYTES as u64 + u64::from(len)))
    }

    /// Fails unless it was made of the files that have `stamps`.
    fn check_files(&self, stamps: &[FileStamp]) -> Result<(), String> {
        if self.files == stamps {
            return Ok(());
        }
        let changed = stamps.iter().find(|stamp| !self.files.contains(stamp));
        Err(changed.map_or_else(
            || "the model had more files when it was made".to_owned(),
            |stamp| format!("`{}` is not as it was when it was made", stamp.path.display()),
        ))
    }

    /// Fails unless tiles that begin at `start` follow one another to the end of a file of `num_bytes`.
    fn check_tiles(&self, start: u64, num_bytes: u64) -> Result<(), String> {
        let mut end = Some(0_u64);
        for matrix in &self.matrices {
            end = end.filter(|end| *end == matrix.offset).and_then(|end| end.checked_add(matrix.num_bytes));
        }
        if end.and_then(|end| end.checked_add(start)) == Some(num_bytes) {
            return Ok(());
        }
        Err(format!("it is cut off or damaged: its tiles do not end where it does, after {num_bytes} bytes"))
    }
}

impl StoredFile {
    /// The file at `path`, if it is there and made of the files that have `stamps`; or why it is of no use.
    pub(super) fn open(path: &Path, stamps: &[FileStamp]) -> Result<Option<Self>, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        let num_bytes = file.metadata().map_err(|error| unreadable(&error))?.len();
        let (header, start) = Header::read(&file, num_bytes)?;
        header.check_files(stamps)?;
        header.check_tiles(start, num_bytes)?;
        let matrices = header.matrices.into_iter().map(|matrix| (matrix.tensors.clone(), matrix)).collect();
        Ok(Some(Self { file, start, matrices }))
    }

    /// Reads a matrix on all threads; or says why it cannot be had.
    pub(super) fn read(&self, key: &MatrixKey) -> Result<WeightMatrix, String> {
        let name = key.tensors.join("`, `");
        let stored = self.matrices.get(&key.tensors).ok_or_else(|| format!("it lacks `{name}`"))?;
        let kind = (stored.format.as_str(), stored.num_outputs, stored.num_inputs);
        let num_bytes = key.format.num_packed_bytes(key.shape).map(|num_bytes| num_bytes as u64);
        if kind != (key.format.name(), key.shape.num_outputs, key.shape.num_inputs)
            || num_bytes != Some(stored.num_bytes)
        {
            return Err(format!("its `{name}` has another type or shape"));
        }
        let (sum, failure) = (AtomicU64::new(0), OnceLock::new());
        let fill = |offset: usize, piece: &mut [u8]| match read_at(
            &self.file,
            self.start + stored.offset + offset as u64,
            piece,
        ) {
            Ok(()) => _ = sum.fetch_add(piece_checksum(offset, piece), Ordering::Relaxed),
            Err(error) => _ = failure.set(error),
        };
        let matrix = WeightMatrix::from_tiles(key.format, key.shape, &fill);
        if let Some(error) = failure.get() {
            return Err(unreadable(error));
        }
        let matrix = matrix.filter(|_| sum.load(Ordering::Relaxed) == stored.checksum);
        matrix.ok_or_else(|| format!("its `{name}` is damaged"))
    }

    /// Moves it to the end of those that may be deleted.
    pub(super) fn mark_used(&self) {
        if let Err(error) = self.file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "packed weights of another user count as unused");
        }
    }
}

/// Of all tiles of a matrix: a sum, so that pieces can be read in any order.
fn checksum(tiles: &[u8]) -> u64 {
    let pieces = tiles.chunks(PIECE_BYTES).enumerate();
    pieces.map(|(index, piece)| piece_checksum(index * PIECE_BYTES, piece)).fold(0, u64::wrapping_add)
}

/// Of its place too, so that no two can be exchanged.
fn piece_checksum(offset: usize, piece: &[u8]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(offset as u64).to_le_bytes());
    hasher.update(piece);
    hasher.finalize().into()
}

fn unreadable(error: &io::Error) -> String {
    format!("it cannot be read: {error}")
}

#[cfg(unix)]
fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_at(_file: &File, _offset: u64, _bytes: &mut [u8]) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
