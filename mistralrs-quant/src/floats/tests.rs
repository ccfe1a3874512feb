use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::tests::{Scoped, has_matrix_unit};
use crate::{CallingThread, Source};

const FORMATS: [FloatFormat; 3] = [FloatFormat::F32, FloatFormat::F16, FloatFormat::Bf16];

/// Outputs and inputs: whole and partial tiles.
const SHAPES: [(usize, usize); 3] = [(16, 64), (77, 32), (192, 96)];

/// Rows of the longest product: more than a unit of work has.
const MAX_ROWS: usize = 130;

/// Counts of rows that reach every block shape.
const NUM_ROWS: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 33, MAX_ROWS];

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn encode(format: FloatFormat, values: &[f32]) -> Vec<u8> {
    let encode = |value: &f32| match format {
        FloatFormat::F32 => value.to_le_bytes().to_vec(),
        FloatFormat::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        FloatFormat::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(encode).collect()
}

/// Random weights as files store them, widened row by row, and packed.
fn weights(format: FloatFormat, shape: (usize, usize)) -> (Vec<Vec<f32>>, FloatMatrix) {
    let stored = encode(format, &random(1, shape.0 * shape.1));
    let rows = format.widen(&stored).chunks_exact(shape.1).map(<[f32]>::to_vec).collect();
    (rows, FloatMatrix::pack(format, shape.1, &[&stored], &CallingThread).unwrap())
}

fn product(matrix: &FloatMatrix, level: kernel::Level, activations: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; activations.len() / matrix.num_inputs() * matrix.num_outputs()];
    let columns = Columns::all(&mut out, matrix.num_outputs());
    matrix.matmul_with(level, activations, columns, &CallingThread);
    out
}

fn levels() -> Vec<kernel::Level> {
    #[cfg(target_arch = "x86_64")]
    match kernel::detected() {
        kernel::Level::Avx512 => return vec![kernel::Level::Plain, kernel::Level::Avx2, kernel::Level::Avx512],
        kernel::Level::Avx2 => return vec![kernel::Level::Plain, kernel::Level::Avx2],
        kernel::Level::Plain => {}
    }
    vec![kernel::Level::Plain]
}

#[test]
fn a_row_comes_back_widened() {
    for format in FORMATS {
        for shape in SHAPES {
            let (rows, packed) = weights(format, shape);
            let mut row = vec![f32::NAN; shape.1];
            for (index, expected) in rows.iter().enumerate() {
                packed.copy_row(index, &mut row);
                assert_eq!(&row, expected, "{packed:?}, row {index}");
            }
            assert_eq!((packed.num_outputs(), packed.num_inputs()), shape);
        }
    }
}

