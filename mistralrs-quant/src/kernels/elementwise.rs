//! Rows before they are rounded, in plain text that each instruction set is compiled from: no operation is contracted or
//! reordered, so all give the same bits.

/// Partial sums of squares kept apart: enough for one AVX-512 register, and more exact than one long chain.
const NUM_SUMS: usize = 16;

/// Arguments of [`exp`] beyond this overflow.
const MAX_EXPONENT: f32 = 89.0;
/// And below this one are as good as zero beside 1.
const MIN_EXPONENT: f32 = -87.0;

/// 1.5 · 2^23: adding it rounds to a whole number, which then stands in the low bits.
const ROUNDER: f32 = 12_582_912.0;
const MANTISSA_BITS: u32 = 23;
const EXPONENT_BIAS: u32 = 127;

/// ln 2 in two parts: the first times a small whole number is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `input / sqrt(mean(input²) + eps) · weight`.
#[inline(always)]
pub(super) fn rms_norm(input: &[f32], (weight, eps): (&[f32], f32), out: &mut [f32]) {
    let scale = (mean_square(input) + eps).sqrt().recip();
    for ((out, value), weight) in out.iter_mut().zip(input).zip(weight) {
        *out = value * scale * weight;
    }
}

#[inline(always)]
fn mean_square(values: &[f32]) -> f32 {
    let mut sums = [0f32; NUM_SUMS];
    let (chunks, rest) = values.as_chunks::<NUM_SUMS>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * value;
        }
    }
    let rest: f32 = rest.iter().map(|value| value * value).sum();
    (sums.iter().sum::<f32>() + rest) / values.len() as f32
}

/// `gate / (1 + exp(-gate)) · up`.
#[inline(always)]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// Within two units in the last place; infinite from 88.4 on. Source: Cephes' `expf`, its coefficients and its reduction.
#[inline(always)]
fn exp(value: f32) -> f32 {
    // Comparisons and not `clamp`'s: what is no number stays none.
    let value = if value > MAX_EXPONENT { MAX_EXPONENT } else { value };
    let value = if value < MIN_EXPONENT { MIN_EXPONENT } else { value };
    let shifted = value * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let rest = value - whole * LN_2_HIGH - whole * LN_2_LOW;
    let series = 1.987_569_1e-4;
    let series = series * rest + 1.398_2e-3;
    let series = series * rest + 8.333_452e-3;
    let series = series * rest + 4.166_579_6e-2;
    let series = series * rest + 1.666_666_5e-1;
    let series = series * rest + 0.5;
    let power = f32::from_bits((shifted.to_bits() << MANTISSA_BITS).wrapping_add(EXPONENT_BIAS << MANTISSA_BITS));
    (series * rest * rest + rest + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -870_000..=883_000 {
            let value = step as f32 * 1e-4;
            let expected = f64::from(value).exp();
            let error = (f64::from(exp(value)) - expected).abs() / expected;
            assert!(error < 2.4e-7, "exp({value}) is {error:.1e} off");
        }
        assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
    }

    #[test]
    fn exp_saturates_and_passes_on_what_is_no_number() {
        for value in [89.0, 1e10, f32::INFINITY] {
            assert!(exp(value).is_infinite(), "{value}");
        }
        for value in [-88.0, -1e10, f32::NEG_INFINITY] {
            assert!((0.0..1e-37).contains(&exp(value)), "{value}");
        }
        assert!(exp(f32::NAN).is_nan());
    }
}
