use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::{self, History};
use super::{ChoiceSeed, Sampled, Sampler, SamplerScratch, SamplingError};
use crate::request::SamplingParams;

const SEED: ChoiceSeed = ChoiceSeed { seed: 42, choice: 0 };

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn sampler(params: &SamplingParams, history: &History) -> Sampler {
    let mut sampler = Sampler::new(params, SEED, None, &history.prompt);
    history.output.iter().for_each(|&token_id| sampler.record(token_id));
    sampler
}

fn sample(params: &SamplingParams, logits: &[f32]) -> Result<Sampled, SamplingError> {
    sampler(params, &History::default()).sample(&mut logits.to_vec(), &mut SamplerScratch::default())
}

/// Logits as models have them: a bulk, and a few that stand out; with ties.
fn random_logits(rng: &mut ChaCha8Rng, vocab_size: usize) -> Vec<f32> {
    let spread = rng.random_range(0.1..8.0_f32);
    let logit = |rng: &mut ChaCha8Rng| {
        let bulk: f32 = (0..4).map(|_| rng.random_range(-1.0..1.0_f32)).sum::<f32>() * spread;
        if rng.random_ratio(1, 100) { bulk + 10.0 } else { (bulk * 16.0).round() / 16.0 }
    };
    (0..vocab_size).map(|_| logit(rng)).collect()
}

fn random_params(rng: &mut ChaCha8Rng, vocab_size: usize) -> SamplingParams {
    let choose = |rng: &mut ChaCha8Rng, off: f32, range: std::ops::Range<f32>| {
        if rng.random_bool(0.5) { off } else { rng.random_range(range) }
    };
    let mut logit_bias = BTreeMap::new();
    for _ in 0..rng.random_range(0..4) {
        logit_bias.insert(rng.random_range(0..vocab_size as u32), rng.random_range(-100.0..20.0));
    }
    SamplingParams {
        temperature: rng.random_range(0.05..3.0),
        top_k: if rng.random_bool(0.5) { None } else { Some(rng.random_range(1..2 * vocab_size)) },
        top_p: choose(rng, 1.0, 0.01..1.0),
        min_p: choose(rng, 0.0, 0.0..1.0),
        repetition_penalty: choose(rng, 1.0, 0.5..2.0),
        frequency_penalty: choose(rng, 0.0, -2.0..2.0),
        presence_penalty: choose(rng, 0.0, -2.0..2.0),
        logit_bias,
        seed: None,
    }
}

fn random_history(rng: &mut ChaCha8Rng, vocab_size: usize) -> History {
    let mut tokens = |max_len: usize| {
        let len = rng.random_range(0..max_len);
        (0..len).map(|_| rng.random_range(0..vocab_size as u32)).collect::<Vec<_>>()
    };
    History { prompt: tokens(50), output: tokens(50) }
}

/// Half the sum of all differences: 0 for equal distributions, 1 for disjoint ones.
fn total_variation(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).sum::<f64>() / 2.0
}

/// Tokens that may be drawn from logits 0, 1, … in the order given, with their probabilities in percent.
fn check(params: &SamplingParams, logits: &[f32], expected: &str) {
    let probabilities =
        sampler(params, &History::default()).probabilities(&mut logits.to_vec(), &mut SamplerScratch::default());
    let kept = probabilities.iter().enumerate().filter(|(_, probability)| **probability > 0.0);
    let kept: Vec<_> = kept.map(|(token_id, probability)| format!("{token_id}: {:.0}", probability * 100.0)).collect();
    assert_eq!(kept.join(", "), expected, "{params:?}");
}

