use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Sizes that reach every block shape: whole and partial tiles, one to many rows, more rows than a unit has.
const NUM_ROWS: [usize; 10] = [1, 2, 3, 4, 5, 7, 8, 32, 33, 130];

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn encode(dtype: DenseDType, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        DenseDType::F32 => value.to_le_bytes().to_vec(),
        DenseDType::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        DenseDType::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn product(matrix: &DenseMatrix, level: kernel::Level, activations: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; activations.len() / matrix.num_inputs() * matrix.num_outputs()];
    matrix.matmul_with(level, activations, &mut out);
    out
}

fn levels() -> Vec<kernel::Level> {
    let mut levels = vec![kernel::Level::Plain];
    #[cfg(target_arch = "x86_64")]
    match kernel::detected() {
        kernel::Level::Avx512 => levels.extend([kernel::Level::Avx2, kernel::Level::Avx512]),
        kernel::Level::Avx2 => levels.push(kernel::Level::Avx2),
        kernel::Level::Plain => {}
    }
    levels
}

fn each_dtype(check: impl Fn(DenseDType, &DenseMatrix)) {
    for dtype in [DenseDType::F32, DenseDType::F16, DenseDType::Bf16] {
        for (num_outputs, num_inputs) in [(16, 64), (77, 33), (192, 40)] {
            let weights = encode(dtype, &random(1, num_outputs * num_inputs));
            check(dtype, &DenseMatrix::pack(dtype, num_inputs, &[&weights]));
        }
    }
}

#[test]
fn every_instruction_set_and_row_count_gives_the_same_bits() {
    each_dtype(|dtype, matrix| {
        let activations = random(2, 130 * matrix.num_inputs());
        let expected = bits(&product(matrix, kernel::Level::Plain, &activations));
        for level in levels() {
            for num_rows in NUM_ROWS {
                // The last rows, so that a row's place in the batch changes too.
                let skipped = 130 - num_rows;
                let product = product(matrix, level, &activations[skipped * matrix.num_inputs()..]);
                let expected = &expected[skipped * matrix.num_outputs()..];
                assert!(bits(&product) == expected, "{dtype:?} {matrix:?} {level:?} differs at {num_rows} rows");
            }
        }
    });
}

#[test]
fn a_product_is_the_sum_in_f64_within_rounding() {
    each_dtype(|dtype, matrix| {
        let activations = random(3, 3 * matrix.num_inputs());
        let product = product(matrix, kernel::detected(), &activations);
        let mut weights = vec![0f32; matrix.num_inputs()];
        for column in 0..matrix.num_outputs() {
            matrix.copy_row(column, &mut weights);
            for (row, activations) in activations.chunks_exact(matrix.num_inputs()).enumerate() {
                let exact: f64 = activations.iter().zip(&weights).map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
                let found = f64::from(product[row * matrix.num_outputs() + column]);
                assert!((found - exact).abs() < 1e-5, "{dtype:?} [{row}, {column}]: {found} is not {exact}");
            }
        }
    });
}

#[test]
fn rows_come_back_as_they_were_packed_from_several_parts() {
    let (top, bottom) = (random(4, 20 * 8), random(5, 7 * 8));
    let parts = [encode(DenseDType::F32, &top), encode(DenseDType::F32, &bottom)];
    let matrix = DenseMatrix::pack(DenseDType::F32, 8, &[&parts[0], &parts[1]]);
    let mut row = vec![0f32; 8];
    for (index, expected) in top.chunks_exact(8).chain(bottom.chunks_exact(8)).enumerate() {
        matrix.copy_row(index, &mut row);
        assert_eq!(row, expected, "row {index}");
    }
    assert_eq!((matrix.num_outputs(), matrix.num_inputs()), (27, 8));
}
