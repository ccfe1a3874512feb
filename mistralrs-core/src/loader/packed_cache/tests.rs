use std::fs;
use std::time::{Duration, SystemTime};

use mistralrs_quant::{BlockFormat, FloatFormat, PIECE_BYTES};
use tempfile::TempDir;

use super::*;
use crate::loader::mapped_file::MappedFile;

/// A model of two matrices, with a weight file that nobody reads.
struct Fake {
    directory: TempDir,
    matrices: Vec<(MatrixKey, Arc<WeightMatrix>)>,
}

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("model.gguf"), "weights").unwrap();
        let large = matrix(&["q", "k"], BlockFormat::Q8_0.into(), MatrixShape { num_outputs: 300, num_inputs: 2048 });
        assert!(large.1.num_bytes() > PIECE_BYTES, "several pieces");
        let small = matrix(&["norms"], FloatFormat::F16.into(), MatrixShape { num_outputs: 5, num_inputs: 6 });
        Self { directory, matrices: vec![large, small] }
    }

    fn weight_file(&self) -> PathBuf {
        self.directory.path().join("model.gguf")
    }

    fn stamps(&self) -> Vec<FileStamp> {
        vec![MappedFile::open(&self.weight_file()).unwrap().stamp().unwrap()]
    }

    fn open(&self) -> PackedCache {
        let config = PackedCacheConfig { directory: self.directory.path().join("made/on/demand"), max_bytes: 4 << 20 };
        PackedCache::open(&config, self.stamps())
    }

    /// Loads it as `Weights` would; whether all matrices were read.
    fn load(&self) -> bool {
        let mut cache = self.open();
        let mut all_were_read = true;
        for (key, packed) in &self.matrices {
            let read = cache.read(key);
            all_were_read &= read.as_ref().is_some_and(|read| read.packed_bytes() == packed.packed_bytes());
            cache.loaded(key.clone(), &read.map_or_else(|| Arc::clone(packed), Arc::new));
        }
        cache.finish();
        all_were_read
    }

    /// Why what is kept is of no use.
    fn reason(&self) -> String {
        let path = self.open().path;
        let reason = match StoredFile::open(&path, &self.stamps()) {
            Err(reason) => Some(reason),
            Ok(stored) => stored.and_then(|stored| self.matrices.iter().find_map(|(key, _)| stored.read(key).err())),
        };
        let reason = reason.unwrap_or_else(|| "none".to_owned());
        reason.replace(&self.directory.path().canonicalize().unwrap().display().to_string(), "<path>")
    }
}

fn matrix(tensors: &[&str], format: WeightFormat, shape: MatrixShape) -> (MatrixKey, Arc<WeightMatrix>) {
    let num_blocks = shape.num_outputs * shape.num_inputs / format.block_len();
    let stored: Vec<u8> = (0..num_blocks * format.block_bytes()).map(|index| (index * 31 % 251) as u8).collect();
    let packed = WeightMatrix::from_parts(format, shape.num_inputs, &[&stored]).unwrap();
    let tensors = tensors.iter().map(|name| (*name).to_owned()).collect();
    (MatrixKey { tensors, format, shape }, Arc::new(packed))
}

#[test]
fn tiles_are_read_back_as_they_were_written() {
    let fake = Fake::new();
    assert!(!fake.load(), "nothing is there yet");
    assert!(fake.load());
    assert_eq!(fake.reason(), "none");
}

#[test]
fn damage_is_told_and_repaired() {
    let fake = Fake::new();
    fake.load();
    let path = fake.open().path;
    let intact = fs::read(&path).unwrap();
    let check = |damage: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = intact.clone();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(fake.reason(), expected);
        assert!(!fake.load(), "{expected}");
        assert!(fs::read(&path).unwrap() == intact, "{expected}: not repaired");
    };
    let flip = |place: usize| move |bytes: &mut Vec<u8>| bytes[place] ^= 1;
    let other_version = "another version of this program or another kind of machine has written it";
    check(&|bytes| bytes.clear(), "it cannot be read: failed to fill whole buffer");
    let header_of = |len: u32| format!("it is cut off or damaged: its header claims {len} bytes");
    let header_len = u32::from_ne_bytes(intact[20..24].try_into().unwrap());
    check(&|bytes| bytes.truncate(100), &header_of(header_len));
    let cut_off = |num_bytes: usize| {
        format!("it is cut off or damaged: its tiles do not end where it does, after {num_bytes} bytes")
    };
    check(&|bytes| bytes.truncate(intact.len() - 1), &cut_off(intact.len() - 1));
    check(&|bytes| bytes.push(0), &cut_off(intact.len() + 1));
    check(&flip(0), "it holds something else");
    for number in [8, 12] {
        check(&flip(number), other_version);
    }
    check(&|bytes| bytes[16..20].reverse(), other_version);
    check(&|bytes| bytes[20..24].fill(0xff), &header_of(u32::MAX));
    check(&flip(40), "its header is damaged");
    check(&flip(intact.len() - 1), "its `norms` is damaged");
    check(&flip(intact.len() - 100_000), "its `q`, `k` is damaged");
}

#[test]
fn weight_files_that_were_written_since_are_packed_again() {
    let fake = Fake::new();
    fake.load();
    let file = File::options().append(true).open(fake.weight_file()).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(7)).unwrap();
    assert_eq!(fake.reason(), "`<path>/model.gguf` is not as it was when it was made");
    assert!(!fake.load());
    (&file).write_all(b", more of them").unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    assert!(!fake.load());
    assert!(fake.load());
}

#[test]
fn a_model_that_is_put_together_otherwise_is_packed_again() {
    let mut fake = Fake::new();
    fake.load();
    fake.matrices[1].0.tensors.push("more".to_owned());
    assert_eq!(fake.reason(), "it lacks `norms`, `more`");
    fake.matrices[1].0.tensors.pop();
    fake.matrices[1] = matrix(&["norms"], FloatFormat::Bf16.into(), fake.matrices[1].0.shape);
    assert_eq!(fake.reason(), "its `norms` has another type or shape");
    assert!(!fake.load());
    assert!(fake.load());
}

#[test]
fn what_is_read_counts_as_used() {
    let fake = Fake::new();
    fake.load();
    let path = fake.open().path;
    let long_ago = SystemTime::now() - Duration::from_hours(100);
    File::options().append(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    fake.load();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > long_ago + Duration::from_hours(99));
}
