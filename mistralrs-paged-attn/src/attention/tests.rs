use std::num::NonZeroUsize;
use std::ops::Range;

use half::{bf16, f16};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::cache::{KvRows, KvStorage};
use crate::kernels::{Isa, Q8, matrix_unit_takes};
use crate::reference::ReferenceCache;
use crate::rows::StridedRows;
use crate::{BlockCopy, BlockId, KvLayout};

#[derive(Debug, Clone, Copy)]
struct Shape {
    num_heads: usize,
    num_kv_heads: usize,
    head_size: usize,
    block_size: usize,
}

impl Shape {
    fn layout<E: KvElement>(&self) -> KvLayout {
        let Self { num_kv_heads, head_size, block_size, .. } = *self;
        KvLayout { num_layers: 1, num_kv_heads, head_size, block_size, dtype: E::DTYPE }
    }

    fn geometry<E: KvElement>(&self) -> PoolGeometry {
        PoolGeometry::new::<E>(&self.layout::<E>()).unwrap()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }
}

/// SmolLM2's heads, and ones that fit no vector, tile or block.
const SMOL: Shape = Shape { num_heads: 9, num_kv_heads: 3, head_size: 64, block_size: 16 };
const ODD: Shape = Shape { num_heads: 14, num_kv_heads: 2, head_size: 40, block_size: 24 };
/// Odd too, but of a head size that the matrix unit takes.
const WIDE: Shape = Shape { num_heads: 10, num_kv_heads: 2, head_size: 192, block_size: 24 };

/// What computes all tokens of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Vectors(Isa),
    /// The CPU's matrix unit, where it takes the shape.
    MatrixUnit,
}

impl Kernel {
    fn best() -> Self {
        Self::Vectors(Isa::best())
    }

    fn all(shape: &Shape) -> Vec<Self> {
        if !matrix_unit_takes(64) {
            println!("skipped: the matrix unit, which this CPU lacks");
        }
        let unit = matrix_unit_takes(shape.head_size).then_some(Self::MatrixUnit);
        Isa::all().into_iter().map(Self::Vectors).chain(unit).collect()
    }
}

/// A sequence's queries, keys and values, `[len, heads, D]`.
struct Tokens {
    len: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Tokens {
    fn random(shape: &Shape, len: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut rows = |heads: usize| (0..len * heads * shape.head_size).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (query, key, value) = (rows(shape.num_heads), rows(shape.num_kv_heads), rows(shape.num_kv_heads));
        Self { len, query, key, value }
    }
}

/// A few sequences with room in a pool, in blocks of random order.
struct World {
    shape: Shape,
    sequences: Vec<Tokens>,
    tables: Vec<Vec<u32>>,
    num_blocks: usize,
    window: Option<NonZeroUsize>,
}

/// The tokens of each sequence that one step computes.
type Step = Vec<(usize, Range<usize>)>;

impl World {
    fn random(shape: Shape, lens: &[usize], seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sequences = lens.iter().map(|len| Tokens::random(&shape, *len, &mut rng)).collect();
        let mut world = Self { shape, sequences, tables: Vec::new(), num_blocks: 0, window: None };
        world.shuffle_blocks(&mut rng);
        world
    }

    /// Other physical blocks for all sequences, some of the pool left over.
    fn shuffle_blocks(&mut self, rng: &mut ChaCha8Rng) {
        let lens: Vec<_> = self.sequences.iter().map(|tokens| tokens.len.div_ceil(self.shape.block_size)).collect();
        self.num_blocks = lens.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..self.num_blocks as u32).collect();
        free.shuffle(rng);
        self.tables = lens.iter().map(|len| free.split_off(free.len() - len)).collect();
    }

