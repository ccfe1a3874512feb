//! Quantized weight matrices.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::activations::{QuantizedRows, STRIP, SpanSet};
use crate::bf16_product;
use crate::bf16_rows::{Bf16Parts, Bf16Rows};
use crate::format::{BLOCK, Block, BlockFormat};
use crate::kernels::{self, Bf16Weights, Job, Level, MAX_EXPANDED_BYTES, TILES_AT_ONCE};
use crate::packing::{self, FillPiece, MatrixShape, StoredRows};
use crate::storage::{self, CacheLine, Storage};
use crate::threads::{SendPointer, Threads};
use crate::tile::TILE;

/// What the activations of one unit of work may take. The more rows a tile meets while it is expanded, the less often it is read;
/// tiles and results only pass by. Seven eighths of a core's second-level cache, or on AMD's CPUs an eighth of the third-level
/// one, which is fast enough there for what a product reads again.
fn max_unit_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let of_core = cache_bytes(2).unwrap_or(DEFAULT_CACHE_BYTES) / 8 * 7;
        let shared = if kernels::is_made_by_amd() { cache_bytes(3) } else { None };
        of_core.max(shared.unwrap_or_default() / 8)
    })
}

/// Second-level cache of a core whose system does not tell.
const DEFAULT_CACHE_BYTES: usize = 1 << 20;

/// A cache of the first core. Linux tells, in KiB: `2048K`.
fn cache_bytes(level: usize) -> Option<usize> {
    let size = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size")).ok()?;
    let kilobytes: usize = size.trim().strip_suffix('K')?.parse().ok()?;
    // Whatever a virtual machine claims.
    (256..=1024 * 1024).contains(&kilobytes).then_some(kilobytes * 1024)
}

/// A weight `[N, K]` of quantized blocks: tiles of 16 outputs, each a run of groups of inputs; the last tile is zero-padded.
pub struct BlockMatrix {
    storage: Storage,
    format: BlockFormat,
    num_outputs: usize,
    num_inputs: usize,
}

/// Why bytes are not a matrix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{num_bytes} bytes are not whole rows of {num_inputs} inputs in {format}")]
pub struct NotRows {
    pub(crate) num_bytes: usize,
    pub(crate) num_inputs: usize,
    pub(crate) format: &'static str,
}

/// Columns of a row-major `[T, columns]` matrix that a product fills.
pub struct Columns<'a> {
    values: &'a mut [f32],
    row_size: usize,
    first: usize,
    added: Added<'a>,
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Added<'a> {
    Nothing,
    /// One value per column.
    Bias(&'a [f32]),
    /// What the columns hold.
    Held,
}

impl<'a> Columns<'a> {
    /// All columns of `values`.
    pub fn all(values: &'a mut [f32], num_columns: usize) -> Self {
        Self::from(values, num_columns, 0)
    }

    /// Columns of `values`, which are rows of `num_columns`, from `first` on.
    pub fn from(values: &'a mut [f32], num_columns: usize, first: usize) -> Self {
        Self { values, row_size: num_columns, first, added: Added::Nothing }
    }

    /// Adds `bias`, one value per column of the product, to every row.
    #[must_use]
    pub fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Self { added: bias.map_or(Added::Nothing, Added::Bias), ..self }
    }

    /// Adds the product to what is there instead of replacing it.
    #[must_use]
    pub fn accumulating(self) -> Self {
        Self { added: Added::Held, ..self }
    }

    /// Of the first `num_rows` rows, and of the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_at(self, num_rows: usize) -> (Self, Self) {
        let Self { values, row_size, first, added } = self;
        let (values, others) = values.split_at_mut(num_rows * row_size);
        (Self { values, row_size, first, added }, Self { values: others, row_size, first, added })
    }

    /// # Panics
    /// If `num_rows` rows of `num_outputs` do not fit.
    pub(crate) fn check(&self, num_rows: usize, num_outputs: usize) {
        assert!(self.first + num_outputs <= self.row_size, "{num_outputs} columns from {} on", self.first);
        assert_eq!(self.values.len(), num_rows * self.row_size, "rows of the product");
        if let Added::Bias(bias) = self.added {
            assert_eq!(bias.len(), num_outputs, "one bias per output");
        }
    }
}

/// [`Columns`] as kernels write them.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) at: SendPointer<f32>,
    /// From row to row.
    pub(crate) stride: usize,
    pub(crate) num_columns: usize,
    /// Added to the first row; null for nothing.
    pub(crate) addend: SendPointer<f32>,
    /// From row to row of what is added: a bias is the same for all.
    pub(crate) addend_stride: usize,
    columns: PhantomData<&'a mut [f32]>,
}

