//! What a sampler picks, what it refuses, and what its choices depend on.

mod allocations;
mod distributions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::History;
use super::{ChoiceSeed, Sampled, Sampler, SamplerScratch, SamplerSetup, SamplingError};
use crate::detokenizer::Vocabulary;
use crate::request::{DryParams, SamplingParams, XtcParams};

const SEED: ChoiceSeed = ChoiceSeed { seed: 42, choice: 0 };

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Text of token `token_id`: short, so that breakers of several tokens happen.
fn text_of(token_id: usize) -> String {
    let letter = |index: usize| char::from(b'a' + (index % 26) as u8);
    if token_id.is_multiple_of(3) {
        letter(token_id).to_string()
    } else {
        [letter(token_id), letter(token_id / 26)].iter().collect()
    }
}

fn vocabulary(num_tokens: usize) -> Arc<Vocabulary> {
    let texts: Vec<String> = (0..num_tokens).map(text_of).collect();
    Arc::new(Vocabulary::from_bytes(&texts.iter().map(String::as_bytes).collect::<Vec<_>>()))
}

/// A sampler that reports `num_top_logprobs`, after `history`.
fn seeded(params: &SamplingParams, history: &History, seed: ChoiceSeed, num_top_logprobs: Option<usize>) -> Sampler {
    let setup = SamplerSetup {
        params,
        num_top_logprobs,
        prompt_token_ids: &history.prompt,
        vocabulary: &vocabulary(if params.dry.is_some() { 1500 } else { 0 }),
        stop_token_ids: &Arc::new(history.stop_token_ids.clone()),
        min_tokens: history.min_tokens,
    };
    let mut sampler = Sampler::new(&setup, seed);
    history.output.iter().for_each(|&token_id| sampler.record(token_id));
    sampler
}

fn sampler(params: &SamplingParams, history: &History) -> Sampler {
    seeded(params, history, SEED, None)
}

