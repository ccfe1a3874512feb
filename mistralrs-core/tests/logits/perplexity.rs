//! Perplexity over a fixed text, as llama-perplexity measures it.

use serde::Deserialize;

use crate::reference::log_sum_exp;
use crate::requantize::smollm2_as;
use crate::runner::{Runner, fixture, load};

/// How far from llama.cpp's, as a part of it.
const MAX_ERROR: f64 = 0.005;

/// What `scripts/make_fixtures.py` had llama-perplexity answer.
#[derive(Deserialize)]
struct Answers {
    /// Tokens of one window.
    window: usize,
    windows: usize,
    q4_1: f64,
    q8_0: f64,
}

/// Each window is a sequence of its own, and the tokens of its second half are scored: those of the first have too little
/// before them. The file asks for no BOS, so none is put at a window's start.
fn perplexity(runner: &mut Runner, windows: &[&[u32]]) -> f64 {
    let (mut sum, mut num_scored) = (0.0, 0);
    for window in windows {
        let first = window.len() / 2;
        let rows = runner.logits_from(window, first);
        for (logits, next) in rows.iter().zip(&window[first + 1..]) {
            sum += log_sum_exp(logits) - f64::from(logits[*next as usize]);
            num_scored += 1;
        }
    }
    (sum / f64::from(num_scored)).exp()
}

#[test]
fn smollm2_s_perplexity_is_that_of_llama_cpp() {
    let text = std::fs::read_to_string(fixture("perplexity/alice.txt")).unwrap();
    let answers: Answers =
        serde_json::from_slice(&std::fs::read(fixture("perplexity/llama-cpp.json")).unwrap()).unwrap();
    for (file_type, expected) in [("q4_1", answers.q4_1), ("q8_0", answers.q8_0)] {
        let directory = tempfile::tempdir().unwrap();
        let path = smollm2_as(file_type, directory.path());
        let tokens = load(&path).tokenizer.encode(text.as_str(), true).unwrap();
        let windows: Vec<&[u32]> = tokens.get_ids().chunks_exact(answers.window).take(answers.windows).collect();
        assert_eq!(windows.len(), answers.windows, "the text is too short");
        let found = perplexity(&mut Runner::new(&path), &windows);
        println!("{file_type}: {found:.4}, llama.cpp {expected:.4}");
        assert!((found / expected - 1.0).abs() <= MAX_ERROR, "{file_type}: {found:.4}, not llama.cpp's {expected:.4}");
    }
}
