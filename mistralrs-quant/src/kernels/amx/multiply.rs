//! The unit's instructions: two tiles of rows by two of weights.
//!
//! Registers of the unit, by number: 0 to 3 hold the sums, 4 and 5 the rows, 6 and 7 the weights.

use std::arch::asm;

use crate::bf16_rows::{BLOCK_BYTES, ROW_TILE};
use crate::tile::PLANE_BYTES;

/// One of the functions below: two tiles of rows, two of weights, their blocks, what the sums start from and where they go.
pub(super) type Multiply = unsafe fn([*const u8; 2], [*const u8; 2], usize, Sums, Sums);

/// Rows of two lines, so many bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) at: *mut u8,
    pub(super) row_bytes: usize,
}

/// Defines a function that adds the products of two tiles of rows by two of weights over `num_blocks` to the sums at `from`, nothing
/// if that is null, and stores them at `to`: what it does with a block, and the parts of a block of rows and of weights.
macro_rules! multiply_parts {
    ($name:ident, ($row_parts:literal, $parts:literal), $($instruction:literal),+ $(,)?) => {
        /// See `multiply_parts`.
        ///
        /// # Safety
        /// The unit is set up; tiles have so many blocks of so many parts; there are 32 rows at `from` unless it is null, and
        /// room for as many at `to`.
        pub(super) unsafe fn $name(rows: [*const u8; 2], weights: [*const u8; 2], num_blocks: usize, from: Sums, to: Sums) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "test {from}, {from}",
                    "jz 3f",
                    "tileloadd tmm0, [{from} + {from_row}]",
                    "tileloadd tmm1, [{from} + {from_row} + 64]",
                    "tileloadd tmm2, [{other_from} + {from_row}]",
                    "tileloadd tmm3, [{other_from} + {from_row} + 64]",
                    "jmp 2f",
                    "3:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    $($instruction,)+
                    "add {row}, {row_block}",
                    "add {other_row}, {row_block}",
                    "add {weight}, {block}",
                    "add {other_weight}, {block}",
                    "dec {num_blocks}",
                    "jnz 2b",
                    "tilestored [{to} + {to_row}], tmm0",
                    "tilestored [{to} + {to_row} + 64], tmm1",
                    "tilestored [{other_to} + {to_row}], tmm2",
                    "tilestored [{other_to} + {to_row} + 64], tmm3",
                    from = in(reg) from.at,
                    other_from = in(reg) from.at.wrapping_add(ROW_TILE * from.row_bytes),
                    from_row = in(reg) from.row_bytes,
                    to = in(reg) to.at,
                    other_to = in(reg) to.at.wrapping_add(ROW_TILE * to.row_bytes),
                    to_row = in(reg) to.row_bytes,
                    row = inout(reg) rows[0] => _,
                    other_row = inout(reg) rows[1] => _,
                    weight = inout(reg) weights[0] => _,
                    other_weight = inout(reg) weights[1] => _,
                    num_blocks = inout(reg) num_blocks => _,
                    line = in(reg) PLANE_BYTES,
                    row_block = const $row_parts * BLOCK_BYTES,
                    block = const $parts * BLOCK_BYTES,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

multiply_parts!(
    multiply,
    (1, 1),
    "tileloadd tmm4, [{row} + {line}]",
    "tileloadd tmm6, [{weight} + {line}]",
    "tileloadd tmm7, [{other_weight} + {line}]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tileloadd tmm5, [{other_row} + {line}]",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tdpbf16ps tmm3, tmm5, tmm7",
);

// A row's second part first, while its first one is on its way; 1024 is a part.
multiply_parts!(
    multiply_rows_in_two,
    (2, 1),
    "tileloadd tmm4, [{row} + {line} + 1024]",
    "tileloadd tmm6, [{weight} + {line}]",
    "tileloadd tmm7, [{other_weight} + {line}]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tileloadd tmm5, [{other_row} + {line} + 1024]",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tileloadd tmm4, [{row} + {line}]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tdpbf16ps tmm3, tmm5, tmm7",
    "tileloadd tmm5, [{other_row} + {line}]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tdpbf16ps tmm3, tmm5, tmm7",
);

multiply_parts!(
    multiply_both_in_two,
    (2, 2),
    "tileloadd tmm4, [{row} + {line} + 1024]",
    "tileloadd tmm6, [{weight} + {line}]",
    "tileloadd tmm7, [{other_weight} + {line}]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tileloadd tmm5, [{other_row} + {line} + 1024]",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tileloadd tmm4, [{row} + {line}]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tdpbf16ps tmm3, tmm5, tmm7",
    "tileloadd tmm5, [{other_row} + {line}]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tileloadd tmm6, [{weight} + {line} + 1024]",
    "tdpbf16ps tmm3, tmm5, tmm7",
    "tileloadd tmm7, [{other_weight} + {line} + 1024]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tdpbf16ps tmm1, tmm4, tmm7",
    "tdpbf16ps tmm2, tmm5, tmm6",
    "tdpbf16ps tmm3, tmm5, tmm7",
);

const _: () = assert!(BLOCK_BYTES == 1024, "the second part of a block");
