//! Qwen2.5-Coder-0.5B, a real model with biases and a large vocabulary.

use crate::reference::{Reference, check_quantized};
use crate::requantize::model;
use crate::runner::load;

const FILE: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

#[test]
#[ignore = "needs 491 MB more in models/ (scripts/get_models.sh --qwen) and 3 GB of memory"]
fn qwen2_5_coder_agrees_with_llama_cpp() {
    check_quantized(&model(FILE), "qwen2-q4_k_m");
}

#[test]
#[ignore = "needs 491 MB more in models/ (scripts/get_models.sh --qwen)"]
fn qwen2_5_coder_s_own_tokenizer_and_template_are_read() {
    let loaded = load(&model(FILE));
    assert_eq!(loaded.description.architecture, "qwen2");
    assert!(loaded.chat_template.is_some());
    // <|endoftext|> and <|im_end|>.
    assert!(loaded.eos_token_ids.is_superset(&[151_643, 151_645].into()), "{:?}", loaded.eos_token_ids);
    for (_, ids) in Reference::read("qwen2-q4_k_m.widened").prompts() {
        let text = loaded.tokenizer.decode(ids, false).unwrap();
        assert_eq!(loaded.tokenizer.encode(text, true).unwrap().get_ids(), ids);
    }
}
