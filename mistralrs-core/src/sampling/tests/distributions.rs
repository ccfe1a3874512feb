//! The fast sampler against the plain one, over random logits, parameters and histories.

use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::sampling::reference;

/// Logits as models have them: a bulk, and a few that stand out; with ties.
fn random_logits(rng: &mut ChaCha8Rng, vocab_size: usize) -> Vec<f32> {
    let spread = rng.random_range(0.1..8.0_f32);
    let logit = |rng: &mut ChaCha8Rng| {
        let bulk: f32 = (0..4).map(|_| rng.random_range(-1.0..1.0_f32)).sum::<f32>() * spread;
        if rng.random_ratio(1, 100) { bulk + 10.0 } else { (bulk * 16.0).round() / 16.0 }
    };
    (0..vocab_size).map(|_| logit(rng)).collect()
}

/// A value of `range`, or `off` half of the time.
fn choose(rng: &mut ChaCha8Rng, off: f32, range: std::ops::Range<f32>) -> f32 {
    if rng.random_bool(0.5) { off } else { rng.random_range(range) }
}

fn random_params(rng: &mut ChaCha8Rng, vocab_size: usize) -> SamplingParams {
    let mut logit_bias = BTreeMap::new();
    for _ in 0..rng.random_range(0..4) {
        logit_bias.insert(rng.random_range(0..vocab_size as u32), rng.random_range(-100.0..20.0));
    }
    SamplingParams {
        temperature: if rng.random_ratio(1, 20) { 1e-4 } else { rng.random_range(0.05..3.0) },
        top_k: if rng.random_bool(0.5) { None } else { Some(rng.random_range(1..2 * vocab_size)) },
        top_p: choose(rng, 1.0, 0.01..1.0),
        min_p: choose(rng, 0.0, 0.0..1.0),
        top_n_sigma: rng.random_bool(0.5).then(|| rng.random_range(0.1..4.0)),
        typical_p: choose(rng, 1.0, 0.01..1.0),
        // Always: what it does is compared here, how often elsewhere.
        xtc: rng.random_bool(0.5).then(|| XtcParams { probability: 1.0, threshold: rng.random_range(0.0..0.5) }),
        repetition_penalty: choose(rng, 1.0, 0.5..2.0),
        repetition_window: rng.random_bool(0.5).then(|| rng.random_range(0..60)),
        frequency_penalty: choose(rng, 0.0, -2.0..2.0),
        presence_penalty: choose(rng, 0.0, -2.0..2.0),
        dry: rng.random_bool(0.5).then(|| random_dry(rng)),
        logit_bias,
        seed: None,
    }
}

fn random_dry(rng: &mut ChaCha8Rng) -> DryParams {
    let breakers = ["a", "cd", "bab", "eee"];
    DryParams {
        multiplier: rng.random_range(0.0..2.0),
        base: rng.random_range(1.0..3.0),
        allowed_length: rng.random_range(1..5),
        window: if rng.random_bool(0.5) { 8192 } else { rng.random_range(1..60) },
        sequence_breakers: breakers.iter().take(rng.random_range(0..5)).map(|&breaker| breaker.to_owned()).collect(),
    }
}

/// Texts that repeat themselves, and end tokens that are masked half of the time. Token 0 can always come.
fn random_history(rng: &mut ChaCha8Rng, vocab_size: usize) -> History {
    let num_words = rng.random_range(1..=vocab_size.min(40)) as u32;
    let mut tokens = |max_len: usize| {
        let len = rng.random_range(0..max_len);
        (0..len).map(|_| rng.random_range(0..num_words)).collect::<Vec<_>>()
    };
    let (prompt, output) = (tokens(50), tokens(50));
    let stop_token_ids = (1..vocab_size as u32).filter(|_| rng.random_ratio(1, 20)).collect();
    History { prompt, output, stop_token_ids, min_tokens: rng.random_range(0..50) }
}

/// Half the sum of all differences: 0 for equal distributions, 1 for disjoint ones.
fn total_variation(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).sum::<f64>() / 2.0
}

/// Both samplers on one position; the distance of their distributions, and that of the greedy choice from the top.
fn compare(params: &SamplingParams, history: &History, logits: &[f32], scratch: &mut SamplerScratch) -> (f64, f64) {
    let texts: Vec<String> = (0..logits.len()).map(text_of).collect();
    let adjusted = reference::adjust(params, history, &texts, logits);
    let expected = reference::probabilities(params, logits, &adjusted);
    let found = sampler(params, history).probabilities(&mut logits.to_vec(), scratch);
    let greedy = SamplingParams { temperature: 0.0, ..params.clone() };
    let picked = sampler(&greedy, history).sample(&mut logits.to_vec(), scratch).unwrap().token_id;
    let top = adjusted[reference::ranked(&adjusted)[0]];
    (total_variation(&expected, &found), top - adjusted[picked as usize])
}

