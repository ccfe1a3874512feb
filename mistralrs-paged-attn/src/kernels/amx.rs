//! The same as [`tile`](super::tile) by the CPU's matrix unit (AMX): scores of 16 rows and 64 tokens at once, and 64 dimensions
//! of their values.
//!
//! The unit multiplies bf16, which keeps 8 bits of a float. So a float is two of them, the nearest and what that leaves, cut
//! off after 8 bits, and a product is three: both firsts, and each first by the other's second. What is left out is at most a
//! 32768th of a product; KV in f16 and bf16 is itself exact. Sums are f32. Softmax is the vector units', over the same 64 tokens
//! as theirs.
//!
//! Operands lie as the unit reads them, a register of 16 lines after the other, firsts and seconds by turns. A line of rows has 32 elements
//! of one of 16 rows, a line of KV two elements for each of 16 columns. Which two is the same for both: 0 and 16,
//! 1 and 17 and so on, so that two vectors of floats become a line without moving between lanes.
//!
//! Registers of the unit, by number: 0 to 3 hold the sums of two times 16 rows with two times 16 columns, 4 and 5 the rows, 6 and 7 the
//! columns.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _CMP_NLT_UQ, _mm512_abs_ps, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_maskz_mov_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_srli_epi32, _mm512_store_si512, _mm512_sub_ps,
};
use std::ops::Range;

use super::lanes::Lanes;
use super::matrix_unit::MatrixUnit;
use super::memory::Line;
use super::tile::{Weights, hide, soften};
use super::x86::Avx512;
use super::{
    GROUPS_PER_TILE, KvElement, LANES, MATRIX_DIMS, MATRIX_ROWS, MatrixOperands, RUN_LEN, Rows, Seen, Tile, query_lines,
};

/// Of 32 bits.
const UPPER_HALF: i32 = 0xffff_0000_u32.cast_signed();
/// Lines of what one register of the unit holds.
const REGISTER_LINES: usize = 16;
/// Elements of a row, or of a column, in a register: what one instruction sums.
const DEPTH: usize = 2 * LANES;
/// Firsts and seconds.
const PARTS: usize = 2;
/// Sixteens of columns in each step of the operands.
const COLUMNS: usize = 4;
/// Sixteens of rows, and of columns, that are multiplied at once.
const PAIR: usize = 2;
/// Sixteens of rows that pass over the keys, then over the values: so many that what one kind of unit stored has reached the
/// first-level cache when the other loads it, so few that it is still there.
const ROW_TILES_AT_ONCE: usize = 4;

/// See [`super::split_query`].
///
/// # Safety
/// The CPU has AVX-512F; `lines` has room for the rows.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn split_query(query: &[f32], (head_size, scale): (usize, f32), lines: &mut [Line]) {
    let tiles = query.chunks_exact(MATRIX_ROWS * head_size);
    let to = lines.chunks_exact_mut(head_size / DEPTH * PARTS * REGISTER_LINES);
    for (rows, lines) in tiles.zip(to) {
        for (index, row) in rows.chunks_exact(head_size).enumerate() {
            for (row, registers) in row.chunks_exact(DEPTH).zip(lines.chunks_exact_mut(PARTS * REGISTER_LINES)) {
                // SAFETY: a depth is two vectors, and there are two registers of as many lines as rows.
                unsafe {
                    let scaled = |at: usize| Avx512::load(row[at..].as_ptr()).mul(Avx512::splat(scale));
                    store_pair([scaled(0), scaled(LANES)], in_both(registers.as_mut_ptr(), index));
                }
            }
        }
    }
}

/// Stores a line of firsts and one of seconds.
///
/// # Safety
/// The CPU has AVX-512F; both lines are writable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_pair(values: [Avx512; 2], [firsts, seconds]: [*mut Line; 2]) {
    let nearest = values.map(|value| nearest(value.0));
    let rests = [_mm512_sub_ps(values[0].0, nearest[0]), _mm512_sub_ps(values[1].0, nearest[1])];
    // SAFETY: the caller's promise; lines are aligned.
    unsafe {
        _mm512_store_si512(firsts.cast(), upper_halves(nearest));
        _mm512_store_si512(seconds.cast(), upper_halves(rests));
    }
}

