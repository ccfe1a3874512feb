//! SmolLM2-135M, the default model.

use candle_core::quantized::GgmlDType;

use crate::reference::{Reference, check_quantized};
use crate::requantize::{requantize, smollm2, smollm2_as};
use crate::runner::{Chunk, Runner};

/// One after the other: the weights in F32 take half a gigabyte.
#[test]
fn quantized_files_agree_with_llama_cpp() {
    for file_type in ["q4_1", "q4_0", "q8_0"] {
        let directory = tempfile::tempdir().unwrap();
        check_quantized(&smollm2_as(file_type, directory.path()), &format!("smollm2-{file_type}"));
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
