//! Are products with weights bound by memory for one row, and by arithmetic for many? Budget on two cores with AVX-512 VNNI, at
//! k = 2048, n = 8192: 90 % of the bytes a second that memory gives for one row; from 32 rows on 900 Gflop/s in every
//! quantized type, and 80 % of what fused multiply-adds alone reach in floats; and at k = 576, n = 1536, where a product
//! takes microseconds, half of that.
//!
//! Ours is a layer with all it does, rounding the activations included, for rows that were generated and for those of prompts, which
//! are multiplied as bf16 where the CPU can; candle's `QMatMul` runs beside it where candle has the type.
//! Elements are floating point operations (two for each weight and row): 1 Gelem/s is 1 Gflop/s. One row is given in
//! bytes of weights once more, from memory.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use mistralrs_core::layers::{Epilogue, Linear, Pass, Prologue, Scratch, WeightMatrix};
use mistralrs_quant::{BlockFormat, FloatFormat, WeightFormat};

/// Inputs and outputs: SmolLM2-135M's feed-forward block, and Llama-3.2-1B's.
const SHAPES: [(usize, usize); 2] = [(576, 1536), (2048, 8192)];

const NUM_ROWS: [usize; 4] = [1, 8, 32, 512];

/// All types, with candle's name for those it has.
const FORMATS: [(WeightFormat, Option<GgmlDType>); 16] = [
    (WeightFormat::Blocks(BlockFormat::Q4_0), Some(GgmlDType::Q4_0)),
    (WeightFormat::Blocks(BlockFormat::Q4_1), Some(GgmlDType::Q4_1)),
    (WeightFormat::Blocks(BlockFormat::Q5_0), Some(GgmlDType::Q5_0)),
    (WeightFormat::Blocks(BlockFormat::Q5_1), Some(GgmlDType::Q5_1)),
    (WeightFormat::Blocks(BlockFormat::Q8_0), Some(GgmlDType::Q8_0)),
    (WeightFormat::Blocks(BlockFormat::Q2K), Some(GgmlDType::Q2K)),
    (WeightFormat::Blocks(BlockFormat::Q3K), Some(GgmlDType::Q3K)),
    (WeightFormat::Blocks(BlockFormat::Q4K), Some(GgmlDType::Q4K)),
    (WeightFormat::Blocks(BlockFormat::Q5K), Some(GgmlDType::Q5K)),
    (WeightFormat::Blocks(BlockFormat::Q6K), Some(GgmlDType::Q6K)),
    (WeightFormat::Blocks(BlockFormat::Iq4Nl), None),
    (WeightFormat::Blocks(BlockFormat::Iq4Xs), None),
    (WeightFormat::Blocks(BlockFormat::Mxfp4), None),
    (WeightFormat::Floats(FloatFormat::F16), Some(GgmlDType::F16)),
    (WeightFormat::Floats(FloatFormat::Bf16), Some(GgmlDType::BF16)),
    (WeightFormat::Floats(FloatFormat::F32), Some(GgmlDType::F32)),
];

/// Weights that one row reads in turn, so that they come from memory: more than a last-level cache.
const COLD_BYTES: usize = 512 << 20;

const STORE: (Prologue<'_>, Epilogue) = (Prologue::None, Epilogue::Store);

/// In most types 0x2222 is a scale of 0.01, or a float of as much, and small codes elsewhere.
const SMALL_BYTE: u8 = 0x22;

fn layer(format: WeightFormat, (num_inputs, num_outputs): (usize, usize)) -> Linear {
    let num_bytes = num_inputs * num_outputs / format.block_len() * format.block_bytes();
    let weight = WeightMatrix::from_parts(format, num_inputs, &[&vec![SMALL_BYTE; num_bytes]]).expect("whole rows");
    Linear::new(Arc::new(weight), None)
}

fn candles_layer(dtype: GgmlDType, (num_inputs, num_outputs): (usize, usize)) -> QMatMul {
    let weight = rows(num_outputs, num_inputs);
    QMatMul::from_qtensor(QTensor::quantize(&weight, dtype).expect("whole blocks")).expect("a matrix of candle's own")
}

fn rows(num_rows: usize, num_columns: usize) -> Tensor {
    let values: Vec<f32> =
        (0..num_rows * num_columns).map(|index| (index * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(values, (num_rows, num_columns), &Device::Cpu).expect("as many as the shape says")
}

/// Where products of `input` go; candle's are allocated too.
fn room(input: &Tensor, num_outputs: usize) -> Tensor {
    Tensor::zeros((input.dims()[0], num_outputs), DType::F32, &Device::Cpu).expect("memory")
}

fn bench_rows(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, shape: (usize, usize), layer: &dyn Fn(&Tensor)) {
    for num_rows in NUM_ROWS {
        let input = rows(num_rows, shape.0);
        group.throughput(Throughput::Elements(2 * (num_rows * shape.0 * shape.1) as u64));
        group.bench_function(BenchmarkId::new(name, num_rows), |bencher| bencher.iter(|| layer(&input)));
    }
}

/// A group whose 16 types take minutes and not an hour.
fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    group
}

fn bench_products(criterion: &mut Criterion) {
    for shape in SHAPES {
        let mut group = group(criterion, &format!("matmul {}x{}", shape.0, shape.1));
        for (format, dtype) in FORMATS.into_iter().filter(|(format, _)| shape.0.is_multiple_of(format.block_len())) {
            let ours = layer(format, shape);
            let scratch = Scratch::default();
            for (name, num_generated_rows) in [("ours", usize::MAX), ("ours, prompts", 0)] {
                let pass = Pass { scratch: &scratch, num_generated_rows };
                bench_rows(&mut group, &format!("{format} {name}"), shape, &|input| {
                    ours.forward(input, &room(input, shape.1), STORE, pass).expect("the sizes fit");
                });
            }
            let Some(dtype) = dtype else { continue };
            let candles = candles_layer(dtype, shape);
            bench_rows(&mut group, &format!("{format} candle"), shape, &|input| {
                black_box(candles.forward(input).expect("the sizes fit"));
            });
        }
        group.finish();
    }
}

fn bench_one_row(criterion: &mut Criterion) {
    let shape = SHAPES[1];
    let mut group = group(criterion, "matmul one row from memory");
    let input = rows(1, shape.0);
    for (format, _) in FORMATS {
        let num_bytes = shape.0 * shape.1 / format.block_len() * format.block_bytes();
        let layers: Vec<Linear> =
            std::iter::repeat_with(|| layer(format, shape)).take(COLD_BYTES.div_ceil(num_bytes)).collect();
        let (mut next, scratch, out) = (0, Scratch::default(), room(&input, shape.1));
        let pass = Pass { scratch: &scratch, num_generated_rows: 1 };
        group.throughput(Throughput::Bytes(num_bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(format), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % layers.len();
                layers[next].forward(&input, &out, STORE, pass).expect("the sizes fit");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_products, bench_one_row);
criterion_main!(benches);
