//! Plans as text: what the scheduler decides for a handful of blocks.

mod fairness;
mod pressure;
mod random_operations;

use std::fmt::Write;

use mistralrs_paged_attn::{BlockManager, PrefixSalt};

use super::*;
use crate::request::Priority;

const BLOCK_SIZE: usize = 2;

struct Bench {
    scheduler: Scheduler,
    blocks: BlockManager,
    next_id: u64,
}

impl Bench {
    fn new(num_blocks: usize, config: SchedulerConfig) -> Self {
        Self::over(BlockManager::new(num_blocks, BLOCK_SIZE, true), config)
    }

    fn without_prefix_cache(num_blocks: usize, config: SchedulerConfig) -> Self {
        Self::over(BlockManager::new(num_blocks, BLOCK_SIZE, false), config)
    }

    fn over(blocks: BlockManager, config: SchedulerConfig) -> Self {
        Self { scheduler: Scheduler::new(config), blocks, next_id: 0 }
    }

    /// A prompt of its own, so that no two share a prefix by chance.
    fn submit(&mut self, num_tokens: usize) -> SequenceId {
        self.submit_in_class(0, num_tokens)
    }

    fn submit_in_class(&mut self, priority: i64, num_tokens: usize) -> SequenceId {
        let first = self.next_id as u32 * 1000;
        let mut sequence = self.sequence((first..first + num_tokens as u32).collect());
        sequence.priority = Priority::new(priority).unwrap();
        self.enqueue(sequence)
    }

    fn submit_prompt(&mut self, prompt: Vec<u32>) -> SequenceId {
        let sequence = self.sequence(prompt);
        self.enqueue(sequence)
    }

    /// All choices of one request.
    fn submit_choices(&mut self, num_choices: usize, prompt: &[u32]) {
        let leader = SequenceId(self.next_id);
        for choice in 0..num_choices {
            let mut sequence = self.sequence(prompt.to_vec());
            sequence.leader = (choice > 0).then_some(leader);
            self.enqueue(sequence);
        }
    }

    fn sequence(&mut self, prompt: Vec<u32>) -> Sequence {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let hashes = self.blocks.hash_blocks(&prompt, &PrefixSalt::default());
        Sequence::new(id, None, prompt, hashes)
    }

    fn enqueue(&mut self, sequence: Sequence) -> SequenceId {
        let id = sequence.id;
        self.scheduler.enqueue(sequence);
        id
    }

    /// Schedules and computes one step, appending a token wherever one is due.
    fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.schedule(&self.blocks);
        self.check_kinds(&plan);
        for chunk in &plan.chunks {
            self.scheduler.complete(chunk, &self.blocks);
            if chunk.is_last {
                let sequence = self.scheduler.running_mut(chunk.id).expect("planned sequences run");
                sequence.token_ids.push(7);
            }
        }
        self.scheduler.check_invariants(&self.blocks);
        plan
    }

    /// No chunk is of a prompt and of generated tokens, and prompts stand last.
    fn check_kinds(&self, plan: &StepPlan) {
        let is_prompt = |chunk: &ScheduledChunk| {
            let sequence = self.scheduler.running_sequence(chunk.id).expect("planned sequences run");
            let end = sequence.num_computed + chunk.num_scheduled;
            assert!(!sequence.is_in_prompt() || end <= sequence.num_prompt_tokens, "{chunk:?} is of two kinds");
            sequence.is_in_prompt()
        };
        assert!(plan.chunks.is_sorted_by_key(is_prompt), "{:?}", plan.chunks);
    }

    /// The next steps as text.
    fn steps(&mut self, num_steps: usize) -> String {
        (0..num_steps).map(|_| render(&self.step()) + "\n").collect()
    }

    fn finish(&mut self, id: SequenceId) {
        self.scheduler.remove(id, &self.blocks).expect("only what is there is finished");
        self.scheduler.check_invariants(&self.blocks);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.scheduler.clear(&self.blocks);
    }
}