/// The nearest of values with 8 bits. What is no number may become one: the rest is none then.
#[inline]
#[target_feature(enable = "avx512f")]
fn nearest(value: __m512) -> __m512 {
    let half_up = _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000));
    _mm512_castsi512_ps(_mm512_and_si512(half_up, _mm512_set1_epi32(UPPER_HALF)))
}

/// By lane, those of both.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_halves([low, high]: [__m512; 2]) -> __m512i {
    let high = _mm512_and_si512(_mm512_castps_si512(high), _mm512_set1_epi32(UPPER_HALF));
    _mm512_or_si512(high, _mm512_srli_epi32::<16>(_mm512_castps_si512(low)))
}

/// Line `line` of a register's, and of the next one's.
fn in_both(registers: *mut Line, line: usize) -> [*mut Line; PARTS] {
    [registers.wrapping_add(line), registers.wrapping_add(REGISTER_LINES + line)]
}

/// See [`super::attend_tile_by_matrix_unit`].
///
/// # Safety
/// There is a unit, and the CPU has AVX-512F; `tile`, `rows` and `operands` have passed their checks for the same head size,
/// which is whole [`MATRIX_DIMS`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn attend_tile<E: KvElement>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    rows: &mut Rows<'_>,
    operands: &mut MatrixOperands<'_>,
) {
    let head_size = rows.head_size;
    let (Some(seen), Some(seen_tiles)) = (tile.seen_by(rows.num_visible, rows.window), seen_row_tiles(tile, rows))
    else {
        return;
    };
    let (keys, values) = operands.kv.split_at_mut(operands.kv.len() / 2);
    let query_tile = query_lines(MATRIX_ROWS, head_size);
    #[expect(
        clippy::large_stack_arrays,
        reason = "16 KiB: a third of the first-level cache, which is where it shall be"
    )]
    let mut weights = [Weights::<MATRIX_ROWS>::ZERO; ROW_TILES_AT_ONCE];
    // SAFETY: the caller's promise: buffers are of these sizes.
    unsafe {
        split_keys(tile, ahead, keys);
        split_values(tile, ahead, head_size, &seen, values);
        let unit = MatrixUnit::set_up();
        for start in seen_tiles.clone().step_by(ROW_TILES_AT_ONCE) {
            let count = ROW_TILES_AT_ONCE.min(seen_tiles.end - start);
            // Where one is left it stands in for the other, too: what is stored twice is the same.
            let pairs = || (0..count).step_by(PAIR).map(|at| [at, (at + 1).min(count - 1)]);
            let weights_at = weights.as_mut_ptr();
            for groups in (0..GROUPS_PER_TILE).step_by(PAIR) {
                for pair in pairs() {
                    let query = pair.map(|at| operands.query[(start + at) * query_tile..].as_ptr());
                    let scores =
                        pair.map(|at| weights_at.wrapping_add(at).cast::<Line>().wrapping_add(groups * REGISTER_LINES));
                    let keys = keys[groups * PARTS * REGISTER_LINES..].as_ptr();
                    multiply::<false>(query, keys, head_size / DEPTH, scores, (1, REGISTER_LINES));
                }
            }
            for (row_tile, weights) in (start..).zip(&mut weights[..count]) {
                let first = row_tile * MATRIX_ROWS;
                hide::<Avx512, E, MATRIX_ROWS>(tile, rows, first, weights);
                soften::<Avx512, MATRIX_ROWS>(rows, first, weights);
                split_weights(weights);
                shrink(rows.output[first * head_size..].as_mut_ptr(), head_size, &weights.of_earlier);
            }
            let output = rows.output.as_mut_ptr();
            for column in (0..head_size / LANES).step_by(PAIR) {
                for pair in pairs() {
                    let weights = pair.map(|at| weights[at].of_tokens.as_ptr().cast());
                    let at = |row_tile| row_tile * MATRIX_ROWS * head_size + column * LANES;
                    let output = pair.map(|pair| output.wrapping_add(at(start + pair)).cast());
                    let register = column / COLUMNS * (GROUPS_PER_TILE / 2) * COLUMNS + column % COLUMNS;
                    let values = values[register * PARTS * REGISTER_LINES..].as_ptr();
                    multiply::<true>(weights, values, GROUPS_PER_TILE / 2, output, (head_size / LANES, 1));
                }
            }
        }
        drop(unit);
    }
}

