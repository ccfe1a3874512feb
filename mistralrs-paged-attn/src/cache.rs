//! The KV tensors: keys and values of all layers, in blocks.
//!
//! [`KvCache`] checks what comes in; a `KvStorage` does the work where the memory is: host memory now, a GPU's as a
//! second implementation of that trait. Nothing above this file knows which.

use candle_core::{CpuStorage as CandleCpuStorage, InplaceOp2, Layout, Storage, Tensor};
use half::{bf16, f16};

use crate::block_manager::{BlockCopy, BlockId};
use crate::cpu_storage::{CpuStorage, PoolGeometry};
use crate::kernels::{KvElement, Q8, RUN_LEN};
use crate::rows::{StridedRows, check_dense_rows, check_rows};
use crate::{AttentionError, AttentionPlan, RaggedBatch};

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

/// Keys and values of one step, `[T, K · D]` each, checked against cache and batch.
#[derive(Clone, Copy)]
pub(crate) struct KvRows<'a> {
    pub(crate) key: StridedRows<'a>,
    pub(crate) value: StridedRows<'a>,
}

/// Queries of one step, `[T, H · D]`, checked against cache and plan.
#[derive(Clone, Copy)]
pub(crate) struct QueryRows<'a> {
    pub(crate) query: StridedRows<'a>,
    pub(crate) scale: f32,
}

/// Memory for KV and attention over it. Callers have checked every index: implementations cannot fail.
pub(crate) trait KvStorage: Send + Sync {
    /// Stores `rows` of `layer` at `slots`, one for each.
    fn write(&mut self, layer: usize, rows: &KvRows<'_>, slots: &[u32]);

    /// Makes `plan` that of `batch`.
    fn plan(&self, plan: &mut AttentionPlan, batch: &RaggedBatch, num_heads: usize);

    /// Defined by [`reference::attend`](crate::reference::ReferenceCache::attend); `output` is `[T, H · D]`.
    fn attend(&self, layer: usize, query: &QueryRows<'_>, plan: &AttentionPlan, output: &mut [f32]);

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

    /// Stores `key` and `value` `[T, K · D]` of `layer` at the batch's slot mapping. Both are f32, their columns
    /// neighbours, their rows any distance apart: parts of a wider tensor are read where they are.
    ///
    /// # Errors
    /// [`AttentionError::Shape`], [`AttentionError::DType`], [`AttentionError::Strides`], [`AttentionError::Layer`], a
    /// slot past the end as [`AttentionError::Batch`], or the device's. Nothing is written then.
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
        let expected = [batch.num_tokens(), num_kv_heads * head_size];
        check_rows("key", key, expected)?;
        check_rows("value", value, expected)?;
        // Two locks, or one taken twice to read: nobody but this thread writes a step's tensors.
        let ((key, key_layout), (value, value_layout)) = (key.storage_and_layout(), value.storage_and_layout());
        let rows = KvRows {
            key: StridedRows::of_tensor(host_floats(&key)?, key_layout),
            value: StridedRows::of_tensor(host_floats(&value)?, value_layout),
        };
        self.storage.write(layer, &rows, &batch.slot_mapping);
        Ok(())
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

    /// Makes `plan` say how `batch` is attended to with `num_heads` query heads (H, a multiple of K), by all layers of
    /// this step. Only a larger step than `plan` had before allocates.
    ///
    /// # Errors
    /// [`AttentionError::HeadMismatch`], [`AttentionError::Batch`]. No layer takes the plan then.
    pub fn plan(&self, plan: &mut AttentionPlan, batch: &RaggedBatch, num_heads: usize) -> Result<(), AttentionError> {
        let KvLayout { num_kv_heads, block_size, .. } = self.layout;
        plan.clear();
        if num_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
            return Err(AttentionError::HeadMismatch { num_heads, num_kv_heads });
        }
        batch.check_reads(self.num_blocks(), block_size)?;
        self.storage.plan(plan, batch, num_heads);
        plan.made_for = Some((self.layout, self.num_blocks()));
        Ok(())
    }

    /// Attends each query token to all KV its sequence has in `layer`, this step's included: a token at position p sees
    /// positions 0 to p, or those of them in the plan's window. `query` and `output` are `[T, H · D]` f32; rows of `query`
    /// may be any distance apart, `output` has no gaps, is written in place and shares no memory with `query`. Scores
    /// are multiplied by `scale`.
    ///
    /// The bits of a token's result depend on its own sequence only, and on whether it was generated
    /// ([`AttentionPlan::computing_prompts_apart`]): not on the batch, the split into chunks, the blocks used or the number of
    /// threads. Defined by [`ReferenceCache::attend`](crate::reference::ReferenceCache);
    /// for rows within ±1 agrees within 1e-4 for KV in f32, 1e-3 in f16 and 1e-2 in bf16 and q8_0, of which all but 1e-4 is
    /// the rounding of what is stored. Source: Kwon et al. 2023, 4.1 (arXiv:2309.06180).
    ///
    /// # Errors
    /// [`AttentionError::Plan`], [`AttentionError::Shape`], [`AttentionError::DType`], [`AttentionError::Strides`],
    /// [`AttentionError::Layer`], or the device's.
    pub fn attend(
        &self,
        layer: usize,
        query: &Tensor,
        plan: &AttentionPlan,
        scale: f32,
        output: &Tensor,
    ) -> Result<(), AttentionError> {
        self.check_layer(layer)?;
        if plan.made_for != Some((self.layout, self.num_blocks())) {
            return Err(AttentionError::Plan);
        }
        let expected = [plan.num_tokens(), plan.num_heads() * self.layout.head_size];
        check_rows("query", query, expected)?;
        check_dense_rows("output", output, expected)?;
        output.inplace_op2(query, &Attend { storage: &*self.storage, layer, plan, scale })?;
        Ok(())
    }

    fn check_layer(&self, layer: usize) -> Result<(), AttentionError> {
        let num_layers = self.layout.num_layers;
        if layer < num_layers { Ok(()) } else { Err(AttentionError::Layer { layer, num_layers }) }
    }
}

/// One layer's attention, from the second tensor into the first.
struct Attend<'a> {
    storage: &'a dyn KvStorage,
    layer: usize,
    plan: &'a AttentionPlan,
    scale: f32,
}

