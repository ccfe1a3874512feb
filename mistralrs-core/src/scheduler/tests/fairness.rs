//! Classes, aging, and the shares of prefill and decode.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

#[test]
fn a_lower_class_number_is_served_first_and_each_class_in_order_of_arrival() {
    let mut bench = Bench::new(64, SchedulerConfig { max_num_seqs: 2, priority_aging: 100, ..WIDE });
    for priority in [0, 1, -1, 0, 1, -1] {
        bench.submit_in_class(priority, 1);
    }
    let mut served = Vec::new();
    while !bench.scheduler.is_idle() {
        let plan = bench.step();
        served.extend(plan.admitted.iter().map(|id| id.0));
        for id in plan.admitted {
            bench.finish(id);
        }
    }
    assert_eq!(served, [2, 5, 0, 3, 1, 4]);
}

#[test]
fn priorities_without_aging_have_no_effect() {
    let mut bench = Bench::new(64, SchedulerConfig { priority_aging: 0, max_num_seqs: 1, ..WIDE });
    bench.submit_in_class(100, 1);
    bench.submit_in_class(-100, 1);
    assert_eq!(bench.step().admitted, [SequenceId(0)]);
}

/// Whoever waits is passed by at most `priority_aging` later arrivals for each class between them.
#[test]
fn nobody_is_passed_by_more_than_the_aging_bound() {
    let mut rng = StdRng::seed_from_u64(3);
    for priority_aging in [1, 3, 10] {
        let mut bench = Bench::new(16, SchedulerConfig { max_num_seqs: 1, priority_aging, ..WIDE });
        let mut priorities = Vec::new();
        let mut served = Vec::new();
        for _ in 0..600 {
            // Twice as many come as are served, so that the line grows and only its order decides.
            for _ in 0..rng.random_range(1..=3) {
                let priority = rng.random_range(-3..=3);
                priorities.push(priority);
                bench.submit_in_class(priority, 1);
            }
            let id = bench.step().admitted[0];
            served.push(id.0 as usize);
            bench.finish(id);
        }
        for (turn, &index) in served.iter().enumerate() {
            for class in -3..priorities[index] {
                let passed_by = served[..turn].iter().filter(|&&other| other > index && priorities[other] == class);
                let bound = usize::try_from(priorities[index] - class).unwrap() * priority_aging;
                assert!(passed_by.count() <= bound, "sequence {index} of aging {priority_aging}");
            }
            let earlier = served[turn..].iter().filter(|&&other| other < index);
            assert!(
                earlier.into_iter().all(|&other| priorities[other] > priorities[index]),
                "first come, first served"
            );
        }
    }
}

#[test]
fn an_endless_stream_of_urgent_requests_holds_a_low_one_up_for_a_bounded_number_of_turns() {
    let mut bench = Bench::new(64, SchedulerConfig { max_num_seqs: 1, ..WIDE });
    let low = bench.submit_in_class(2, 1);
    let mut num_turns = 0;
    loop {
        bench.submit_in_class(0, 1);
        let id = bench.step().admitted[0];
        if id == low {
            break;
        }
        num_turns += 1;
        bench.finish(id);
    }
    assert_eq!(num_turns, 7, "two classes of four places: the eighth later arrival stands behind it");
}

#[test]
fn an_urgent_request_passes_a_long_prompt_that_is_being_computed() {
    let mut bench = Bench::new(64, SchedulerConfig { max_num_batched_tokens: 4, ..WIDE });
    bench.submit_in_class(1, 10);
    let mut steps = bench.steps(1);
    bench.submit_in_class(0, 3);
    bench.submit_in_class(1, 2);
    steps += &bench.steps(4);
    insta::assert_snapshot!(steps, @"
    prefill 0x4
    prefill 1x3 0x1
    decode 1x1 | prefill 0x3
    decode 1x1 | prefill 0x2 2x1
    decode 1x1 0x1 2x1
    ");
}

#[test]
fn the_newest_of_the_lowest_class_gives_way_first() {
    // 8 blocks of 2 tokens hold three prompts of 3 and a block for each of the first two.
    let mut bench = Bench::new(8, WIDE);
    for priority in [1, 1, 0] {
        bench.submit_in_class(priority, 3);
    }
    insta::assert_snapshot!(bench.steps(4), @"
    prefill 2x3 0x3 1x3
    decode 2x1 0x1 1x1
    decode 2x1 0x1 | preempt 1
    decode 2x1 0x1
    ");
}

#[test]
fn decodes_all_run_in_every_step_and_the_first_prompt_gets_its_share() {
    let config = SchedulerConfig { max_num_seqs: 16, max_num_batched_tokens: 8, priority_aging: 4 };
    let mut bench = Bench::new(1024, config);
    for _ in 0..10 {
        bench.submit(1);
    }
    while bench.scheduler.running().iter().filter(|sequence| sequence.is_decoding()).count() < 10 {
        bench.step();
    }
    let num_tokens = 50;
    let prompt = bench.submit(num_tokens);
    bench.submit(50);
    let mut num_steps = 0;
    loop {
        let plan = bench.step();
        num_steps += 1;
        let num_decodes = plan.chunks.iter().filter(|chunk| chunk.phase == Phase::Decode).count();
        assert_eq!(num_decodes, 10, "no prompt holds a decode up");
        assert!(plan.num_tokens() <= num_decodes + config.max_num_batched_tokens.div_ceil(PREFILL_SHARE));
        if plan.chunks.iter().any(|chunk| chunk.id == prompt && chunk.is_last) {
            break;
        }
    }
    assert_eq!(num_steps, (num_tokens * PREFILL_SHARE).div_ceil(config.max_num_batched_tokens), "the stated bound");
}

#[test]
fn a_limit_on_mixed_steps_cuts_prompts_only_where_others_decode() {
    let mut bench = Bench::new(64, WIDE);
    bench.scheduler.limit_mixed_steps(4);
    bench.submit(20);
    let mut steps = bench.steps(1);
    bench.submit(7);
    steps += &bench.steps(3);
    bench.scheduler.limit_mixed_steps(1);
    bench.submit(3);
    steps += &bench.steps(3);
    insta::assert_snapshot!(steps, @"
    prefill 0x20
    decode 0x1 | prefill 1x3
    decode 0x1 | prefill 1x3
    decode 0x1 1x1
    decode 0x1 1x1 | prefill 2x1
    decode 0x1 1x1 | prefill 2x1
    decode 0x1 1x1 2x1
    ");
}