#[test]
fn distributions_are_those_of_the_plain_sampler() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut scratch = SamplerScratch::default();
    for round in 0..2000 {
        let vocab_size = [7, 100, 1500][round % 3];
        let (params, history) = (random_params(&mut rng, vocab_size), random_history(&mut rng, vocab_size));
        let logits = random_logits(&mut rng, vocab_size);
        let adjusted = reference::adjust(&params, &history, &logits);
        let expected = reference::probabilities(&params, &adjusted);
        let found = sampler(&params, &history).probabilities(&mut logits.clone(), &mut scratch);
        let distance = total_variation(&expected, &found);
        // f32 may keep or drop a token of the tail that f64 does not.
        assert!(distance < 1e-3, "round {round}: {distance}\n{params:?}");
    }
}

#[test]
fn each_truncation_keeps_the_likeliest_tokens_and_of_equals_the_lowest_ids() {
    // Weights 4, 2, 1, 1, 1, 1 of 10.
    let logits = [0.0, 4.0_f32.ln(), 0.0, 2.0_f32.ln(), 0.0, 0.0];
    let all = SamplingParams::default();
    check(&all, &logits, "0: 10, 1: 40, 2: 10, 3: 20, 4: 10, 5: 10");
    check(&SamplingParams { top_k: Some(3), ..all.clone() }, &logits, "0: 14, 1: 57, 3: 29");
    check(&SamplingParams { top_k: Some(600), ..all.clone() }, &logits, "0: 10, 1: 40, 2: 10, 3: 20, 4: 10, 5: 10");
    check(&SamplingParams { top_p: 0.55, ..all.clone() }, &logits, "1: 67, 3: 33");
    check(&SamplingParams { top_p: 0.75, ..all.clone() }, &logits, "0: 12, 1: 50, 2: 12, 3: 25");
    check(&SamplingParams { top_p: 0.001, ..all.clone() }, &logits, "1: 100");
    check(&SamplingParams { min_p: 0.4, ..all.clone() }, &logits, "1: 67, 3: 33");
    check(&SamplingParams { min_p: 1.0, ..all.clone() }, &logits, "1: 100");
    // top_p counts what top_k left: 4 and 2 of 7 reach 0.8.
    check(&SamplingParams { top_k: Some(3), top_p: 0.8, ..all.clone() }, &logits, "1: 67, 3: 33");
    // Temperature comes first: 16, 4, 1, 1, 1, 1 of 24.
    check(&SamplingParams { temperature: 0.5, top_p: 0.6, ..all }, &logits, "1: 100");
}

#[test]
fn masked_tokens_are_never_drawn() {
    let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
    check(&SamplingParams::default(), &logits, "1: 50, 3: 50");
    check(&SamplingParams { top_k: Some(3), top_p: 0.9999, ..SamplingParams::default() }, &logits, "1: 50, 3: 50");
}

#[test]
fn greedy_takes_the_lowest_id_of_equals_and_temperatures_near_zero_agree() {
    for temperature in [0.0, 1e-30, 1e-4] {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        assert_eq!(sample(&params, &[1.0, 3.0, 2.9, 0.0]).unwrap().token_id, 1, "{temperature}");
    }
    assert_eq!(sample(&greedy(), &[1.0, 3.0, 3.0, 0.0, 3.0]).unwrap().token_id, 1);
}

#[test]
fn bias_comes_before_penalties_and_penalties_before_the_choice() {
    let history = History { prompt: vec![0], output: vec![1, 1] };
    let pick = |params: SamplingParams, logits: &[f32]| {
        let mut sampler = sampler(&params, &history);
        sampler.sample(&mut logits.to_vec(), &mut SamplerScratch::default()).unwrap().token_id
    };
    let plain = [2.0, 2.1, 1.5];
    assert_eq!(pick(greedy(), &plain), 1);
    // The prompt's token counts for the repetition penalty only; negative logits are multiplied.
    assert_eq!(pick(SamplingParams { repetition_penalty: 2.0, ..greedy() }, &plain), 2);
    assert_eq!(pick(SamplingParams { repetition_penalty: 2.0, ..greedy() }, &[-1.0, -1.1, -1.5]), 2);
    assert_eq!(pick(SamplingParams { presence_penalty: 0.2, ..greedy() }, &plain), 0);
    assert_eq!(pick(SamplingParams { frequency_penalty: 0.04, ..greedy() }, &plain), 1);
    assert_eq!(pick(SamplingParams { frequency_penalty: 0.06, ..greedy() }, &plain), 0);
    // 1.9 + 0.4 divided by 1.5 is above 1.5; divided first it would be below.
    let logit_bias = BTreeMap::from([(0, 0.4), (1, -100.0)]);
    assert_eq!(pick(SamplingParams { repetition_penalty: 1.5, logit_bias, ..greedy() }, &[1.9, 9.0, 1.5]), 0);
}

