//! DRY: a penalty for tokens that would make a repetition longer.
//!
//! A *repetition* is the longest end of the sequence that also stands somewhere earlier in it; the token that followed
//! there is the one that would go on with it. See [`DryParams`] for the penalty. The idea is P. E. Weidmann's
//! (text-generation-webui, pull request 5677).

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use super::penalties::{Original, change};
use crate::detokenizer::{StopStrings, Vocabulary};
use crate::request::DryParams;

/// Tokens searched for repetitions at most: one pass over them per token of output, some 20 µs.
pub const MAX_DRY_WINDOW: usize = 8192;

/// A penalty that no logit makes up for. Without a limit the power would become infinite, and a sequence all of whose
/// continuations repeat something would have no token left.
pub(super) const MAX_PENALTY: f64 = 1e4;

/// The repetitions of one sequence.
pub(super) struct Dry {
    params: DryParams,
    vocabulary: Arc<Vocabulary>,
    breakers: StopStrings,
    /// The newest tokens, oldest first, as many as the window allows.
    history: VecDeque<u32>,
    /// Tokens since the last one that completed a sequence breaker: no repetition is longer.
    num_unbroken: usize,
}

/// Lent to [`Dry::adjust`].
#[derive(Default)]
pub(super) struct DryScratch {
    reversed: Vec<u32>,
    match_lens: Vec<usize>,
    /// A token and the length of a repetition that it would continue.
    repeats: Vec<(u32, Reverse<usize>)>,
}

impl Dry {
    /// Reads the end of the prompt: work for a thread that may block.
    pub(super) fn new(params: &DryParams, vocabulary: &Arc<Vocabulary>, prompt_token_ids: &[u32]) -> Self {
        let mut dry = Self {
            params: params.clone(),
            vocabulary: Arc::clone(vocabulary),
            breakers: StopStrings::new(&params.sequence_breakers),
            history: VecDeque::with_capacity(params.window),
            num_unbroken: 0,
        };
        let begin = prompt_token_ids.len().saturating_sub(params.window);
        prompt_token_ids[begin..].iter().for_each(|&token_id| dry.record(token_id));
        dry
    }

    pub(super) fn record(&mut self, token_id: u32) {
        if self.history.len() == self.params.window {
            self.history.pop_front();
        }
        self.history.push_back(token_id);
        // Bytes, not token ids: a breaker counts however the text around it was tokenized.
        let is_broken = self.breakers.pass(self.vocabulary.bytes(token_id));
        self.num_unbroken = if is_broken { 0 } else { self.num_unbroken + 1 };
    }

    /// Lowers the logits of tokens that continue a repetition; appends each one's logit from before to `originals`.
    pub(super) fn adjust(&self, logits: &mut [f32], scratch: &mut DryScratch, originals: &mut Vec<Original>) {
        let allowed_length = self.params.allowed_length;
        if self.num_unbroken < allowed_length {
            return;
        }
        let DryScratch { reversed, match_lens, repeats } = scratch;
        reversed.clear();
        reversed.extend(self.history.iter().rev());
        measure_matches(reversed, match_lens);
        repeats.clear();
        for (distance, &match_len) in match_lens.iter().enumerate().skip(1) {
            let match_len = match_len.min(self.num_unbroken);
            if match_len >= allowed_length {
                repeats.push((reversed[distance - 1], Reverse(match_len)));
            }
        }
        repeats.sort_unstable();
        repeats.dedup_by_key(|(token_id, _)| *token_id);
        for &(token_id, Reverse(match_len)) in &*repeats {
            let penalty = penalty(&self.params, match_len);
            change(logits, token_id, originals, |logit| logit - penalty as f32);
        }
    }
}

pub(super) fn penalty(params: &DryParams, match_len: usize) -> f64 {
    let excess = (match_len - params.allowed_length) as f64;
    (f64::from(params.multiplier) * f64::from(params.base).powf(excess)).min(MAX_PENALTY)
}