impl<'a> Output<'a> {
    pub(crate) fn new(columns: Columns<'a>, num_outputs: usize) -> Self {
        let Columns { values, row_size, first, added } = columns;
        let output = Self {
            at: SendPointer(values[first..].as_mut_ptr()),
            stride: row_size,
            num_columns: num_outputs,
            addend: SendPointer(std::ptr::null_mut()),
            addend_stride: 0,
            columns: PhantomData,
        };
        match added {
            Added::Nothing => output,
            // Never written.
            Added::Bias(bias) => Self { addend: SendPointer(bias.as_ptr().cast_mut()), ..output },
            Added::Held => output.accumulating(),
        }
    }

    /// Adds to what is there.
    pub(crate) fn accumulating(self) -> Self {
        Self { addend: self.at, addend_stride: self.stride, ..self }
    }
}

/// A matrix as kernels read it.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) format: BlockFormat,
    /// Of a tile.
    pub(crate) num_groups: usize,
}

impl BlockMatrix {
    /// Packs `parts`, each a whole number of rows of `num_inputs` as a file stores them, one part after the other.
    ///
    /// # Errors
    /// [`NotRows`]: a part ends within a row, or a row within a block.
    pub fn pack(
        format: BlockFormat,
        num_inputs: usize,
        parts: &[&[u8]],
        threads: &dyn Threads,
    ) -> Result<Self, NotRows> {
        Self::pack_rows(format, num_inputs, StoredRows::new(parts), threads)
    }

    /// [`Self::pack`], saying what was read.
    ///
    /// # Errors
    /// As there.
    pub fn pack_rows(
        format: BlockFormat,
        num_inputs: usize,
        stored: StoredRows<'_>,
        threads: &dyn Threads,
    ) -> Result<Self, NotRows> {
        let (num_blocks, block_bytes) = (num_inputs / format.block_len(), format.block_bytes());
        let rows = stored.split(num_blocks * block_bytes).filter(|_| num_inputs.is_multiple_of(format.block_len()));
        let rows = rows.ok_or_else(|| stored.not_rows(num_inputs, format.name()))?;
        let group_bytes = format.group_layout().num_bytes;
        let storage = stored.pack(&rows, num_blocks * group_bytes, threads, |rows, tile| {
            let mut blocks = [Block::EMPTY; TILE];
            for (index, group) in tile.chunks_exact_mut(group_bytes).enumerate() {
                for (block, row) in blocks.iter_mut().zip(rows) {
                    format.read_block(&row[index * block_bytes..][..block_bytes], block);
                }
                format.pack_group(&blocks, group);
            }
        });
        Ok(Self { storage, format, num_outputs: rows.len(), num_inputs })
    }

    /// A matrix of tiles that [`Self::packed_bytes`] gave once, of the same `format` and `shape`; `None` where no matrix has
    /// such a shape.
    pub fn from_tiles(
        format: BlockFormat,
        shape: MatrixShape,
        fill: FillPiece<'_>,
        threads: &dyn Threads,
    ) -> Option<Self> {
        let storage = packing::fill_pieces(format.num_packed_bytes(shape)?, fill, threads);
        Some(Self { storage, format, num_outputs: shape.num_outputs, num_inputs: shape.num_inputs })
    }

    /// Its tiles, one after the other.
    pub fn packed_bytes(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// How weights are stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// What [`QuantizedRows`] must have.
    pub fn spans(&self) -> SpanSet {
        if self.format.spans() == 2 { SpanSet::WithHalves } else { SpanSet::Whole }
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// Row `index`, dequantized.
    ///
    /// # Panics
    /// If there is no such row or `out` is not K long.
    pub fn copy_row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.num_outputs && out.len() == self.num_inputs, "row {index} into {} values", out.len());
        let group_bytes = self.format.group_layout().num_bytes;
        let tile_bytes = self.num_groups() * group_bytes;
        let tile = &self.storage.bytes()[index / TILE * tile_bytes..][..tile_bytes];
        for (group, out) in tile.chunks_exact(group_bytes).zip(out.chunks_exact_mut(self.format.block_len())) {
            self.format.unpack_lane(group, index % TILE, out);
        }
    }

    /// `activations` `[T, K]` → `out` `[T, N]`. A row of it depends on that row of the activations alone.
    ///
    /// # Panics
    /// If sizes differ, or the activations lack the sums that [`Self::spans`] asks for.
    pub fn matmul(&self, activations: &QuantizedRows, out: Columns<'_>, threads: &dyn Threads) {
        self.matmul_with(Level::detected(), activations, out, threads);
    }