#[test]
fn draws_follow_the_distribution() {
    let weights = [0.3, 0.05, 0.15, 0.1, 0.4_f32];
    let logits: Vec<f32> = weights.iter().map(|weight| weight.ln()).collect();
    let mut sampler = sampler(&SamplingParams::default(), &History::default());
    let mut scratch = SamplerScratch::default();
    let num_draws = 20_000;
    let mut counts = [0_u32; 5];
    for _ in 0..num_draws {
        counts[sampler.sample(&mut logits.clone(), &mut scratch).unwrap().token_id as usize] += 1;
    }
    let chi_square: f64 = (weights.iter().zip(counts))
        .map(|(&weight, count)| {
            let expected = f64::from(weight) * f64::from(num_draws);
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    // 99.9 % of fair draws stay below 18.5 with 4 degrees of freedom; the seed is fixed.
    assert!(chi_square < 18.5, "{counts:?}: {chi_square}");
}

#[test]
fn a_draw_depends_on_seed_choice_and_position_alone() {
    let logits = vec![0.0; 1000];
    let mut scratch = SamplerScratch::default();
    let mut draw = |seed: ChoiceSeed, num_before: usize| {
        let mut sampler = Sampler::new(&SamplingParams::default(), seed, None, &[]);
        (0..num_before).for_each(|_| sampler.record(0));
        (0..8).map(|_| sampler.sample(&mut logits.clone(), &mut scratch).unwrap().token_id).collect::<Vec<_>>()
    };
    let tokens = draw(SEED, 0);
    assert_eq!(tokens, draw(SEED, 0));
    // A sampler made again after 5 tokens, as after a restart, draws what the first would have.
    assert_eq!(tokens[5..], draw(SEED, 5)[..3]);
    assert_ne!(tokens, draw(ChoiceSeed { choice: 1, ..SEED }, 0));
    assert_ne!(tokens, draw(ChoiceSeed { seed: 43, ..SEED }, 0));
}

#[test]
fn draws_stay_what_they_were_in_earlier_versions() {
    // A client that stored a seed expects its text again: change this only with a note to users.
    let mut sampler = sampler(&SamplingParams::default(), &History::default());
    let mut scratch = SamplerScratch::default();
    let draws = (0..6).map(|_| sampler.sample(&mut vec![0.0; 1000], &mut scratch).unwrap().token_id);
    assert_eq!(draws.collect::<Vec<_>>(), [526, 542, 636, 405, 34, 414]);
}

#[test]
fn logprobs_are_of_the_models_own_distribution() {
    let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY, 3.0];
    let params =
        SamplingParams { logit_bias: BTreeMap::from([(1, -50.0), (2, 60.0)]), presence_penalty: 1.0, ..greedy() };
    let mut sampler = Sampler::new(&params, SEED, Some(20), &[]);
    sampler.record(2);
    let sampled = sampler.sample(&mut logits.to_vec(), &mut SamplerScratch::default()).unwrap();
    let normalizer = (1.0_f32.exp() + 2.0_f32.exp() + 2.0 * 3.0_f32.exp()).ln();
    assert_eq!(sampled.token_id, 2);
    assert!((sampled.logprob.unwrap() - (2.0 - normalizer)).abs() < 1e-6);
    assert_eq!(sampled.top.iter().map(|(token_id, _)| *token_id).collect::<Vec<_>>(), [1, 4, 2, 0]);
    for (token_id, logprob) in sampled.top {
        assert!((logprob - (logits[token_id as usize] - normalizer)).abs() < 1e-6);
    }
}

#[test]
fn logprobs_are_computed_only_if_asked_for() {
    let sampled = sample(&SamplingParams::default(), &[1.0, 2.0]).unwrap();
    assert_eq!((sampled.logprob, sampled.top), (None, vec![]));
    let mut sampler = Sampler::new(&greedy(), SEED, Some(0), &[]);
    let sampled = sampler.sample(&mut [1.0, 1.0], &mut SamplerScratch::default()).unwrap();
    assert_eq!((sampled.logprob, sampled.top), (Some(-std::f32::consts::LN_2), vec![]));
}

#[test]
fn logits_that_are_no_numbers_are_an_error_that_names_the_token() {
    for params in [greedy(), SamplingParams::default()] {
        assert_eq!(sample(&params, &[0.0, f32::NAN, f32::NAN]), Err(SamplingError::NotFinite { token_id: 1 }));
        assert_eq!(sample(&params, &[0.0, 1.0, f32::INFINITY]), Err(SamplingError::NotFinite { token_id: 2 }));
        assert_eq!(sample(&params, &[f32::NEG_INFINITY; 3]), Err(SamplingError::AllMasked));
        assert_eq!(sample(&params, &[]), Err(SamplingError::AllMasked));
    }
}

#[test]
fn a_failed_call_leaves_the_sampler_as_it_was() {
    let mut sampler = sampler(&SamplingParams::default(), &History::default());
    sampler.sample(&mut [f32::NAN], &mut SamplerScratch::default()).unwrap_err();
    assert_eq!(sampler.num_output_tokens(), 0);
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
        prop_assert!(logits[sampled.token_id as usize] > f32::NEG_INFINITY);
    }
}

