use std::ops::Range;

use half::f16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::format::BLOCK;
use crate::kernels::Level;

/// Counts of rows that reach every kernel: parts of a strip, whole ones, several.
const NUM_ROWS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 33, MAX_ROWS];
const MAX_ROWS: usize = 70;

/// Allowed beside the sum of magnitudes: a few roundings of f32.
const MAX_ERROR: f64 = 1e-6;

/// Threads of its own for every call, with ranges in no order.
pub(crate) struct Scoped(pub(crate) usize);

impl Threads for Scoped {
    fn count(&self) -> usize {
        self.0
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        let size = num_units.div_ceil(self.0).max(1);
        std::thread::scope(|scope| {
            for start in (0..num_units).step_by(size).rev() {
                scope.spawn(move || work(start..num_units.min(start + size)));
            }
        });
    }
}

/// Where blocks have their scales and minima: an exponent, or f16 numbers.
fn places_of_scales(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Mxfp4
        | BlockFormat::Q4_0
        | BlockFormat::Q5_0
        | BlockFormat::Q8_0
        | BlockFormat::Iq4Nl
        | BlockFormat::Iq4Xs => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
    }
}

/// The bytes of `half` as a scale of the format.
fn scale_bytes(format: BlockFormat, half: f16) -> Vec<u8> {
    if format == BlockFormat::Mxfp4 { vec![(half.to_f32().to_bits() >> 23) as u8] } else { half.to_le_bytes().to_vec() }
}

/// Blocks of any codes and steps, with scales made by `half`.
fn random_rows(
    format: BlockFormat,
    (num_outputs, num_inputs): (usize, usize),
    rng: &mut ChaCha8Rng,
    half: impl Fn(&mut ChaCha8Rng) -> f16,
) -> Vec<u8> {
    let num_blocks = num_outputs * num_inputs / format.block_len();
    let mut bytes: Vec<u8> = (0..num_blocks * format.block_bytes()).map(|_| rng.random()).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for place in places_of_scales(format) {
            let scale = scale_bytes(format, half(rng));
            block[*place..place + scale.len()].copy_from_slice(&scale);
        }
    }
    bytes
}

fn any_half(rng: &mut ChaCha8Rng) -> f16 {
    f16::from_f32(rng.random_range(-2.0..2.0))
}

