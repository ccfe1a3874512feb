//! Does guessing pay? A guess adds a row to the step; it pays while the chance that it is right exceeds what the row
//! costs, in units of what a token costs without it.

use std::time::Duration;

/// Where a sequence's estimate begins, and drifts back to while nothing is guessed.
const INITIAL_RATE: f64 = 0.6;

/// Weight of one verified guess in the estimate: about the last eight count.
const RATE_WEIGHT: f64 = 1.0 / 8.0;

/// Share of the way back to [`INITIAL_RATE`] per step without guesses: a text that turns repetitive is found out within
/// a few dozen tokens, one that never does pays for one row in about as many.
const RECOVERY: f64 = 0.005;

/// Weight of all steps before the newest in the cost: about the last hundred count.
const COST_DECAY: f64 = 0.99;

/// Before steps of different sizes were seen, one more row is taken to cost this share of a step of one row.
const INITIAL_ROW_SHARE: f64 = 0.3;

/// How many steps' worth of evidence [`INITIAL_ROW_SHARE`] counts as.
const PRIOR_WEIGHT: f64 = 4.0;

/// How often one sequence's guesses are right.
#[derive(Debug)]
pub(crate) struct Acceptance {
    /// The estimated chance that the next guess is right if all before it were.
    rate: f64,
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { rate: INITIAL_RATE }
    }
}

impl Acceptance {
    /// How many guesses pay if one more row costs `row_share` of a token: the n-th is right with `rate` to the n.
    pub fn max_draft_tokens(&self, row_share: f64) -> usize {
        let (rate, row_share) = (self.rate.clamp(0.0, 0.99), row_share.clamp(0.01, 1.0));
        if rate <= row_share { 0 } else { (row_share.ln() / rate.ln()) as usize }
    }

    /// Of `num_drafted` guesses, the first `num_accepted` were right; after a wrong one nothing is known.
    pub fn observe(&mut self, num_drafted: usize, num_accepted: usize) {
        for _ in 0..num_accepted {
            self.rate += RATE_WEIGHT * (1.0 - self.rate);
        }
        if num_accepted < num_drafted {
            self.rate -= RATE_WEIGHT * self.rate;
        }
    }

    /// A step passed without guesses, because they did not pay.
    pub fn recover(&mut self) {
        self.rate += RECOVERY * (INITIAL_RATE - self.rate);
    }
}

/// What a step of decodes costs: `base + per_row * rows`, by least squares over recent steps, newer ones weighing more.
#[derive(Debug, Default)]
pub(crate) struct StepCost {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
}

impl StepCost {
    /// A step of decodes with `num_rows` rows took `elapsed`.
    pub fn observe(&mut self, num_rows: usize, elapsed: Duration) {
        let (rows, seconds) = (num_rows as f64, elapsed.as_secs_f64());
        for sum in [&mut self.weight, &mut self.rows, &mut self.seconds, &mut self.rows_squared, &mut self.rows_seconds]
        {
            *sum *= COST_DECAY;
        }
        self.weight += 1.0;
        self.rows += rows;
        self.seconds += seconds;
        self.rows_squared += rows * rows;
        self.rows_seconds += rows * seconds;
    }

    /// What one more row costs, as a share of what each of `num_sequences` tokens costs in a step without guesses: a
    /// guess pays if it is right more often than this.
    pub fn row_share(&self, num_sequences: usize) -> f64 {
        let num_sequences = num_sequences.max(1) as f64;
        if self.weight == 0.0 {
            let whole = 1.0 - INITIAL_ROW_SHARE + INITIAL_ROW_SHARE * num_sequences;
            return INITIAL_ROW_SHARE * num_sequences / whole;
        }
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let prior = INITIAL_ROW_SHARE * seconds / (1.0 - INITIAL_ROW_SHARE + INITIAL_ROW_SHARE * rows);
        let covariance = self.rows_seconds - self.weight * rows * seconds + PRIOR_WEIGHT * prior;
        let variance = self.rows_squared - self.weight * rows * rows + PRIOR_WEIGHT;
        let per_row = (covariance / variance).max(0.0);
        let base = (seconds - per_row * rows).max(0.0);
        let whole = base + per_row * num_sequences;
        if whole > 0.0 { (per_row * num_sequences / whole).clamp(0.0, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(base_ms: f64, row_ms: f64, steps: &[usize]) -> StepCost {
        let mut cost = StepCost::default();
        for rows in steps {
            cost.observe(*rows, Duration::from_secs_f64((base_ms + row_ms * *rows as f64) / 1e3));
        }
        cost
    }

    #[test]
    fn the_share_of_a_row_is_learned_from_steps_of_different_sizes() {
        let steps: Vec<usize> = (0..200).map(|step| 1 + step % 4).collect();
        let learned = cost(3.0, 1.0, &steps);
        assert!((learned.row_share(1) - 0.25).abs() < 0.02, "{}", learned.row_share(1));
        assert!((learned.row_share(9) - 0.75).abs() < 0.02, "{}", learned.row_share(9));
    }

    #[test]
    fn steps_of_one_size_say_nothing_about_a_row() {
        assert!((cost(3.0, 1.0, &[1; 200]).row_share(1) - INITIAL_ROW_SHARE).abs() < 1e-6);
        assert!((StepCost::default().row_share(1) - INITIAL_ROW_SHARE).abs() < 1e-6);
    }

    #[test]
    fn free_rows_are_free_and_rows_that_are_all_the_cost_never_pay() {
        let steps: Vec<usize> = (0..400).map(|step| 1 + step % 4).collect();
        assert!(cost(5.0, 0.0, &steps).row_share(4) < 0.05);
        let full = cost(0.0, 5.0, &steps).row_share(4);
        assert!(full > 0.95, "{full}");
        assert_eq!(Acceptance::default().max_draft_tokens(full), 0);
    }

    #[test]
    fn right_guesses_lead_to_more_and_wrong_ones_to_none() {
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.max_draft_tokens(0.3), 2);
        for _ in 0..8 {
            acceptance.observe(2, 2);
        }
        assert!(acceptance.max_draft_tokens(0.3) >= 8, "{acceptance:?}");
        let mut num_tries = 0;
        while acceptance.max_draft_tokens(0.3) > 0 {
            acceptance.observe(1, 0);
            num_tries += 1;
        }
        assert!(num_tries <= 12, "{num_tries}");
        let mut num_silent = 0;
        while acceptance.max_draft_tokens(0.3) == 0 {
            acceptance.recover();
            num_silent += 1;
        }
        assert!((5..50).contains(&num_silent), "{num_silent}");
    }
}
