//! Packed weights that are kept on disk are those that were packed, and nothing about them fails a load.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mistralrs_core::config::{ModelSource, PackedCacheConfig};
use mistralrs_core::loader;
use tempfile::TempDir;

use crate::runner::{Runner, fixture};

/// Room for all fixtures.
const MAX_BYTES: u64 = 64 << 20;

const MODELS: [&str; 5] = [
    "tiny-llama",
    "tiny-llama-bf16",
    "tiny-qwen2-f32.gguf",
    "tiny-llama-256-q4_k_m.gguf",
    "tiny-llama-256-code_books.gguf",
];

fn kept_in(directory: &Path, max_bytes: u64) -> PackedCacheConfig {
    PackedCacheConfig { directory: directory.to_owned(), max_bytes }
}

/// Bits of the model's logits.
fn logits(path: &Path, packed_cache: Option<PackedCacheConfig>) -> Vec<Vec<u32>> {
    let source = ModelSource { path: path.to_owned(), id: None, chat_template: None, packed_cache };
    let loaded = loader::load(&source).unwrap_or_else(|error| panic!("{error}"));
    let logits = Runner::of(loaded.model, 1).logits(&[1, 2, 3, 5, 8, 13, 21]);
    logits.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What changes when a file is written again.
fn inodes(directory: &TempDir) -> Vec<u64> {
    files(directory).iter().map(|file| fs::metadata(file).unwrap().ino()).collect()
}

#[test]
fn kept_weights_give_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    for (index, model) in MODELS.iter().enumerate() {
        let packed = logits(&fixture(model), None);
        let config = || Some(kept_in(directory.path(), MAX_BYTES));
        assert_eq!(logits(&fixture(model), config()), packed, "{model} while it is written");
        let written = inodes(&directory);
        assert_eq!(written.len(), index + 1, "{model}");
        assert_eq!(logits(&fixture(model), config()), packed, "{model} as it was read");
        assert_eq!(inodes(&directory), written, "{model} was packed again");
    }
}

#[test]
fn the_model_not_used_for_longest_goes_where_there_is_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let load = |model: &str, max_bytes: u64| _ = logits(&fixture(model), Some(kept_in(directory.path(), max_bytes)));
    let is_kept = |model: &str| {
        let stem = model.trim_end_matches(".gguf");
        files(&directory).iter().any(|file| file.file_name().unwrap().to_string_lossy().starts_with(stem))
    };
    let [first, second, third] = ["tiny-qwen2-f32.gguf", "tiny-llama-f32.gguf", "tiny-llama-256-q4_k_m.gguf"];
    load(first, MAX_BYTES);
    load(second, MAX_BYTES);
    load(first, MAX_BYTES);
    let num_bytes: u64 = files(&directory).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    load(third, num_bytes);
    assert_eq!([first, second, third].map(is_kept), [true, false, true]);
    // Not even alone has it room.
    load(second, 1000);
    assert_eq!([first, second, third].map(is_kept), [true, false, true]);
}

#[test]
fn processes_that_load_one_model_at_once_do_not_disturb_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = fixture("tiny-llama-256-q4_k_m.gguf");
    let packed = logits(&path, None);
    std::thread::scope(|scope| {
        let load = || assert_eq!(logits(&path, Some(kept_in(directory.path(), MAX_BYTES))), packed);
        for _ in 0..4 {
            scope.spawn(move || {
                for _ in 0..4 {
                    load();
                }
            });
        }
    });
    let written = inodes(&directory);
    assert_eq!(written.len(), 1, "one whole file, and nothing unfinished: {:?}", files(&directory));
    assert_eq!(logits(&path, Some(kept_in(directory.path(), MAX_BYTES))), packed);
    assert_eq!(inodes(&directory), written);
}

#[test]
fn a_directory_that_cannot_be_written_is_no_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = fixture("tiny-qwen2-f32.gguf");
    let packed = logits(&path, None);
    for directory in [file.path().join("in-a-file"), file.path().to_owned(), "/proc/self/none".into()] {
        assert_eq!(logits(&path, Some(kept_in(&directory, MAX_BYTES))), packed, "{}", directory.display());
    }
}