fn random_values(len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// One block in four is 10^`magnitude` times as large as the others.
fn uneven_values(len: usize, magnitude: i32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut values = random_values(len, rng);
    for block in values.chunks_exact_mut(BLOCK).step_by(4) {
        for value in block {
            *value *= 10f32.powi(magnitude);
        }
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Outputs and inputs: whole and partial tiles, several groups.
fn shapes(format: BlockFormat) -> [(usize, usize); 3] {
    let len = format.block_len();
    [(16, 2 * len), (77, len), (48, 3 * len)]
}

fn shape_of(matrix: &BlockMatrix) -> RowShape {
    RowShape { num_inputs: matrix.num_inputs(), spans: matrix.spans(), precision: Precision::Bits8 }
}

fn with_halves(num_inputs: usize) -> RowShape {
    RowShape { num_inputs, spans: SpanSet::WithHalves, precision: Precision::Bits8 }
}

fn quantized(level: Level, values: &[f32], shape: RowShape, threads: &dyn Threads) -> QuantizedRows {
    let mut rows = QuantizedRows::default();
    rows.fill_with(level, Source::Rows(values), shape, threads);
    rows
}

fn product(matrix: &BlockMatrix, level: Level, activations: &[f32], threads: &dyn Threads) -> Vec<f32> {
    let rows = quantized(level, activations, shape_of(matrix), threads);
    let mut out = vec![f32::NAN; rows.num_rows() * matrix.num_outputs()];
    matrix.matmul_with(level, &rows, Columns::all(&mut out, matrix.num_outputs()), threads);
    out
}

/// Fails unless the product is the reference's but for rounding, and the same at every level.
fn check_product(format: BlockFormat, num_inputs: usize, weights: &[u8], activations: &[f32]) {
    let matrix = BlockMatrix::pack(format, num_inputs, &[weights], &CallingThread).unwrap();
    let rows: Vec<&[u8]> = weights.chunks_exact(weights.len() / matrix.num_outputs()).collect();
    let expected = reference::matmul(format, &rows, activations, num_inputs);
    let plain = product(&matrix, Level::Plain, activations, &CallingThread);
    for (index, (found, (expected, magnitude))) in plain.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        let allowed = MAX_ERROR * magnitude + f64::from(f32::MIN_POSITIVE);
        assert!(error <= allowed, "{matrix:?}, {index}: {found} is not {expected} within {allowed}");
    }
    for level in Level::available() {
        let found = product(&matrix, *level, activations, &CallingThread);
        assert!(bits(&found) == bits(&plain), "{matrix:?} with {level:?} is not what plain loops give");
    }
}

#[test]
fn a_row_comes_back_as_it_was_stored() {
    for format in BlockFormat::ALL {
        for (num_outputs, num_inputs) in shapes(format) {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let weights = random_rows(format, (num_outputs, num_inputs), &mut rng, any_half);
            let matrix = BlockMatrix::pack(format, num_inputs, &[&weights], &CallingThread).unwrap();
            let mut row = vec![f32::NAN; num_inputs];
            for (index, stored) in weights.chunks_exact(weights.len() / num_outputs).enumerate() {
                matrix.copy_row(index, &mut row);
                assert_eq!(bits(&row), bits(&reference::dequantize(format, stored)), "{matrix:?}, row {index}");
            }
        }
    }
}

#[test]
fn a_product_is_the_references_at_every_level() {
    // `scripts/check_kernels.sh` and `scripts/check_neon.sh` read which they were.
    println!("instruction sets: {:?}", Level::available());
    for format in BlockFormat::ALL {
        for shape in shapes(format) {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let weights = random_rows(format, shape, &mut rng, any_half);
            check_product(format, shape.1, &weights, &random_values(11 * shape.1, &mut rng));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_among_others_and_on_any_number_of_threads() {
    for format in BlockFormat::ALL {
        let shape = shapes(format)[1];
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let matrix =
            BlockMatrix::pack(format, shape.1, &[&random_rows(format, shape, &mut rng, any_half)], &CallingThread)
                .unwrap();
        let activations = random_values(MAX_ROWS * shape.1, &mut rng);
        for level in Level::available() {
            let expected = product(&matrix, *level, &activations, &CallingThread);
            for num_rows in NUM_ROWS {
                let skipped = MAX_ROWS - num_rows;
                for num_threads in [1, 2, 5] {
                    let found = product(&matrix, *level, &activations[skipped * shape.1..], &Scoped(num_threads));
                    let is_same = bits(&found) == bits(&expected[skipped * shape.0..]);
                    assert!(is_same, "{matrix:?} with {level:?}: {num_rows} rows, {num_threads} threads");
                }
            }
        }
    }
}

#[test]
fn the_largest_codes_and_the_smallest_scales_are_exact_sums_too() {
    for format in BlockFormat::ALL {
        let num_inputs = 2 * format.block_len();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let halves = [f16::ZERO, f16::from_bits(1), f16::from_bits(0x8001), f16::from_f32(60000.0), f16::MIN_POSITIVE];
        for half in halves {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut weights = random_rows(format, (17, num_inputs), &mut rng, |_| half);
                for block in weights.chunks_exact_mut(format.block_bytes()) {
                    let scale_len = scale_bytes(format, half).len();
                    let is_scale =
                        |index| places_of_scales(format).iter().any(|at| (*at..at + scale_len).contains(&index));
                    block.iter_mut().enumerate().filter(|(index, _)| !is_scale(*index)).for_each(|(_, to)| *to = byte);
                }
                for value in [0.0, 1.0, -1.0, 1e25, -1e-29, f32::from_bits(1)] {
                    check_product(format, num_inputs, &weights, &vec![value; num_inputs]);
                }
            }
        }
    }
}

/// What gguf-py makes of random blocks: `scripts/make_fixtures.py` wrote the blocks, then their values.
#[test]
fn rows_mean_what_gguf_py_dequantizes() {
    for format in BlockFormat::ALL {
        let path = format!("{}/tests/fixtures/{}.bin", env!("CARGO_MANIFEST_DIR"), format.name());
        let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let num_inputs = file.len() / (format.block_bytes() + 4 * format.block_len()) * format.block_len();
        let (weights, expected) = file.split_at(file.len() - 4 * num_inputs);
        let mut row = vec![f32::NAN; num_inputs];
        BlockMatrix::pack(format, num_inputs, &[weights], &CallingThread).unwrap().copy_row(0, &mut row);
        assert_eq!(row, FloatFormat::F32.widen(expected), "{format:?}");
    }
}

#[test]
fn every_exponent_of_mxfp4_is_a_power_of_two_up_to_what_products_can_carry() {
    for exponent in 0..=u8::MAX {
        // One output of ones (a code of 2), one of the largest value.
        let weights = [[exponent, 0x22], [exponent, 0x77]]
            .map(|[exponent, codes]| [[exponent; 1].as_slice(), &[codes; 16]].concat());
        let weights = weights.concat();
        let power = 2f64.powi(i32::from(exponent.min(232)) - 127);
        let rows = [1.0, 6.0].map(|value| (value * power) as f32);
        assert_eq!(reference::dequantize(BlockFormat::Mxfp4, &weights), rows.map(|value| [value; 32]).concat());
        check_product(BlockFormat::Mxfp4, 32, &weights, &[0.5; 32]);
    }
}

#[test]
fn activations_are_rounded_as_the_reference_rounds_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut values = random_values(4 * BLOCK, &mut rng);
    // Halves between two quants go to the even one.
    for (index, value) in values[..BLOCK].iter_mut().enumerate() {
        *value = if index == 0 { 127.0 } else { index as f32 - 15.5 };
    }
    values[BLOCK..2 * BLOCK].fill(f32::MIN_POSITIVE / 2.0);
    let rows = quantized(Level::detected(), &values, with_halves(values.len()), &CallingThread);
    let found = rows.quants.iter().enumerate().map(|(index, quant)| f32::from(*quant) * rows.scales[index / BLOCK]);
    assert_eq!(bits(&found.collect::<Vec<_>>()), bits(&reference::round_activations(&values)));
    for (half, quants) in rows.quants.chunks_exact(BLOCK / 2).enumerate() {
        let sum: i32 = quants.iter().map(|quant| i32::from(*quant)).sum();
        assert_eq!(rows.halves.sums[half] as i32, sum, "half {half}");
    }
}

#[test]
fn sixteen_bits_are_as_good_as_exact_and_the_same_everywhere() {
    for format in BlockFormat::ALL {
        let (num_outputs, num_inputs) = shapes(format)[1];
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        let weights = random_rows(format, (num_outputs, num_inputs), &mut rng, any_half);
        let matrix = BlockMatrix::pack(format, num_inputs, &[&weights], &CallingThread).unwrap();
        let activations = random_values(MAX_ROWS * num_inputs, &mut rng);
        let (bias, mut widened) = (random_values(num_outputs, &mut rng), vec![0.0; num_inputs]);
        let product = |level: Level, activations: &[f32]| {
            let rows = quantized(
                level,
                activations,
                RowShape { precision: Precision::Bits16, ..shape_of(&matrix) },
                &CallingThread,
            );
            let mut out = vec![f32::NAN; rows.num_rows() * num_outputs];
            let columns = Columns::all(&mut out, num_outputs).with_bias(Some(&bias));
            matrix.matmul_with(level, &rows, columns, &Scoped(2));
            out
        };
        let expected = product(Level::Plain, &activations);
        for output in 0..num_outputs {
            matrix.copy_row(output, &mut widened);
            for (row, activations) in activations.chunks_exact(num_inputs).enumerate() {
                let products = activations.iter().zip(&widened).map(|(value, weight)| f64::from(value * weight));
                let (exact, magnitude) = products.fold((0.0, 0.0), |(sum, all), each| (sum + each, all + each.abs()));
                let found = f64::from(expected[row * num_outputs + output]);
                let error = (found - exact - f64::from(bias[output])).abs();
                assert!(error <= 1e-4 * magnitude, "{matrix:?}, {row}, {output}: {error} off of {magnitude}");
            }
        }
        for level in Level::available() {
            for num_rows in [1, 9, 33, MAX_ROWS] {
                let skipped = MAX_ROWS - num_rows;
                let found = product(*level, &activations[skipped * num_inputs..]);
                let is_same = bits(&found) == bits(&expected[skipped * num_outputs..]);
                assert!(is_same, "{matrix:?} with {level:?}: {num_rows} rows");
            }
        }
    }
}

#[test]
fn rows_that_no_cache_holds_at_once_have_the_bits_they_have_alone() {
    // 2.5 MiB a strip: units of two strips, 24 rows, in all but the largest caches.
    let (num_outputs, num_inputs, num_rows) = (40, 128 * 1024, 50);
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let weights = random_rows(BlockFormat::Q4K, (num_outputs, num_inputs), &mut rng, any_half);
    let matrix = BlockMatrix::pack(BlockFormat::Q4K, num_inputs, &[&weights], &CallingThread).unwrap();
    let activations = random_values(num_rows * num_inputs, &mut rng);
    let all = product(&matrix, Level::detected(), &activations, &Scoped(2));
    for row in [0, 23, 24, 49] {
        let alone = &activations[row * num_inputs..][..num_inputs];
        let alone = product(&matrix, Level::detected(), alone, &CallingThread);
        assert_eq!(bits(&all[row * num_outputs..][..num_outputs]), bits(&alone), "row {row}");
    }
}

#[test]
fn what_is_no_number_stays_in_its_row_and_is_seen_there() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for format in BlockFormat::ALL {
        let num_inputs = format.block_len();
        let weights = random_rows(format, (16, num_inputs), &mut rng, any_half);
        let matrix = BlockMatrix::pack(format, num_inputs, &[&weights], &CallingThread).unwrap();
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut activations = random_values(3 * num_inputs, &mut rng);
            activations[num_inputs + 3] = odd;
            let out = product(&matrix, Level::detected(), &activations, &CallingThread);
            let is_finite: Vec<bool> = out.iter().map(|value| value.is_finite()).collect();
            assert_eq!(is_finite, [[true; 16], [false; 16], [true; 16]].concat(), "{format:?}, {odd}");
        }
    }
}

#[test]
fn a_product_fills_its_columns_only_and_adds_the_bias() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (num_outputs, num_inputs) = (21, 64);
    let weights = random_rows(BlockFormat::Q4_1, (num_outputs, num_inputs), &mut rng, any_half);
    let matrix = BlockMatrix::pack(BlockFormat::Q4_1, num_inputs, &[&weights], &CallingThread).unwrap();
    let (activations, bias) = (random_values(10 * num_inputs, &mut rng), random_values(num_outputs, &mut rng));
    let alone = product(&matrix, Level::detected(), &activations, &CallingThread);
    let rows = quantized(Level::detected(), &activations, with_halves(num_inputs), &CallingThread);
    let mut out = vec![-1.0; 10 * 40];
    matrix.matmul(&rows, Columns::from(&mut out, 40, 5).with_bias(Some(&bias)), &Scoped(2));
    for (row, out) in out.chunks_exact(40).enumerate() {
        let expected = alone[row * num_outputs..].iter().zip(&bias).map(|(value, bias)| value + bias);
        assert_eq!(bits(&out[5..26]), bits(&expected.collect::<Vec<_>>()), "row {row}");
        assert!(
            out[..5].iter().chain(&out[26..]).all(|value| value.to_bits() == (-1f32).to_bits()),
            "row {row}: other columns"
        );
    }
}