fn render(plan: &StepPlan) -> String {
    let list = |phase: Phase| {
        let chunks = plan.chunks.iter().filter(|chunk| chunk.phase == phase);
        chunks.map(|chunk| format!("{}x{}", chunk.id.0, chunk.num_scheduled)).collect::<Vec<_>>().join(" ")
    };
    let mut line = String::new();
    for (name, chunks) in [("decode", list(Phase::Decode)), ("prefill", list(Phase::Prefill))] {
        if !chunks.is_empty() {
            let _ = write!(line, "{}{name} {chunks}", if line.is_empty() { "" } else { " | " });
        }
    }
    for copy in &plan.copies {
        let _ = write!(line, " | copy {}to{}", copy.from.0, copy.to.0);
    }
    for id in &plan.preempted {
        let _ = write!(line, " | preempt {}", id.0);
    }
    line
}

/// Submits prompts of these lengths and compares the first steps, one line each: `phase idxtokens`.
fn check(num_blocks: usize, config: SchedulerConfig, prompts: &[usize], expected: &str) {
    let mut bench = Bench::new(num_blocks, config);
    for &num_tokens in prompts {
        bench.submit(num_tokens);
    }
    assert_eq!(bench.steps(expected.lines().count()).trim(), expected);
}

const WIDE: SchedulerConfig = SchedulerConfig { max_num_seqs: 8, max_num_batched_tokens: 64, priority_aging: 4 };

#[test]
fn sequences_of_different_lengths_share_one_batch() {
    check(16, WIDE, &[3, 5, 1], "prefill 0x3 1x5 2x1\ndecode 0x1 1x1 2x1");
}

#[test]
fn long_prompts_run_in_chunks_beside_decodes() {
    let config = SchedulerConfig { max_num_batched_tokens: 4, ..WIDE };
    check(16, config, &[2, 7], "prefill 0x2 1x2\ndecode 0x1 | prefill 1x3\ndecode 0x1 | prefill 1x2\ndecode 0x1 1x1");
}

#[test]
fn preempts_the_newest_sequence_when_blocks_run_out() {
    // 5 blocks of 2 tokens: prompts of 3 take two each; the third block of each does not fit.
    check(
        5,
        WIDE,
        &[3, 3],
        "prefill 0x3 1x3\ndecode 0x1 1x1\ndecode 0x1 | preempt 1\ndecode 0x1\ndecode 0x1\ndecode 0x1",
    );
}

#[test]
fn the_batch_has_at_most_max_num_seqs() {
    let config = SchedulerConfig { max_num_seqs: 2, ..WIDE };
    check(16, config, &[1, 1, 1], "prefill 0x1 1x1\ndecode 0x1 1x1");
}

#[test]
fn nobody_overtakes_a_long_prompt_that_waits_for_blocks() {
    // 0 takes three of eight blocks; 1 needs five and one in reserve; 2 would fit but came later.
    check(8, WIDE, &[6, 10, 1], "prefill 0x6\ndecode 0x1\ndecode 0x1");
}

#[test]
fn a_preempted_sequence_runs_again_before_newcomers() {
    let mut bench = Bench::new(5, WIDE);
    let first = bench.submit(3);
    bench.submit(3);
    while bench.scheduler.running().len() < 2 {
        bench.step();
    }
    while bench.step().preempted.is_empty() {}
    bench.submit(1);
    bench.scheduler.remove(first, &bench.blocks);
    let plan = bench.step();
    assert_eq!(plan.admitted, [SequenceId(1), SequenceId(2)]);
}

#[test]
fn recomputing_after_preemption_starts_at_what_the_prefix_cache_kept() {
    let mut bench = Bench::new(6, WIDE);
    let first = bench.submit(4);
    bench.submit(4);
    while bench.step().preempted.is_empty() {}
    bench.scheduler.remove(first, &bench.blocks);
    bench.step();
    assert!(bench.scheduler.running()[0].num_cached > 0, "its full blocks were still there");
}

