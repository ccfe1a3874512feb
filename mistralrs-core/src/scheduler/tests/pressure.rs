//! A cache that is too small: who gives way, who comes back when, and what that costs.

use super::*;

#[test]
fn a_preempted_sequence_waits_for_room_that_pays_for_recomputing_it() {
    let mut bench = Bench::without_prefix_cache(30, WIDE);
    let (first, second, long) = (bench.submit(4), bench.submit(4), bench.submit(30));
    while bench.step().preempted.is_empty() {}
    let num_tokens = bench.scheduler.waiting().next().unwrap().token_ids.len();
    bench.finish(second);
    let num_blocks = num_tokens.div_ceil(BLOCK_SIZE);
    assert!(num_blocks < bench.blocks.usage().num_available(), "it would fit, for a few steps");
    assert!(bench.step().admitted.is_empty());
    bench.finish(first);
    assert_eq!(bench.step().admitted, [long]);
}

/// Prompts may be computed in another precision than what was generated: no step does both for one sequence.
#[test]
fn generated_tokens_are_computed_again_after_the_prompt_and_before_the_prompts_of_others() {
    let mut bench = Bench::without_prefix_cache(6, WIDE);
    let first = bench.submit(3);
    bench.submit(3);
    // The second has seven tokens when it gives way.
    while bench.step().preempted.is_empty() {}
    bench.finish(first);
    assert_eq!(render(&bench.step()), "prefill 1x3");
    bench.submit(2);
    let plan = bench.step();
    let chunks: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.id.0, chunk.num_scheduled, chunk.is_last)).collect();
    assert_eq!(chunks, [(1, 4, true), (2, 2, true)]);
}

#[test]
fn a_prompt_whose_last_token_is_left_stands_with_the_prompts_and_gets_no_guesses() {
    let mut bench = Bench::new(16, SchedulerConfig { max_num_batched_tokens: 4, ..WIDE });
    let (first, second) = (bench.submit(5), bench.submit(4));
    assert_eq!(render(&bench.step()), "prefill 0x4");
    for id in [first, second] {
        if let Some(sequence) = bench.scheduler.running_mut(id) {
            sequence.draft = vec![1, 2];
        }
    }
    let plan = bench.step();
    let chunks: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.id.0, chunk.num_scheduled, chunk.phase)).collect();
    assert_eq!(chunks, [(0, 1, Phase::Decode), (1, 3, Phase::Prefill)]);
    // The first decodes now, the second's last token is the prompt's: it comes after.
    let plan = bench.step();
    let chunks: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.id.0, chunk.num_scheduled)).collect();
    assert_eq!(chunks, [(0, 1), (1, 1)]);
}

#[test]
fn answers_that_cannot_grow_so_far_need_less_room() {
    let mut bench = Bench::without_prefix_cache(40, WIDE);
    bench.submit(20);
    let mut second = bench.sequence((0..20).collect());
    second.was_preempted = true;
    second.max_num_tokens = 21;
    let second = bench.enqueue(second);
    assert_eq!(bench.step().admitted, [SequenceId(0), second]);
}

struct Work {
    steps: usize,
    computed: usize,
    needed: usize,
}

/// Runs sequences of `num_prompt` and `num_output` tokens to their end, and checks what each recomputed.
fn run_all(bench: &mut Bench, num_sequences: usize, num_prompt: usize, num_output: usize) -> Work {
    for _ in 0..num_sequences {
        bench.submit(num_prompt);
    }
    let mut num_computed = HashMap::<SequenceId, usize>::new();
    let mut num_steps = 0;
    while !bench.scheduler.is_idle() {
        let plan = bench.step();
        assert!(!plan.chunks.is_empty(), "someone always makes progress");
        num_steps += 1;
        for chunk in &plan.chunks {
            *num_computed.entry(chunk.id).or_default() += chunk.num_scheduled;
        }
        let ended = bench.scheduler.running().iter().filter(|sequence| sequence.num_output_tokens() == num_output);
        for id in ended.map(|sequence| sequence.id).collect::<Vec<_>>() {
            bench.finish(id);
        }
    }
    // The last token of an answer is never computed.
    let num_needed = num_prompt + num_output - 1;
    for (id, num_computed) in &num_computed {
        let num_recomputed = num_computed - num_needed;
        assert!(num_recomputed <= READMISSION_COST * num_output + num_needed, "{id:?} recomputed {num_recomputed}");
    }
    Work { steps: num_steps, computed: num_computed.values().sum(), needed: num_needed * num_sequences }
}

/// 24 sequences that become 128 tokens long over a cache of 400, where three fit. Simulated on the same work, a scheduler
/// that admits whenever a block is free and takes blocks chunk by chunk computes 15394 tokens instead of 3048.
#[test]
fn a_cache_that_is_far_too_small_does_not_thrash() {
    let config = SchedulerConfig { max_num_seqs: 32, max_num_batched_tokens: 64, priority_aging: 4 };
    let mut bench = Bench::without_prefix_cache(200, config);
    let Work { steps, computed, needed } = run_all(&mut bench, 24, 32, 96);
    assert!(2 * computed < 3 * needed, "computed {computed} tokens, needed {needed}");
    assert!(steps < 24 / 3 * 96, "{steps} steps; three at a time take 768");
}

#[test]
fn guesses_take_only_blocks_that_no_decode_needs() {
    // 4 blocks of 2 tokens. Both sequences fill a block and need the next one; the first would like two more.
    let config = SchedulerConfig { max_num_seqs: 8, max_num_batched_tokens: 64, priority_aging: 4 };
    let mut bench = Bench::without_prefix_cache(4, config);
    bench.submit(2);
    bench.submit(2);
    bench.step();
    bench.scheduler.batch_mut()[0].draft = vec![1, 2, 3];
    let plan = bench.scheduler.schedule(&bench.blocks);
    let planned: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.num_scheduled, chunk.num_drafted)).collect();
    assert_eq!(planned, [(1, 0), (1, 0)], "neither is preempted for a guess");
    bench.scheduler.batch_mut()[0].draft = vec![1];
    let plan = bench.scheduler.schedule(&bench.blocks);
    let planned: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.num_scheduled, chunk.num_drafted)).collect();
    assert_eq!(planned, [(2, 1), (1, 0)], "the second slot of a block is there already");
}