#[test]
fn a_product_can_be_added_to_what_is_there() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let weights = random_rows(BlockFormat::Q5K, (21, 256), &mut rng, any_half);
    let matrix = BlockMatrix::pack(BlockFormat::Q5K, 256, &[&weights], &CallingThread).unwrap();
    let (activations, held) = (random_values(13 * 256, &mut rng), random_values(13 * 21, &mut rng));
    let alone = product(&matrix, Level::detected(), &activations, &CallingThread);
    let mut out = held.clone();
    let rows = quantized(Level::detected(), &activations, shape_of(&matrix), &CallingThread);
    matrix.matmul(&rows, Columns::all(&mut out, 21).accumulating(), &Scoped(2));
    let expected: Vec<f32> = alone.iter().zip(&held).map(|(value, held)| value + held).collect();
    assert_eq!(bits(&out), bits(&expected));
}

#[test]
fn rows_may_be_filled_again_with_fewer_or_more() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let weights = random_rows(BlockFormat::Q6K, (16, 256), &mut rng, any_half);
    let matrix = BlockMatrix::pack(BlockFormat::Q6K, 256, &[&weights], &CallingThread).unwrap();
    let mut rows = QuantizedRows::default();
    for (num_rows, precision) in
        [(30, Precision::Bits16), (5, Precision::Bits8), (13, Precision::Bits16), (64, Precision::Bits8)]
    {
        let activations = random_values(num_rows * 256, &mut rng);
        let shape = RowShape { precision, ..shape_of(&matrix) };
        let [mut again, mut fresh] = [(); 2].map(|()| vec![f32::NAN; num_rows * 16]);
        rows.fill(Source::Rows(&activations), shape, &Scoped(2));
        matrix.matmul(&rows, Columns::all(&mut again, 16), &CallingThread);
        let new = quantized(Level::detected(), &activations, shape, &CallingThread);
        matrix.matmul(&new, Columns::all(&mut fresh, 16), &CallingThread);
        assert_eq!(bits(&again), bits(&fresh), "{num_rows} rows");
    }
}

