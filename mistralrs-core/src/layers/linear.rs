//! Weights as they are multiplied, one or several projections of the same input at once.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, Error, InplaceOp1, InplaceOp2, Layout, Result, Tensor};
use mistralrs_quant::{
    Bf16Parts, Bf16Rows, BlockMatrix, Columns, FillPiece, FloatMatrix, MatrixShape, Precision, QuantizedRows, RowShape,
    Source, SpanSet, StoredRows, WeightFormat,
};

use super::norm::RmsNorm;
use super::pool::Pool;
use super::rows::{Matrix, MatrixMut};

/// A weight `[N, K]`: of a projection, or the token table, or both when the head is tied.
#[derive(Debug)]
pub enum WeightMatrix {
    /// Floats, multiplied in f32 or as exactly.
    Floats(FloatMatrix),
    /// Quantized blocks, multiplied by activations in 8 bits.
    Blocks(BlockMatrix),
}

impl WeightMatrix {
    /// `parts`: slices of whole rows of K elements as a file stores `dtype`, N rows in all.
    ///
    /// # Errors
    /// They are not rows of `num_inputs` elements.
    pub fn from_parts(dtype: WeightFormat, num_inputs: usize, parts: &[&[u8]]) -> Result<Self> {
        Self::from_rows(dtype, num_inputs, StoredRows::new(parts))
    }

    /// [`Self::from_parts`], saying what was read.
    ///
    /// # Errors
    /// As there.
    pub fn from_rows(dtype: WeightFormat, num_inputs: usize, rows: StoredRows<'_>) -> Result<Self> {
        match dtype {
            WeightFormat::Floats(format) => {
                FloatMatrix::pack_rows(format, num_inputs, rows, &Pool).map(Self::Floats).map_err(Error::wrap)
            }
            WeightFormat::Blocks(format) => {
                BlockMatrix::pack_rows(format, num_inputs, rows, &Pool).map(Self::Blocks).map_err(Error::wrap)
            }
        }
    }

    /// A matrix of tiles that [`Self::packed_bytes`] gave once; `None` where no matrix has such a shape.
    pub fn from_tiles(dtype: WeightFormat, shape: MatrixShape, fill: FillPiece<'_>) -> Option<Self> {
        match dtype {
            WeightFormat::Floats(format) => FloatMatrix::from_tiles(format, shape, fill, &Pool).map(Self::Floats),
            WeightFormat::Blocks(format) => BlockMatrix::from_tiles(format, shape, fill, &Pool).map(Self::Blocks),
        }
    }

    /// Its tiles, one after the other.
    pub fn packed_bytes(&self) -> &[u8] {
        match self {
            Self::Floats(matrix) => matrix.packed_bytes(),
            Self::Blocks(matrix) => matrix.packed_bytes(),
        }
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_outputs(),
            Self::Blocks(matrix) => matrix.num_outputs(),
        }
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_inputs(),
            Self::Blocks(matrix) => matrix.num_inputs(),
        }
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_bytes(),
            Self::Blocks(matrix) => matrix.num_bytes(),
        }
    }

    /// Whether rows of prompts are multiplied as bf16.
    fn multiplies_bf16(&self) -> bool {
        match self {
            Self::Floats(matrix) => matrix.multiplies_bf16(),
            Self::Blocks(_) => Bf16Rows::is_supported(),
        }
    }

    /// Rows `indices` of the weight, dequantized, to `out` `[indices, K]` f32.
    ///
    /// # Errors
    /// An index of N or more, or `out` has another shape.
    pub fn rows(&self, indices: &[u32], out: &Tensor) -> Result<()> {
        out.inplace_op1(&TableRows { table: self, indices })
    }
}

struct TableRows<'a> {
    table: &'a WeightMatrix,
    indices: &'a [u32],
}

impl InplaceOp1 for TableRows<'_> {
    fn name(&self) -> &'static str {
        "table-rows"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Self { table, indices } = self;
        let (table_rows, row_size) = (table.num_outputs(), table.num_inputs());
        if let Some(index) = indices.iter().find(|index| **index as usize >= table_rows) {
            candle_core::bail!("row {index} of a table of {table_rows}")
        }
        let out = MatrixMut::of(out, layout)?;
        if (out.num_rows, out.num_columns) != (indices.len(), row_size) {
            candle_core::bail!("{} rows of {row_size} columns into {layout:?}", indices.len())
        }
        out.for_each(|row, out| match table {
            WeightMatrix::Floats(matrix) => matrix.copy_row(indices[row] as usize, out),
            WeightMatrix::Blocks(matrix) => matrix.copy_row(indices[row] as usize, out),
        });
        Ok(())
    }
}

