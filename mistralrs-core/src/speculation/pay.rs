//! Does guessing pay? A guess adds a row to the step, and the draft model's has a part in its steps too; it pays while the
//! chance that it is right exceeds what it costs, in units of what a token costs without it.

use std::time::Duration;

/// Where an estimate begins, and drifts back to while nothing is guessed.
const INITIAL_RATE: f64 = 0.6;

/// Weight of one verified guess in one sequence's estimate: about the last eight count.
const RATE_WEIGHT: f64 = 1.0 / 8.0;

/// Share of the way back per step without guesses: a text that turns repetitive is found out within a few dozen tokens,
/// one that never does pays for one row in about as many.
const RECOVERY: f64 = 0.005;

/// Weight of one verified guess in the estimate over all sequences: about the last 32 count.
const RATE_WEIGHT_OVER_ALL: f64 = 1.0 / 32.0;

/// Share of the way back of the estimate over all sequences, per step in which none is guessed for: a draft model that
/// is wrong too often is tried again after a few hundred steps, and each wrong guess then buys about as much silence.
const RECOVERY_OVER_ALL: f64 = 0.0002;

/// Weight of all steps before the newest in the cost: about the last hundred count.
const COST_DECAY: f64 = 0.99;

/// Before steps of different sizes were seen, one more row is taken to cost this share of a step of one row.
const INITIAL_ROW_SHARE: f64 = 0.3;

/// How many steps' worth of evidence [`INITIAL_ROW_SHARE`] counts as.
const PRIOR_WEIGHT: f64 = 4.0;

/// How often guesses of one kind are right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acceptance {
    /// The estimated chance that the next guess is right if all before it were.
    rate: f64,
    /// Weight of one verified guess.
    weight: f64,
    /// Share of the way back per step without guesses.
    recovery: f64,
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { rate: INITIAL_RATE, weight: RATE_WEIGHT, recovery: RECOVERY }
    }
}

/// What the draft model would do for one sequence in one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DraftTask {
    /// Tokens it has to compute before it can guess.
    pub num_missing: usize,
    /// Guesses there is room for.
    pub max_guesses: usize,
    /// Tokens that the answer is expected to go on for.
    pub num_left: usize,
}

/// What the draft model's work costs now, in tokens: as much as one takes without guesses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DraftPrice {
    /// A guess: its row in the model's step, and its part of one of the draft model's.
    pub guess: f64,
    /// One more token to compute before the first guess.
    pub missing: f64,
}

impl Acceptance {
    /// An estimate over all sequences.
    pub fn over_all() -> Self {
        Self { rate: INITIAL_RATE, weight: RATE_WEIGHT_OVER_ALL, recovery: RECOVERY_OVER_ALL }
    }

    /// The estimate of a sequence of which nothing is known, this one being over all.
    pub fn of_newcomer(&self) -> Self {
        Self { rate: self.rate, ..Self::default() }
    }

    /// How many guesses pay if one more row costs `row_share` of a token: the n-th is right with `rate` to the n.
    pub fn max_draft_tokens(&self, row_share: f64) -> usize {
        let (rate, row_share) = (self.rate.clamp(0.0, 0.99), row_share.clamp(0.01, 1.0));
        if rate <= row_share { 0 } else { (row_share.ln() / rate.ln()) as usize }
    }

    /// How many of the draft model's guesses pay. None where the rest of the answer would not make up for what must be
    /// computed first.
    pub fn num_guesses(&self, price: DraftPrice, task: DraftTask) -> usize {
        let num_guesses = self.max_draft_tokens(price.guess).min(task.max_guesses);
        let (mut chance, mut num_right) = (1.0, 0.0);
        for _ in 0..num_guesses {
            chance *= self.rate;
            num_right += chance;
        }
        let gain_per_step = num_right - num_guesses as f64 * price.guess;
        let gain = gain_per_step * task.num_left as f64 / (1.0 + num_right);
        if gain > task.num_missing as f64 * price.missing { num_guesses } else { 0 }
    }

    /// Of `num_drafted` guesses, the first `num_accepted` were right; after a wrong one nothing is known.
    pub fn observe(&mut self, num_drafted: usize, num_accepted: usize) {
        for _ in 0..num_accepted {
            self.rate += self.weight * (1.0 - self.rate);
        }
        if num_accepted < num_drafted {
            self.rate -= self.weight * self.rate;
        }
    }

