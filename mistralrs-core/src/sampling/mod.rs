//! How the next token is picked from a sequence's logits.
//!
//! A [`Sampler`] belongs to one sequence and is used by the engine thread only; nothing in it depends on the
//! batch around the sequence. Each call does, in this order:
//!
//! 1. *log-probabilities*, if asked for, of the logits as the model gave them;
//! 2. `logit_bias`, then `repetition_penalty`, then `frequency_penalty` and `presence_penalty`;
//! 3. temperature 0: the likeliest token, the lowest id among equals, and nothing below;
//! 4. temperature, `top_k`, `top_p` over what `top_k` left, `min_p`, and one draw.
//!
//! Bias comes before the penalties as in vLLM. Temperature comes before the truncations as in vLLM and transformers:
//! clients of OpenAI's API expect that a high temperature widens the nucleus. llama.cpp's default chain applies it
//! last; without `top_p` and `min_p` the two agree.
//!
//! All truncations keep a prefix of one order (higher logit first, then lower id), so each is a single
//! cutoff, and the narrowest wins. No step sorts the vocabulary.

mod penalties;
mod sampler;
mod softmax;
mod truncation;
mod validate;

pub use sampler::{ChoiceSeed, Sampled, Sampler, SamplerScratch, SamplingError};
pub use validate::{MAX_TOP_LOGPROBS, validate_logprobs};

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