#[test]
fn parameters_out_of_range_are_refused_by_name_value_and_range() {
    let check = |params: SamplingParams, expected: &str| {
        assert_eq!(params.validate(100).map_err(|error| error.to_string()), Err(expected.to_owned()));
    };
    let good = SamplingParams::default();
    good.validate(100).unwrap();
    check(SamplingParams { temperature: -1.0, ..good.clone() }, "`temperature` is -1; it must be between 0 and 100");
    check(
        SamplingParams { temperature: f32::NAN, ..good.clone() },
        "`temperature` is NaN; it must be between 0 and 100",
    );
    check(SamplingParams { top_k: Some(0), ..good.clone() }, "`top_k` is 0; it must be at least 1");
    check(SamplingParams { top_p: 0.0, ..good.clone() }, "`top_p` is 0; it must be greater than 0 and at most 1");
    check(SamplingParams { min_p: 1.5, ..good.clone() }, "`min_p` is 1.5; it must be between 0 and 1");
    check(
        SamplingParams { repetition_penalty: 0.0, ..good.clone() },
        "`repetition_penalty` is 0; it must be greater than 0 and at most 100",
    );
    check(
        SamplingParams { frequency_penalty: 2.5, ..good.clone() },
        "`frequency_penalty` is 2.5; it must be between -2 and 2",
    );
    check(
        SamplingParams { presence_penalty: -3.0, ..good.clone() },
        "`presence_penalty` is -3; it must be between -2 and 2",
    );
    let biased = |token_id, bias| SamplingParams { logit_bias: BTreeMap::from([(token_id, bias)]), ..good.clone() };
    check(biased(100, 0.0), "`logit_bias` is token 100; it must be a token id below 100");
    check(biased(3, 101.0), "`logit_bias` is 101; it must be between -100 and 100");
    let refused = super::validate_logprobs(Some(21)).unwrap_err();
    assert_eq!(refused.to_string(), "`top_logprobs` is 21; it must be at most 20");
}