#[test]
fn distributions_are_those_of_the_plain_sampler() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut scratch = SamplerScratch::default();
    for round in 0..3000 {
        let vocab_size = [7, 100, 1500][round % 3];
        let (params, history) = (random_params(&mut rng, vocab_size), random_history(&mut rng, vocab_size));
        let logits = random_logits(&mut rng, vocab_size);
        let (distance, greedy_loss) = compare(&params, &history, &logits, &mut scratch);
        // f32 may keep or drop a token of the tail that f64 does not.
        assert!(distance < 1e-3, "round {round}: {distance}\n{params:?}\n{history:?}");
        assert!(greedy_loss < 1e-3, "round {round}: {greedy_loss}\n{params:?}\n{history:?}");
    }
}

#[test]
fn distributions_are_those_of_the_plain_sampler_at_the_extremes() {
    const MASKED: f32 = f32::NEG_INFINITY;
    let shapes: [&[f32]; 8] = [
        &[3.0],
        &[0.0, 0.0],
        &[0.0; 64],
        &[MASKED, 1.0, MASKED, 1.0, 0.5],
        &[MASKED, MASKED, -3.0],
        &[100.0, -100.0, -100.0, -100.0],
        &[1e30, -1e30, 0.0, 5.0],
        &[-0.0, 0.0, -1e-30, 1e-30],
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut scratch = SamplerScratch::default();
    for round in 0..2000 {
        let logits = shapes[round % shapes.len()];
        let params = SamplingParams {
            temperature: [1e-4, 1.0, 100.0][rng.random_range(0..3)],
            logit_bias: BTreeMap::new(),
            ..random_params(&mut rng, logits.len())
        };
        let history = History { stop_token_ids: BTreeSet::new(), ..random_history(&mut rng, logits.len()) };
        let (distance, _) = compare(&params, &history, logits, &mut scratch);
        assert!(distance < 1e-3, "round {round}: {distance}\n{params:?}\n{history:?}\n{logits:?}");
    }
}

#[test]
fn logprobs_are_the_plain_softmax_before_anything_else_whatever_is_on() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut scratch = SamplerScratch::default();
    for vocab_size in [1, 7, 1500, 49_152] {
        for _ in 0..4 {
            let (params, history) = (random_params(&mut rng, vocab_size), random_history(&mut rng, vocab_size));
            let logits = random_logits(&mut rng, vocab_size);
            let expected = reference::softmax(&logits.iter().map(|&logit| f64::from(logit)).collect::<Vec<_>>());
            let ranked = reference::ranked(&logits.iter().map(|&logit| f64::from(logit)).collect::<Vec<_>>());
            let mut sampler = seeded(&params, &history, SEED, Some(20));
            let sampled = sampler.sample(&mut logits.clone(), &mut scratch).unwrap();
            let is_right =
                |token_id: u32, logprob: f32| (f64::from(logprob) - expected[token_id as usize].ln()).abs() < 1e-5;
            assert!(is_right(sampled.token_id, sampled.logprob.unwrap()), "{sampled:?}");
            assert!(sampled.top.iter().all(|&(token_id, logprob)| is_right(token_id, logprob)), "{sampled:?}");
            let top: Vec<usize> = sampled.top.iter().map(|(token_id, _)| *token_id as usize).collect();
            assert_eq!(top, ranked[..vocab_size.min(20)], "vocabulary of {vocab_size}");
        }
    }
}

#[test]
fn a_sampler_made_again_after_some_tokens_goes_on_as_the_first_would_have() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut scratch = SamplerScratch::default();
    for _ in 0..50 {
        let params = SamplingParams {
            xtc: Some(XtcParams { probability: 0.5, threshold: 0.01 }),
            dry: Some(random_dry(&mut rng)),
            ..random_params(&mut rng, 100)
        };
        let prompt: Vec<u32> = (0..20).map(|_| rng.random_range(0..10)).collect();
        let steps: Vec<Vec<f32>> = (0..40).map(|_| random_logits(&mut rng, 100)).collect();
        let history =
            |output: &[u32]| History { prompt: prompt.clone(), output: output.to_vec(), ..History::default() };
        let mut go_on = |output: &[u32]| {
            let mut sampler = sampler(&params, &history(output));
            let rest = steps[output.len()..].iter();
            rest.map(|logits| sampler.sample(&mut logits.clone(), &mut scratch).unwrap().token_id).collect::<Vec<_>>()
        };
        let whole = go_on(&[]);
        for num_before in [1, 7, 39] {
            assert_eq!(go_on(&whole[..num_before]), whole[num_before..], "{params:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_valid_parameters_draw_a_token_that_is_not_masked(seed: u64, num_masked in 0_usize..40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let params = random_params(&mut rng, 40);
        prop_assert!(params.validate(40).is_ok());
        let mut logits = random_logits(&mut rng, 40);
        for _ in 0..num_masked {
            logits[rng.random_range(1..40)] = f32::NEG_INFINITY;
        }
        let history = random_history(&mut rng, 40);
        let mut sampler = sampler(&params, &history);
        let sampled = sampler.sample(&mut logits.clone(), &mut SamplerScratch::default()).unwrap();
        let is_held_back = history.output.len() < history.min_tokens;
        prop_assert!(logits[sampled.token_id as usize] > f32::NEG_INFINITY);
        prop_assert!(!is_held_back || !history.stop_token_ids.contains(&sampled.token_id));
    }
}
