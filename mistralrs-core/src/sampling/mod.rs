//! How the next token is picked from a sequence's logits.
//!
//! A [`Sampler`] belongs to one sequence and is used by the engine thread only; nothing in it depends on the
//! batch around the sequence. Each call does, in this order:
//!
//! 1. *log-probabilities*, if asked for, of the logits as the model gave them;
//! 2. end and stop tokens are masked while there are fewer than `min_tokens`; `logit_bias`; `repetition_penalty`;
//!    `frequency_penalty` and `presence_penalty`; DRY;
//! 3. temperature 0: the likeliest token, the lowest id among equals, and nothing below;
//! 4. temperature;
//! 5. `top_n_sigma`, `top_k`, `top_p`, `min_p`;
//! 6. `typical_p`, then XTC;
//! 7. one draw.
//!
//! Each truncation sees the probabilities of what those before it left, as if there were no other tokens. `top_n_sigma`
//! measures the deviation of the logits as the model gave them: banned tokens must not widen it.
//!
//! Bias comes before the penalties as in vLLM. Temperature comes before the truncations as in vLLM and transformers:
//! clients of OpenAI's API expect that a high temperature widens the nucleus. llama.cpp's default chain applies it
//! last; without `top_p`, `min_p`, `typical_p` and XTC the two agree.
//!
//! The truncations of step 5 keep a prefix of one order (higher logit first, then lower id), so each is a single
//! cutoff, and the narrowest wins. Those of step 6 may leave out the likeliest tokens, so they work on weights. No step
//! sorts the vocabulary, and none allocates once its buffers have grown.

mod draws;
mod dry;
mod penalties;
mod sampler;
mod softmax;
mod truncation;
mod typical;
mod validate;
mod xtc;

pub use draws::ChoiceSeed;
pub use dry::MAX_DRY_WINDOW;
pub(crate) use sampler::likeliest;
pub use sampler::{Sampled, Sampler, SamplerScratch, SamplerSetup, SamplingError};
pub use validate::{MAX_DRY_BREAKER_BYTES, MAX_DRY_BREAKERS, MAX_TOP_LOGPROBS, validate_logprobs};

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