/// What is done to the input before a product reads it.
#[derive(Debug, Clone, Copy)]
pub enum Prologue<'a> {
    /// Nothing.
    None,
    /// A norm.
    Norm(&'a RmsNorm),
    /// `silu(gate) · up` of `[T, 2K]`, gate beside up.
    SwiGlu,
}

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// It replaces what was there.
    Store,
    /// It is added to what was there.
    Add,
}

/// Memory for inputs as products read them, lent to one projection after the other.
#[derive(Debug, Default)]
pub struct Scratch(RefCell<Inputs>);

#[derive(Debug, Default)]
struct Inputs {
    quantized: QuantizedRows,
    /// Beside quantized weights.
    bf16: Bf16Rows,
    /// Beside floats.
    bf16_pairs: Bf16Rows,
    floats: Vec<f32>,
}

/// What the projections of one pass through the layers share.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Memory.
    pub scratch: &'a Scratch,
    /// The first rows of the input that are tokens which a model generated. The others, of prompts, are many at a time: beside
    /// all weights but F32, and other floats whose K is not whole blocks of 32, they are multiplied as bf16 where the CPU has a
    /// matrix unit for that. Which of the two a row is decides its precision, never how many there are.
    pub num_generated_rows: usize,
}

/// `y = x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Arc<WeightMatrix>,
    /// `[N]`.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `bias` is `[N]`.
    pub fn new(weight: Arc<WeightMatrix>, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    /// See [`CausalLm::computes_prompts_apart`](crate::models::CausalLm::computes_prompts_apart).
    pub fn computes_prompts_apart(&self) -> bool {
        self.weight.multiplies_bf16()
    }

    /// `input` `[T, K]` f32 to `out` `[T, N]`; a row's result does not depend on the other rows.
    ///
    /// # Errors
    /// Sizes differ.
    pub fn forward(&self, input: &Tensor, out: &Tensor, fused: (Prologue<'_>, Epilogue), pass: Pass<'_>) -> Result<()> {
        let projections = Projections { parts: std::slice::from_ref(self), precision: Precision::Bits8, fused, pass };
        out.inplace_op2(input, &projections)
    }
}

/// Several projections of one input, side by side in as few matrices as their dtypes allow: the activations are
/// rounded once for all of them.
#[derive(Debug, Clone)]
pub struct FusedLinear {
    parts: Vec<Linear>,
    /// Of the activations, where weights are quantized.
    precision: Precision,
}

impl FusedLinear {
    /// `parts`' outputs lie one after the other.
    pub fn new(parts: Vec<Linear>) -> Self {
        Self { parts, precision: Precision::Bits8 }
    }

    /// Keeps activations as exactly as `precision` says beside quantized weights.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// See [`Linear::computes_prompts_apart`].
    pub fn computes_prompts_apart(&self) -> bool {
        self.parts.iter().any(Linear::computes_prompts_apart)
    }

    /// `input` `[T, K]` f32 to `out` `[T, N]`, N over all parts.
    ///
    /// # Errors
    /// Sizes differ.
    pub fn forward(&self, input: &Tensor, out: &Tensor, fused: (Prologue<'_>, Epilogue), pass: Pass<'_>) -> Result<()> {
        out.inplace_op2(input, &Projections { parts: &self.parts, precision: self.precision, fused, pass })
    }
}

struct Projections<'a> {
    parts: &'a [Linear],
    precision: Precision,
    fused: (Prologue<'a>, Epilogue),
    pass: Pass<'a>,
}

impl Projections<'_> {
    fn source<'b>(&'b self, input: Matrix<'b>) -> Result<(Source<'b>, usize)> {
        let source = match self.fused.0 {
            Prologue::None => (Source::Rows(input.values), input.num_columns),
            Prologue::Norm(norm) => (norm.source(input)?, input.num_columns),
            Prologue::SwiGlu if !input.num_columns.is_multiple_of(2) => {
                candle_core::bail!("gate and up together have {} columns, which is odd", input.num_columns)
            }
            Prologue::SwiGlu => (Source::Gated(input.values), input.num_columns / 2),
        };
        if let Some(part) = self.parts.iter().find(|part| part.weight.num_inputs() != source.1) {
            candle_core::bail!("an input of {} columns does not fit {:?}", source.1, part.weight)
        }
        Ok(source)
    }

    /// Which sums of rounded activations the parts read; `None` if all read floats.
    fn spans(&self) -> Option<SpanSet> {
        let spans = self.parts.iter().filter_map(|part| match &*part.weight {
            WeightMatrix::Floats(_) => None,
            WeightMatrix::Blocks(matrix) => Some(matrix.spans()),
        });
        spans.reduce(|one, other| if one == SpanSet::Whole { other } else { one })
    }

    fn floats(&self) -> impl Iterator<Item = &FloatMatrix> {
        self.parts.iter().filter_map(|part| match &*part.weight {
            WeightMatrix::Floats(matrix) => Some(matrix),
            WeightMatrix::Blocks(_) => None,
        })
    }

    /// Makes `source` `[T, K]` as the parts read it: the first `num_generated` rows, and those of prompts.
    fn make<'b>(
        &self,
        source: Source<'b>,
        shape: (usize, usize),
        num_generated: usize,
        inputs: &'b mut Inputs,
    ) -> Made<'b> {
        let (num_rows, num_inputs) = shape;
        let Inputs { quantized, bf16, bf16_pairs, floats } = inputs;
        let (generated, prompts) = source.split_at(num_generated, num_inputs);
        if let Some(spans) = self.spans() {
            quantized.fill(generated, RowShape { num_inputs, spans, precision: self.precision }, &Pool);
            bf16.fill(prompts, (num_inputs, Bf16Parts::One), &Pool);
        }
        if self.floats().any(FloatMatrix::multiplies_bf16) {
            bf16_pairs.fill(prompts, (num_inputs, Bf16Parts::Two), &Pool);
        }
        let reads_all = self.floats().any(|matrix| !matrix.multiplies_bf16());
        let (source, num_rows) = if reads_all { (source, num_rows) } else { (generated, num_generated) };
        let floats = match source {
            _ if self.floats().next().is_none() => &[][..],
            Source::Rows(rows) => rows,
            made => made_floats(made, (num_rows, num_inputs), floats),
        };
        Made { quantized, bf16, bf16_pairs, floats, num_generated }
    }
}