    fn batch(&self, step: &Step) -> RaggedBatch {
        let max_blocks = self.tables.iter().map(Vec::len).max().unwrap_or(0);
        let mut batch = RaggedBatch { query_offsets: vec![0], max_blocks, ..RaggedBatch::default() };
        for (sequence, tokens) in step {
            let table = &self.tables[*sequence];
            let slot = |position: usize| {
                table[position / self.shape.block_size] * self.shape.block_size as u32
                    + (position % self.shape.block_size) as u32
            };
            batch.slot_mapping.extend(tokens.clone().map(slot));
            batch.query_offsets.push(batch.slot_mapping.len() as u32);
            batch.context_lens.push(tokens.end as u32);
            batch.block_tables.extend(table.iter().copied().chain(std::iter::repeat(0)).take(max_blocks));
        }
        batch.validate(self.num_blocks, self.shape.block_size).unwrap();
        batch
    }

    /// The step's rows of what `pick` picks, one behind the other.
    fn rows(&self, step: &Step, heads: usize, pick: impl Fn(&Tokens) -> &[f32]) -> Vec<f32> {
        let row_len = heads * self.shape.head_size;
        let rows = step
            .iter()
            .map(|(sequence, tokens)| &pick(&self.sequences[*sequence])[tokens.start * row_len..tokens.end * row_len]);
        rows.collect::<Vec<_>>().concat()
    }

    /// Outputs by sequence after all of `steps`.
    fn collect(&self, steps: &[Step], mut attend: impl FnMut(&Step, &RaggedBatch) -> Vec<f32>) -> Vec<Vec<f32>> {
        let row_len = self.shape.num_heads * self.shape.head_size;
        let mut outputs = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let output = attend(step, &self.batch(step));
            let mut rest = output.as_slice();
            for (sequence, tokens) in step {
                let (own, others) = rest.split_at(tokens.len() * row_len);
                outputs[*sequence].extend_from_slice(own);
                rest = others;
            }
        }
        outputs
    }

    fn by_reference(&self, steps: &[Step]) -> Vec<Vec<f32>> {
        self.by_reference_of(steps, <[f32]>::to_vec)
    }

    /// The reference's answer for keys and values that were rounded, head by head, before it got them.
    fn by_reference_of(&self, steps: &[Step], round: impl Fn(&[f32]) -> Vec<f32>) -> Vec<Vec<f32>> {
        let Shape { num_heads, num_kv_heads, head_size, .. } = self.shape;
        let mut cache = ReferenceCache::new(&self.shape.layout::<f32>(), self.num_blocks).with_window(self.window);
        let round_heads = |rows: &[f32]| rows.chunks(head_size).flat_map(&round).collect::<Vec<_>>();
        self.collect(steps, |step, batch| {
            let key = self.rows(step, num_kv_heads, |tokens| &tokens.key);
            let value = self.rows(step, num_kv_heads, |tokens| &tokens.value);
            cache.write(&round_heads(&key), &round_heads(&value), batch);
            cache.attend(&self.rows(step, num_heads, |tokens| &tokens.query), num_heads, batch, self.shape.scale())
        })
    }

    fn by_kernel<E: KvElement>(&self, steps: &[Step], kernel: Kernel, num_threads: usize) -> Vec<Vec<f32>> {
        let mut storage = self.storage::<E>(kernel);
        self.by_storage(steps, (&mut storage, kernel), num_threads)
    }

    fn storage<E: KvElement>(&self, kernel: Kernel) -> CpuStorage<E> {
        let mut storage = CpuStorage::new(self.shape.geometry::<E>(), self.num_blocks).unwrap();
        if let Kernel::Vectors(isa) = kernel {
            storage.use_isa(isa);
        }
        storage
    }

    fn by_storage<E: KvElement>(
        &self,
        steps: &[Step],
        (storage, kernel): (&mut CpuStorage<E>, Kernel),
        num_threads: usize,
    ) -> Vec<Vec<f32>> {
        let Shape { num_heads, num_kv_heads, head_size, .. } = self.shape;
        // One for all steps, as an engine has it: what a step leaves behind must not matter to the next.
        let mut plan = self.plan(kernel);
        self.collect(steps, |step, batch| {
            let key = self.rows(step, num_kv_heads, |tokens| &tokens.key);
            let value = self.rows(step, num_kv_heads, |tokens| &tokens.value);
            storage.write_on(num_threads, 0, &kv_rows(&key, &value, num_kv_heads * head_size), &batch.slot_mapping);
            let query = self.rows(step, num_heads, |tokens| &tokens.query);
            plan.fill(batch, storage.geometry(), num_heads, num_threads);
            let mut output = vec![f32::NAN; query.len()];
            let query =
                QueryRows { query: StridedRows::dense(&query, num_heads * head_size), scale: self.shape.scale() };
            attend(storage, 0, &query, &plan, &mut output);
            output
        })
    }

    fn plan(&self, kernel: Kernel) -> AttentionPlan {
        AttentionPlan::with_window(self.window).computing_prompts_apart(kernel == Kernel::MatrixUnit)
    }

    /// All sequences in one step each.
    fn at_once(&self) -> Vec<Step> {
        vec![self.sequences.iter().map(|tokens| 0..tokens.len).enumerate().collect()]
    }

    /// Random chunks of random sequences in random order, several sequences per step.
    fn in_chunks(&self, max_chunk: usize, rng: &mut ChaCha8Rng) -> Vec<Step> {
        let mut done = vec![0; self.sequences.len()];
        let mut steps = Vec::new();
        while done.iter().zip(&self.sequences).any(|(done, tokens)| *done < tokens.len) {
            let mut step = Vec::new();
            for (sequence, tokens) in self.sequences.iter().enumerate() {
                let start = done[sequence];
                let end = tokens.len.min(start + rng.random_range(0..=max_chunk));
                if start < end {
                    step.push((sequence, start..end));
                    done[sequence] = end;
                }
            }
            step.shuffle(rng);
            steps.push(step);
        }
        steps
    }
}

