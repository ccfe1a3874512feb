//! How much of the waiting prompts a step may compute while others wait for their next token.

use std::time::Duration;

use crate::speculation::StepCost;

/// However slow the machine, prompts go on by so many tokens a step.
const MIN_TOKENS: usize = 32;

/// Learns what tokens of prompts cost, and keeps the steps that decode besides within a time.
#[derive(Debug)]
pub(crate) struct PrefillPace {
    max_stall: Option<Duration>,
    /// Of steps with prompts in them.
    cost: StepCost,
}

impl PrefillPace {
    /// `max_stall`: what such a step may take; `None` for no limit.
    pub fn new(max_stall: Option<Duration>) -> Self {
        Self { max_stall, cost: StepCost::default() }
    }

    /// A step with prompts in it computed `num_tokens` in `elapsed`.
    pub fn observe(&mut self, num_tokens: usize, elapsed: Duration) {
        if self.max_stall.is_some() {
            self.cost.observe(num_tokens, elapsed);
        }
    }

    /// Tokens that a step with decodes in it may compute in all.
    pub fn max_tokens(&self) -> usize {
        let within = self.max_stall.and_then(|stall| self.cost.num_rows_within(stall));
        within.map_or(usize::MAX, |tokens| tokens.max(MIN_TOKENS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(max_stall_ms: u64, token_ms: f64) -> PrefillPace {
        let mut pace = PrefillPace::new((max_stall_ms > 0).then(|| Duration::from_millis(max_stall_ms)));
        for num_tokens in [512, 100, 512, 300] {
            pace.observe(num_tokens, Duration::from_secs_f64((20.0 + token_ms * num_tokens as f64) / 1e3));
        }
        pace
    }

    #[test]
    fn a_step_gets_as_many_tokens_as_fit_in_its_time() {
        let max_tokens = pace(500, 4.0).max_tokens();
        assert!((115..=125).contains(&max_tokens), "{max_tokens} of 120 that take 480 ms beside 20");
        assert!(pace(500, 0.5).max_tokens() > 900, "a fast machine has no need of it");
    }

    #[test]
    fn prompts_never_stand_still() {
        assert_eq!(pace(500, 100.0).max_tokens(), MIN_TOKENS);
        assert_eq!(pace(1, 4.0).max_tokens(), MIN_TOKENS);
    }

    #[test]
    fn nothing_is_limited_before_anything_was_seen_or_where_nobody_asks() {
        assert_eq!(PrefillPace::new(Some(Duration::from_millis(500))).max_tokens(), usize::MAX);
        assert_eq!(pace(0, 4.0).max_tokens(), usize::MAX);
    }
}
