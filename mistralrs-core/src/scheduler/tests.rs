//! Plans as text: what the scheduler decides for a handful of blocks, and that nothing ever leaks.

use std::fmt::Write;

use mistralrs_paged_attn::{BlockManager, PrefixSalt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const BLOCK_SIZE: usize = 2;

struct Bench {
    scheduler: Scheduler,
    blocks: BlockManager,
    next_id: u64,
}

impl Bench {
    fn new(num_blocks: usize, config: SchedulerConfig) -> Self {
        let blocks = BlockManager::new(num_blocks, BLOCK_SIZE, true);
        Self { scheduler: Scheduler::new(config), blocks, next_id: 0 }
    }

    /// A prompt of its own, so that no two share a prefix by chance.
    fn submit(&mut self, num_tokens: usize) -> SequenceId {
        let first = self.next_id as u32 * 1000;
        self.submit_prompt((first..first + num_tokens as u32).collect())
    }

    fn submit_prompt(&mut self, prompt: Vec<u32>) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let hashes = self.blocks.hash_blocks(&prompt, &PrefixSalt::default());
        self.scheduler.enqueue(Sequence::new(id, None, prompt, hashes));
        id
    }

    /// Schedules and computes one step, appending a token wherever one is due.
    fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.schedule(&self.blocks);
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
    let steps: Vec<_> = expected.trim().lines().map(|_| render(&bench.step())).collect();
    let expected: Vec<_> = expected.trim().lines().map(str::trim).collect();
    assert_eq!(steps, expected);
}

const WIDE: SchedulerConfig = SchedulerConfig { max_num_seqs: 8, max_num_batched_tokens: 64 };

#[test]
fn sequences_of_different_lengths_share_one_batch() {
    check(16, WIDE, &[3, 5, 1], "prefill 0x3 1x5 2x1\ndecode 0x1 1x1 2x1");
}

#[test]
fn long_prompts_run_in_chunks_beside_decodes() {
    let config = SchedulerConfig { max_num_seqs: 8, max_num_batched_tokens: 4 };
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
fn later_choices_wait_for_the_prompt_of_the_first() {
    let mut bench = Bench::new(32, SchedulerConfig { max_num_seqs: 8, max_num_batched_tokens: 4 });
    let prompt: Vec<u32> = (0..8).collect();
    let hashes = bench.blocks.hash_blocks(&prompt, &PrefixSalt::default());
    for choice in 0..3 {
        let leader = (choice > 0).then_some(SequenceId(0));
        bench.scheduler.enqueue(Sequence::new(SequenceId(choice), leader, prompt.clone(), hashes.clone()));
    }
    let steps: Vec<_> = (0..4).map(|_| render(&bench.step())).collect();
    assert_eq!(steps[..2], ["prefill 0x4", "prefill 0x4"]);
    assert_eq!(steps[2], "decode 0x1 | prefill 1x2 2x1", "three of four blocks came from the first choice");
    assert_eq!(steps[3], "decode 0x1 1x1 2x1");
}

/// Any order of arrivals, steps, ends and departures leaves every block accounted for, and everyone is served.
#[test]
fn random_operations_keep_every_invariant_and_leak_nothing() {
    let mut rng = StdRng::seed_from_u64(17);
    for _ in 0..20 {
        let config =
            SchedulerConfig { max_num_seqs: rng.random_range(1..6), max_num_batched_tokens: rng.random_range(6..24) };
        let num_blocks = rng.random_range(12..40);
        let mut bench = Bench::new(num_blocks, config);
        for _ in 0..2_000 {
            match rng.random_range(0..10) {
                0 | 1 if bench.scheduler.waiting().len() < 20 => {
                    let num_tokens = rng.random_range(1..16);
                    if rng.random_bool(0.5) {
                        bench.submit_prompt((0..num_tokens as u32).collect());
                    } else {
                        bench.submit(num_tokens);
                    }
                }
                2 => remove_random(&mut bench, &mut rng),
                _ => {
                    bench.step();
                    end_long_ones(&mut bench, num_blocks * BLOCK_SIZE);
                }
            }
        }
        while !bench.scheduler.is_idle() {
            let plan = bench.step();
            assert!(!plan.chunks.is_empty(), "someone always makes progress");
            end_long_ones(&mut bench, 18);
        }
        assert_eq!(bench.blocks.usage().num_used, 0);
    }
}

fn remove_random(bench: &mut Bench, rng: &mut StdRng) {
    let ids: Vec<_> = bench.scheduler.running().iter().chain(bench.scheduler.waiting()).map(|s| s.id).collect();
    if !ids.is_empty() {
        bench.scheduler.remove(ids[rng.random_range(0..ids.len())], &bench.blocks);
        bench.scheduler.check_invariants(&bench.blocks);
    }
}

/// Ends sequences that reached the longest length that fits, as the engine's length limit does.
fn end_long_ones(bench: &mut Bench, max_tokens: usize) {
    let running = bench.scheduler.running().iter();
    let long: Vec<_> = running.filter(|s| s.token_ids.len() >= max_tokens.min(20)).map(|s| s.id).collect();
    for id in long {
        bench.scheduler.remove(id, &bench.blocks);
    }
}