fn kv_rows<'a>(key: &'a [f32], value: &'a [f32], row_len: usize) -> KvRows<'a> {
    KvRows { key: StridedRows::dense(key, row_len), value: StridedRows::dense(value, row_len) }
}

fn largest_difference(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    let pairs = left.iter().flatten().zip(right.iter().flatten());
    // NaN must not pass for a small difference.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, difference| if difference <= most { most } else { difference })
}

/// What kernels may differ from the reference by that has the same KV: sums in f32 instead of f64.
const ARITHMETIC: f32 = 1e-4;

fn check_against_reference(world: &World, steps: &[Step]) -> Result<(), TestCaseError> {
    let exact = world.by_reference(steps);
    check_element::<f32>(world, steps, &exact, ARITHMETIC)?;
    check_element::<f16>(world, steps, &exact, 1e-3)?;
    check_element::<bf16>(world, steps, &exact, 1e-2)?;
    if Q8::DTYPE.fits(world.shape.head_size) {
        check_element::<Q8>(world, steps, &exact, 1e-2)?;
    }
    Ok(())
}

/// Kernels over KV in `E` against the reference: within `tolerance` of the answer for KV as it came, and within
/// [`ARITHMETIC`] of that for KV as it was stored.
fn check_element<E: KvElement>(
    world: &World,
    steps: &[Step],
    exact: &[Vec<f32>],
    tolerance: f32,
) -> Result<(), TestCaseError> {
    let stored = world.by_reference_of(steps, stored_values::<E>);
    for kernel in Kernel::all(&world.shape) {
        let found = world.by_kernel::<E>(steps, kernel, 2);
        let (of_exact, of_stored) = (largest_difference(&found, exact), largest_difference(&found, &stored));
        prop_assert!(of_exact <= tolerance, "{kernel:?} {} differs by {of_exact}", E::DTYPE.as_str());
        prop_assert!(of_stored <= ARITHMETIC, "{kernel:?} {} computes {of_stored} beside", E::DTYPE.as_str());
    }
    Ok(())
}

/// One head's values as a pool gives them back: through attention of one token, whose weight is 1.
fn stored_values<E: KvElement>(values: &[f32]) -> Vec<f32> {
    let shape = Shape { num_heads: 1, num_kv_heads: 1, head_size: values.len(), block_size: LANES };
    let zeroes = vec![0.0; values.len()];
    let tokens = Tokens { len: 1, query: zeroes.clone(), key: zeroes, value: values.to_vec() };
    let world = World { shape, sequences: vec![tokens], tables: vec![vec![0]], num_blocks: 1, window: None };
    let portable = *Isa::all().last().expect("portable code runs everywhere");
    world.by_kernel::<E>(&world.at_once(), Kernel::Vectors(portable), 1).remove(0)
}