#[test]
fn several_parts_are_packed_one_after_the_other() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let parts = [20, 7].map(|num_outputs| random_rows(BlockFormat::Q8_0, (num_outputs, 32), &mut rng, any_half));
    let apart = BlockMatrix::pack(BlockFormat::Q8_0, 32, &[&parts[0], &parts[1]], &CallingThread).unwrap();
    let together = BlockMatrix::pack(BlockFormat::Q8_0, 32, &[&parts.concat()], &CallingThread).unwrap();
    assert_eq!(apart.num_outputs(), 27);
    let rows = |matrix: &BlockMatrix| {
        let mut out = vec![0.0; 27 * 32];
        out.chunks_exact_mut(32).enumerate().for_each(|(index, row)| matrix.copy_row(index, row));
        bits(&out)
    };
    assert_eq!(rows(&apart), rows(&together));
}

#[test]
fn a_matrix_takes_about_the_bytes_of_its_file() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for format in BlockFormat::ALL {
        let weights = random_rows(format, (64, 512), &mut rng, any_half);
        let num_bytes = BlockMatrix::pack(format, 512, &[&weights], &CallingThread).unwrap().num_bytes();
        let ratio = num_bytes as f64 / weights.len() as f64;
        assert!((1.0..=1.04).contains(&ratio), "{format:?}: {ratio} of the file's bytes");
    }
}

