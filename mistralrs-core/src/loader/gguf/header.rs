//! Reads a GGUF header, and allocates nothing by what it says before the file has shown to be as long.
//!
//! candle's reader trusts counts up to the file's size and more, and refuses files with types of tensors that it does
//! not know. Source of the format: ggml's `docs/gguf.md`.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use mistralrs_quant::{BlockFormat, FloatFormat, WeightFormat};

/// Metadata entries of a file; real ones have under a hundred.
const MAX_METADATA_ENTRIES: u64 = 1 << 16;

/// Tensors of a file; the largest models have a few thousand.
const MAX_TENSORS: u64 = 1 << 16;

/// Elements of a metadata array; the largest vocabularies have a quarter of a million tokens, and twice the merges.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 22;

/// Arrays within arrays; no writer makes any.
const MAX_ARRAY_DEPTH: usize = 4;

/// Dimensions of a tensor, ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;

/// Where tensors begin on multiples of, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Not GGUF, or damaged.
    Malformed(String),
    /// Good GGUF that this build cannot run.
    Unsupported(String),
}

/// All that comes before the tensors' data.
#[derive(Debug)]
pub(super) struct Header {
    /// Key-value pairs, and where the data begins. Tensors are not in it: candle has no names for some of their types.
    pub(super) content: Content,
    pub(super) tensors: Vec<TensorInfo>,
    /// Of the tensors' data.
    pub(super) alignment: u32,
}

/// A tensor as the header describes it, its place not yet compared with the file's length.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: WeightFormat,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    /// From where the data begins.
    pub(super) offset: u64,
}

/// Reads the header of `file`.
pub(super) fn read(file: &[u8]) -> Result<Header, HeaderError> {
    let mut cursor = Cursor { file, position: 0 };
    if !file.starts_with(b"GGUF") {
        return Err(malformed("it does not begin with `GGUF`"));
    }
    cursor.skip(4)?;
    let magic = match cursor.u32()? {
        2 => VersionedMagic::GgufV2,
        3 => VersionedMagic::GgufV3,
        version => return Err(malformed(format!("GGUF version {version} is none of 2 and 3"))),
    };
    let num_tensors = cursor.count("tensors", MAX_TENSORS)?;
    let num_entries = cursor.count("metadata entries", MAX_METADATA_ENTRIES)?;
    let mut metadata = HashMap::new();
    for _ in 0..num_entries {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        if let Some(_twice) = metadata.insert(key.clone(), value) {
            return Err(malformed(format!("it has the metadata key `{key}` twice")));
        }
    }
    let alignment = alignment(metadata.get("general.alignment"))?;
    let mut tensors = Vec::new();
    for _ in 0..num_tensors {
        tensors.push(cursor.tensor_info()?);
    }
    let tensor_data_offset = (cursor.position as u64).next_multiple_of(alignment.into());
    let content = Content { magic, metadata, tensor_infos: HashMap::new(), tensor_data_offset };
    Ok(Header { content, tensors, alignment })
}

/// Where tensors begin on multiples of, by what the file says of it.
fn alignment(declared: Option<&Value>) -> Result<u32, HeaderError> {
    match declared {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(alignment)) if *alignment >= 8 && alignment.is_power_of_two() => Ok(*alignment),
        Some(Value::U32(alignment)) => {
            Err(malformed(format!("`general.alignment` is {alignment}, not a power of two from 8 on")))
        }
        Some(other) => Err(malformed(format!("`general.alignment` is {other:?}, not a u32"))),
    }
}