    /// A step passed without guesses, because they did not pay.
    pub fn recover(&mut self) {
        self.rate += self.recovery * (INITIAL_RATE - self.rate);
    }

    /// The same, where `over_all` knows better than [`INITIAL_RATE`].
    pub fn recover_towards(&mut self, over_all: &Self) {
        self.rate += self.recovery * (over_all.rate - self.rate);
    }
}

/// What a step costs: `base + per_row * rows`, by least squares over recent steps, newer ones weighing more.
#[derive(Debug, Default)]
pub(crate) struct StepCost {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
}

impl StepCost {
    /// A step with `num_rows` rows took `elapsed`.
    pub fn observe(&mut self, num_rows: usize, elapsed: Duration) {
        let (rows, seconds) = (num_rows as f64, elapsed.as_secs_f64());
        for sum in self.sums() {
            *sum *= COST_DECAY;
        }
        self.weight += 1.0;
        self.rows += rows;
        self.seconds += seconds;
        self.rows_squared += rows * rows;
        self.rows_seconds += rows * seconds;
    }

    /// Halves the weight of all that was seen: what comes next counts more.
    pub fn fade(&mut self) {
        for sum in self.sums() {
            *sum *= 0.5;
        }
    }

    /// What one more row costs, as a share of what each of `num_sequences` tokens costs in a step without guesses: a
    /// guess pays if it is right more often than this.
    pub fn row_share(&self, num_sequences: usize) -> f64 {
        let line = self.line().unwrap_or(Line { base: 1.0 - INITIAL_ROW_SHARE, per_row: INITIAL_ROW_SHARE });
        let token = line.seconds_per_row(num_sequences);
        if token > 0.0 { (line.per_row / token).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// What a draft model whose steps cost `draft` asks for if it guesses for `num_drafted` of `num_sequences`; `None`
    /// before steps of both were seen.
    pub fn draft_price(&self, draft: &Self, num_sequences: usize, num_drafted: usize) -> Option<DraftPrice> {
        let (line, draft) = (self.line()?, draft.line()?);
        let token = line.seconds_per_row(num_sequences);
        (token > 0.0).then(|| DraftPrice {
            guess: (line.per_row + draft.seconds_per_row(num_drafted)) / token,
            missing: draft.per_row / token,
        })
    }

    /// Rows of a step that takes `time`; `None` before steps were seen, and where rows seem to cost nothing.
    pub fn num_rows_within(&self, time: Duration) -> Option<usize> {
        let line = self.line().filter(|line| line.per_row > 0.0)?;
        Some(((time.as_secs_f64() - line.base) / line.per_row).max(0.0) as usize)
    }

    /// `None` before anything was seen.
    fn line(&self) -> Option<Line> {
        if self.weight == 0.0 {
            return None;
        }
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let prior = INITIAL_ROW_SHARE * seconds / (1.0 - INITIAL_ROW_SHARE + INITIAL_ROW_SHARE * rows);
        let covariance = self.rows_seconds - self.weight * rows * seconds + PRIOR_WEIGHT * prior;
        let variance = self.rows_squared - self.weight * rows * rows + PRIOR_WEIGHT;
        let per_row = (covariance / variance).max(0.0);
        Some(Line { base: (seconds - per_row * rows).max(0.0), per_row })
    }

    fn sums(&mut self) -> [&mut f64; 5] {
        [&mut self.weight, &mut self.rows, &mut self.seconds, &mut self.rows_squared, &mut self.rows_seconds]
    }
}

/// Seconds of a step by its rows.
#[derive(Debug, Clone, Copy)]
struct Line {
    base: f64,
    per_row: f64,
}

impl Line {
    fn seconds_per_row(self, num_rows: usize) -> f64 {
        self.base / num_rows.max(1) as f64 + self.per_row
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

    /// A draft model of a tenth of the model's cost.
    const CHEAP: DraftPrice = DraftPrice { guess: 0.4, missing: 0.03 };

    fn guesses(acceptance: &Acceptance, price: DraftPrice, num_missing: usize, num_left: usize) -> usize {
        acceptance.num_guesses(price, DraftTask { num_missing, max_guesses: 8, num_left })
    }

    #[test]
    fn a_draft_models_guess_costs_a_row_and_its_part_of_the_draft_models_step() {
        let steps: Vec<usize> = (0..400).map(|step| 1 + step % 8).collect();
        let (model, draft) = (cost(9.0, 1.0, &steps), cost(0.9, 0.1, &steps));
        let alone = model.draft_price(&draft, 1, 1).unwrap();
        assert!((alone.guess - 0.2).abs() < 0.02 && (alone.missing - 0.01).abs() < 0.002, "{alone:?}");
        // Of ten tokens in 19 ms one is 1.9 ms; a row is 1 ms, a tenth of the draft model's step 0.19 ms.
        let together = model.draft_price(&draft, 10, 10).unwrap();
        assert!((together.guess - 1.19 / 1.9).abs() < 0.03, "{together:?}");
        let few = model.draft_price(&draft, 10, 1).unwrap();
        assert!(few.guess > 1.0, "a step of the draft model for one of ten: {few:?}");
        assert_eq!(model.draft_price(&StepCost::default(), 1, 1), None);
        assert_eq!(StepCost::default().draft_price(&draft, 1, 1), None);
    }

    #[test]
    fn a_model_never_pays_as_its_own_draft_however_often_it_is_right() {
        let mut acceptance = Acceptance::default();
        acceptance.observe(100, 100);
        let steps: Vec<usize> = (0..400).map(|step| 1 + step % 8).collect();
        for (base, row) in [(5.0, 1.0), (5.0, 0.0), (0.0, 5.0)] {
            let model = cost(base, row, &steps);
            for num_sequences in [1, 4, 32] {
                let price = model.draft_price(&model, num_sequences, num_sequences).unwrap();
                assert_eq!(guesses(&acceptance, price, 1, 1000), 0, "{price:?}");
            }
        }
    }

    #[test]
    fn what_must_be_computed_first_has_to_pay_within_the_rest_of_the_answer() {
        let mut acceptance = Acceptance::default();
        acceptance.observe(20, 20);
        assert!(guesses(&acceptance, CHEAP, 1, 20) > 0);
        assert_eq!(guesses(&acceptance, CHEAP, 4000, 20), 0, "4000 tokens of prompt for 20 of an answer");
        assert!(guesses(&acceptance, CHEAP, 4000, 2000) > 0);
        assert_eq!(guesses(&acceptance, CHEAP, 1, 0), 0);
    }

    #[test]
    fn what_all_sequences_teach_newcomers_begin_with_and_the_rest_come_back_to() {
        let mut over_all = Acceptance::over_all();
        over_all.observe(1, 0);
        assert!(guesses(&over_all.of_newcomer(), CHEAP, 1, 100) > 0, "one wrong guess says little");
        for _ in 0..100 {
            over_all.observe(1, 0);
        }
        let mut sequence = over_all.of_newcomer();
        assert_eq!(guesses(&sequence, CHEAP, 1, 100), 0, "{over_all:?}");
        sequence.observe(8, 8);
        assert!(guesses(&sequence, CHEAP, 1, 100) > 0, "a text of its own");
        for _ in 0..1000 {
            sequence.recover_towards(&over_all);
        }
        assert_eq!(guesses(&sequence, CHEAP, 1, 100), 0);
        let mut num_silent = 0;
        while guesses(&over_all.of_newcomer(), CHEAP, 1, 100) == 0 {
            over_all.recover();
            num_silent += 1;
        }
        assert!((1000..20_000).contains(&num_silent), "{num_silent}");
    }

    #[test]
    fn a_new_measurement_outweighs_an_old_one() {
        let mut draft = cost(50.0, 0.0, &[1; 100]);
        for _ in 0..16 {
            draft.fade();
            draft.observe(1, Duration::from_millis(1));
        }
        let steps: Vec<usize> = (0..200).map(|step| 1 + step % 4).collect();
        let model = cost(10.0, 0.0, &steps);
        let price = model.draft_price(&draft, 1, 1).unwrap();
        assert!(price.guess < 0.5, "{price:?}");
    }
}
