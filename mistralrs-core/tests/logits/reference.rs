//! What llama.cpp and transformers answered, and how far from it we may be.

use std::collections::HashMap;

use safetensors::SafeTensors;

use crate::runner::{Runner, fixture};

/// Agreement asked of float weights: the largest difference of a logit, as a part of the logits' range.
const MAX_LOGIT_ERROR: f32 = 1e-3;

/// Agreement asked of quantized weights: the mean Kullback-Leibler divergence in nats.
const MAX_MEAN_DIVERGENCE: f64 = 1e-3;
/// The same where the reference rounds activations to 8 bits and we do not, as a multiple of what that rounding moves it.
const MAX_ROUNDED_DIVERGENCE: f64 = 1.1;

/// A file of `tests/fixtures/references`.
pub struct Reference {
    name: String,
    ids: HashMap<String, Vec<u32>>,
    values: HashMap<String, Vec<f32>>,
    /// Every how many columns of the vocabulary logits were kept.
    column_stride: usize,
    /// How far rounding activations moves the reference: its mean divergence from itself over the same weights in F32.
    rounding_divergence: Option<f64>,
}

impl Reference {
    pub fn read(name: &str) -> Self {
        let path = fixture(&format!("references/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = |key: &str| metadata.metadata().as_ref().and_then(|metadata| metadata.get(key));
        let column_stride = metadata("column_stride").map_or(1, |stride| stride.parse().unwrap());
        let rounding_divergence = metadata("rounding_divergence").map(|divergence| divergence.parse().unwrap());
        let (mut ids, mut values) = (HashMap::new(), HashMap::new());
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let words = tensor.data().chunks_exact(4).map(|word| word.try_into().unwrap());
            match tensor.dtype() {
                safetensors::Dtype::U32 => ids.insert(name, words.map(u32::from_le_bytes).collect()).map(drop),
                _ => values.insert(name, words.map(f32::from_le_bytes).collect()).map(drop),
            };
        }
        Self { name: name.to_owned(), ids, values, column_stride, rounding_divergence }
    }

    pub fn prompts(&self) -> impl Iterator<Item = (usize, &[u32])> {
        (0..).map_while(|index| Some((index, self.ids.get(&format!("prompt.{index}"))?.as_slice())))
    }

    /// The numbers called `name`.
    pub fn values(&self, name: &str) -> &[f32] {
        &self.values[name]
    }

    fn greedy(&self, prompt: usize) -> &[u32] {
        &self.ids[&format!("greedy.{prompt}")]
    }

    /// Fails unless the logits of all prompts' last positions agree, over the whole vocabulary.
    pub fn check_logits(&self, runner: &mut Runner) {
        for (index, prompt) in self.prompts() {
            let logits = runner.logits(prompt);
            let expected = &self.values[&format!("logits.{index}")];
            let log_sums = &self.values[&format!("log_sum_exp.{index}")];
            let tolerance = MAX_LOGIT_ERROR * self.values[&format!("range.{index}")][0];
            let num_columns = expected.len() / log_sums.len();
            let last = &logits[logits.len() - log_sums.len()..];
            for ((logits, expected), log_sum) in last.iter().zip(expected.chunks_exact(num_columns)).zip(log_sums) {
                let kept = logits.iter().step_by(self.column_stride);
                let error = kept.zip(expected).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
                assert!(error <= tolerance, "{}, prompt {index}: a logit is {error} off, over {tolerance}", self.name);
                // What is not kept is in the sum.
                let sum_error = (log_sum_exp(logits) - f64::from(*log_sum)).abs();
                assert!(sum_error <= f64::from(tolerance), "{}, prompt {index}: log-sum {sum_error} off", self.name);
            }
        }
    }

    /// Fails unless every continuation is the same.
    pub fn check_greedy(&self, runner: &mut Runner) {
        for (index, prompt) in self.prompts() {
            let expected = self.greedy(index);
            let found = runner.greedy(prompt, expected.len());
            assert_eq!(found, expected, "{}, prompt {index}: greedy continuations differ", self.name);
        }
    }

    /// Fails unless continuations are the same or the distributions over a text are as good as the same.
    pub fn check_quantized(&self, runner: &mut Runner) {
        let is_same = |(index, prompt): (usize, &[u32])| {
            let expected = self.greedy(index);
            runner.greedy(prompt, expected.len()) == expected
        };
        let are_same: Vec<bool> = self.prompts().map(is_same).collect();
        let divergence = self.mean_divergence(runner);
        println!("{}: same continuations {are_same:?}, mean divergence {divergence:.2e}", self.name);
        assert!(
            are_same.iter().all(|is_same| *is_same) || divergence < MAX_MEAN_DIVERGENCE,
            "{}: continuations {are_same:?}, mean divergence {divergence:.2e}, over {MAX_MEAN_DIVERGENCE:.0e}",
            self.name
        );
        // Whatever the continuations: this far off would be another model.
        assert!(divergence < 10.0 * MAX_MEAN_DIVERGENCE, "{}: mean divergence {divergence:.2e}", self.name);
    }

    /// Fails if the distributions over a text are further from the reference's than its rounding of activations explains.
    pub fn check_near(&self, runner: &mut Runner) {
        let divergence = self.mean_divergence(runner);
        let rounding = self.rounding_divergence.unwrap();
        println!("{}: mean divergence {divergence:.2e}, {rounding:.2e} of it by rounding", self.name);
        assert!(divergence < MAX_ROUNDED_DIVERGENCE * rounding, "{}: {divergence:.2e}, not {rounding:.2e}", self.name);
    }

    /// Mean over positions of KL(reference, ours); all tokens outside the reference's top count as one.
    fn mean_divergence(&self, runner: &mut Runner) -> f64 {
        let text = &self.ids["text"];
        let top = self.ids["top_ids"].len() / text.len();
        let rows = self.ids["top_ids"].chunks_exact(top).zip(self.values["top_log_probs"].chunks_exact(top));
        let divergences = runner.logits(text).into_iter().zip(rows).map(|(logits, (ids, log_probs))| {
            let log_sum = log_sum_exp(&logits);
            let (mut divergence, mut mass, mut our_mass) = (0.0, 0.0, 0.0);
            for (id, log_prob) in ids.iter().zip(log_probs) {
                let (log_prob, ours) = (f64::from(*log_prob), f64::from(logits[*id as usize]) - log_sum);
                divergence += log_prob.exp() * (log_prob - ours);
                mass += log_prob.exp();
                our_mass += ours.exp();
            }
            let (rest, our_rest) = ((1.0 - mass).max(0.0), (1.0 - our_mass).max(f64::MIN_POSITIVE));
            if rest > 1e-9 { divergence + rest * (rest / our_rest).ln() } else { divergence }
        });
        divergences.sum::<f64>() / text.len() as f64
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum::<f64>().ln()
}
