//! SmolLM2-135M, the default model.

use candle_core::quantized::GgmlDType;

use crate::reference::Reference;
use crate::requantize::{Tensors, requantize, smollm2};
use crate::runner::{Chunk, Runner};

/// We and llama.cpp both round activations to 8 bits beside quantized weights, each in its own way. So what is compared is
/// the same weights widened to F32, exactly, and how far rounding moves each of us from that.
fn check_quantized(file: &str) {
    let tensors = Tensors::read(file);
    let directory = tempfile::tempdir().unwrap();
    let path = if file == "q4_1" { smollm2() } else { directory.path().join("quantized.gguf") };
    if file != "q4_1" {
        requantize(&smollm2(), &path, |name| tensors.dtype(name));
    }
    tensors.check(&path);
    let widened_path = directory.path().join("widened.gguf");
    requantize(&path, &widened_path, |_| GgmlDType::F32);
    let mut widened = Runner::new(&widened_path);
    std::fs::remove_file(&widened_path).unwrap();
    let reference = Reference::read(&format!("smollm2-{file}.widened"));
    reference.check_logits(&mut widened);
    reference.check_greedy(&mut widened);
    let mut rounded = Runner::new(&path);
    Reference::read(&format!("smollm2-{file}.llama-cpp")).check_rounding(&mut rounded, &mut widened);
}

/// One after the other: the weights in F32 take half a gigabyte.
#[test]
fn quantized_files_agree_with_llama_cpp() {
    for file in ["q4_1", "q4_0", "q8_0"] {
        check_quantized(file);
    }
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