fn check_bits(left: &[Vec<f32>], right: &[Vec<f32>], what: &str) {
    let bits = |rows: &[Vec<f32>]| rows.iter().flatten().map(|element| element.to_bits()).collect::<Vec<_>>();
    assert_eq!(left.concat().len(), right.concat().len(), "{what}");
    let first = bits(left).iter().zip(bits(right)).position(|(left, right)| *left != right);
    assert_eq!(first, None, "{what}: the first difference");
}

proptest! {
    // `PROPTEST_CASES` may ask for fewer, where a CPU is as slow as valgrind's.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(96)))]

    #[test]
    fn agrees_with_the_reference_on_any_shape(
        num_kv_heads in 1..4_usize,
        group_size in prop::sample::select(vec![1, 2, 3, 4, 7, 8]),
        head_size in prop::sample::select(vec![8, 32, 33, 64, 80, 96, 128, 256]),
        block_size in prop_oneof![1..65_usize, Just(16), Just(32)],
        lens in prop::collection::vec(1..90_usize, 1..4),
        max_chunk in 1..90_usize,
        window in prop::option::of(1..100_usize),
        seed in any::<u64>(),
    ) {
        let shape = Shape { num_heads: num_kv_heads * group_size, num_kv_heads, head_size, block_size };
        let mut world = World::random(shape, &lens, seed);
        world.window = window.and_then(NonZeroUsize::new);
        let steps = world.in_chunks(max_chunk, &mut ChaCha8Rng::seed_from_u64(seed));
        check_against_reference(&world, &steps)?;
    }
}

#[test]
fn agrees_with_the_reference_over_many_spans() {
    for (shape, window) in [(SMOL, None), (ODD, None), (SMOL, Some(270)), (WIDE, Some(500))] {
        let mut world = World::random(shape, &[900, 300], 1);
        world.window = window.and_then(NonZeroUsize::new);
        check_against_reference(&world, &[vec![(0, 0..890), (1, 0..299)], vec![(0, 890..900), (1, 299..300)]]).unwrap();
    }
}

#[test]
fn agrees_with_the_reference_for_windows_around_blocks_tiles_and_contexts() {
    let mut world = World::random(SMOL, &[140, 20], 8);
    let steps = [vec![(0, 0..70)], vec![(0, 70..139), (1, 0..19)], vec![(0, 139..140), (1, 19..20)]];
    for window in [1, 15, 16, 17, 64, 65, 139, 140, 1000] {
        world.window = NonZeroUsize::new(window);
        check_against_reference(&world, &steps).unwrap();
    }
}

#[test]
fn a_token_has_the_same_bits_however_its_sequence_is_cut_and_whatever_runs_beside_it() {
    for (shape, seed) in [(SMOL, 2), (ODD, 3), (WIDE, 7)] {
        check_bits_of_cuts::<f16>(shape, None, seed);
    }
    check_bits_of_cuts::<bf16>(ODD, None, 4);
    check_bits_of_cuts::<Q8>(SMOL, NonZeroUsize::new(50), 5);
    check_bits_of_cuts::<f16>(ODD, NonZeroUsize::new(17), 6);
    check_bits_of_cuts::<f32>(WIDE, NonZeroUsize::new(90), 8);
}

