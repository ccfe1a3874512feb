//! The KV tensors: keys and values of all layers, in blocks.
//!
//! [`KvCache`] checks what comes in; a `KvStorage` does the work where the memory is: host memory now, a GPU's as a
//! second implementation of that trait. Nothing above this file knows which.

use candle_core::{CpuStorage as CandleCpuStorage, Device, Storage, Tensor};
use half::{bf16, f16};

use crate::block_manager::{BlockCopy, BlockId};
use crate::cpu_storage::{CpuStorage, PoolGeometry};
use crate::kernels::{KvElement, Q8, RUN_LEN};
use crate::{AttentionError, RaggedBatch};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDType {
    /// 16-bit floats: half the memory and bandwidth. Larger magnitudes than 65504 are stored as 65504.
    F16,
    /// The upper halves of 32-bit floats: their range in half the memory, 8 bits of precision.
    Bf16,
    /// 32-bit floats: exact.
    F32,
    /// 8-bit integers, of which 32 neighbouring dimensions share a 16-bit scale: little more than a quarter of the memory.
    Q8_0,
}

impl KvDType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F16, Self::Bf16, Self::F32, Self::Q8_0];

    /// Its name in flags and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Whether heads of `head_size` elements can be stored so.
    pub fn fits(self, head_size: usize) -> bool {
        self != Self::Q8_0 || head_size.is_multiple_of(RUN_LEN)
    }
}

/// The shape of a model's KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Decoder layers.
    pub num_layers: usize,
    /// KV heads (K).
    pub num_kv_heads: usize,
    /// Head size (D).
    pub head_size: usize,
    /// Tokens per block (B). Any number works; multiples of 16 waste nothing.
    pub block_size: usize,
    /// Element type.
    pub dtype: KvDType,
}

impl KvLayout {
    /// Bytes of one block over all layers, keys and values, padding and scales included.
    /// 0 for a layout that [`Self::validate`] refuses.
    pub fn block_bytes(&self) -> usize {
        self.geometry().map_or(0, |geometry| geometry.block_bytes())
    }

    /// Whether a cache can have this shape.
    ///
    /// # Errors
    /// [`AttentionError::HeadSize`] if the element type cannot store heads of this size; [`AttentionError::Layout`] for
    /// a shape with a zero in it, or blocks larger than memory can be.
    pub fn validate(&self) -> Result<(), AttentionError> {
        let Self { dtype, head_size, .. } = *self;
        if !dtype.fits(head_size) {
            return Err(AttentionError::HeadSize { dtype, head_size });
        }
        self.geometry().map(drop).ok_or(AttentionError::Layout { layout: *self, num_blocks: 1 })
    }

    fn geometry(&self) -> Option<PoolGeometry> {
        match self.dtype {
            KvDType::F16 => PoolGeometry::new::<f16>(self),
            KvDType::Bf16 => PoolGeometry::new::<bf16>(self),
            KvDType::F32 => PoolGeometry::new::<f32>(self),
            KvDType::Q8_0 => PoolGeometry::new::<Q8>(self),
        }
    }
}

/// Keys and values of one step, `[T, K, D]` each, checked against cache and batch.
pub(crate) struct KvRows<'a> {
    pub(crate) key: &'a [f32],
    pub(crate) value: &'a [f32],
}

/// Queries of one step, `[T, H, D]`, checked against cache and batch.
pub(crate) struct QueryRows<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) num_heads: usize,
    pub(crate) scale: f32,
}