/// Inputs as products read them.
struct Made<'a> {
    quantized: &'a QuantizedRows,
    bf16: &'a Bf16Rows,
    bf16_pairs: &'a Bf16Rows,
    /// Of all rows, or of the generated ones if nobody reads others.
    floats: &'a [f32],
    num_generated: usize,
}

impl Made<'_> {
    fn multiply(&self, weight: &WeightMatrix, out: Columns<'_>) {
        match weight {
            WeightMatrix::Floats(matrix) if matrix.multiplies_bf16() => {
                let (generated, prompts) = out.split_at(self.num_generated);
                matrix.matmul(&self.floats[..self.num_generated * matrix.num_inputs()], generated, &Pool);
                matrix.matmul_bf16(self.bf16_pairs, prompts, &Pool);
            }
            WeightMatrix::Floats(matrix) => matrix.matmul(self.floats, out, &Pool),
            WeightMatrix::Blocks(matrix) => {
                let (generated, prompts) = out.split_at(self.num_generated);
                matrix.matmul(self.quantized, generated, &Pool);
                matrix.matmul_bf16(self.bf16, prompts, &Pool);
            }
        }
    }
}

impl InplaceOp2 for Projections<'_> {
    fn name(&self) -> &'static str {
        "projections"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
    ) -> Result<()> {
        let (out, input) = (MatrixMut::of(out, out_layout)?, Matrix::of(from, from_layout)?);
        let (source, num_inputs) = self.source(input)?;
        let num_outputs: usize = self.parts.iter().map(|part| part.weight.num_outputs()).sum();
        if (out.num_rows, out.num_columns) != (input.num_rows, num_outputs) {
            candle_core::bail!("{} rows of {num_outputs} outputs into {out_layout:?}", input.num_rows)
        }
        let num_generated = if Bf16Rows::is_supported() { self.pass.num_generated_rows } else { input.num_rows };
        let mut inputs = self.pass.scratch.0.borrow_mut();
        let shape = (input.num_rows, num_inputs);
        let made = self.make(source, shape, num_generated.min(input.num_rows), &mut inputs);
        let mut first = 0;
        for part in self.parts {
            if let (Epilogue::Add, Some(bias)) = (self.fused.1, &part.bias) {
                add_to_rows(bias, out.values.chunks_exact_mut(num_outputs).map(|row| &mut row[first..]));
            }
            let columns = Columns::from(&mut *out.values, num_outputs, first);
            let columns = match self.fused.1 {
                Epilogue::Store => columns.with_bias(part.bias.as_deref()),
                Epilogue::Add => columns.accumulating(),
            };
            made.multiply(&part.weight, columns);
            first += part.weight.num_outputs();
        }
        Ok(())
    }
}