fn check_bits_of_cuts<E: KvElement>(shape: Shape, window: Option<NonZeroUsize>, seed: u64) {
    let mut world = World { window, ..World::random(shape, &[290, 1, 77], seed) };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for kernel in Kernel::all(&shape) {
        let expected = world.by_kernel::<E>(&world.at_once(), kernel, 1);
        let check = |steps: &[Step], num_threads, what: &str| {
            check_bits(&world.by_kernel::<E>(steps, kernel, num_threads), &expected, &format!("{kernel:?} {what}"));
        };
        for max_chunk in [16, 77, 290] {
            check(&world.in_chunks(max_chunk, &mut rng), 1, "in chunks");
        }
        let alone: Vec<Step> = world.at_once()[0].iter().map(|part| vec![part.clone()]).collect();
        check(&alone, 1, "each alone");
        let token_by_token: Vec<Step> = (0..3)
            .flat_map(|sequence| (0..world.sequences[sequence].len).map(move |at| vec![(sequence, at..at + 1)]))
            .collect();
        check(&token_by_token, 2, "token by token, alone");
        world.shuffle_blocks(&mut rng);
        check_bits(&world.by_kernel::<E>(&world.at_once(), kernel, 1), &expected, "in other blocks");
    }
}

#[test]
fn a_token_has_the_same_bits_on_any_number_of_threads() {
    let mut world = World::random(SMOL, &[1100, 40], 4);
    let steps = [vec![(0, 0..1050)], vec![(0, 1050..1099), (1, 0..39)], vec![(0, 1099..1100), (1, 39..40)]];
    for window in [None, NonZeroUsize::new(700), NonZeroUsize::new(17)] {
        world.window = window;
        for kernel in [Kernel::best()].into_iter().chain(Kernel::all(&SMOL).pop()) {
            let expected = world.by_kernel::<f16>(&steps, kernel, 1);
            for num_threads in [2, 3, 16, 512] {
                let found = world.by_kernel::<f16>(&steps, kernel, num_threads);
                check_bits(&found, &expected, &format!("{kernel:?}, {num_threads} threads, window {window:?}"));
            }
        }
    }
}

#[test]
fn what_a_window_hides_is_not_read() {
    let mut world = World::random(SMOL, &[1100], 9);
    world.window = NonZeroUsize::new(300);
    for kernel in Kernel::all(&SMOL) {
        let mut storage = world.storage::<f16>(kernel);
        let steps = [vec![(0, 0..1000)], vec![(0, 1000..1100)]];
        let expected = world.by_storage(&steps, (&mut storage, kernel), 2);
        // A token at 1000 sees what is from 701 on, in block 43.
        let row_len = SMOL.num_kv_heads * SMOL.head_size;
        let garbage = vec![f32::NAN; row_len * 43 * SMOL.block_size];
        let hidden = world.tables[0][..43].iter().flat_map(|block| (block * 16)..(block + 1) * 16).collect::<Vec<_>>();
        storage.write(0, &kv_rows(&garbage, &garbage, row_len), &hidden);
        let found = world.by_storage(&steps[1..], (&mut storage, kernel), 2);
        let seen = expected[0][1000 * SMOL.num_heads * SMOL.head_size..].to_vec();
        check_bits(&found, &[seen], &format!("{kernel:?}, hidden tokens are NaN"));
    }

    let (mut plan, geometry) = (world.plan(Kernel::best()), SMOL.geometry::<f16>());
    plan.fill(&world.batch(&vec![(0, 1099..1100)]), &geometry, SMOL.num_heads, 1);
    assert_eq!(plan.units[0].spans, 3..5, "from token 800 on");
    plan.fill(&world.batch(&vec![(0, 1099..1100)]), &geometry, SMOL.num_heads, 64);
    assert_eq!((plan.tiles.len(), plan.units.len()), (3, 3 * 2), "a unit per head and span that is seen");
}

