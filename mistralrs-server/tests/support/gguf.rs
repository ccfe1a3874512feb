//! GGUF files written byte by byte, for what a loader must refuse.

/// GGUF's number for a string value.
const STRING: u32 = 8;

/// A GGUF v3 header with string metadata and no tensors.
pub fn header(metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::from(*b"GGUF");
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_string(&mut bytes, key);
        bytes.extend(STRING.to_le_bytes());
        push_string(&mut bytes, value);
    }
    bytes
}

/// A header that promises `num_tensors` tensors and ends there.
pub fn header_promising(num_tensors: u64) -> Vec<u8> {
    let mut bytes = header(&[("general.architecture", "llama")]);
    bytes[8..16].copy_from_slice(&num_tensors.to_le_bytes());
    bytes
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