fn add_to_rows<'a>(bias: &[f32], rows: impl Iterator<Item = &'a mut [f32]>) {
    for row in rows {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

/// Makes `source` `[T, K]` in `floats`, whose memory only grows.
fn made_floats<'a>(source: Source<'_>, (num_rows, num_inputs): (usize, usize), floats: &'a mut Vec<f32>) -> &'a [f32] {
    let len = num_rows * num_inputs;
    if floats.len() < len {
        floats.resize(len, 0.0);
    }
    source.write(num_inputs, &mut floats[..len], &Pool);
    &floats[..len]
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device};
    use mistralrs_quant::{BlockFormat, FloatFormat};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// What candle can make, under its name and ours.
    const DTYPES: [(GgmlDType, WeightFormat); 13] = [
        (GgmlDType::F32, WeightFormat::Floats(FloatFormat::F32)),
        F16,
        (GgmlDType::BF16, WeightFormat::Floats(FloatFormat::Bf16)),
        Q4_0,
        (GgmlDType::Q4_1, WeightFormat::Blocks(BlockFormat::Q4_1)),
        (GgmlDType::Q5_0, WeightFormat::Blocks(BlockFormat::Q5_0)),
        (GgmlDType::Q5_1, WeightFormat::Blocks(BlockFormat::Q5_1)),
        (GgmlDType::Q8_0, WeightFormat::Blocks(BlockFormat::Q8_0)),
        (GgmlDType::Q2K, WeightFormat::Blocks(BlockFormat::Q2K)),
        (GgmlDType::Q3K, WeightFormat::Blocks(BlockFormat::Q3K)),
        Q4K,
        (GgmlDType::Q5K, WeightFormat::Blocks(BlockFormat::Q5K)),
        Q6K,
    ];
    const F16: (GgmlDType, WeightFormat) = (GgmlDType::F16, WeightFormat::Floats(FloatFormat::F16));
    const Q4_0: (GgmlDType, WeightFormat) = (GgmlDType::Q4_0, WeightFormat::Blocks(BlockFormat::Q4_0));
    const Q4K: (GgmlDType, WeightFormat) = (GgmlDType::Q4K, WeightFormat::Blocks(BlockFormat::Q4K));
    const Q6K: (GgmlDType, WeightFormat) = (GgmlDType::Q6K, WeightFormat::Blocks(BlockFormat::Q6K));

    fn random(seed: u64, shape: (usize, usize)) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    const PLAIN: (Prologue<'_>, Epilogue) = (Prologue::None, Epilogue::Store);

    /// All rows.
    fn generated(scratch: &Scratch) -> Pass<'_> {
        Pass { scratch, num_generated_rows: usize::MAX }
    }

    fn zeros(shape: (usize, usize)) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    fn product(linear: &Linear, input: &Tensor) -> Result<Tensor> {
        let out = zeros((input.dim(0)?, linear.weight.num_outputs()));
        linear.forward(input, &out, PLAIN, generated(&Scratch::default()))?;
        Ok(out)
    }

    fn table_rows(table: &WeightMatrix, indices: &[u32]) -> Result<Tensor> {
        let out = zeros((indices.len(), table.num_inputs()));
        table.rows(indices, &out)?;
        Ok(out)
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Random weights as candle quantizes them, and as layers hold them.
    fn quantized(dtype: (GgmlDType, WeightFormat), seed: u64, shape: (usize, usize)) -> (QTensor, WeightMatrix) {
        let stored = QTensor::quantize(&random(seed, shape), dtype.0).unwrap();
        let matrix = WeightMatrix::from_parts(dtype.1, shape.1, &[&stored.data().unwrap()]).unwrap();
        (stored, matrix)
    }

    fn linear(dtype: (GgmlDType, WeightFormat), seed: u64, shape: (usize, usize), bias: Option<Vec<f32>>) -> Linear {
        Linear::new(Arc::new(quantized(dtype, seed, shape).1), bias)
    }

    #[test]
    fn rows_come_back_as_candle_dequantizes_them() {
        for dtype in DTYPES {
            let (stored, matrix) = quantized(dtype, 1, (35, 512));
            let values = |tensor: Tensor| tensor.to_vec2::<f32>().unwrap();
            let found = values(table_rows(&matrix, &(0..35).collect::<Vec<_>>()).unwrap());
            assert_eq!(found, values(stored.dequantize(&Device::Cpu).unwrap()), "{dtype:?}");
        }
    }

    /// Rounding activations to 8 bits moves a sum of 512 random products by a hundredth of its size at most.
    #[test]
    fn a_product_is_near_that_of_the_dequantized_matrix() {
        for dtype in DTYPES {
            let (stored, matrix) = quantized(dtype, 1, (35, 512));
            let input = random(2, (20, 512));
            let expected = input.matmul(&stored.dequantize(&Device::Cpu).unwrap().t().unwrap()).unwrap();
            let found = product(&Linear::new(Arc::new(matrix), None), &input).unwrap();
            let norm = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let error = norm(&(&found - &expected).unwrap()) / norm(&expected);
            let allowed = if matches!(dtype.1, WeightFormat::Floats(_)) { 1e-6 } else { 0.01 };
            assert!(error < allowed, "{dtype:?}: {error} off");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        for dtype in DTYPES {
            let weight = linear(dtype, 1, (99, 512), None);
            let input = random(2, (300, 512));
            let expected = product(&weight, &input).unwrap();
            for num_rows in [1, 2, 3, 7, 8, 32, 33] {
                let some = |tensor: &Tensor| tensor.narrow(0, 300 - num_rows, num_rows).unwrap();
                let part = product(&weight, &some(&input).contiguous().unwrap()).unwrap();
                assert!(bits(&part) == bits(&some(&expected)), "{dtype:?} differs at {num_rows} rows");
            }
        }
    }

    #[test]
    fn fused_projections_equal_the_parts() {
        let bias = (0..16).map(|index| index as f32).collect();
        let parts = vec![
            linear(Q4K, 1, (32, 256), None),
            linear(Q6K, 2, (16, 256), Some(bias)),
            linear(F16, 2, (7, 256), None),
        ];
        let input = random(3, (5, 256));
        let apart: Vec<Tensor> = parts.iter().map(|part| product(part, &input).unwrap()).collect();
        let together = zeros((5, 55));
        FusedLinear::new(parts).forward(&input, &together, PLAIN, generated(&Scratch::default())).unwrap();
        assert_eq!(bits(&together), bits(&Tensor::cat(&apart, 1).unwrap()));
    }

    /// Wherever the generated rows end, those of prompts begin, and each part multiplies both in its own way.
    #[test]
    fn rows_of_both_kinds_have_the_bits_they_have_alone() {
        let bias: Vec<f32> = (0..7).map(|index| index as f32).collect();
        let parts = [
            linear(Q4K, 1, (32, 256), None),
            linear(F16, 2, (7, 256), Some(bias)),
            linear((GgmlDType::BF16, WeightFormat::Floats(FloatFormat::Bf16)), 3, (20, 256), None),
            linear((GgmlDType::F32, WeightFormat::Floats(FloatFormat::F32)), 4, (5, 256), None),
        ];
        let gated = random(5, (6, 512));
        let scratch = Scratch::default();
        // All parts, and those that read no row of a prompt as f32.
        for parts in [parts.to_vec(), parts[..3].to_vec()] {
            let num_outputs = parts.iter().map(|part| part.weight.num_outputs()).sum();
            let projections = FusedLinear::new(parts);
            let forward = |input: &Tensor, num_generated_rows: usize| {
                let out = zeros((input.dim(0).unwrap(), num_outputs));
                let pass = Pass { scratch: &scratch, num_generated_rows };
                projections.forward(input, &out, (Prologue::SwiGlu, Epilogue::Store), pass).unwrap();
                out
            };
            let rows =
                |tensor: &Tensor, first: usize, len: usize| tensor.narrow(0, first, len).unwrap().contiguous().unwrap();
            let kinds = [forward(&gated, 0), forward(&gated, usize::MAX)];
            for (prompts, generated) in
                kinds[0].to_vec2::<f32>().unwrap().iter().zip(kinds[1].to_vec2::<f32>().unwrap())
            {
                for (one, other) in prompts.iter().zip(generated) {
                    assert!((one - other).abs() < 0.5 + other.abs() * 0.05, "{one} is not near {other}");
                }
            }
            for num_generated in 1..6 {
                let both = forward(&gated, num_generated);
                let expected = Tensor::cat(
                    &[rows(&kinds[1], 0, num_generated), rows(&kinds[0], num_generated, 6 - num_generated)],
                    0,
                );
                assert_eq!(bits(&both), bits(&expected.unwrap()), "{num_generated} generated rows");
            }
        }
    }

    /// Whatever is fused: the same bits as one after the other.
    #[test]
    fn what_is_fused_equals_its_parts() {
        let scratch = Scratch::default();
        for dtype in [F16, Q4_0, Q6K] {
            let bias: Vec<f32> = (0..20).map(|index| index as f32).collect();
            let weight = linear(dtype, 1, (20, 256), Some(bias.clone()));
            let norm = RmsNorm::new(random(2, (1, 256)).flatten_all().unwrap().to_vec1().unwrap(), 1e-5);
            let (input, held) = (random(3, (7, 256)), random(4, (7, 20)));
            let normed = zeros((7, 256));
            norm.forward(&input, &normed).unwrap();
            let expected = product(&weight, &normed).unwrap();
            let out = zeros((7, 20));
            weight.forward(&input, &out, (Prologue::Norm(&norm), Epilogue::Store), generated(&scratch)).unwrap();
            assert_eq!(bits(&out), bits(&expected), "{dtype:?} after a norm");

            let alone = product(&linear(dtype, 1, (20, 256), None), &input).unwrap();
            let bias = Tensor::from_vec(bias, 20, &Device::Cpu).unwrap();
            let expected = (&alone + held.broadcast_add(&bias).unwrap()).unwrap();
            weight.forward(&input, &held, (Prologue::None, Epilogue::Add), generated(&scratch)).unwrap();
            assert_eq!(bits(&held), bits(&expected), "{dtype:?} added");
        }
    }

    #[test]
    fn a_gate_is_multiplied_on_the_way() {
        let weight = linear(F16, 1, (4, 32), None);
        let gate_up = random(2, (3, 64));
        let [gate, up] = [0, 32].map(|first| gate_up.narrow(1, first, 32).unwrap().contiguous().unwrap());
        let expected = product(&weight, &(gate.silu().unwrap() * up).unwrap()).unwrap();
        let out = zeros((3, 4));
        weight.forward(&gate_up, &out, (Prologue::SwiGlu, Epilogue::Store), generated(&Scratch::default())).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in values(&out).iter().zip(values(&expected)) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
        let odd = (Prologue::SwiGlu, Epilogue::Store);
        let error =
            weight.forward(&random(2, (3, 63)), &out, odd, generated(&Scratch::default())).unwrap_err().to_string();
        assert!(error.starts_with("gate and up together have 63 columns"), "{error}");
    }

    #[test]
    fn a_row_outside_the_table_is_an_error() {
        for dtype in [F16, Q6K] {
            let (_, table) = quantized(dtype, 1, (4, 256));
            assert!(table_rows(&table, &[3]).is_ok());
            let error = table_rows(&table, &[0, 4]).unwrap_err().to_string();
            assert!(error.starts_with("row 4 of a table of 4"), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = WeightMatrix::from_parts(Q4_0.1, 32, &[&[0; 19]]).unwrap_err().to_string();
        assert!(error.starts_with("19 bytes are not whole rows of 32 inputs in Q4_0"), "{error}");
        let error = product(&linear(Q4_0, 1, (4, 32), None), &random(1, (1, 64))).unwrap_err().to_string();
        assert!(error.starts_with("an input of 64 columns does not fit"), "{error}");
    }
}