#[test]
fn generated_tokens_and_prompts_have_their_own_bits_in_one_step() {
    if !matrix_unit_takes(SMOL.head_size) {
        return println!("skipped: this CPU has no matrix unit");
    }
    let world = World::random(SMOL, &[300, 130, 90], 10);
    let all = world.at_once();
    let (by_vectors, by_matrix_unit) =
        (world.by_kernel::<f16>(&all, Kernel::best(), 1), world.by_kernel::<f16>(&all, Kernel::MatrixUnit, 1));
    let differs = by_vectors[0].iter().zip(&by_matrix_unit[0]).any(|(one, other)| one.to_bits() != other.to_bits());
    assert!(differs, "two ways to compute");
    let kv = |pick: fn(&Tokens) -> &[f32]| world.rows(&all[0], SMOL.num_kv_heads, pick);
    let (key, value) = (kv(|tokens| &tokens.key), kv(|tokens| &tokens.value));
    let query = world.rows(&all[0], SMOL.num_heads, |tokens| &tokens.query);
    let mut storage = world.storage::<f16>(Kernel::best());
    let batch = RaggedBatch { num_generated_sequences: 1, ..world.batch(&all[0]) };
    storage.write_on(1, 0, &kv_rows(&key, &value, SMOL.num_kv_heads * SMOL.head_size), &batch.slot_mapping);
    for num_threads in [1, 2, 16] {
        let mut plan = world.plan(Kernel::MatrixUnit);
        plan.fill(&batch, storage.geometry(), SMOL.num_heads, num_threads);
        let mut output = vec![f32::NAN; query.len()];
        let rows = StridedRows::dense(&query, SMOL.num_heads * SMOL.head_size);
        attend(&storage, 0, &QueryRows { query: rows, scale: SMOL.scale() }, &plan, &mut output);
        let expected = [&*by_vectors[0], &by_matrix_unit[1], &by_matrix_unit[2]].concat();
        check_bits(&[output], &[expected], &format!("{num_threads} threads"));
    }
}

#[test]
fn long_contexts_are_cut_for_idle_threads() {
    let world = World::random(SMOL, &[1100], 4);
    let geometry = SMOL.geometry::<f16>();
    let units = |step: Step, num_threads| {
        let mut plan = AttentionPlan::default();
        plan.fill(&world.batch(&step), &geometry, SMOL.num_heads, num_threads);
        (plan.tiles.len(), plan.units.len(), plan.num_partials)
    };
    let decode = || vec![(0, 1099..1100)];
    assert_eq!(units(decode(), 1), (1, 1, 0), "all heads of a block are read together");
    assert_eq!(units(decode(), 64), (3, 3 * 5, 3 * 3 * 5), "a unit per head and span for many threads");
    assert_eq!(units(vec![(0, 0..1024)], 2), (3 * 64, 3 * 64, 0), "a prefill has enough tiles");
    assert_eq!(units(vec![(0, 0..1)], 64), (1, 1, 0), "a little work is not worth waking a thread");
}

#[test]
fn what_is_not_read_does_not_matter() {
    check_unread::<f32>(ODD);
    check_unread::<f16>(WIDE);
    check_unread::<Q8>(SMOL);
}

fn check_unread<E: KvElement>(shape: Shape) {
    let world = World::random(shape, &[100], 5);
    let steps = world.in_chunks(30, &mut ChaCha8Rng::seed_from_u64(5));
    for kernel in Kernel::all(&shape) {
        let mut storage = world.storage::<E>(kernel);
        let garbage = vec![f32::NAN; world.num_blocks * shape.block_size * shape.num_kv_heads * shape.head_size];
        let everywhere: Vec<u32> = (0..(world.num_blocks * shape.block_size) as u32).collect();
        storage.write(0, &kv_rows(&garbage, &garbage, shape.num_kv_heads * shape.head_size), &everywhere);
        let found = world.by_storage(&steps, (&mut storage, kernel), 2);
        check_bits(&found, &world.by_kernel::<E>(&steps, kernel, 2), "a pool full of NaN");
    }
}

#[test]
fn extreme_scores_and_values_stay_finite() {
    // `scripts/check_kernels.sh` reads which they were.
    println!("instruction sets: {:?}", Isa::all());
    check_extremes::<f16>(65504.0);
    check_extremes::<bf16>(1e6);
    check_extremes::<Q8>(1e6);
}

fn check_extremes<E: KvElement>(largest: f32) {
    let mut world = World::random(SMOL, &[70], 6);
    world.sequences[0].query.iter_mut().for_each(|element| *element *= 1e4);
    world.sequences[0].value.iter_mut().for_each(|element| *element *= 1e6);
    for kernel in Kernel::all(&SMOL) {
        let found = world.by_kernel::<E>(&world.at_once(), kernel, 2);
        assert!(found[0].iter().all(|element| element.abs() <= largest * 1.01), "{kernel:?} {}", E::DTYPE.as_str());
    }
}

