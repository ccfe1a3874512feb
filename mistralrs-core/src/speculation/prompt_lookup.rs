//! Guesses by looking up where the text repeats itself: code, quotations, lists, and anything that edits its prompt.

use std::collections::HashMap;

/// Occurrences of the last two tokens that are compared, newest first: a text of one repeated pair stays cheap.
const MAX_CANDIDATES: usize = 16;

/// Tokens over which two occurrences are compared: of longer matches the newest is as good as the longest.
const MAX_MATCH: usize = 32;

/// The end of the chain of occurrences.
const NONE: u32 = u32::MAX;

/// Every pair of neighbouring tokens of one sequence, with the chain of its occurrences: a text is extended in O(new
/// tokens) and matched in O(candidates), as LZ77 compressors do.
#[derive(Debug, Default)]
pub(crate) struct PromptLookup {
    /// By pair, the position of the second token at its newest occurrence.
    newest: HashMap<[u32; 2], u32>,
    /// By position, where the pair that ends there occurred before.
    earlier: Vec<u32>,
}

impl PromptLookup {
    /// Takes in what was appended to `token_ids` since the last call.
    pub fn extend(&mut self, token_ids: &[u32]) {
        for position in self.earlier.len()..token_ids.len() {
            let earlier = match position.checked_sub(1) {
                Some(before) => {
                    let pair = [token_ids[before], token_ids[position]];
                    self.newest.insert(pair, position as u32).unwrap_or(NONE)
                }
                None => NONE,
            };
            self.earlier.push(earlier);
        }
    }

    /// Appends to `draft` up to `max_tokens` tokens that followed the longest earlier match of the end of `token_ids`,
    /// the newest of equals. Where the match reaches into what it predicts, the text is taken to be periodic.
    pub fn draft(&self, token_ids: &[u32], max_tokens: usize, draft: &mut Vec<u32>) {
        let Some(matched) = self.longest_match(token_ids) else { return };
        for next in matched + 1..matched + 1 + max_tokens {
            draft.push(token_ids.get(next).copied().unwrap_or_else(|| draft[next - token_ids.len()]));
        }
    }

    /// Where the longest earlier match of the end of `token_ids` ends.
    fn longest_match(&self, token_ids: &[u32]) -> Option<usize> {
        let end = token_ids.len().checked_sub(1)?;
        let before =
            |at: usize| self.earlier.get(at).filter(|earlier| **earlier != NONE).map(|earlier| *earlier as usize);
        let candidates = std::iter::successors(before(end), |at| before(*at)).take(MAX_CANDIDATES);
        let match_len =
            |at: usize| (0..=at.min(MAX_MATCH)).take_while(|k| token_ids[at - k] == token_ids[end - k]).count();
        // The first of equals is the newest; `max_by_key` keeps the last.
        candidates
            .map(|at| (match_len(at), at))
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, max_tokens: usize, expected: &str) {
        let token_ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let mut lookup = PromptLookup::default();
        // In pieces, as a sequence grows.
        for end in (0..token_ids.len()).step_by(3).chain([token_ids.len()]) {
            lookup.extend(&token_ids[..end]);
        }
        let mut draft = Vec::new();
        lookup.draft(&token_ids, max_tokens, &mut draft);
        let found: String = draft.into_iter().map(|token| char::from(token as u8)).collect();
        assert_eq!(found, expected, "after {text:?}");
    }

    #[test]
    fn what_followed_the_last_two_tokens_follows_again() {
        check("the cat sat; the ", 3, "cat");
        check("abcd.ab", 2, "cd");
    }

    #[test]
    fn a_longer_match_wins_over_a_newer_one() {
        check("xyab1 zzab2 xyab", 1, "1");
    }

    #[test]
    fn of_equal_matches_the_newest_wins() {
        check("-ab1-ab2-ab", 1, "2");
    }

    #[test]
    fn a_period_goes_on() {
        check("abababab", 5, "ababa");
        check("aaa", 4, "aaaa");
    }

    #[test]
    fn what_never_occurred_is_not_guessed() {
        check("abcdefg", 4, "");
        check("a", 4, "");
        check("", 4, "");
    }
}