fn sample(params: &SamplingParams, logits: &[f32]) -> Result<Sampled, SamplingError> {
    sampler(params, &History::default()).sample(&mut logits.to_vec(), &mut SamplerScratch::default())
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
fn what_top_n_sigma_typical_p_and_xtc_keep() {
    // Weights 4, 2, 1, 1, 1, 1 of 10.
    let logits = [0.0, 4.0_f32.ln(), 0.0, 2.0_f32.ln(), 0.0, 0.0];
    let all = SamplingParams::default();
    // Mean 0.347, deviation 0.531; the top is 1.386 and half of it 0.693.
    check(&SamplingParams { top_n_sigma: Some(1.31), ..all.clone() }, &logits, "1: 67, 3: 33");
    check(&SamplingParams { top_n_sigma: Some(1.3), ..all.clone() }, &logits, "1: 100");
    // It ignores the temperature, and what a bias has banned.
    check(&SamplingParams { top_n_sigma: Some(1.31), temperature: 9.0, ..all.clone() }, &logits, "1: 52, 3: 48");
    let banned = SamplingParams { top_n_sigma: Some(1.31), logit_bias: BTreeMap::from([(0, -100.0)]), ..all.clone() };
    check(&banned, &logits, "1: 67, 3: 33");
    // Of 4, 2, 2, 2 the expected surprise is 1.33 nats; the top has 0.92 and the others 1.61, which is nearer.
    let flat = [4.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln()];
    check(&SamplingParams { typical_p: 0.19, ..all.clone() }, &flat, "1: 100");
    check(&SamplingParams { typical_p: 0.3, ..all.clone() }, &flat, "1: 50, 2: 50");
    check(&SamplingParams { typical_p: 0.5, ..all.clone() }, &flat, "1: 33, 2: 33, 3: 33");
    check(&SamplingParams { typical_p: 0.65, ..all.clone() }, &flat, "0: 40, 1: 20, 2: 20, 3: 20");
    let xtc = |threshold| SamplingParams { xtc: Some(XtcParams { probability: 1.0, threshold }), ..all.clone() };
    check(&xtc(0.5), &logits, "0: 10, 1: 40, 2: 10, 3: 20, 4: 10, 5: 10");
    check(&xtc(0.3), &logits, "0: 10, 1: 40, 2: 10, 3: 20, 4: 10, 5: 10");
    check(&xtc(0.15), &logits, "0: 17, 2: 17, 3: 33, 4: 17, 5: 17");
    check(&xtc(0.05), &logits, "5: 100");
    // It counts what the others left: of 4 and 2 both are above 0.3.
    check(&SamplingParams { top_k: Some(2), ..xtc(0.3) }, &logits, "3: 100");
}

#[test]
fn xtc_leaves_out_the_top_as_often_as_it_should() {
    let params =
        SamplingParams { xtc: Some(XtcParams { probability: 0.3, threshold: 0.1 }), ..SamplingParams::default() };
    let mut sampler = sampler(&params, &History::default());
    let mut scratch = SamplerScratch::default();
    let logits = [0.6_f32.ln(), 0.4_f32.ln()];
    let num_top =
        (0..20_000).filter(|_| sampler.sample(&mut logits.to_vec(), &mut scratch).unwrap().token_id == 0).count();
    // 0.7 · 0.6 of all; five standard deviations are 350. The seed is fixed.
    assert!(num_top.abs_diff(8_400) < 350, "{num_top}");
}

#[test]
fn xtc_changes_no_draw_in_which_it_does_nothing() {
    let mut scratch = SamplerScratch::default();
    let mut draw = |xtc: Option<XtcParams>| {
        let mut sampler = sampler(&SamplingParams { xtc, ..SamplingParams::default() }, &History::default());
        (0..50).map(|_| sampler.sample(&mut [0.0; 1000], &mut scratch).unwrap().token_id).collect::<Vec<_>>()
    };
    // No token of a thousand equal ones reaches the threshold.
    assert_eq!(draw(Some(XtcParams::default())), draw(None));
}

#[test]
fn end_tokens_are_masked_until_there_are_enough_tokens() {
    let history = History { stop_token_ids: BTreeSet::from([1, 700]), min_tokens: 3, ..History::default() };
    let params = SamplingParams { logit_bias: BTreeMap::from([(1, 50.0)]), ..greedy() };
    let mut sampler = seeded(&params, &history, SEED, Some(1));
    let mut picks = Vec::new();
    for _ in 0..5 {
        let sampled = sampler.sample(&mut [0.0, 3.0, 1.0], &mut SamplerScratch::default()).unwrap();
        // The model's own distribution does not know of it.
        assert_eq!(sampled.top[0].0, 1);
        picks.push(sampled.token_id);
    }
    assert_eq!(picks, [2, 2, 2, 1, 1]);
    let only_ends = History { stop_token_ids: BTreeSet::from([0]), min_tokens: 1, ..History::default() };
    let refused = self::sampler(&greedy(), &only_ends).sample(&mut [0.0], &mut SamplerScratch::default());
    assert_eq!(refused, Err(SamplingError::AllMasked));
}

#[test]
fn repetition_penalty_looks_back_as_far_as_it_is_told() {
    let history = History { prompt: vec![0, 1], output: vec![2, 3], ..History::default() };
    let penalized = |repetition_window| {
        let params = SamplingParams { repetition_penalty: 2.0, repetition_window, ..SamplingParams::default() };
        let mut logits = [1.0; 5];
        sampler(&params, &history).sample(&mut logits, &mut SamplerScratch::default()).unwrap();
        (0..5).filter(|&token_id| logits[token_id] < 1.0).collect::<Vec<_>>()
    };
    assert_eq!(penalized(None), [0, 1, 2, 3]);
    assert_eq!(penalized(Some(9)), [0, 1, 2, 3]);
    assert_eq!(penalized(Some(3)), [1, 2, 3]);
    assert_eq!(penalized(Some(1)), [3]);
    assert_eq!(penalized(Some(0)), [0; 0]);
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
    let history = History { prompt: vec![0], output: vec![1, 1], ..History::default() };
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
        let mut sampler = seeded(&SamplingParams::default(), &History::default(), seed, None);
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
    let mut sampler = seeded(&params, &History::default(), SEED, Some(20));
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
    let mut sampler = seeded(&greedy(), &History::default(), SEED, Some(0));
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

/// That `params` are refused with this message.
fn refused(params: &SamplingParams, expected: &str) {
    assert_eq!(params.validate(100).map_err(|error| error.to_string()), Err(expected.to_owned()));
}

#[test]
fn parameters_out_of_range_are_refused_by_name_value_and_range() {
    let check = |params: SamplingParams, expected| refused(&params, expected);
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
    let sigma = SamplingParams { top_n_sigma: Some(-1.0), ..good.clone() };
    check(sigma, "`top_n_sigma` is -1; it must be greater than 0 and at most 1000000");
    check(
        SamplingParams { typical_p: 0.0, ..good.clone() },
        "`typical_p` is 0; it must be greater than 0 and at most 1",
    );
    let xtc =
        |probability, threshold| SamplingParams { xtc: Some(XtcParams { probability, threshold }), ..good.clone() };
    check(xtc(1.5, 0.1), "`xtc_probability` is 1.5; it must be between 0 and 1");
    check(xtc(0.5, -0.1), "`xtc_threshold` is -0.1; it must be between 0 and 1");
    let biased = |token_id, bias| SamplingParams { logit_bias: BTreeMap::from([(token_id, bias)]), ..good.clone() };
    check(biased(100, 0.0), "`logit_bias` is token 100; it must be a token id below 100");
    check(biased(3, 101.0), "`logit_bias` is 101; it must be between -100 and 100");
    let refused = super::validate_logprobs(Some(21)).unwrap_err();
    assert_eq!(refused.to_string(), "`top_logprobs` is 21; it must be at most 20");
}

#[test]
fn parameters_of_dry_out_of_range_are_refused_by_name_value_and_range() {
    let dry = |params: DryParams| SamplingParams { dry: Some(params), ..SamplingParams::default() };
    let check = |params: DryParams, expected| refused(&dry(params), expected);
    let plain = DryParams::default();
    dry(plain.clone()).validate(100).unwrap();
    check(DryParams { multiplier: -1.0, ..plain.clone() }, "`dry_multiplier` is -1; it must be between 0 and 100");
    check(DryParams { base: 0.5, ..plain.clone() }, "`dry_base` is 0.5; it must be between 1 and 100");
    check(
        DryParams { allowed_length: 0, ..plain.clone() },
        "`dry_allowed_length` is 0; it must be between 1 and 8192 tokens",
    );
    check(
        DryParams { window: 8193, ..plain.clone() },
        "`dry_penalty_last_n` is 8193; it must be between 1 and 8192 tokens",
    );
    check(
        DryParams { sequence_breakers: vec!["a".into(); 65], ..plain.clone() },
        "`dry_sequence_breakers` is 65 strings; it must be at most 64",
    );
    check(
        DryParams { sequence_breakers: vec![String::new()], ..plain },
        "`dry_sequence_breakers` is a string of 0 bytes; it must be of 1 to 256 bytes each",
    );
}
