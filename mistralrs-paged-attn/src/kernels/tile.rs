//! One tile of KV against a few query rows: scores, softmax weights, weighted values (Dao 2023, arXiv:2307.08691,
//! algorithm 1, with rows and columns of the tile in registers).
//!
//! Keys lie `[D, LANES]` (with scales in between where a type has them): one load brings the same dimension of 16 tokens, so scores of 16 tokens grow in the lanes of
//! one sum and never need adding across lanes. Values lie `[token, D]`: a weight times a row, summed over tokens. Both
//! walk memory forwards, and each load serves all rows of the KV head's query group.
//!
//! Functions here are `#[inline(always)]` into one with `#[target_feature]` per instruction set; loops over `R` and
//! `W` unroll into registers.

#![expect(clippy::needless_range_loop, reason = "`r` and `w` number registers; iterators hide which")]

use super::lanes::Lanes;
use super::{GROUPS_PER_TILE, KvElement, LANES, MAX_ROWS_AT_ONCE, Rows, Seen, TILE_LEN, Tile, padded};

/// Weights below 2^-86 are 0: beside the largest, which is 1, no sum of f32 would notice them, and products with them
/// stay clear of slow subnormals. Masked tokens (-inf) fall under the same rule.
const SMALLEST_POWER: f32 = -86.0;

/// 2^r - 1 over r for |r| <= 1/2 (our own minimax fit): relative error of 2^r below 1.1e-7, exactly 1 at 0.
const EXP2: [f32; 5] = [std::f32::consts::LN_2, 0.240_222_8, 0.055_505_6, 0.009_669_708, 0.001_330_026_4];

/// For lanes that are one register: four lane groups at once.
///
/// # Safety
/// The CPU must have the features of `L`; `tile` and `rows` must have passed their checks for the same head size.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn attend_wide<L: Lanes, E: KvElement>(tile: &Tile<'_, E>, ahead: &Tile<'_, E>, rows: &mut Rows<'_>) {
    let mut first = 0;
    while let Some(num_rows) = rows_at_once(first, rows.num_visible.len()) {
        // Fetched along with the first rows.
        let ahead = if first == 0 { ahead } else { tile };
        // SAFETY: `first + num_rows` is within the rows, the rest is the caller's promise.
        unsafe {
            match num_rows {
                1 => attend_rows::<L, E, 1, 4>(tile, ahead, rows, first),
                2 => attend_rows::<L, E, 2, 4>(tile, ahead, rows, first),
                3 => attend_rows::<L, E, 3, 4>(tile, ahead, rows, first),
                4 => attend_rows::<L, E, 4, 4>(tile, ahead, rows, first),
                5 => attend_rows::<L, E, 5, 4>(tile, ahead, rows, first),
                _ => attend_rows::<L, E, MAX_ROWS_AT_ONCE, 4>(tile, ahead, rows, first),
            }
        }
        first += num_rows;
    }
}

/// For lanes that take two of 16 registers or more: the more rows, the fewer lane groups at once.
///
/// # Safety
/// The CPU must have the features of `L`; `tile` and `rows` must have passed their checks for the same head size.
#[inline(always)]
pub(super) unsafe fn attend_narrow<L: Lanes, E: KvElement>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    rows: &mut Rows<'_>,
) {
    let mut first = 0;
    while let Some(num_rows) = rows_at_once(first, rows.num_visible.len()) {
        // Fetched along with the first rows.
        let ahead = if first == 0 { ahead } else { tile };
        // SAFETY: `first + num_rows` is within the rows, the rest is the caller's promise.
        unsafe {
            match num_rows {
                1 => attend_rows::<L, E, 1, 4>(tile, ahead, rows, first),
                2 => attend_rows::<L, E, 2, 2>(tile, ahead, rows, first),
                3 => attend_rows::<L, E, 3, 2>(tile, ahead, rows, first),
                4 => attend_rows::<L, E, 4, 1>(tile, ahead, rows, first),
                5 => attend_rows::<L, E, 5, 1>(tile, ahead, rows, first),
                _ => attend_rows::<L, E, MAX_ROWS_AT_ONCE, 1>(tile, ahead, rows, first),
            }
        }
        first += num_rows;
    }
}

/// Parts of nearly equal size: seven rows go as 4 + 3, not 6 + 1.
#[inline(always)]
fn rows_at_once(first: usize, num_rows: usize) -> Option<usize> {
    let left = num_rows - first;
    (left > 0).then(|| left.div_ceil(left.div_ceil(MAX_ROWS_AT_ONCE)))
}

/// What one tile weighs, for `R` rows.
#[repr(C, align(64))]
pub(super) struct Weights<const R: usize> {
    /// By group, row and lane: scores at first, then weights relative to the row's maximum so far.
    pub(super) of_tokens: [[[f32; LANES]; R]; GROUPS_PER_TILE],
    /// By row: what the sums and the output of earlier tiles shrink by.
    pub(super) of_earlier: [f32; LANES],
}