#[test]
fn bytes_that_are_not_whole_rows_are_refused() {
    let error = |format, num_inputs, num_bytes| {
        BlockMatrix::pack(format, num_inputs, &[&vec![0; num_bytes]], &CallingThread).unwrap_err().to_string()
    };
    assert_eq!(error(BlockFormat::Q4_0, 48, 27), "27 bytes are not whole rows of 48 inputs in Q4_0");
    assert_eq!(error(BlockFormat::Q8_0, 32, 33), "33 bytes are not whole rows of 32 inputs in Q8_0");
    assert_eq!(error(BlockFormat::Q6K, 32, 210), "210 bytes are not whole rows of 32 inputs in Q6_K");
    assert_eq!(error(BlockFormat::Q4K, 0, 0), "0 bytes are not whole rows of 0 inputs in Q4_K");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_gives_the_references_product_and_the_same_bits_everywhere(
        format in prop::sample::select(BlockFormat::ALL.to_vec()),
        num_outputs in 1usize..80,
        num_blocks in 1usize..5,
        num_rows in 1usize..30,
        // 10^31 times the largest weights and a thousand inputs is what f32 can hold.
        magnitude in -35i32..31,
        seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let num_inputs = num_blocks * format.block_len();
        let weights = random_rows(format, (num_outputs, num_inputs), &mut rng, any_half);
        let activations = uneven_values(num_rows * num_inputs, magnitude, &mut rng);
        check_product(format, num_inputs, &weights, &activations);
    }
}

/// Whether products of bf16 can be tested here.
pub(crate) fn has_matrix_unit() -> bool {
    let is_supported = Bf16Rows::is_supported();
    if !is_supported {
        eprintln!("skipped: this CPU has no matrix unit for bf16 (AMX), or the system does not lend it");
    }
    is_supported
}

fn bf16_product(matrix: &BlockMatrix, activations: &[f32], threads: &dyn Threads) -> Vec<f32> {
    let num_rows = activations.len() / matrix.num_inputs();
    let mut out = vec![f32::NAN; num_rows * matrix.num_outputs()];
    multiply_bf16(matrix, activations, Columns::all(&mut out, matrix.num_outputs()), threads);
    out
}

fn multiply_bf16(matrix: &BlockMatrix, activations: &[f32], out: Columns<'_>, threads: &dyn Threads) {
    let mut rows = Bf16Rows::default();
    rows.fill(Source::Rows(activations), (matrix.num_inputs(), Bf16Parts::One), threads);
    matrix.matmul_bf16(&rows, out, threads);
}

