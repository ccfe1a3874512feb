//! What llama.cpp and transformers answered, and how far from it we may be.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use safetensors::SafeTensors;

use crate::requantize::requantize;
use crate::runner::{Chunk, Runner, fixture};

/// Agreement asked of float weights: the largest difference of a logit, as a part of the logits' range.
const MAX_LOGIT_ERROR: f32 = 1e-3;

/// Rounding of activations beside quantized weights, as a multiple of what llama.cpp's moves it by.
const MAX_ROUNDING: f64 = 1.0;

/// How far our distributions may be from llama.cpp's over quantized weights, as a multiple of the same: each of two that are
/// one step from the truth, in directions of their own.
const MAX_DISTANCE: f64 = 4.0;

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

    /// Fails if rounding activations moves our distributions over a text further than llama.cpp's own, be it a prompt or
    /// generated: `rounded` against the same weights in F32.
    pub fn check_rounding(&self, rounded: &mut Runner, widened: &mut Runner) {
        let text = &self.ids["text"];
        let exact = widened.logits(text);
        let generated = rounded.mixed_step(&[Chunk { sequence: 0, num_computed: 0, tokens: text }], &[]);
        for (kind, ours) in [("a prompt", rounded.logits(text)), ("generated", generated)] {
            let divergences = exact.iter().zip(&ours).map(|(exact, ours)| divergence(exact, ours));
            let divergence = divergences.sum::<f64>() / text.len() as f64;
            let theirs = self.rounding_divergence.unwrap();
            println!("{}, {kind}: rounding moves us by {divergence:.2e}, llama.cpp by {theirs:.2e}", self.name);
            assert!(divergence <= MAX_ROUNDING * theirs, "{}, {kind}: {divergence:.2e}, not {theirs:.2e}", self.name);
        }
    }

    /// Fails if our distributions over a text are further from llama.cpp's than rounding explains: weights are read otherwise.
    pub fn check_distributions(&self, rounded: &mut Runner) {
        let logits = rounded.logits(&self.ids["text"]);
        let (ids, log_probs) = (&self.ids["top_ids"], &self.values["top_log_probs"]);
        let num_top = ids.len() / logits.len();
        let rows = logits.iter().zip(ids.chunks_exact(num_top).zip(log_probs.chunks_exact(num_top)));
        let divergences = rows.map(|(ours, (ids, log_probs))| divergence_of_top(ours, ids, log_probs));
        let divergence = divergences.sum::<f64>() / logits.len() as f64;
        let allowed = MAX_DISTANCE * self.rounding_divergence.unwrap();
        println!("{}: {divergence:.2e} from llama.cpp", self.name);
        assert!(divergence.abs() <= allowed, "{}: {divergence:.2e} from llama.cpp, over {allowed:.2e}", self.name);
    }
}

/// KL(theirs, ours) over the tokens they find likeliest.
fn divergence_of_top(ours: &[f32], ids: &[u32], log_probs: &[f32]) -> f64 {
    let sum = log_sum_exp(ours);
    let terms = ids.iter().zip(log_probs).map(|(id, theirs)| {
        let theirs = f64::from(*theirs);
        theirs.exp() * (theirs - (f64::from(ours[*id as usize]) - sum))
    });
    terms.sum()
}

/// Fails unless the quantized file at `path` computes what the references called `name` say.
///
/// We and llama.cpp both round activations beside quantized weights, each in its own way. So what is compared is
/// the same weights widened to F32, exactly, and how far rounding moves each of us from that.
pub fn check_quantized(path: &Path, name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let widened_path = directory.path().join("widened.gguf");
    requantize(path, &widened_path, |_| GgmlDType::F32);
    let mut widened = Runner::new(&widened_path);
    std::fs::remove_file(&widened_path).unwrap();
    let reference = Reference::read(&format!("{name}.widened"));
    reference.check_logits(&mut widened);
    reference.check_greedy(&mut widened);
    let mut rounded = Runner::new(path);
    Reference::read(&format!("{name}.llama-cpp")).check_rounding(&mut rounded, &mut widened);
}

/// KL(exact, ours) over the whole vocabulary, in nats.
fn divergence(exact: &[f32], ours: &[f32]) -> f64 {
    let (exact_sum, our_sum) = (log_sum_exp(exact), log_sum_exp(ours));
    let terms = exact.iter().zip(ours).map(|(exact, ours)| {
        let log_prob = f64::from(*exact) - exact_sum;
        log_prob.exp() * (log_prob - (f64::from(*ours) - our_sum))
    });
    terms.sum()
}

pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum::<f64>().ln()
}
