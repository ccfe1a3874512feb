//! All that weights are stored as.

use std::fmt;

use crate::floats::FloatFormat;
use crate::format::BlockFormat;
use crate::packing::MatrixShape;

/// Floats, or quantized blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// Each element for itself.
    Floats(FloatFormat),
    /// Several together.
    Blocks(BlockFormat),
}

impl WeightFormat {
    /// As ggml calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floats(format) => format.name(),
            Self::Blocks(format) => format.name(),
        }
    }

    /// Values that are stored together.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Floats(_) => 1,
            Self::Blocks(format) => format.block_len(),
        }
    }

    /// Bytes that they take in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Floats(format) => format.element_bytes(),
            Self::Blocks(format) => format.block_bytes(),
        }
    }

    /// Bytes of a packed matrix; `None` where its rows cannot have so many inputs, or the number has no room.
    pub fn num_packed_bytes(self, shape: MatrixShape) -> Option<usize> {
        match self {
            Self::Floats(format) => format.num_packed_bytes(shape),
            Self::Blocks(format) => format.num_packed_bytes(shape),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<FloatFormat> for WeightFormat {
    fn from(format: FloatFormat) -> Self {
        Self::Floats(format)
    }
}

impl From<BlockFormat> for WeightFormat {
    fn from(format: BlockFormat) -> Self {
        Self::Blocks(format)
    }
}
