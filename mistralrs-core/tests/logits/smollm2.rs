//! SmolLM2-135M, the default model.

use candle_core::quantized::GgmlDType;

use crate::reference::Reference;
use crate::requantize::{requantize, smollm2};
use crate::runner::{Chunk, Runner};

/// The reference is llama.cpp and transformers over the same weights, dequantized. llama.cpp's own Q4_1 kernels round
/// activations to 8 bits, which moves it from these weights by a mean divergence of about 3e-3; ours do not.
#[test]
fn q4_1_agrees_with_its_dequantized_weights() {
    let mut runner = Runner::new(&smollm2());
    for name in ["smollm2-f16.transformers", "smollm2-f16.llama-cpp"] {
        let reference = Reference::read(name);
        reference.check_logits(&mut runner);
        reference.check_greedy(&mut runner);
    }
    Reference::read("smollm2-q4_1.llama-cpp").check_near(&mut runner);
}

#[test]
fn f16_agrees_with_transformers_and_llama_cpp() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f16.gguf");
    requantize(&smollm2(), &path, |_| GgmlDType::F16);
    let mut runner = Runner::new(&path);
    for name in ["smollm2-f16.transformers", "smollm2-f16.llama-cpp"] {
        let reference = Reference::read(name);
        reference.check_logits(&mut runner);
        reference.check_greedy(&mut runner);
    }
}

#[test]
fn prompts_together_continue_as_each_does_alone() {
    let path = smollm2();
    let reference = Reference::read("smollm2-q4_1.llama-cpp");
    let prompts: Vec<&[u32]> = reference.prompts().map(|(_, prompt)| prompt).collect();
    let alone: Vec<Vec<f32>> = prompts.iter().map(|prompt| Runner::new(&path).logits(prompt).pop().unwrap()).collect();
    let mut together = Runner::with_sequences(&path, prompts.len());
    let chunks: Vec<Chunk<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(sequence, prompt)| Chunk { sequence, num_computed: 0, tokens: prompt })
        .collect();
    let mut logits = together.step(&chunks).into_iter();
    for (prompt, alone) in prompts.iter().zip(alone) {
        let last = logits.by_ref().take(prompt.len()).last().unwrap();
        assert!(last == alone, "neighbours changed the logits of a prompt of {} tokens", prompt.len());
    }
}