/// Fails unless the product is the reference's but for the rounding of sums, and of one weight between two bf16.
fn check_bf16_product(format: BlockFormat, num_inputs: usize, weights: &[u8], activations: &[f32]) {
    let matrix = BlockMatrix::pack(format, num_inputs, &[weights], &CallingThread).unwrap();
    let rows: Vec<&[u8]> = weights.chunks_exact(weights.len() / matrix.num_outputs()).collect();
    let expected = reference::matmul_bf16(format, &rows, activations, num_inputs);
    let found = bf16_product(&matrix, activations, &CallingThread);
    for (index, (found, (expected, magnitude, largest))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        // The unit takes numbers under the smallest normal one for zero.
        let allowed = 1e-5 * magnitude + largest / 128.0 + num_inputs as f64 * f64::from(f32::MIN_POSITIVE);
        assert!(error <= allowed, "{matrix:?}, {index}: {found} is not {expected} within {allowed}");
    }
}

#[test]
fn products_of_bf16_are_the_references_and_nearer_to_exact_ones_than_those_of_8_bits() {
    if !has_matrix_unit() {
        return;
    }
    for format in BlockFormat::ALL {
        for shape in shapes(format) {
            let mut rng = ChaCha8Rng::seed_from_u64(13);
            let weights = random_rows(format, shape, &mut rng, any_half);
            let activations = random_values(37 * shape.1, &mut rng);
            check_bf16_product(format, shape.1, &weights, &activations);
            let matrix = BlockMatrix::pack(format, shape.1, &[&weights], &CallingThread).unwrap();
            let rows: Vec<Vec<f32>> =
                weights.chunks_exact(weights.len() / shape.0).map(|row| reference::dequantize(format, row)).collect();
            let exact = activations
                .chunks_exact(shape.1)
                .flat_map(|values| rows.iter().map(move |row| (values, row)))
                .map(|(values, row)| {
                    values.iter().zip(row).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum::<f64>()
                });
            let exact: Vec<f64> = exact.collect();
            let off_by = |found: &[f32]| {
                found.iter().zip(&exact).map(|(found, exact)| (f64::from(*found) - exact).powi(2)).sum::<f64>().sqrt()
            };
            let (bf16, in_8_bits) = (
                off_by(&bf16_product(&matrix, &activations, &CallingThread)),
                off_by(&product(&matrix, Level::detected(), &activations, &CallingThread)),
            );
            assert!(bf16 < in_8_bits, "{matrix:?}: off by {bf16}, in 8 bits by {in_8_bits}");
        }
    }
}

#[test]
fn a_row_of_bf16_has_the_same_bits_alone_among_others_and_on_any_number_of_threads() {
    if !has_matrix_unit() {
        return;
    }
    // Several parts of the inputs, units of work and chunks of rows, and some of each that are not full.
    for (format, num_outputs, num_inputs, num_rows) in
        [(BlockFormat::Q4K, 150, 1280, 40), (BlockFormat::Q8_0, 33, 704, 530), (BlockFormat::Q6K, 300, 768, 70)]
    {
        let mut rng = ChaCha8Rng::seed_from_u64(14);
        let weights = random_rows(format, (num_outputs, num_inputs), &mut rng, any_half);
        let matrix = BlockMatrix::pack(format, num_inputs, &[&weights], &CallingThread).unwrap();
        let activations = random_values(num_rows * num_inputs, &mut rng);
        let all = bf16_product(&matrix, &activations, &CallingThread);
        let held = random_values(num_rows * num_outputs, &mut rng);
        let add_to = |held: &[f32], activations: &[f32], threads: &dyn Threads| {
            let mut out = held.to_vec();
            multiply_bf16(&matrix, activations, Columns::all(&mut out, num_outputs).accumulating(), threads);
            out
        };
        let all_added = add_to(&held, &activations, &CallingThread);
        for num_last in [1, 2, 15, 16, 17, 32, 33, num_rows] {
            let skipped = num_rows - num_last;
            for num_threads in [1, 2, 5] {
                let found = bf16_product(&matrix, &activations[skipped * num_inputs..], &Scoped(num_threads));
                let is_same = bits(&found) == bits(&all[skipped * num_outputs..]);
                assert!(is_same, "{matrix:?}: {num_last} rows, {num_threads} threads");
                let skipped = (skipped * num_outputs, skipped * num_inputs);
                let found = add_to(&held[skipped.0..], &activations[skipped.1..], &Scoped(num_threads));
                let is_same = bits(&found) == bits(&all_added[skipped.0..]);
                assert!(is_same, "{matrix:?}: {num_last} rows added, {num_threads} threads");
            }
        }
    }
}