/// For each place in `text`: how many tokens from there on are those that `text` begins with. Linear in its length
/// (the Z-function; Main and Lorentz 1984, Gusfield 1997, 1.3).
fn measure_matches(text: &[u32], match_lens: &mut Vec<usize>) {
    match_lens.clear();
    match_lens.resize(text.len(), 0);
    // The match found so far that reaches furthest; inside of it the text is known from its beginning.
    let (mut left, mut right) = (0, 0);
    for at in 1..text.len() {
        let mut len = if at < right { match_lens[at - left].min(right - at) } else { 0 };
        while at + len < text.len() && text[len] == text[at + len] {
            len += 1;
        }
        if at + len > right {
            (left, right) = (at, at + len);
        }
        match_lens[at] = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Penalties by letter, after a text whose letters are its tokens; `_` breaks.
    fn check(params: &DryParams, text: &str, expected: &str) {
        let alphabet: Vec<[u8; 1]> = (0..128).map(|byte| [byte]).collect();
        let tokens: Vec<&[u8]> = alphabet.iter().map(<[u8; 1]>::as_slice).collect();
        let token_ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let (prompt, output) = token_ids.split_at(token_ids.len() / 2);
        let mut dry = Dry::new(params, &Arc::new(Vocabulary::from_bytes(&tokens)), prompt);
        for &token_id in output {
            dry.record(token_id);
        }
        let mut logits = vec![0.0; 128];
        dry.adjust(&mut logits, &mut DryScratch::default(), &mut Vec::new());
        let penalized = logits.iter().enumerate().filter(|(_, logit)| **logit < 0.0);
        let found: Vec<_> = penalized.map(|(id, logit)| format!("{} {}", char::from(id as u8), -logit)).collect();
        assert_eq!(found.join(", "), expected, "{text}");
    }

    fn params() -> DryParams {
        DryParams { multiplier: 1.0, base: 2.0, sequence_breakers: vec!["_".to_owned()], ..DryParams::default() }
    }

    #[test]
    fn what_followed_the_longest_repetition_is_penalized_by_its_length() {
        check(&params(), "abc", "");
        check(&params(), "xa-ya", "");
        check(&params(), "abx-ab", "x 1");
        check(&params(), "abcx-abc", "x 2");
        // "bc" went on with y and z, "abc" with x.
        check(&params(), "abcx-bcy-bcz-abc", "x 2, y 1, z 1");
        // The longer of two repetitions with the same continuation counts.
        check(&params(), "bcx-abcx+abc", "x 2");
        // A repetition may overlap itself.
        check(&params(), "aaaaa", "a 4");
        check(&DryParams { allowed_length: 1, multiplier: 0.5, ..params() }, "a-b-", "b 0.5");
    }

    #[test]
    fn no_repetition_reaches_over_a_breaker_or_out_of_the_window() {
        check(&params(), "abcdx-abcd", "x 4");
        check(&params(), "ab_cdx-ab_cd", "x 1");
        check(&params(), "abcd_x-abcd_", "");
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        // A breaker of several tokens ends where it is complete.
        check(&DryParams { sequence_breakers: words(&["b-c", "z"]), ..params() }, "ab-cdex!ab-cde", "x 1");
        check(&DryParams { sequence_breakers: Vec::new(), ..params() }, "ab_cdx-ab_cd", "x 8");
        check(&DryParams { window: 9, ..params() }, "abcdx-abcd", "x 2");
        check(&DryParams { window: 4, ..params() }, "abcdx-abcd", "");
    }

    #[test]
    fn a_penalty_is_never_infinite() {
        check(&DryParams { base: 100.0, ..params() }, &"a".repeat(4000), "a 10000");
    }

    #[test]
    fn matches_are_those_found_by_comparing() {
        let mut match_lens = Vec::new();
        for seed in 0_u32..200 {
            let text: Vec<u32> = (0..seed % 60).map(|at| (seed.wrapping_mul(2_654_435_761) >> (at % 29)) % 3).collect();
            measure_matches(&text, &mut match_lens);
            for (at, &found) in match_lens.iter().enumerate().skip(1) {
                let expected = text[at..].iter().zip(&text).take_while(|(left, right)| left == right).count();
                assert_eq!(found, expected, "{text:?} at {at}");
            }
        }
    }
}