/// The definition: every format, instruction set, row count and place in the batch gives the bits of one chain of
/// fused multiply-adds with the widened weights.
#[test]
fn a_product_has_the_bits_of_one_chain_with_the_widened_weights() {
    for format in FORMATS {
        for shape in SHAPES {
            let (weights, packed) = weights(format, shape);
            let activations = random(2, MAX_ROWS * shape.1);
            let rows = activations.chunks_exact(shape.1);
            let chain =
                |row: &[f32], weights: &Vec<f32>| row.iter().zip(weights).fold(0f32, |sum, (x, w)| x.mul_add(*w, sum));
            let expected: Vec<f32> =
                rows.flat_map(|row| weights.iter().map(move |weights| chain(row, weights))).collect();
            for level in levels() {
                for num_rows in NUM_ROWS {
                    let skipped = MAX_ROWS - num_rows;
                    let found = product(&packed, level, &activations[skipped * shape.1..]);
                    let expected = &expected[skipped * shape.0..];
                    assert!(bits(&found) == bits(expected), "{packed:?} with {level:?} differs at {num_rows} rows");
                }
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_every_row_of_its_columns() {
    let (_, packed) = weights(FloatFormat::F16, (21, 32));
    let (activations, bias) = (random(2, 3 * 32), random(3, 21));
    let alone = product(&packed, kernel::detected(), &activations);
    let mut out = vec![-1.0; 3 * 30];
    let columns = Columns::from(&mut out, 30, 4).with_bias(Some(&bias));
    packed.matmul(&activations, columns, &CallingThread);
    for (row, out) in out.chunks_exact(30).enumerate() {
        let expected: Vec<f32> = alone[row * 21..].iter().zip(&bias).map(|(value, bias)| value + bias).collect();
        assert_eq!(bits(&out[4..25]), bits(&expected), "row {row}");
        assert!(
            out[..4].iter().chain(&out[25..]).all(|value| value.to_bits() == (-1f32).to_bits()),
            "row {row}: other columns"
        );
    }
}

#[test]
fn several_parts_are_packed_one_after_the_other() {
    let (top, bottom) = (random(4, 20 * 8), random(5, 7 * 8));
    let parts = [&top, &bottom].map(|values| encode(FloatFormat::F32, values));
    let matrix = FloatMatrix::pack(FloatFormat::F32, 8, &[&parts[0], &parts[1]], &CallingThread).unwrap();
    let mut row = vec![0f32; 8];
    for (index, expected) in top.chunks_exact(8).chain(bottom.chunks_exact(8)).enumerate() {
        matrix.copy_row(index, &mut row);
        assert_eq!(row, expected, "row {index}");
    }
    assert_eq!(matrix.num_outputs(), 27);
}

#[test]
fn a_matrix_takes_the_bytes_of_its_file() {
    for format in FORMATS {
        let (_, packed) = weights(format, (192, 96));
        assert_eq!(packed.num_bytes(), 192 * 96 * format.element_bytes(), "{format:?}");
    }
}

#[test]
fn bytes_that_are_not_whole_rows_are_refused() {
    let error = |format, num_inputs, num_bytes| {
        FloatMatrix::pack(format, num_inputs, &[&vec![0; num_bytes]], &CallingThread).unwrap_err().to_string()
    };
    assert_eq!(error(FloatFormat::F32, 8, 33), "33 bytes are not whole rows of 8 inputs in F32");
    assert_eq!(error(FloatFormat::F16, 7, 14), "14 bytes are not whole rows of 7 inputs in F16");
    assert_eq!(error(FloatFormat::F32, 0, 0), "0 bytes are not whole rows of 0 inputs in F32");
}

fn bf16_product(matrix: &FloatMatrix, activations: &[f32], threads: &dyn Threads) -> Vec<f32> {
    let mut rows = Bf16Rows::default();
    rows.fill(Source::Rows(activations), (matrix.num_inputs(), Bf16Parts::Two), threads);
    let mut out = vec![f32::NAN; rows.num_rows() * matrix.num_outputs()];
    matrix.matmul_bf16(&rows, Columns::all(&mut out, matrix.num_outputs()), threads);
    out
}

/// Outputs and inputs of products by the matrix unit: whole and partial tiles, one and several parts of the inputs.
const BF16_SHAPES: [(usize, usize); 5] = [(16, 64), (77, 32), (192, 96), (150, 704), (33, 2048)];

#[test]
fn a_product_of_two_bf16_is_nearly_as_exact_as_in_f32() {
    if !has_matrix_unit() {
        return;
    }
    for format in [FloatFormat::F16, FloatFormat::Bf16] {
        for shape in BF16_SHAPES {
            let (weights, packed) = weights(format, shape);
            let activations = random(2, 37 * shape.1);
            let found = bf16_product(&packed, &activations, &CallingThread);
            for (row, found) in activations.chunks_exact(shape.1).zip(found.chunks_exact(shape.0)) {
                for (weights, found) in weights.iter().zip(found) {
                    let products = row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, magnitude) =
                        products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
                    let error = (f64::from(*found) - sum).abs();
                    assert!(
                        error <= magnitude / 65_536.0,
                        "{packed:?}: {found} is not {sum} within {magnitude} / 65536"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_of_two_bf16_has_the_same_bits_alone_among_others_and_on_any_number_of_threads() {
    if !has_matrix_unit() {
        return;
    }
    for format in [FloatFormat::F16, FloatFormat::Bf16] {
        for shape in BF16_SHAPES {
            let (_, packed) = weights(format, shape);
            let activations = random(2, MAX_ROWS * shape.1);
            let all = bf16_product(&packed, &activations, &CallingThread);
            for num_rows in NUM_ROWS {
                let skipped = MAX_ROWS - num_rows;
                for num_threads in [1, 2, 5] {
                    let found = bf16_product(&packed, &activations[skipped * shape.1..], &Scoped(num_threads));
                    let is_same = bits(&found) == bits(&all[skipped * shape.0..]);
                    assert!(is_same, "{packed:?}: {num_rows} rows, {num_threads} threads");
                }
            }
        }
    }
}

#[test]
fn what_is_no_sum_of_two_bf16_is_multiplied_in_f32() {
    let multiplies_bf16 = |format, num_inputs| weights(format, (16, num_inputs)).1.multiplies_bf16();
    assert!(!multiplies_bf16(FloatFormat::F32, 64), "24 bits");
    assert!(!multiplies_bf16(FloatFormat::Bf16, 48), "half a block");
    assert_eq!(multiplies_bf16(FloatFormat::F16, 64), Bf16Rows::is_supported());
}