/// Which sixteens of rows see a token of the tile: neighbours, since the more a row sees at the end, the less it sees at the
/// start.
fn seen_row_tiles<E: KvElement>(tile: &Tile<'_, E>, rows: &Rows<'_>) -> Option<Range<usize>> {
    let tokens = tile.tokens();
    let mut seen = (0..rows.num_visible.len() / MATRIX_ROWS).filter(|row_tile| {
        let first = row_tile * MATRIX_ROWS;
        rows.num_visible[first + MATRIX_ROWS - 1] > tokens.start && rows.first_seen(first) < tokens.end
    });
    let first = seen.next()?;
    Some(first..seen.next_back().unwrap_or(first) + 1)
}

/// Makes the columns of scores: `[D / DEPTH, group, PARTS]` registers.
///
/// # Safety
/// The CPU has AVX-512F; the tiles have passed their checks, and `to` has room for their keys.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn split_keys<E: KvElement>(tile: &Tile<'_, E>, ahead: &Tile<'_, E>, to: &mut [Line]) {
    for (step, registers) in to.chunks_exact_mut(GROUPS_PER_TILE * PARTS * REGISTER_LINES).enumerate() {
        for (group, registers) in registers.chunks_exact_mut(PARTS * REGISTER_LINES).enumerate() {
            let (keys, keys_ahead) = (tile.groups[group].keys.as_ptr(), ahead.groups[group].keys.as_ptr());
            for line in 0..REGISTER_LINES {
                let dims = [step * DEPTH + line, step * DEPTH + LANES + line];
                // SAFETY: dimensions are the head's, whose keys the group has, by the caller's promise.
                unsafe {
                    let pair = dims.map(|dim| {
                        Avx512::prefetch(keys_ahead.wrapping_add(E::key_offset(dim)));
                        let scale = E::key_scale::<Avx512>(keys, step * DEPTH);
                        E::load_keys::<Avx512>(keys.add(E::key_offset(dim)), scale)
                    });
                    store_pair(pair, in_both(registers.as_mut_ptr(), line));
                }
            }
        }
    }
}

/// Makes the columns of values: `[D / MATRIX_DIMS, half of the tile, COLUMNS, PARTS]` registers. Tokens that no row sees are 0,
/// whatever is in memory there: their weights are 0, and must stay so. A value that is no number makes the whole tile's rows none,
/// those before it too: a broken model is seen.
///
/// # Safety
/// As [`split_keys`]'s.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn split_values<E: KvElement>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    head_size: usize,
    seen: &Seen,
    to: &mut [Line],
) {
    let row_len = E::row_len(head_size);
    for half in 0..GROUPS_PER_TILE / 2 {
        for line in 0..REGISTER_LINES {
            let tokens = [2 * half, 2 * half + 1].map(|group| {
                let is_seen = (seen.num_hidden[group]..seen.num_shown[group]).contains(&line);
                let ahead = ahead.groups[group].values.as_ptr().wrapping_add(line * row_len);
                (is_seen.then(|| tile.groups[group].values[line * row_len..].as_ptr()), ahead)
            });
            for column in 0..head_size / LANES {
                // SAFETY: a token that is seen has a row of values, with these columns; there is room for each.
                unsafe {
                    let pair = tokens.map(|(values, ahead)| {
                        Avx512::prefetch(ahead.wrapping_add(E::value_offset(column)));
                        values.map_or(Avx512::splat(0.0), |values| E::load_values(values, column))
                    });
                    let register = (column / COLUMNS * (GROUPS_PER_TILE / 2) + half) * COLUMNS + column % COLUMNS;
                    store_pair(pair, in_both(to[register * PARTS * REGISTER_LINES..].as_mut_ptr(), line));
                }
            }
        }
    }
}

/// Makes weights the rows that [`split_values`] is multiplied by, in their place: `[half of the tile, PARTS]` registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn split_weights(weights: &mut Weights<MATRIX_ROWS>) {
    let (halves, _) = weights.of_tokens.as_chunks_mut::<2>();
    for [low, high] in halves {
        for (low, high) in low.iter_mut().zip(high) {
            // SAFETY: each is a vector, and a line. Those of the first and of the second group are a register apart.
            unsafe {
                let pair = [Avx512::load(low.as_ptr()), Avx512::load(high.as_ptr())];
                store_pair(pair, [low.as_mut_ptr().cast(), high.as_mut_ptr().cast()]);
            }
        }
    }
}

