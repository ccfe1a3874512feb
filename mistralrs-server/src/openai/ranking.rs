//! `best_of`: more choices are generated than are sent, and those whose tokens the model found likeliest are kept.

use mistralrs_core::request::TokenLogprob;

/// How likely one choice is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Likelihood {
    sum_of_logprobs: f64,
    num_tokens: u32,
}

impl Likelihood {
    pub fn extend(&mut self, tokens: &[TokenLogprob]) {
        self.sum_of_logprobs += tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>();
        self.num_tokens += tokens.len() as u32;
    }

    /// Log-probability per token, as OpenAI ranks. A choice without tokens says nothing for itself: it comes last.
    fn per_token(self) -> f64 {
        if self.num_tokens == 0 { f64::NEG_INFINITY } else { self.sum_of_logprobs / f64::from(self.num_tokens) }
    }
}

/// Of each `group_size` choices in turn, the `num_kept` likeliest ones, likeliest first; of equals the earlier.
pub(super) fn keep_likeliest<C>(choices: Vec<(C, Likelihood)>, group_size: usize, num_kept: usize) -> Vec<C> {
    let mut rest = choices.into_iter();
    let mut kept = Vec::new();
    while rest.len() > 0 {
        let mut group: Vec<_> = rest.by_ref().take(group_size).collect();
        // Stable: equals stay in order.
        group.sort_by(|(_, left), (_, right)| right.per_token().total_cmp(&left.per_token()));
        kept.extend(group.into_iter().take(num_kept).map(|(choice, _)| choice));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Choices named by letter with their tokens' log-probabilities; the kept ones.
    fn check(choices: &[(&str, &[f32])], group_size: usize, num_kept: usize, expected: &str) {
        let choices = choices.iter().map(|&(name, logprobs)| {
            let token = |&logprob: &f32| TokenLogprob {
                token_id: 0,
                text: String::new(),
                bytes: Vec::new(),
                logprob,
                top: Vec::new(),
            };
            let mut likelihood = Likelihood::default();
            likelihood.extend(&logprobs.iter().map(token).collect::<Vec<_>>());
            (name, likelihood)
        });
        assert_eq!(keep_likeliest(choices.collect(), group_size, num_kept).concat(), expected);
    }

    #[test]
    fn the_likeliest_choices_per_token_are_kept_within_each_prompt() {
        check(&[("a", &[-3.0]), ("b", &[-1.0, -1.0, -2.0]), ("c", &[-2.0])], 3, 1, "b");
        check(&[("a", &[-3.0]), ("b", &[-1.0]), ("c", &[-2.0])], 3, 2, "bc");
        check(&[("a", &[-3.0]), ("b", &[-1.0]), ("c", &[-2.0])], 3, 3, "bca");
        check(&[("a", &[-3.0]), ("b", &[-1.0]), ("c", &[-2.0]), ("d", &[-9.0])], 2, 1, "bc");
        check(&[("a", &[-1.0]), ("b", &[-1.0]), ("c", &[])], 3, 3, "abc");
        check(&[("a", &[]), ("b", &[f32::NEG_INFINITY]), ("c", &[-50.0])], 3, 1, "c");
    }
}