#[test]
fn a_shared_prompt_is_computed_once() {
    let mut bench = Bench::new(16, WIDE);
    let prompt: Vec<u32> = (0..9).collect();
    bench.submit_prompt(prompt.clone());
    bench.step();
    bench.submit_prompt(prompt);
    assert_eq!(render(&bench.step()), "decode 0x1 | prefill 1x1", "four full blocks of nine tokens are cached");
}

#[test]
fn a_prompt_adopts_generated_tokens_only_if_their_kv_is_that_of_a_prompt() {
    for (is_apart, num_cached) in [(false, 8), (true, 4)] {
        let mut bench = Bench::new(16, WIDE);
        bench.scheduler = Scheduler::new(WIDE).keeping_generated_apart(is_apart);
        let first = bench.submit_prompt((0..5).collect());
        bench.steps(5);
        // Five of the prompt, and sevens; the newest has no KV yet.
        let known = bench.scheduler.running_sequence(first).unwrap().token_ids.clone();
        assert_eq!(known[4..], [4, 7, 7, 7, 7, 7]);
        bench.finish(first);
        bench.submit_prompt(known);
        bench.step();
        assert_eq!(bench.scheduler.running()[0].num_cached, num_cached, "apart: {is_apart}");
    }
}

#[test]
fn what_computes_each_token_neither_adopts_blocks_nor_leaves_any() {
    let mut bench = Bench::new(16, WIDE);
    let prompt: Vec<u32> = (0..9).collect();
    let submit = |bench: &mut Bench, prefix_sharing: PrefixSharing| {
        let hashes = match prefix_sharing {
            PrefixSharing::Shared => bench.blocks.hash_blocks(&prompt, &PrefixSalt::default()),
            PrefixSharing::Private => Vec::new(),
        };
        let sequence = Sequence::new(SequenceId(bench.next_id), None, prompt.clone(), hashes);
        bench.next_id += 1;
        bench.enqueue(Sequence { prefix_sharing, ..sequence })
    };
    let mut steps = String::new();
    for prefix_sharing in [PrefixSharing::Private, PrefixSharing::Shared, PrefixSharing::Private] {
        let id = submit(&mut bench, prefix_sharing);
        steps += &bench.steps(1);
        bench.finish(id);
    }
    assert_eq!(steps, "prefill 0x9\nprefill 1x9\nprefill 2x9\n");
    submit(&mut bench, PrefixSharing::Shared);
    assert_eq!(bench.steps(1), "prefill 3x1\n", "what the other left is still there");
}

#[test]
fn later_choices_wait_for_the_prompt_of_the_first_and_compute_only_its_last_token() {
    for enable_prefix_cache in [true, false] {
        let blocks = BlockManager::new(32, BLOCK_SIZE, enable_prefix_cache);
        let mut bench = Bench::over(blocks, SchedulerConfig { max_num_batched_tokens: 4, ..WIDE });
        bench.submit_choices(3, &(0..8).collect::<Vec<_>>());
        let steps = [
            "prefill 0x4",
            "prefill 0x4",
            "decode 0x1 | prefill 1x1 2x1 | copy 3to5 | copy 3to6",
            "decode 0x1 1x1 2x1",
        ];
        assert_eq!(bench.steps(4).trim(), steps.join("\n"), "with or without a prefix cache");
    }
}

#[test]
fn choices_of_a_long_prompt_take_little_more_than_its_blocks() {
    let mut bench = Bench::new(200, SchedulerConfig { max_num_batched_tokens: 256, ..WIDE });
    bench.submit_choices(8, &(0..101).collect::<Vec<_>>());
    bench.step();
    assert_eq!(bench.blocks.usage().num_used, 51, "one prompt");
    bench.step();
    assert_eq!(bench.scheduler.running().len(), 8);
    assert_eq!(bench.blocks.usage().num_used, 51 + 7, "and for each further choice the block that it writes to");
}

#[test]
fn a_choice_whose_first_is_gone_computes_the_prompt_itself() {
    let mut bench = Bench::without_prefix_cache(32, WIDE);
    bench.submit_choices(2, &[1, 2, 3]);
    bench.step();
    bench.finish(SequenceId(0));
    insta::assert_snapshot!(bench.steps(1), @"prefill 1x3");
}