/// Memory for KV and attention over it. Callers have checked every index: implementations cannot fail.
pub(crate) trait KvStorage: Send + Sync {
    /// Stores `rows` of `layer` at the batch's slot mapping.
    fn write(&mut self, layer: usize, rows: &KvRows<'_>, batch: &RaggedBatch);

    /// Defined by [`reference::attend`](crate::reference::ReferenceCache::attend); `output` is `[T, H, D]`.
    fn attend(&self, layer: usize, query: &QueryRows<'_>, batch: &RaggedBatch, output: &mut [f32]);

    /// Copies a block's contents, of all layers.
    fn copy_block(&mut self, copy: BlockCopy);

    /// Blocks in the pool.
    fn num_blocks(&self) -> usize;
}

fn new_storage<E: KvElement>(geometry: PoolGeometry, num_blocks: usize) -> Option<Box<dyn KvStorage>> {
    Some(Box::new(CpuStorage::<E>::new(geometry, num_blocks)?))
}

/// Keys and values of all layers, in blocks.
pub struct KvCache {
    layout: KvLayout,
    storage: Box<dyn KvStorage>,
}

impl KvCache {
    /// Reserves `num_blocks` blocks. Memory is taken where blocks are first written, so a large cache costs what is used.
    ///
    /// # Errors
    /// [`AttentionError::HeadSize`], [`AttentionError::Layout`] for a shape with a zero in it or more than 2^32 slots;
    /// [`AttentionError::OutOfMemory`] where the system refuses.
    pub fn new(layout: KvLayout, num_blocks: usize) -> Result<Self, AttentionError> {
        if !layout.dtype.fits(layout.head_size) {
            return Err(AttentionError::HeadSize { dtype: layout.dtype, head_size: layout.head_size });
        }
        let num_slots = num_blocks.checked_mul(layout.block_size).filter(|&slots| u32::try_from(slots).is_ok());
        let geometry = layout.geometry().filter(|_| num_slots.is_some());
        let geometry = geometry.ok_or(AttentionError::Layout { layout, num_blocks })?;
        let storage = match layout.dtype {
            KvDType::F16 => new_storage::<f16>(geometry, num_blocks),
            KvDType::Bf16 => new_storage::<bf16>(geometry, num_blocks),
            KvDType::F32 => new_storage::<f32>(geometry, num_blocks),
            KvDType::Q8_0 => new_storage::<Q8>(geometry, num_blocks),
        };
        let num_bytes = layout.block_bytes().saturating_mul(num_blocks);
        Ok(Self { layout, storage: storage.ok_or(AttentionError::OutOfMemory { num_bytes })? })
    }

    /// The cache's shape.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Blocks in the pool.
    pub fn num_blocks(&self) -> usize {
        self.storage.num_blocks()
    }

    /// Stores `key` and `value` `[T, K, D]` (f32) of `layer` at the batch's slot mapping.
    ///
    /// # Errors
    /// [`AttentionError::Shape`], [`AttentionError::Layer`], a slot past the end as [`AttentionError::Batch`], or the
    /// device's. Nothing is written then.
    pub fn write(
        &mut self,
        layer: usize,
        key: &Tensor,
        value: &Tensor,
        batch: &RaggedBatch,
    ) -> Result<(), AttentionError> {
        let KvLayout { num_kv_heads, head_size, block_size, .. } = self.layout;
        self.check_layer(layer)?;
        batch.check_writes(self.num_blocks() * block_size)?;
        let expected = [batch.num_tokens(), num_kv_heads, head_size];
        for (tensor, rows) in [("key", key), ("value", value)] {
            check_shape(tensor, rows, &expected)?;
        }
        let storage = &mut self.storage;
        with_rows(key, |key| with_rows(value, |value| storage.write(layer, &KvRows { key, value }, batch)))?
    }

    /// Makes what is in the `from` of each copy also what is in its `to`, in order, for all layers.
    ///
    /// # Errors
    /// [`AttentionError::Copy`] for a block that the cache does not have. Nothing is copied then.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), AttentionError> {
        let num_blocks = self.num_blocks();
        let is_known = |block: BlockId| block.index() < num_blocks;
        if let Some(copy) = copies.iter().find(|copy| !is_known(copy.from) || !is_known(copy.to)) {
            return Err(AttentionError::Copy { copy: *copy, num_blocks });
        }
        for copy in copies {
            self.storage.copy_block(*copy);
        }
        Ok(())
    }

    /// Attends each query token to all KV its sequence has in `layer`, this step's included: a token at position p sees
    /// positions 0 to p. `query` `[T, H, D]` (f32) → `[T, H, D]`; scores are multiplied by `scale`. H is a multiple of K.
    ///
    /// The bits of a token's result depend on its own sequence only: not on the batch, the split into chunks, the
    /// blocks used or the number of threads. Defined by [`ReferenceCache::attend`](crate::reference::ReferenceCache);
    /// for rows within ±1 agrees within 1e-4 for KV in f32, 1e-3 in f16 and 1e-2 in bf16 and q8_0, of which all but 1e-4 is
    /// the rounding of what is stored. Source: Kwon et al. 2023, 4.1 (arXiv:2309.06180).
    ///
    /// # Errors
    /// [`AttentionError::HeadMismatch`], [`AttentionError::Shape`], [`AttentionError::Layer`],
    /// [`AttentionError::Batch`], or the device's.
    pub fn attend(
        &self,
        layer: usize,
        query: &Tensor,
        batch: &RaggedBatch,
        scale: f32,
    ) -> Result<Tensor, AttentionError> {
        let KvLayout { num_kv_heads, head_size: kv_head_size, block_size, .. } = self.layout;
        self.check_layer(layer)?;
        batch.check_reads(self.num_blocks(), block_size)?;
        let (num_tokens, num_heads, head_size) = query.dims3()?;
        if !num_heads.is_multiple_of(num_kv_heads) || head_size != kv_head_size {
            return Err(AttentionError::HeadMismatch { num_heads, head_size, num_kv_heads, kv_head_size });
        }
        check_shape("query", query, &[batch.num_tokens(), num_heads, head_size])?;
        let mut output = vec![0.0; num_tokens * num_heads * head_size];
        with_rows(query, |query| {
            self.storage.attend(layer, &QueryRows { query, num_heads, scale }, batch, &mut output);
        })?;
        Ok(Tensor::from_vec(output, (num_tokens, num_heads, head_size), &Device::Cpu)?)
    }

    fn check_layer(&self, layer: usize) -> Result<(), AttentionError> {
        let num_layers = self.layout.num_layers;
        if layer < num_layers { Ok(()) } else { Err(AttentionError::Layer { layer, num_layers }) }
    }
}

fn check_shape(tensor: &'static str, rows: &Tensor, expected: &[usize]) -> Result<(), AttentionError> {
    if rows.dims() == expected {
        return Ok(());
    }
    Err(AttentionError::Shape { tensor, expected: expected.to_vec(), found: rows.dims().to_vec() })
}

/// Lends the f32 elements of a tensor in row order; copies only what is not contiguous.
fn with_rows<R>(tensor: &Tensor, use_rows: impl FnOnce(&[f32]) -> R) -> Result<R, AttentionError> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset();
    match &*storage {
        Storage::Cpu(CandleCpuStorage::F32(elements)) => Ok(use_rows(&elements[start..start + tensor.elem_count()])),
        Storage::Cpu(_) => Err(AttentionError::DType { found: tensor.dtype() }),
        _ => Err(candle_core::Error::Msg("a KV cache in host memory needs tensors on the CPU".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    const LAYOUT: KvLayout =
        KvLayout { num_layers: 2, num_kv_heads: 2, head_size: 4, block_size: 2, dtype: KvDType::F32 };

    /// One sequence, 3 tokens, blocks 1 and 0.
    fn batch() -> RaggedBatch {
        RaggedBatch {
            query_offsets: vec![0, 3],
            context_lens: vec![3],
            slot_mapping: vec![2, 3, 0],
            block_tables: vec![1, 0],
            max_blocks: 2,
        }
    }

    fn rows(dims: (usize, usize, usize)) -> Tensor {
        Tensor::ones(dims, DType::F32, &Device::Cpu).unwrap()
    }

    fn check<T>(result: Result<T, AttentionError>, expected: &str) {
        let message = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(expected), "`{message}` does not say `{expected}`");
    }

    #[test]
    fn equal_values_are_their_own_attention_in_every_layer() {
        for dtype in KvDType::ALL {
            let mut cache = KvCache::new(KvLayout { dtype, head_size: 32, ..LAYOUT }, 2).unwrap();
            for layer in 0..2 {
                let value = rows((3, 2, 32)).affine(layer as f64 + 1.0, 0.0).unwrap();
                cache.write(layer, &rows((3, 2, 32)), &value, &batch()).unwrap();
            }
            for layer in 0..2 {
                let output = cache.attend(layer, &rows((3, 4, 32)), &batch(), 0.5).unwrap();
                assert_eq!(output.dims(), [3, 4, 32]);
                for element in output.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                    // A scale of q8_0 is an f16: 1/127 is not exact.
                    assert!((element - (layer as f32 + 1.0)).abs() < 1e-3, "{dtype:?} {element}");
                }
            }
        }
    }

    #[test]
    fn tensors_need_not_be_contiguous() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        let key = Tensor::arange(0.0_f32, 24.0, &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        let key = key.transpose(0, 1).unwrap();
        let query = rows((2, 3, 4)).transpose(0, 1).unwrap();
        cache.write(0, &key, &key, &batch()).unwrap();
        let whole = cache.attend(0, &query, &batch(), 1.0).unwrap();
        cache.write(0, &key.contiguous().unwrap(), &key.contiguous().unwrap(), &batch()).unwrap();
        let copied = cache.attend(0, &query.contiguous().unwrap(), &batch(), 1.0).unwrap();
        assert_eq!(whole.to_vec3::<f32>().unwrap(), copied.to_vec3::<f32>().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        let (kv, query) = (rows((3, 2, 4)), rows((3, 4, 4)));
        check(cache.write(2, &kv, &kv, &batch()), "layer 2 of a cache with 2 layers");
        check(cache.write(0, &rows((2, 2, 4)), &kv, &batch()), "`key` has shape [2, 2, 4]");
        check(cache.write(0, &kv, &rows((3, 4, 2)), &batch()), "`value` has shape [3, 4, 2]");
        check(cache.write(0, &kv, &kv.to_dtype(DType::F64).unwrap(), &batch()), "tensors of F64");
        let past_the_end = RaggedBatch { slot_mapping: vec![2, 4, 0], ..batch() };
        check(cache.write(0, &kv, &kv, &past_the_end), "token 1 writes slot 4");

        check(cache.attend(2, &query, &batch(), 1.0), "layer 2");
        check(cache.attend(0, &rows((3, 3, 4)), &batch(), 1.0), "query heads 3 x 4 do not fit 2 KV heads x 4");
        check(cache.attend(0, &rows((3, 4, 8)), &batch(), 1.0), "query heads 4 x 8 do not fit 2 KV heads x 4");
        check(cache.attend(0, &rows((2, 4, 4)), &batch(), 1.0), "`query` has shape [2, 4, 4]");
        let unknown_block = RaggedBatch { block_tables: vec![1, 2], ..batch() };
        check(cache.attend(0, &query, &unknown_block, 1.0), "names block 2 of 2");
    }

    #[test]
    fn impossible_caches_are_refused_before_any_memory_is_touched() {
        check(KvCache::new(KvLayout { head_size: 0, ..LAYOUT }, 2), "cannot have 2 blocks");
        check(KvCache::new(LAYOUT, usize::MAX), "cannot have");
        let huge = KvLayout { num_kv_heads: 1 << 20, head_size: 1 << 12, ..LAYOUT };
        check(KvCache::new(huge, 1 << 30), "bytes of KV cache");
        let odd = KvLayout { dtype: KvDType::Q8_0, head_size: 80, ..LAYOUT };
        check(
            KvCache::new(odd, 2),
            "KV in q8_0 needs a head size that is a multiple of 32, the model's is 80; it can have f16, bf16, f32",
        );
        assert!(odd.validate().is_err() && LAYOUT.validate().is_ok());
    }

    #[test]
    fn a_block_takes_the_bytes_of_its_elements_and_scales() {
        let block_bytes = |dtype| KvLayout { block_size: 16, head_size: 64, dtype, ..LAYOUT }.block_bytes();
        // Keys and values, two layers, two heads, 16 tokens, 64 elements.
        let num_elements = 2 * 2 * 2 * 16 * 64;
        assert_eq!(block_bytes(KvDType::F32), num_elements * 4);
        assert_eq!(block_bytes(KvDType::F16), num_elements * 2);
        assert_eq!(block_bytes(KvDType::Bf16), num_elements * 2);
        assert_eq!(block_bytes(KvDType::Q8_0), num_elements / 32 * 34);
    }

    #[test]
    fn copies_of_blocks_that_do_not_exist_are_refused_and_none_is_made() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        cache.write(0, &rows((3, 2, 4)), &rows((3, 2, 4)), &batch()).unwrap();
        let copies = [(1, 0), (0, 2)].map(|(from, to)| BlockCopy { from: BlockId(from), to: BlockId(to) });
        check(cache.copy_blocks(&copies), "copy of BlockId(0) to BlockId(2) in a cache of 2 blocks");
    }

    #[test]
    fn an_empty_step_is_fine() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        cache.write(0, &rows((0, 2, 4)), &rows((0, 2, 4)), &RaggedBatch::default()).unwrap();
        let output = cache.attend(0, &rows((0, 4, 4)), &RaggedBatch::default(), 1.0).unwrap();
        assert_eq!(output.dims(), [0, 4, 4]);
    }
}
