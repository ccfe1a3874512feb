//! What products are, in plain loops over files' bytes. Kernels agree with it up to the rounding of f32.

use half::{bf16, f16};

use crate::format::{BLOCK, Block, BlockFormat};

/// A row of blocks as ggml dequantizes it.
pub fn dequantize(format: BlockFormat, row: &[u8]) -> Vec<f32> {
    let (mut values, mut block) = (Vec::new(), Block::EMPTY);
    for bytes in row.chunks_exact(format.block_bytes()) {
        format.read_block(bytes, &mut block);
        let (scale, minimum) = (format.scale(block.scale), f16::from_bits(block.minimum).to_f32());
        for (input, code) in block.codes[..format.block_len()].iter().enumerate() {
            let span = input / (BLOCK / format.spans());
            let steps = |steps: i8| if format.has_steps() { f32::from(steps) } else { 1.0 };
            let value = format.value(*code);
            let minimum = minimum * steps(block.minimum_steps[span]);
            values.push(scale * steps(block.scale_steps[span]) * value + minimum);
        }
    }
    values
}

/// Activations after rounding to 8 bits, as floats again; as many as there are, a multiple of 32.
pub fn round_activations(values: &[f32]) -> Vec<f32> {
    let round_block = |block: &[f32]| {
        let reach = block.iter().fold(0f32, |reach, value| reach.max(value.abs()));
        let (factor, scale) = if reach < 1e-30 { (0.0, 0.0) } else { (127.0 / reach, reach / 127.0) };
        block.iter().map(|value| f32::from((value * factor).round_ties_even() as i8) * scale).collect::<Vec<_>>()
    };
    values.chunks_exact(BLOCK).flat_map(round_block).collect()
}

/// The nearest bf16, as a float again; of two the one further from zero.
fn round_to_bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(0x8000) & 0xffff_0000)
}

/// `activations` `[T, K]` times the matrix of `rows` `[N, K]`, both rounded to bf16: `[T, N]`, with the sum of the magnitudes
/// of what was added up, and the largest of them.
pub fn matmul_bf16(
    format: BlockFormat,
    rows: &[&[u8]],
    activations: &[f32],
    num_inputs: usize,
) -> Vec<(f64, f64, f64)> {
    let weights: Vec<Vec<f32>> = rows.iter().map(|row| dequantize(format, row)).collect();
    let mut out = Vec::new();
    for activations in activations.chunks_exact(num_inputs) {
        for weights in &weights {
            let products = (activations.iter().zip(weights))
                .map(|(value, weight)| f64::from(bf16::from_f32(*value)) * f64::from(round_to_bf16(*weight)));
            out.push(products.fold((0.0, 0.0, 0.0), |(sum, all, largest): (f64, f64, f64), product| {
                (sum + product, all + product.abs(), largest.max(product.abs()))
            }));
        }
    }
    out
}

/// `activations` `[T, K]`, rounded, times the matrix of `rows` `[N, K]`: `[T, N]`, with the sum of the magnitudes of what
/// was added up, the measure of rounding errors.
pub fn matmul(format: BlockFormat, rows: &[&[u8]], activations: &[f32], num_inputs: usize) -> Vec<(f64, f64)> {
    let weights: Vec<Vec<f32>> = rows.iter().map(|row| dequantize(format, row)).collect();
    let mut out = Vec::new();
    for activations in round_activations(activations).chunks_exact(num_inputs) {
        for weights in &weights {
            let products =
                activations.iter().zip(weights).map(|(value, weight)| f64::from(*value) * f64::from(*weight));
            let (sum, magnitude) =
                products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
            out.push((sum, magnitude));
        }
    }
    out
}