#[test]
fn a_product_of_bf16_fills_its_columns_only_and_adds_what_it_shall() {
    if !has_matrix_unit() {
        return;
    }
    // Nothing whole, then whole tiles and parts of all kinds: a column is 5 off, and 15 follow.
    for (num_outputs, num_inputs, num_rows) in [(21, 64, 18), (70, 704, 70)] {
        let mut rng = ChaCha8Rng::seed_from_u64(15);
        let weights = random_rows(BlockFormat::Q4_1, (num_outputs, num_inputs), &mut rng, any_half);
        let matrix = BlockMatrix::pack(BlockFormat::Q4_1, num_inputs, &[&weights], &CallingThread).unwrap();
        let activations = random_values(num_rows * num_inputs, &mut rng);
        let bias = random_values(num_outputs, &mut rng);
        let alone = bf16_product(&matrix, &activations, &CallingThread);
        let row_size = num_outputs + 20;
        let mut out = vec![-1.0; num_rows * row_size];
        multiply_bf16(&matrix, &activations, Columns::from(&mut out, row_size, 5).with_bias(Some(&bias)), &Scoped(2));
        let mut plain = vec![-1.0; num_rows * row_size];
        multiply_bf16(&matrix, &activations, Columns::from(&mut plain, row_size, 5), &Scoped(2));
        let mut added = bias.repeat(num_rows);
        multiply_bf16(&matrix, &activations, Columns::all(&mut added, num_outputs).accumulating(), &Scoped(2));
        for row in 0..num_rows {
            let what = format!("row {row} of {matrix:?}");
            let of = |all: &[f32]| all[row * num_outputs..][..num_outputs].to_vec();
            let within = |all: &[f32]| all[row * row_size..][5..5 + num_outputs].to_vec();
            assert_eq!(bits(&within(&plain)), bits(&of(&alone)), "{what}");
            assert_eq!(bits(&within(&out)), bits(&of(&added)), "{what}: the bias, and what it is added to");
            // Sums start from what is added, so that they are rounded otherwise.
            for (found, (product, bias)) in within(&out).into_iter().zip(of(&alone).into_iter().zip(&bias)) {
                let expected = product + bias;
                assert!((found - expected).abs() < 1e-4 + expected.abs() * 1e-4, "{what}: {found}, not {expected}");
            }
            for out in [&out, &plain] {
                let others = out[row * row_size..][..row_size].iter().enumerate();
                let mut others = others.filter(|(column, _)| !(5..5 + num_outputs).contains(column));
                assert!(others.all(|(_, value)| value.to_bits() == (-1f32).to_bits()), "{what}: other columns");
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_row_of_bf16() {
    if !has_matrix_unit() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    let weights = random_rows(BlockFormat::Q8_0, (16, 64), &mut rng, any_half);
    let matrix = BlockMatrix::pack(BlockFormat::Q8_0, 64, &[&weights], &CallingThread).unwrap();
    for odd in [f32::NAN, f32::from_bits(u32::MAX), f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let mut activations = random_values(3 * 64, &mut rng);
        activations[64 + 3] = odd;
        let is_finite: Vec<bool> =
            bf16_product(&matrix, &activations, &CallingThread).iter().map(|value| value.is_finite()).collect();
        assert_eq!(is_finite, [[true; 16], [false; 16], [true; 16]].concat(), "{odd}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_of_bf16_gives_the_references_product(
        format in prop::sample::select(BlockFormat::ALL.to_vec()),
        num_outputs in 1usize..80,
        num_blocks in 1usize..5,
        num_rows in 1usize..50,
        magnitude in -35i32..31,
        seed: u64,
    ) {
        if has_matrix_unit() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let num_inputs = num_blocks * format.block_len();
            let weights = random_rows(format, (num_outputs, num_inputs), &mut rng, any_half);
            let activations = uneven_values(num_rows * num_inputs, magnitude, &mut rng);
            check_bf16_product(format, num_inputs, &weights, &activations);
        }
    }
}