impl<const R: usize> Weights<R> {
    pub(super) const ZERO: Self = Self { of_tokens: [[[0.0; LANES]; R]; GROUPS_PER_TILE], of_earlier: [0.0; LANES] };
}

/// `R` rows from `first` on, `W` vectors of scores or output at once per row.
#[inline(always)]
unsafe fn attend_rows<L: Lanes, E: KvElement, const R: usize, const W: usize>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    rows: &mut Rows<'_>,
    first: usize,
) {
    let Some(seen) = tile.seen_by(&rows.num_visible[first..first + R], rows.window) else { return };
    let mut weights = Weights::<R>::ZERO;
    // SAFETY: the caller promises the features of `L`, rows up to `first + R`, and checked buffers.
    unsafe {
        score::<L, E, R, W>(tile, ahead, rows, first, &mut weights);
        hide::<L, E, R>(tile, rows, first, &mut weights);
        soften::<L, R>(rows, first, &mut weights);
        let num_vectors = padded(rows.head_size) / LANES;
        let mut column = 0;
        while column + W <= num_vectors {
            accumulate::<L, E, R, W>((tile, ahead, &seen), rows, first, &weights, column);
            column += W;
        }
        while column < num_vectors {
            accumulate::<L, E, R, 1>((tile, ahead, &seen), rows, first, &weights, column);
            column += 1;
        }
    }
}

/// Score of row r and token t = query r . key t. One chain of multiply-adds per score, in order of dimension.
#[inline(always)]
unsafe fn score<L: Lanes, E: KvElement, const R: usize, const W: usize>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    rows: &Rows<'_>,
    first: usize,
    weights: &mut Weights<R>,
) {
    let head_size = rows.head_size;
    // SAFETY: keys are those of a lane group and queries `[rows, D]` by the checks; scores are `TILE_LEN` per row.
    unsafe {
        let query = rows.query.as_ptr().add(first * head_size);
        for group in (0..GROUPS_PER_TILE).step_by(W) {
            let mut sums = [[L::splat(0.0); W]; R];
            let mut keys = [tile.groups[group].keys.as_ptr(); W];
            let mut keys_ahead = keys;
            for w in 0..W {
                keys[w] = tile.groups[group + w].keys.as_ptr();
                keys_ahead[w] = ahead.groups[group + w].keys.as_ptr();
            }
            let mut first_dim = 0;
            while first_dim < head_size {
                let mut scales = [E::key_scale::<L>(keys[0], first_dim); W];
                for w in 1..W {
                    scales[w] = E::key_scale::<L>(keys[w], first_dim);
                }
                let end = first_dim + E::DIMS_PER_SCALE.min(head_size - first_dim);
                for dim in first_dim..end {
                    let mut key = [L::splat(0.0); W];
                    for w in 0..W {
                        key[w] = E::load_keys(keys[w].add(E::key_offset(dim)), scales[w]);
                        L::prefetch(keys_ahead[w].wrapping_add(E::key_offset(dim)));
                    }
                    for r in 0..R {
                        let query = L::splat(*query.add(r * head_size + dim));
                        for w in 0..W {
                            sums[r][w] = query.mul_add(key[w], sums[r][w]);
                        }
                    }
                }
                first_dim = end;
            }
            for r in 0..R {
                for w in 0..W {
                    sums[r][w].store(weights.of_tokens[group + w][r].as_mut_ptr());
                }
            }
        }
    }
}

/// Sets the scores of tokens that a row does not see to -inf, whatever was computed from memory there.
#[inline(always)]
pub(super) unsafe fn hide<L: Lanes, E: KvElement, const R: usize>(
    tile: &Tile<'_, E>,
    rows: &Rows<'_>,
    first: usize,
    weights: &mut Weights<R>,
) {
    let tokens = tile.tokens();
    let all_see_all = rows.num_visible[first] >= tokens.end && rows.first_seen(first + R - 1) <= tokens.start;
    if all_see_all && tokens.len() == TILE_LEN {
        return;
    }
    for r in 0..R {
        let num_shown = tile.num_shown(rows.num_visible[first + r]);
        let num_hidden = tile.num_hidden(rows.first_seen(first + r));
        for group in 0..GROUPS_PER_TILE {
            // SAFETY: a group's lanes are within the row's scores; the features are the caller's promise.
            unsafe {
                let scores = weights.of_tokens[group][r].as_mut_ptr();
                L::load(scores).keep(num_hidden[group], num_shown[group]).store(scores);
            }
        }
    }
}