impl InplaceOp2 for Attend<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        output: &mut CandleCpuStorage,
        output_layout: &Layout,
        query: &CandleCpuStorage,
        query_layout: &Layout,
    ) -> candle_core::Result<()> {
        let query = StridedRows::of_tensor(query.as_slice::<f32>()?, query_layout);
        let (start, len) = (output_layout.start_offset(), output_layout.shape().elem_count());
        let CandleCpuStorage::F32(output) = output else { candle_core::bail!("attention writes f32") };
        let query = QueryRows { query, scale: self.scale };
        self.storage.attend(self.layer, &query, self.plan, &mut output[start..start + len]);
        Ok(())
    }
}

/// The floats behind a tensor that was checked to be f32.
fn host_floats(storage: &Storage) -> Result<&[f32], AttentionError> {
    match storage {
        Storage::Cpu(storage) => Ok(storage.as_slice::<f32>()?),
        _ => Err(candle_core::Error::Msg("a KV cache in host memory needs tensors on the CPU".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

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
            num_generated_sequences: 0,
        }
    }

    fn rows(dims: (usize, usize)) -> Tensor {
        Tensor::ones(dims, DType::F32, &Device::Cpu).unwrap()
    }

    fn check<T>(result: Result<T, AttentionError>, expected: &str) {
        let message = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(expected), "`{message}` does not say `{expected}`");
    }

    fn plan(cache: &KvCache, num_heads: usize) -> AttentionPlan {
        let mut plan = AttentionPlan::default();
        cache.plan(&mut plan, &batch(), num_heads).unwrap();
        plan
    }

    #[test]
    fn equal_values_are_their_own_attention_in_every_layer() {
        for dtype in KvDType::ALL {
            let mut cache = KvCache::new(KvLayout { dtype, head_size: 32, ..LAYOUT }, 2).unwrap();
            for layer in 0..2 {
                let value = rows((3, 64)).affine(layer as f64 + 1.0, 0.0).unwrap();
                cache.write(layer, &rows((3, 64)), &value, &batch()).unwrap();
            }
            let (plan, output) = (plan(&cache, 4), rows((3, 128)));
            for layer in 0..2 {
                cache.attend(layer, &rows((3, 128)), &plan, 0.5, &output).unwrap();
                for element in output.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                    // A scale of q8_0 is an f16: 1/127 is not exact.
                    assert!((element - (layer as f32 + 1.0)).abs() < 1e-3, "{dtype:?} {element}");
                }
            }
        }
    }

    #[test]
    fn parts_of_one_wide_tensor_are_read_where_they_are_and_written_in_place() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        // Query, key and value side by side, as a fused projection leaves them.
        let wide = Tensor::arange(0.0_f32, 3.0 * 32.0, &Device::Cpu).unwrap().reshape((3, 32)).unwrap();
        let wide = wide.affine(0.05, -2.0).unwrap();
        let part = |start: usize, len: usize| wide.narrow(1, start, len).unwrap();
        let whole = |part: Tensor| part.contiguous().unwrap();
        let plan = plan(&cache, 4);
        cache.write(0, &whole(part(16, 8)), &whole(part(24, 8)), &batch()).unwrap();
        let expected = rows((3, 16));
        cache.attend(0, &whole(part(0, 16)), &plan, 1.0, &expected).unwrap();

        cache.write(0, &rows((3, 8)), &rows((3, 8)), &batch()).unwrap();
        cache.write(0, &part(16, 8), &part(24, 8), &batch()).unwrap();
        let larger = rows((5, 16));
        cache.attend(0, &part(0, 16), &plan, 1.0, &larger.narrow(0, 1, 3).unwrap()).unwrap();
        let larger = larger.to_vec2::<f32>().unwrap();
        assert_eq!(larger[1..4], expected.to_vec2::<f32>().unwrap());
        assert_eq!([&larger[0][..], &larger[4][..]], [&[1.0; 16][..]; 2], "rows beside the output");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        let kv = rows((3, 8));
        check(cache.write(2, &kv, &kv, &batch()), "layer 2 of a cache with 2 layers");
        check(cache.write(0, &rows((2, 8)), &kv, &batch()), "`key` has shape [2, 8]");
        check(cache.write(0, &kv, &rows((3, 6)), &batch()), "`value` has shape [3, 6]");
        check(cache.write(0, &kv, &rows((8, 3)).t().unwrap(), &batch()), "`value` has strides [1, 3]");
        check(cache.write(0, &kv, &kv.to_dtype(DType::F64).unwrap(), &batch()), "`value` is F64");
        let past_the_end = RaggedBatch { slot_mapping: vec![2, 4, 0], ..batch() };
        check(cache.write(0, &kv, &kv, &past_the_end), "token 1 writes slot 4");

        let (planned, query, output) = (plan(&cache, 4), rows((3, 16)), rows((3, 16)));
        check(cache.attend(2, &query, &planned, 1.0, &output), "layer 2");
        check(cache.attend(0, &rows((2, 16)), &planned, 1.0, &output), "`query` has shape [2, 16]");
        check(cache.attend(0, &query, &planned, 1.0, &rows((3, 8))), "`output` has shape [3, 8]");
        check(cache.attend(0, &rows((16, 3)).t().unwrap(), &planned, 1.0, &output), "`query` has strides [1, 3]");
        let gaps = rows((3, 20)).narrow(1, 0, 16).unwrap();
        check(cache.attend(0, &query, &planned, 1.0, &gaps), "`output` has strides [20, 1]");
        check(cache.attend(0, &query, &planned, 1.0, &output.to_dtype(DType::F64).unwrap()), "`output` is F64");
        check(cache.attend(0, &query, &planned, 1.0, &query), "shares storage with dst");
    }

    #[test]
    fn layers_take_no_plan_but_one_of_their_cache() {
        let cache = KvCache::new(LAYOUT, 2).unwrap();
        let (query, output) = (rows((3, 16)), rows((3, 16)));
        let mut planned = AttentionPlan::default();
        check(cache.attend(0, &query, &planned, 1.0, &output), "not made for this KV cache");
        cache.plan(&mut planned, &batch(), 4).unwrap();
        let smaller = KvCache::new(LAYOUT, 1).unwrap();
        check(smaller.attend(0, &query, &planned, 1.0, &output), "not made for this KV cache");
        check(cache.plan(&mut planned, &batch(), 3), "3 query heads are not a multiple of 2 KV heads");
        check(cache.attend(0, &query, &planned, 1.0, &output), "not made for this KV cache");
        let unknown_block = RaggedBatch { block_tables: vec![1, 2], ..batch() };
        check(cache.plan(&mut planned, &unknown_block, 4), "names block 2 of 2");
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
        cache.write(0, &rows((3, 8)), &rows((3, 8)), &batch()).unwrap();
        let copies = [(1, 0), (0, 2)].map(|(from, to)| BlockCopy { from: BlockId(from), to: BlockId(to) });
        check(cache.copy_blocks(&copies), "copy of BlockId(0) to BlockId(2) in a cache of 2 blocks");
    }

    #[test]
    fn an_empty_step_is_fine() {
        let mut cache = KvCache::new(LAYOUT, 2).unwrap();
        let (kv, query) = (rows((0, 8)), rows((0, 16)));
        cache.write(0, &kv, &kv, &RaggedBatch::default()).unwrap();
        let mut plan = AttentionPlan::default();
        cache.plan(&mut plan, &RaggedBatch::default(), 4).unwrap();
        cache.attend(0, &query, &plan, 1.0, &rows((0, 16))).unwrap();
    }
}
