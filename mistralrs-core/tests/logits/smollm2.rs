//! SmolLM2-135M, the default model.

use candle_core::quantized::GgmlDType;

use crate::reference::Reference;
use crate::requantize::{Tensors, requantize, smollm2};
use crate::runner::{Chunk, Runner};

/// llama.cpp rounds activations to 8 bits beside quantized weights, our kernels do not. So two references: exactly
/// llama.cpp over the same weights widened to F32, and as near to its own kernels as it is to itself.
fn check_quantized(file: &str) {
    let tensors = Tensors::read(file);
    let directory = tempfile::tempdir().unwrap();
    let path = if file == "q4_1" { smollm2() } else { directory.path().join("quantized.gguf") };
    if file != "q4_1" {
        requantize(&smollm2(), &path, |name| tensors.dtype(name));
    }
    tensors.check(&path);
    let mut runner = Runner::new(&path);
    let widened = Reference::read(&format!("smollm2-{file}.widened"));
    widened.check_logits(&mut runner);
    widened.check_greedy(&mut runner);
    Reference::read(&format!("smollm2-{file}.llama-cpp")).check_near(&mut runner);
}

#[test]
fn q4_1_agrees_with_llama_cpp() {
    check_quantized("q4_1");
}

#[test]
fn q4_0_agrees_with_llama_cpp() {
    check_quantized("q4_0");
}

#[test]
fn q8_0_agrees_with_llama_cpp() {
    check_quantized("q8_0");
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
