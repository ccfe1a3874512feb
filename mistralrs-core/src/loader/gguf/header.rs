//! Checks a GGUF header in place, before anything is allocated by what it says.
//!
//! candle's reader, which parses the header afterwards, trusts counts up to the file's size and more: a flipped byte in
//! a length could make it build millions of values, and an alignment of zero makes it divide by zero.
//! Source of the format: ggml's `docs/gguf.md`.

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

/// Checks the whole header of `file`; gives the alignment of its tensors.
pub(super) fn check(file: &[u8]) -> Result<u32, HeaderError> {
    let mut cursor = Cursor { file, position: 0 };
    if !file.starts_with(b"GGUF") {
        return Err(malformed("it does not begin with `GGUF`"));
    }
    cursor.skip(4)?;
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(malformed(format!("GGUF version {version} is none of 2 and 3")));
    }
    let num_tensors = cursor.count("tensors", MAX_TENSORS)?;
    let num_entries = cursor.count("metadata entries", MAX_METADATA_ENTRIES)?;
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..num_entries {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        if key == b"general.alignment" {
            alignment = cursor.alignment(kind)?;
        } else {
            cursor.skip_value(kind, 0)?;
        }
    }
    for _ in 0..num_tensors {
        cursor.skip_tensor_info()?;
    }
    Ok(alignment)
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

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.skip(4)?.try_into().expect("4 bytes were taken")))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.skip(8)?.try_into().expect("8 bytes were taken")))
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, HeaderError> {
        let count = self.u64()?;
        if count > max {
            return Err(malformed(format!("it claims {count} {what}; no model has more than {max}")));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<&'a [u8], HeaderError> {
        let len = self.u64()?;
        self.skip(len)
    }

    fn alignment(&mut self, kind: u32) -> Result<u32, HeaderError> {
        const U32: u32 = 4;
        if kind != U32 {
            return Err(malformed(format!("`general.alignment` has type {kind}, not u32")));
        }
        let alignment = self.u32()?;
        if alignment < 8 || !alignment.is_power_of_two() {
            return Err(malformed(format!("`general.alignment` is {alignment}, not a power of two from 8 on")));
        }
        Ok(alignment)
    }

    fn skip_value(&mut self, kind: u32, depth: usize) -> Result<(), HeaderError> {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        match kind {
            STRING => self.string().map(drop),
            ARRAY => self.skip_array(depth),
            _ => self.skip(scalar_size(kind)?).map(drop),
        }
    }

    fn skip_array(&mut self, depth: usize) -> Result<(), HeaderError> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(malformed(format!("arrays are nested more than {MAX_ARRAY_DEPTH} deep")));
        }
        let kind = self.u32()?;
        let len = self.count("elements of an array", MAX_ARRAY_ELEMENTS)?;
        for _ in 0..len {
            self.skip_value(kind, depth + 1)?;
        }
        Ok(())
    }

    fn skip_tensor_info(&mut self) -> Result<(), HeaderError> {
        let name = String::from_utf8_lossy(self.string()?);
        let num_dimensions = self.u32()?;
        if num_dimensions > MAX_DIMENSIONS {
            return Err(malformed(format!("tensor `{name}` has {num_dimensions} dimensions")));
        }
        self.skip(8 * u64::from(num_dimensions))?;
        let kind = self.u32()?;
        if !SUPPORTED_TYPES.contains(&kind) {
            return Err(match other_type(kind) {
                Some(other) => HeaderError::Unsupported(format!(
                    "tensor `{name}` is stored as {other}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
                     and Q2_K to Q6_K"
                )),
                None => malformed(format!("tensor `{name}` has the unknown type {kind}")),
            });
        }
        self.skip(8).map(drop)
    }
}

/// ggml's numbers of F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, BF16.
const SUPPORTED_TYPES: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];

/// Names of ggml's types that exist in files and cannot be run here.
fn other_type(kind: u32) -> Option<&'static str> {
    Some(match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

/// Bytes of a metadata value that is neither a string nor an array.
fn scalar_size(kind: u32) -> Result<u64, HeaderError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(malformed(format!("{kind} is no type of metadata"))),
    }
}

fn malformed(reason: impl Into<String>) -> HeaderError {
    HeaderError::Malformed(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of one metadata entry and one tensor.
    struct Header(Vec<u8>);

    impl Header {
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

    fn check_error(header: &Header, expected: &str) {
        let error = check(&header.0).expect_err(expected);
        let (HeaderError::Malformed(reason) | HeaderError::Unsupported(reason)) = error;
        assert!(reason.starts_with(expected), "{reason:?} does not start with {expected:?}");
    }

    #[test]
    fn a_good_header_gives_the_alignment() {
        let header = Header::new(3, 1, 1).string("general.alignment").u32(4).u32(64);
        let header = header.string("blk.0.x").u32(2).u64(32).u64(4).u32(8).u64(0);
        assert_eq!(check(&header.0), Ok(64));
        assert_eq!(check(&Header::new(2, 0, 0).0), Ok(32));
    }

    #[test]
    fn damage_is_described() {
        check_error(&Header(b"GGML".to_vec()), "it does not begin with `GGUF`");
        check_error(&Header(b"GGUF".to_vec()), "the header asks for 4 bytes at 4, but the file ends at 4");
        check_error(&Header::new(1, 0, 0), "GGUF version 1 is none of 2 and 3");
        check_error(&Header::new(3, 1 << 40, 0), "it claims 1099511627776 tensors");
        check_error(&Header::new(3, 0, u64::MAX), "it claims 18446744073709551615 metadata entries");
        check_error(&Header::new(3, 0, 1).u64(u64::MAX), "the header asks for 18446744073709551615 bytes at 32");
        check_error(&Header::new(3, 0, 1).string("k").u32(99), "99 is no type of metadata");
        let array = Header::new(3, 0, 1).string("k").u32(9);
        check_error(&array.u32(0).u64(1 << 30), "it claims 1073741824 elements of an array");
        let zero = Header::new(3, 0, 1).string("general.alignment").u32(4).u32(0);
        check_error(&zero, "`general.alignment` is 0");
        check_error(&Header::new(3, 1, 0).string("t").u32(5), "tensor `t` has 5 dimensions");
        check_error(&Header::new(3, 1, 0).string("t").u32(0).u32(99), "tensor `t` has the unknown type 99");
    }

    #[test]
    fn nested_arrays_end_before_the_stack_does() {
        let mut header = Header::new(3, 0, 1).string("k").u32(9);
        for _ in 0..1000 {
            header = header.u32(9).u64(1);
        }
        check_error(&header, "arrays are nested more than 4 deep");
    }

    #[test]
    fn a_type_that_exists_elsewhere_is_unsupported_not_damaged() {
        let header = Header::new(3, 1, 0).string("t").u32(0).u32(23).u64(0);
        let Err(HeaderError::Unsupported(reason)) = check(&header.0) else { panic!("IQ4_XS cannot be run") };
        assert!(reason.starts_with("tensor `t` is stored as IQ4_XS; supported are F32, F16,"), "{reason}");
    }
}