    pub(crate) fn matmul_with(
        &self,
        level: Level,
        activations: &QuantizedRows,
        out: Columns<'_>,
        threads: &dyn Threads,
    ) {
        assert_eq!(activations.num_inputs(), self.num_inputs, "inputs of the activations");
        assert!(self.spans() == SpanSet::Whole || activations.has_halves(), "{self:?} needs sums of 16 activations");
        out.check(activations.num_rows(), self.num_outputs);
        if activations.num_rows() == 0 {
            return;
        }
        let out = Output::new(out, self.num_outputs);
        let num_tiles = self.num_outputs.div_ceil(TILE);
        let num_runs = num_tiles.div_ceil(TILES_AT_ONCE);
        let num_strips = activations.num_rows().div_ceil(STRIP);
        let chunks = RowChunks::new(num_strips, self.num_inputs);
        threads.run(chunks.count * num_runs, &|units| {
            let mut unit = units.start;
            while unit < units.end {
                let (chunk, run) = (unit / num_runs, unit % num_runs);
                let runs = run..num_runs.min(run + units.end - unit);
                unit += runs.len();
                let tiles = runs.start * TILES_AT_ONCE..num_tiles.min(runs.end * TILES_AT_ONCE);
                let strips = chunk * chunks.strips..num_strips.min((chunk + 1) * chunks.strips);
                let num_blocks = if strips.len() > 1 { self.num_inputs / BLOCK } else { 0 };
                with_scratch(num_blocks * MAX_EXPANDED_BYTES, |scratch| {
                    let mut job = Job { weights: self.tiles(), activations, out, tiles, strips, scratch };
                    // SAFETY: the CPU has the level; tiles and strips are counted from the sizes asserted above, units
                    // are disjoint in (tile, strip), and `run` returns only after all are done.
                    unsafe { kernels::run(level, &mut job) };
                    if let Some(rest) = activations.rest() {
                        (job.activations, job.out) = (rest, out.accumulating());
                        // SAFETY: as above; the rest has the same sizes, and these results are there now.
                        unsafe { kernels::run(level, &mut job) };
                    }
                });
            }
        });
    }

    /// `rows` `[T, K]`, each value one bf16, times the weights as bf16 → `out` `[T, N]`. A row of it depends on that row alone.
    ///
    /// # Panics
    /// If sizes differ, or the CPU does not multiply such rows ([`Bf16Rows::is_supported`]).
    pub fn matmul_bf16(&self, rows: &Bf16Rows, out: Columns<'_>, threads: &dyn Threads) {
        assert_eq!(rows.parts(), Bf16Parts::One, "quantized weights are one bf16, too");
        let Tiles { bytes, format, num_groups } = self.tiles();
        let weights = Bf16Weights { bytes, format: format.into(), num_groups };
        bf16_product::matmul(&weights, (self.num_outputs, self.num_inputs), rows, out, threads);
    }

    fn num_groups(&self) -> usize {
        self.num_inputs / self.format.block_len()
    }

    fn tiles(&self) -> Tiles<'_> {
        Tiles { bytes: self.storage.bytes(), format: self.format, num_groups: self.num_groups() }
    }
}

impl fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMatrix[{}, {}; {:?}]", self.num_outputs, self.num_inputs, self.format)
    }
}

/// Strips that stay in the second-level cache while tile after tile passes over them.
struct RowChunks {
    /// Of a chunk; the last may have fewer.
    strips: usize,
    count: usize,
}

impl RowChunks {
    fn new(num_strips: usize, num_inputs: usize) -> Self {
        // A quant, and of each block four sums and a scale.
        let strip_bytes = STRIP * (num_inputs + num_inputs / BLOCK * 20);
        let max_strips = (max_unit_bytes() / strip_bytes.max(1)).max(2);
        // Of nearly equal size.
        let count = num_strips.div_ceil(max_strips);
        Self { strips: num_strips.div_ceil(count.max(1)).max(1), count }
    }
}

/// A thread's own buffer, kept between products.
pub(crate) fn with_scratch(num_bytes: usize, work: impl FnOnce(&mut [u8])) {
    thread_local! {
        static SCRATCH: RefCell<Vec<CacheLine>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|lines| {
        if lines.len() * size_of::<CacheLine>() < num_bytes {
            *lines = storage::zeroed_lines(num_bytes);
        }
        work(&mut storage::line_bytes_mut(lines)[..num_bytes]);
    });
}
