//! Any order of arrivals, steps, ends and departures leaves every block accounted for, and everyone is served.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Longer sequences end, as by the engine's length limit.
const MAX_TOKENS: usize = 20;

/// A hundred thousand operations over small caches of every kind: most steps preempt, evict, fork or share something.
#[test]
fn a_hundred_thousand_random_operations_keep_every_invariant_and_leak_nothing() {
    let mut rng = StdRng::seed_from_u64(17);
    let mut seen = Seen::default();
    for _ in 0..50 {
        let config = SchedulerConfig {
            max_num_seqs: rng.random_range(1..8),
            max_num_batched_tokens: rng.random_range(1..24),
            priority_aging: rng.random_range(0..6),
        };
        // The longest sequence fits, as submission checks.
        let num_blocks = rng.random_range(MAX_TOKENS / BLOCK_SIZE..40);
        let blocks = BlockManager::new(num_blocks, BLOCK_SIZE, rng.random_bool(0.7));
        let mut bench = Bench::over(blocks, config);
        bench.scheduler = Scheduler::new(config).keeping_generated_apart(rng.random_bool(0.5));
        for _ in 0..2_000 {
            operate(&mut bench, &mut rng, &mut seen);
        }
        while !bench.scheduler.is_idle() {
            step(&mut bench, &mut seen);
        }
        assert_eq!(bench.blocks.usage().num_used, 0);
        seen.evictions += bench.blocks.usage().num_evictions;
        seen.hits += bench.blocks.usage().num_hits;
    }
    assert!(seen.preemptions > 1_000 && seen.copies > 1_000, "{seen:?}");
    assert!(seen.evictions > 1_000 && seen.hits > 1_000, "{seen:?}");
}

/// What the run went through.
#[derive(Debug, Default)]
struct Seen {
    preemptions: usize,
    copies: usize,
    evictions: u64,
    hits: u64,
}

fn operate(bench: &mut Bench, rng: &mut StdRng, seen: &mut Seen) {
    let has_room = bench.scheduler.waiting().len() < 20;
    let num_tokens = rng.random_range(1..MAX_TOKENS);
    match rng.random_range(0..10) {
        0 if has_room => {
            bench.submit_in_class(rng.random_range(-2..=2), num_tokens);
        }
        1 if has_room => {
            // Out of few families, so that prefixes are shared often.
            let family = rng.random_range(0..3);
            bench.submit_prompt((0..num_tokens as u32).map(|token| token / 6 * family).collect());
        }
        2 if has_room => {
            let num_choices = rng.random_range(2..4);
            bench.submit_choices(num_choices, &(0..num_tokens as u32).collect::<Vec<_>>());
        }
        3 => remove_random(bench, rng),
        _ => step(bench, seen),
    }
}

fn step(bench: &mut Bench, seen: &mut Seen) {
    let is_idle = bench.scheduler.is_idle();
    let plan = bench.step();
    assert!(is_idle || !plan.chunks.is_empty(), "someone always makes progress");
    seen.preemptions += plan.preempted.len();
    seen.copies += plan.copies.len();
    let running = bench.scheduler.running().iter();
    let ended: Vec<_> = running.filter(|it| it.token_ids.len() >= MAX_TOKENS).map(|it| it.id).collect();
    for id in ended {
        bench.finish(id);
    }
}

/// A client leaves, whether what it asked for runs or waits.
fn remove_random(bench: &mut Bench, rng: &mut StdRng) {
    let ids: Vec<_> = bench.scheduler.running().iter().chain(bench.scheduler.waiting()).map(|it| it.id).collect();
    if !ids.is_empty() {
        bench.finish(ids[rng.random_range(0..ids.len())]);
    }
}
