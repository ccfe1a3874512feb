//! Are products with quantized weights bound by memory for one row, and by the integer units for many? Budget on two cores
//! with AVX-512 VNNI, in every type at k = 2048, n = 8192: 90 % of the bytes a second that memory gives for one row,
//! 900 Gflop/s from 32 rows on; and at k = 576, n = 1536, where a product takes microseconds, half of that.
//!
//! candle's `QTensor` runs beside ours; elements are floating point operations (two for each weight and row), so a
//! throughput of 1 Gelem/s is 1 Gflop/s. One row of ours is given in bytes of weights once more.

use std::hint::black_box;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::utils::barrier_pool;
use candle_core::{Device, Module, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_quant::{BlockFormat, BlockMatrix, Columns, Precision, QuantizedRows, RowShape, Source, Threads};

/// Inputs and outputs: SmolLM2-135M's feed-forward block, and Llama-3.2-1B's.
const SHAPES: [(usize, usize); 2] = [(576, 1536), (2048, 8192)];

const NUM_ROWS: [usize; 4] = [1, 8, 32, 512];

const FORMATS: [(GgmlDType, BlockFormat); 8] = [
    (GgmlDType::Q4_0, BlockFormat::Q4_0),
    (GgmlDType::Q4_1, BlockFormat::Q4_1),
    (GgmlDType::Q5_0, BlockFormat::Q5_0),
    (GgmlDType::Q5_1, BlockFormat::Q5_1),
    (GgmlDType::Q8_0, BlockFormat::Q8_0),
    (GgmlDType::Q4K, BlockFormat::Q4K),
    (GgmlDType::Q5K, BlockFormat::Q5K),
    (GgmlDType::Q6K, BlockFormat::Q6K),
];

/// Weights that one row reads in turn, so that they come from memory: more than a last-level cache.
const COLD_BYTES: usize = 512 << 20;

/// The threads that layers use.
struct Pool;

impl Threads for Pool {
    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        barrier_pool().execute_chunked(num_units, work);
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|index| (index * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

/// Weights as candle holds them, and as we do.
fn weights(format: (GgmlDType, BlockFormat), (num_inputs, num_outputs): (usize, usize)) -> (QTensor, BlockMatrix) {
    let tensor = Tensor::from_vec(values(num_outputs * num_inputs), (num_outputs, num_inputs), &Device::Cpu);
    let stored = QTensor::quantize(&tensor.expect("as many as the shape says"), format.0).expect("whole blocks");
    let bytes = stored.data().expect("the CPU's tensors are bytes");
    let packed = BlockMatrix::pack(format.1, num_inputs, &[&bytes], &Pool).expect("whole rows");
    (stored, packed)
}

/// Rounding the activations included, as a layer does both.
fn multiply(matrix: &BlockMatrix, activations: &[f32], out: &mut [f32]) {
    let mut rows = QuantizedRows::default();
    let shape = RowShape { num_inputs: matrix.num_inputs(), spans: matrix.spans(), precision: Precision::Bits8 };
    rows.fill(Source::Rows(activations), shape, &Pool);
    matrix.matmul(&rows, Columns::all(out, matrix.num_outputs()), &Pool);
    black_box(out);
}

fn bench_products(criterion: &mut Criterion) {
    for shape in SHAPES {
        let mut group = criterion.benchmark_group(format!("matmul {}x{}", shape.0, shape.1));
        group.sample_size(10);
        for format in FORMATS.into_iter().filter(|(_, format)| shape.0.is_multiple_of(format.block_len())) {
            let (stored, packed) = weights(format, shape);
            let candle = QMatMul::from_qtensor(stored).expect("blocks are multiplied as they are");
            for num_rows in NUM_ROWS {
                let activations = values(num_rows * shape.0);
                let mut out = vec![0.0; num_rows * shape.1];
                group.throughput(Throughput::Elements(2 * (num_rows * shape.0 * shape.1) as u64));
                group.bench_function(BenchmarkId::new(format!("{:?} ours", format.1), num_rows), |bencher| {
                    bencher.iter(|| multiply(&packed, &activations, &mut out));
                });
                let input = Tensor::from_vec(activations, (num_rows, shape.0), &Device::Cpu).expect("a matrix");
                group.bench_function(BenchmarkId::new(format!("{:?} candle", format.1), num_rows), |bencher| {
                    bencher.iter(|| black_box(candle.forward(&input).expect("the sizes fit")));
                });
            }
        }
        group.finish();
    }
}

fn bench_one_row(criterion: &mut Criterion) {
    let shape = SHAPES[1];
    let mut group = criterion.benchmark_group("matmul one row from memory");
    group.sample_size(10);
    for (_, format) in FORMATS {
        let num_bytes = shape.0 * shape.1 / format.block_len() * format.block_bytes();
        // 0x2222 is a scale of 0.01 in f16, and small codes elsewhere.
        let bytes = vec![0x22; num_bytes];
        let pack = || BlockMatrix::pack(format, shape.0, &[&bytes], &Pool).expect("whole rows");
        let matrices: Vec<BlockMatrix> = std::iter::repeat_with(pack).take(COLD_BYTES / num_bytes).collect();
        let (activations, mut out, mut next) = (values(shape.0), vec![0.0; shape.1], 0);
        group.throughput(Throughput::Bytes(matrices[0].num_bytes() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{format:?}")), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % matrices.len();
                multiply(&matrices[next], &activations, &mut out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_products, bench_one_row);
criterion_main!(benches);
