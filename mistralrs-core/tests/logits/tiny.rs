//! The tiny random checkpoints in `tests/fixtures`.

use mistralrs_core::loader::ModelDescription;

use crate::reference::Reference;
use crate::requantize::widen;
use crate::runner::{Chunk, Runner, fixture, load};

fn check(model: &str, reference: &str) {
    let mut runner = Runner::new(&fixture(model));
    let reference = Reference::read(reference);
    reference.check_logits(&mut runner);
    reference.check_greedy(&mut runner);
}

#[test]
fn a_sharded_checkpoint_agrees_with_transformers() {
    check("tiny-llama", "tiny-llama.transformers");
}

#[test]
fn bf16_with_biases_a_head_size_of_its_own_a_tied_head_and_llama3_scaling_agrees_with_transformers() {
    check("tiny-llama-bf16", "tiny-llama-bf16.transformers");
}

#[test]
fn the_same_weights_in_gguf_agree_with_llama_cpp_and_transformers() {
    check("tiny-llama-f32.gguf", "tiny-llama.llama-cpp");
    check("tiny-llama-f32.gguf", "tiny-llama.transformers");
}

#[test]
fn qwen2_in_safetensors_and_gguf_agrees_with_transformers_and_llama_cpp() {
    for model in ["tiny-qwen2-bf16", "tiny-qwen2-f32.gguf"] {
        for reference in ["tiny-qwen2.transformers", "tiny-qwen2.llama-cpp"] {
            check(model, reference);
        }
    }
}

#[test]
fn sliding_windows_of_some_layers_and_of_all_agree_with_transformers() {
    check("tiny-qwen2-window", "tiny-qwen2-window.transformers");
    check("tiny-mistral", "tiny-mistral.transformers");
}

#[test]
fn k_quants_and_code_books_agree_with_llama_cpp_but_for_rounding() {
    for name in ["tiny-llama-256-q4_k_m", "tiny-llama-256-q6_k", "tiny-llama-256-code_books"] {
        let path = fixture(&format!("{name}.gguf"));
        let directory = tempfile::tempdir().unwrap();
        let widened = directory.path().join("widened.gguf");
        widen(&path, &widened);
        let reference = Reference::read(&format!("{name}.llama-cpp"));
        let mut rounded = Runner::new(&path);
        reference.check_rounding(&mut rounded, &mut Runner::new(&widened));
        reference.check_distributions(&mut rounded);
    }
}

/// Steps that mix prefill chunks and decodes of three sequences give each the bits it has alone.
#[test]
fn a_sequence_has_the_same_logits_alone_and_in_any_batch() {
    let quantized = ["q4_k_m", "q6_k", "code_books"].map(|name| format!("tiny-llama-256-{name}.gguf"));
    let floats = ["tiny-llama", "tiny-llama-bf16", "tiny-qwen2-bf16", "tiny-qwen2-window", "tiny-mistral"];
    for model in floats.into_iter().chain(quantized.iter().map(String::as_str)) {
        let path = fixture(model);
        let texts: [Vec<u32>; 3] = [(0..40).collect(), (5..12).collect(), (100..133).collect()];
        let alone = texts.each_ref().map(|text| Runner::new(&path).logits(text));
        let mut together = Runner::with_sequences(&path, 3);
        let mut found = [const { Vec::new() }; 3];
        // Per step, how many tokens each sequence computes; the columns sum to the texts' lengths.
        for step in [[7, 0, 32], [1, 6, 1], [31, 1, 0], [1, 0, 0]] {
            let chunks: Vec<Chunk<'_>> = (0..3)
                .filter(|sequence| step[*sequence] > 0)
                .map(|sequence| {
                    let num_computed = found[sequence].len();
                    let tokens = &texts[sequence][num_computed..num_computed + step[sequence]];
                    Chunk { sequence, num_computed, tokens }
                })
                .collect();
            let mut logits = together.step(&chunks).into_iter();
            for chunk in &chunks {
                found[chunk.sequence].extend(logits.by_ref().take(chunk.tokens.len()));
            }
        }
        assert!(found == alone, "{model}: a batch changed what a sequence computes");
    }
}

/// What a model generated has the same bits alone, with the prompts of others in the same steps, and computed again at once.
#[test]
fn generated_tokens_have_the_same_logits_beside_prompts_and_computed_again() {
    for name in ["q4_k_m", "q6_k", "code_books"] {
        let path = fixture(&format!("tiny-llama-256-{name}.gguf"));
        let (text, other): (Vec<u32>, Vec<u32>) = ((0..36).collect(), (40..140).collect());
        let (prompt, generated) = text.split_at(30);
        let of_text = |num_computed: usize, tokens| Chunk { sequence: 0, num_computed, tokens };
        let mut alone = Runner::new(&path);
        alone.logits(prompt);
        let expected: Vec<Vec<f32>> =
            (prompt.len()..text.len()).flat_map(|at| alone.mixed_step(&[of_text(at, &text[at..=at])], &[])).collect();

        let mut beside = Runner::with_sequences(&path, 2);
        beside.logits(prompt);
        let mut expected_others = Runner::new(&path).logits(&other).into_iter();
        for (step, expected) in expected.iter().enumerate() {
            let at = prompt.len() + step;
            let others = Chunk { sequence: 1, num_computed: 16 * step, tokens: &other[16 * step..16 * (step + 1)] };
            let found = beside.mixed_step(&[of_text(at, &text[at..=at])], &[others]);
            assert!(found[0] == *expected, "{name}: a prompt changed token {at}");
            assert!(found[1..].iter().eq(&expected_others.by_ref().take(16).collect::<Vec<_>>()), "{name}: token {at}");
        }

        let mut again = Runner::new(&path);
        again.logits(prompt);
        let found = again.mixed_step(&[of_text(prompt.len(), generated)], &[]);
        assert!(found == expected, "{name}: computed again, generated tokens differ");
    }
}

#[test]
fn what_the_files_say_comes_with_the_weights() {
    let gguf = load(&fixture("tiny-llama-f32.gguf"));
    let description = ModelDescription {
        architecture: "llama".into(),
        quantization: "F32".into(),
        num_parameters: 102_720,
        num_weight_bytes: 4 * 102_720,
    };
    assert_eq!(gguf.description, description);
    // <|endoftext|> and <|im_end|> are special and end a turn; only the second is declared.
    assert_eq!(gguf.eos_token_ids, [0, 2].into());
    assert!(gguf.chat_template.is_some());
    assert_eq!(gguf.tokenizer.token_to_id("<|im_end|>"), Some(2));

    let safetensors = load(&fixture("tiny-llama"));
    assert_eq!(safetensors.description, description);
    assert_eq!(safetensors.eos_token_ids, [0, 2].into());
    assert!(safetensors.chat_template.is_some());
    let text = "Once upon a time";
    let encode = |tokenizer: &tokenizers::Tokenizer| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(encode(&gguf.tokenizer), encode(&safetensors.tokenizer));
}