/// Multiplies [`MATRIX_ROWS`] rows of `output` by what each has in `factors`.
///
/// # Safety
/// The CPU has AVX-512F; the rows are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn shrink(output: *mut f32, head_size: usize, factors: &[f32; MATRIX_ROWS]) {
    for (row, factor) in factors.iter().enumerate() {
        // Most maxima stay.
        if factor.to_bits() == 1.0_f32.to_bits() {
            continue;
        }
        for dim in (0..head_size).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let at = output.add(row * head_size + dim);
                let product = _mm512_mul_ps(Avx512::load(at).0, _mm512_set1_ps(*factor));
                // The unit takes subnormals for 0, and rows that see nothing of a tile may not pass through it.
                let is_normal =
                    _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(product), _mm512_set1_ps(f32::MIN_POSITIVE));
                Avx512(_mm512_maskz_mov_ps(is_normal, product)).store(at);
            }
        }
    }
}

/// Products of two times 16 rows with two times 16 columns over `num_steps` of [`DEPTH`], added to what is in `sums`, by 16 rows, if
/// `ADDS`. From row to row and from 16 columns to the next 16 they are so many lines apart.
///
/// # Safety
/// The unit is set up; either of `rows` has `[num_steps, PARTS]` registers, `columns` `[num_steps, COLUMNS, PARTS]` from the first or
/// the third column on, and `sums` are there.
#[inline]
unsafe fn multiply<const ADDS: bool>(
    rows: [*const Line; PAIR],
    columns: *const Line,
    num_steps: usize,
    sums: [*mut Line; PAIR],
    (row_lines, column_lines): (usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {adds}, {adds}; jz 3f",
            "tileloadd tmm0, [{sums} + {row_bytes}]",
            "tileloadd tmm1, [{next_sums} + {row_bytes}]",
            "tileloadd tmm2, [{other_sums} + {row_bytes}]",
            "tileloadd tmm3, [{other_next_sums} + {row_bytes}]",
            "jmp 2f",
            "3: tilezero tmm0; tilezero tmm1; tilezero tmm2; tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{row} + {line}]; tileloadd tmm6, [{columns} + {line}]",
            "tileloadd tmm5, [{other_row} + {line}]; tileloadd tmm7, [{columns} + {line} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{columns} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{columns} + {line} + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{row} + {line} + 1024]; tileloadd tmm6, [{columns} + {line}]",
            "tileloadd tmm5, [{other_row} + {line} + 1024]; tileloadd tmm7, [{columns} + {line} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm3, tmm5, tmm7",
            "add {row}, 2048; add {other_row}, 2048; add {columns}, 8192",
            "dec {num_steps}; jnz 2b",
            "tilestored [{sums} + {row_bytes}], tmm0",
            "tilestored [{next_sums} + {row_bytes}], tmm1",
            "tilestored [{other_sums} + {row_bytes}], tmm2",
            "tilestored [{other_next_sums} + {row_bytes}], tmm3",
            adds = in(reg) usize::from(ADDS),
            sums = in(reg) sums[0],
            next_sums = in(reg) sums[0].wrapping_add(column_lines),
            other_sums = in(reg) sums[1],
            other_next_sums = in(reg) sums[1].wrapping_add(column_lines),
            row_bytes = in(reg) row_lines * size_of::<Line>(),
            line = in(reg) size_of::<Line>(),
            row = inout(reg) rows[0] => _,
            other_row = inout(reg) rows[1] => _,
            columns = inout(reg) columns => _,
            num_steps = inout(reg) num_steps => _,
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

const _: () = assert!(RUN_LEN == DEPTH, "a scale is that of a step's keys");
const _: () =
    assert!(REGISTER_LINES * size_of::<Line>() == 1024 && MATRIX_ROWS == REGISTER_LINES && MATRIX_ROWS == LANES);
const _: () =
    assert!(COLUMNS == GROUPS_PER_TILE && COLUMNS * LANES == MATRIX_DIMS && MATRIX_DIMS.is_multiple_of(DEPTH));
const _: () = assert!(size_of::<[[f32; LANES]; MATRIX_ROWS]>() == REGISTER_LINES * size_of::<Line>());