#[test]
fn eight_bits_round_to_half_a_step_of_their_run() {
    let run: Vec<f32> =
        (0..64).map(|element| (element as f32 - 40.0) / if element < 32 { 1.0 } else { 1000.0 }).collect();
    for (run, stored) in run.chunks(32).zip(stored_values::<Q8>(&run).chunks(32)) {
        let largest = run.iter().fold(0.0_f32, |largest, element| largest.max(element.abs()));
        for (element, stored) in run.iter().zip(stored) {
            // Half a step, and what the scale lost as an f16.
            assert!((element - stored).abs() <= largest / 127.0 * 0.5 + largest / 1024.0, "{element} became {stored}");
        }
    }
    assert_eq!(stored_values::<Q8>(&[0.0; 32]), [0.0; 32]);
    let mut broken = [1.0; 64];
    broken[3] = f32::NAN;
    let stored = stored_values::<Q8>(&broken);
    assert!(stored[..32].iter().all(|element| element.is_nan()), "a broken model is seen");
    assert!(stored[32..].iter().all(|element| (element - 1.0).abs() < 1e-3), "and only in its run");
}

#[test]
fn a_copied_block_reads_as_the_one_it_was_copied_from() {
    check_copy::<f32>();
    check_copy::<Q8>();
}

fn check_copy<E: KvElement>() {
    let mut world = World::random(SMOL, &[3 * SMOL.block_size], 7);
    let (prompt, rest) = (40, 40..48);
    let mut storage = world.storage::<E>(Kernel::best());
    let expected =
        world.by_storage(&[vec![(0, 0..prompt)], vec![(0, rest.clone())]], (&mut storage, Kernel::best()), 1);
    let mut storage = world.storage::<E>(Kernel::best());
    let mut found = world.by_storage(&[vec![(0, 0..prompt)]], (&mut storage, Kernel::best()), 1);
    let from = world.tables[0][2];
    let unused = (0..world.num_blocks as u32).find(|block| !world.tables[0].contains(block)).unwrap();
    storage.copy_block(BlockCopy { from: BlockId(from), to: BlockId(unused) });
    world.tables[0][2] = unused;
    found[0].extend(world.by_storage(&[vec![(0, rest)]], (&mut storage, Kernel::best()), 1).remove(0));
    check_bits(&found, &expected, E::DTYPE.as_str());
}

#[test]
fn a_slot_that_is_written_twice_has_what_came_last_on_any_number_of_threads() {
    let row_len = SMOL.num_kv_heads * SMOL.head_size;
    let world = World::random(SMOL, &[400], 8);
    let tokens = &world.sequences[0];
    let slots: Vec<u32> = (0..400).map(|token| token * 7 % 90).collect();
    let pool = |num_threads| {
        let mut storage = world.storage::<f16>(Kernel::best());
        storage.write_on(num_threads, 0, &kv_rows(&tokens.key, &tokens.value, row_len), &slots);
        let heads =
            (0..world.num_blocks as u32).flat_map(|block| (0..SMOL.num_kv_heads).map(move |head| (block, head)));
        let bits = heads.flat_map(|(block, head)| {
            let head = storage.head_block(0, block, head);
            head.keys.iter().chain(head.values).map(|element| element.to_bits()).collect::<Vec<_>>()
        });
        bits.collect::<Vec<_>>()
    };
    let in_order = pool(1);
    let last = slots.iter().rposition(|slot| *slot == 5).unwrap();
    let value = f16::from_f32(tokens.value[last * row_len]).to_bits();
    let geometry = SMOL.geometry::<f16>();
    assert_eq!(in_order[geometry.num_groups * geometry.group_len + 5 * geometry.row_len], value);
    for num_threads in [2, 3, 16] {
        assert!(pool(num_threads) == in_order, "{num_threads} threads");
    }
}