/// Reads forward through the file; every step is checked against its end.
struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, num_bytes: u64) -> Result<&'a [u8], HeaderError> {
        let rest = &self.file[self.position..];
        let taken = usize::try_from(num_bytes).ok().and_then(|num_bytes| rest.get(..num_bytes));
        let Some(taken) = taken else {
            return Err(malformed(format!(
                "the header asks for {num_bytes} bytes at {}, but the file ends at {}: it is cut off or damaged",
                self.position,
                self.file.len()
            )));
        };
        self.position += taken.len();
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        Ok(self.skip(N as u64)?.try_into().expect("N bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, HeaderError> {
        let count = self.u64()?;
        if count > max {
            return Err(malformed(format!("it claims {count} {what}; no model has more than {max}")));
        }
        Ok(count)
    }

    /// Some writers end texts with a zero, and vocabularies have tokens that are no UTF-8.
    fn string(&mut self) -> Result<String, HeaderError> {
        let len = self.u64()?;
        let text = String::from_utf8_lossy(self.skip(len)?);
        Ok(text.trim_end_matches('\0').to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, HeaderError> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(u32::from_le_bytes(self.bytes()?)),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => match self.bytes()? {
                [flag @ (0 | 1)] => Value::Bool(flag == 1),
                [other] => return Err(malformed(format!("a truth value is {other}"))),
            },
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(depth)?),
            10 => Value::U64(u64::from_le_bytes(self.bytes()?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(malformed(format!("{kind} is no type of metadata"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value>, HeaderError> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(malformed(format!("arrays are nested more than {MAX_ARRAY_DEPTH} deep")));
        }
        let kind = self.u32()?;
        let len = self.count("elements of an array", MAX_ARRAY_ELEMENTS)?;
        // Grows with what is read: the file may be shorter than `len` says.
        let mut values = Vec::new();
        for _ in 0..len {
            values.push(self.value(kind, depth + 1)?);
        }
        Ok(values)
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, HeaderError> {
        let name = self.string()?;
        let num_dimensions = self.u32()?;
        if num_dimensions > MAX_DIMENSIONS {
            return Err(malformed(format!("tensor `{name}` has {num_dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| malformed(format!("tensor `{name}` has a side of {size}")))?);
        }
        // The file has the innermost first.
        shape.reverse();
        let kind = self.u32()?;
        let dtype = weight_format(kind).ok_or_else(|| match other_type(kind) {
            Some(other) => HeaderError::Unsupported(format!(
                "tensor `{name}` is stored as {other}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
                 Q2_K to Q6_K, IQ4_NL, IQ4_XS and MXFP4"
            )),
            None => malformed(format!("tensor `{name}` has the unknown type {kind}")),
        })?;
        Ok(TensorInfo { name, dtype, shape, offset: self.u64()? })
    }
}

/// The type that has ggml's number `kind`.
fn weight_format(kind: u32) -> Option<WeightFormat> {
    Some(match kind {
        0 => FloatFormat::F32.into(),
        1 => FloatFormat::F16.into(),
        2 => BlockFormat::Q4_0.into(),
        3 => BlockFormat::Q4_1.into(),
        6 => BlockFormat::Q5_0.into(),
        7 => BlockFormat::Q5_1.into(),
        8 => BlockFormat::Q8_0.into(),
        10 => BlockFormat::Q2K.into(),
        11 => BlockFormat::Q3K.into(),
        12 => BlockFormat::Q4K.into(),
        13 => BlockFormat::Q5K.into(),
        14 => BlockFormat::Q6K.into(),
        20 => BlockFormat::Iq4Nl.into(),
        23 => BlockFormat::Iq4Xs.into(),
        30 => FloatFormat::Bf16.into(),
        39 => BlockFormat::Mxfp4.into(),
        _ => return None,
    })
}

/// Names of ggml's types that exist in files and cannot be run here.
fn other_type(kind: u32) -> Option<&'static str> {
    Some(match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

fn malformed(reason: impl Into<String>) -> HeaderError {
    HeaderError::Malformed(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of one metadata entry and one tensor.
    struct File(Vec<u8>);

    impl File {
        fn new(version: u32, num_tensors: u64, num_entries: u64) -> Self {
            let mut bytes = b"GGUF".to_vec();
            bytes.extend(version.to_le_bytes());
            bytes.extend(num_tensors.to_le_bytes());
            bytes.extend(num_entries.to_le_bytes());
            Self(bytes)
        }

        fn string(mut self, text: &str) -> Self {
            self.0.extend((text.len() as u64).to_le_bytes());
            self.0.extend(text.as_bytes());
            self
        }

        fn u32(mut self, value: u32) -> Self {
            self.0.extend(value.to_le_bytes());
            self
        }

        fn u64(mut self, value: u64) -> Self {
            self.0.extend(value.to_le_bytes());
            self
        }
    }

    fn check_error(header: &File, expected: &str) {
        let error = read(&header.0).expect_err(expected);
        let (HeaderError::Malformed(reason) | HeaderError::Unsupported(reason)) = error;
        assert!(reason.starts_with(expected), "{reason:?} does not start with {expected:?}");
    }

    #[test]
    fn a_good_header_gives_its_values_and_tensors() {
        let file = File::new(3, 1, 2).string("general.alignment").u32(4).u32(64);
        let file = file.string("list").u32(9).u32(8).u64(2).string("one").string("two\0");
        let file = file.string("blk.0.x").u32(2).u64(32).u64(4).u32(39).u64(128);
        let Header { content, tensors, alignment } = read(&file.0).unwrap();
        assert_eq!(alignment, 64);
        assert_eq!(format!("{:?}", content.metadata["list"]), r#"Array([String("one"), String("two")])"#);
        assert_eq!(content.tensor_data_offset, file.0.len().next_multiple_of(64) as u64);
        let TensorInfo { name, dtype, shape, offset } = &tensors[0];
        assert_eq!((name.as_str(), dtype.name(), shape.as_slice(), *offset), ("blk.0.x", "MXFP4", &[4, 32][..], 128));
        assert_eq!(read(&File::new(2, 0, 0).0).unwrap().alignment, 32);
    }

    #[test]
    fn damage_is_described() {
        check_error(&File(b"GGML".to_vec()), "it does not begin with `GGUF`");
        check_error(&File(b"GGUF".to_vec()), "the header asks for 4 bytes at 4, but the file ends at 4");
        check_error(&File::new(1, 0, 0), "GGUF version 1 is none of 2 and 3");
        check_error(&File::new(3, 1 << 40, 0), "it claims 1099511627776 tensors");
        check_error(&File::new(3, 0, u64::MAX), "it claims 18446744073709551615 metadata entries");
        check_error(&File::new(3, 0, 1).u64(u64::MAX), "the header asks for 18446744073709551615 bytes at 32");
        check_error(&File::new(3, 0, 1).string("k").u32(99), "99 is no type of metadata");
        let array = File::new(3, 0, 1).string("k").u32(9);
        check_error(&array.u32(0).u64(1 << 30), "it claims 1073741824 elements of an array");
        let twice = File::new(3, 0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(1);
        check_error(&twice, "it has the metadata key `k` twice");
        check_error(
            &File::new(3, 0, 1).string("general.alignment").u32(8).string("a"),
            "`general.alignment` is String",
        );
        let zero = File::new(3, 0, 1).string("general.alignment").u32(4).u32(0);
        check_error(&zero, "`general.alignment` is 0");
        check_error(&File::new(3, 1, 0).string("t").u32(5), "tensor `t` has 5 dimensions");
        check_error(&File::new(3, 1, 0).string("t").u32(0).u32(99), "tensor `t` has the unknown type 99");
    }

    #[test]
    fn nested_arrays_end_before_the_stack_does() {
        let mut header = File::new(3, 0, 1).string("k").u32(9);
        for _ in 0..1000 {
            header = header.u32(9).u64(1);
        }
        check_error(&header, "arrays are nested more than 4 deep");
    }

    #[test]
    fn a_type_that_exists_elsewhere_is_unsupported_not_damaged() {
        let header = File::new(3, 1, 0).string("t").u32(0).u32(21).u64(0);
        let Err(HeaderError::Unsupported(reason)) = read(&header.0) else { panic!("IQ3_S cannot be run") };
        assert!(reason.starts_with("tensor `t` is stored as IQ3_S; supported are F32, F16,"), "{reason}");
    }
}
