use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const FORMATS: [GgmlDType; 8] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
];

/// Outputs and inputs: whole and partial tiles, several groups.
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

/// Random weights as candle stores them, and packed.
fn weights(dtype: GgmlDType, shape: (usize, usize)) -> (QTensor, PackedMatrix) {
    let values = Tensor::from_vec(random(1, shape.0 * shape.1), shape, &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&values, dtype).unwrap();
    let format = WeightFormat::from_ggml(dtype).unwrap();
    let packed = PackedMatrix::pack(format, shape.1, &[&stored.data().unwrap()]).unwrap();
    (stored, packed)
}

fn product(matrix: &PackedMatrix, level: kernel::Level, activations: &[f32]) -> Vec<f32> {
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

#[test]
fn a_row_comes_back_as_candle_dequantizes_it() {
    for dtype in FORMATS {
        for shape in SHAPES {
            let (stored, packed) = weights(dtype, shape);
            let expected = stored.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let mut row = vec![f32::NAN; shape.1];
            for (index, expected) in expected.iter().enumerate() {
                packed.copy_row(index, &mut row);
                assert_eq!(&row, expected, "{packed:?}, row {index}");
            }
            assert_eq!((packed.num_outputs(), packed.num_inputs()), shape);
        }
    }
}

/// The definition: every format, instruction set, row count and place in the batch gives the bits of one chain of
/// fused multiply-adds with the dequantized weights.
#[test]
fn a_product_has_the_bits_of_one_chain_with_the_dequantized_weights() {
    for dtype in FORMATS {
        for shape in SHAPES {
            let (stored, packed) = weights(dtype, shape);
            let weights = stored.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
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
fn several_parts_are_packed_one_after_the_other() {
    let (top, bottom) = (random(4, 20 * 8), random(5, 7 * 8));
    let encode = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let matrix = PackedMatrix::pack(WeightFormat::F32, 8, &[&encode(&top), &encode(&bottom)]).unwrap();
    let mut row = vec![0f32; 8];
    for (index, expected) in top.chunks_exact(8).chain(bottom.chunks_exact(8)).enumerate() {
        matrix.copy_row(index, &mut row);
        assert_eq!(row, expected, "row {index}");
    }
    assert_eq!(matrix.num_outputs(), 27);
}

#[test]
fn a_matrix_takes_the_bytes_of_its_file() {
    for dtype in FORMATS {
        let (stored, packed) = weights(dtype, (192, 96));
        assert_eq!(packed.num_bytes(), stored.storage_size_in_bytes(), "{dtype:?}");
    }
}

#[test]
fn bytes_that_are_not_whole_rows_are_refused() {
    let pack = |format, num_inputs, num_bytes| {
        PackedMatrix::pack(format, num_inputs, &[&vec![0; num_bytes]]).map(drop).map_err(|error| error.to_string())
    };
    let error = |result: Result<(), String>| result.unwrap_err();
    assert_eq!(error(pack(WeightFormat::F32, 8, 33)), "33 bytes are not whole rows of 8 inputs in F32");
    assert_eq!(error(pack(WeightFormat::F16, 7, 14)), "14 bytes are not whole rows of 7 inputs in F16");
    assert_eq!(error(pack(WeightFormat::Q4_0, 48, 27)), "27 bytes are not whole rows of 48 inputs in Q4_0");
    assert_eq!(error(pack(WeightFormat::F32, 0, 0)), "0 bytes are not whole rows of 0 inputs in F32");
}