/// Turns scores into weights relative to each row's new maximum and adds them to the row's sums.
#[inline(always)]
pub(super) unsafe fn soften<L: Lanes, const R: usize>(rows: &mut Rows<'_>, first: usize, weights: &mut Weights<R>) {
    // SAFETY: four vectors per row of weights, one of sums per row, by type and by the checks; features as promised.
    unsafe {
        for r in 0..R {
            let mut highest = L::load(weights.of_tokens[0][r].as_ptr());
            for group in 1..GROUPS_PER_TILE {
                highest = highest.max(L::load(weights.of_tokens[group][r].as_ptr()));
            }
            let (highest, max) = (highest.max_lane(), &mut rows.max[first + r]);
            let new_max = if highest > *max { highest } else { *max };
            weights.of_earlier[r] = *max - new_max;
            *max = new_max;
        }
        let of_earlier = weights.of_earlier.as_mut_ptr();
        exp2_or_zero(L::load(of_earlier)).store(of_earlier);
        for r in 0..R {
            let max = L::splat(rows.max[first + r]);
            let sums = rows.sums.as_mut_ptr().add((first + r) * LANES);
            let mut sum = L::load(sums).mul(L::splat(weights.of_earlier[r]));
            for group in 0..GROUPS_PER_TILE {
                let scores = weights.of_tokens[group][r].as_mut_ptr();
                let weight = exp2_or_zero(L::load(scores).sub(max));
                weight.store(scores);
                sum = sum.add(weight);
            }
            sum.store(sums);
        }
    }
}

/// 2^x for x <= 0.
#[inline(always)]
unsafe fn exp2_or_zero<L: Lanes>(power: L) -> L {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let limit = L::splat(SMALLEST_POWER);
        let bounded = limit.max(power);
        let whole = bounded.round();
        let rest = bounded.sub(whole);
        let mut sum = L::splat(EXP2[EXP2.len() - 1]);
        for coefficient in EXP2[..EXP2.len() - 1].iter().rev() {
            sum = sum.mul_add(rest, L::splat(*coefficient));
        }
        sum.mul_add(rest, L::splat(1.0)).scale(whole).zero_below(power, limit)
    }
}

/// Output of row r = its output so far * weight of earlier tiles + sum over shown tokens of weight * value, in token
/// order, for `W` vectors of the head from `column` on. Tokens that no row sees are not read; to a row that does not
/// see one its weight is 0.
#[inline(always)]
unsafe fn accumulate<L: Lanes, E: KvElement, const R: usize, const W: usize>(
    (tile, ahead, seen): (&Tile<'_, E>, &Tile<'_, E>, &Seen),
    rows: &mut Rows<'_>,
    first: usize,
    weights: &Weights<R>,
    column: usize,
) {
    let (row_len, value_len) = (padded(rows.head_size), E::row_len(rows.head_size));
    // SAFETY: values are rows of `value_len` units per group with no more shown than there are lanes, each with as many
    // vectors as a row of output, which is `[rows, padded D]`, by the checks.
    unsafe {
        let output = rows.output.as_mut_ptr().add(first * row_len + column * LANES);
        let mut sums = [[L::splat(0.0); W]; R];
        for r in 0..R {
            let of_earlier = L::splat(weights.of_earlier[r]);
            for w in 0..W {
                sums[r][w] = L::load(output.add(r * row_len + w * LANES)).mul(of_earlier);
            }
        }
        for group in 0..GROUPS_PER_TILE {
            let values = tile.groups[group].values.as_ptr();
            let values_ahead = ahead.groups[group].values.as_ptr();
            for lane in seen.num_hidden[group]..seen.num_shown[group] {
                let mut value = [L::splat(0.0); W];
                for w in 0..W {
                    value[w] = E::load_values(values.add(lane * value_len), column + w);
                    L::prefetch(values_ahead.wrapping_add(lane * value_len + E::value_offset(column + w)));
                }
                for r in 0..R {
                    let weight = L::splat(weights.of_tokens[group][r][lane]);
                    for w in 0..W {
                        sums[r][w] = weight.mul_add(value[w], sums[r][w]);
                    }
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                sums[r][w].store(output.add(r * row_len + w * LANES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Portable;

    fn exp2(power: f32) -> f32 {
        let mut lanes = [power; LANES];
        // SAFETY: the array has `LANES` floats, and `Portable` needs no feature.
        unsafe { exp2_or_zero(Portable::load(lanes.as_ptr())).store(lanes.as_mut_ptr()) };
        lanes[0]
    }

    #[test]
    fn weights_are_powers_of_two_down_to_the_smallest() {
        for step in 0..=86_000_u32 {
            let power = -f64::from(step) / 1000.0;
            let error = f64::from(exp2(power as f32)) / f64::from(power as f32).exp2() - 1.0;
            assert!(error.abs() < 3e-7, "2^{power} is wrong by {error}");
        }
        assert_eq!(exp2(0.0).to_bits(), 1.0_f32.to_bits(), "a maximum that stays must not change what it scales");
        for power in [-86.1, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2(power).to_bits(), 0.0_f32.to_bits());
        }
        assert!(exp2(f32::NAN).is_nan(), "a broken model is seen, not hidden");
    }

    #[test]
    fn rows_are_cut_evenly() {
        let parts = |num_rows: usize| {
            let mut first = 0;
            std::iter::from_fn(|| {
                let part = rows_at_once(first, num_rows)?;
                first += part;
                Some(part)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!((parts(3), parts(7), parts(8)), (vec![3], vec![4, 3], vec![4, 4]));
        assert_eq!(parts(48), [6; 8]);
    }
}
