//! The engine itself, without sockets in between.

use mistralrs_core::config::ModelSource;
use mistralrs_core::model::SpecialTokens;
use mistralrs_core::{
    EngineConfig, EngineMetrics, GenerateRequest, Model, Priority, Prompt, RequestError, SamplingParams,
    StopConditions, TextEvent,
};

use super::BenchError;
use super::prompts::Prompts;
use super::target::{Failure, Pieces, Target, TokensUsed};
use crate::metrics;

/// A model in this process.
pub(super) struct InProcess {
    model: Model,
    prompts: Prompts,
    /// Tokens that all prompts begin with.
    shared: Vec<u32>,
    max_tokens: usize,
}

impl InProcess {
    /// Loads the model and tokenizes the shared beginning.
    pub async fn load(
        source: ModelSource,
        config: EngineConfig,
        prompts: Prompts,
        max_tokens: usize,
    ) -> Result<Self, BenchError> {
        let load = move || Model::load(&source, &config, &EngineMetrics::register(&metrics::new_registry()));
        let model = match tokio::task::spawn_blocking(load).await {
            Ok(model) => model?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let num_shared = prompts.shape().num_shared;
        let shared = if num_shared == 0 {
            Vec::new()
        } else {
            exactly(num_shared, model.tokenize(prompts.shared_text(), SpecialTokens::Add).await?)
        };
        Ok(Self { model, prompts, shared, max_tokens })
    }

    pub fn model_id(&self) -> &str {
        &self.model.info().id
    }

    pub async fn shutdown(&self) {
        self.model.shutdown().await;
    }
}

/// A word is one token or more, so there are enough of them.
fn exactly(num_tokens: usize, mut token_ids: Vec<u32>) -> Vec<u32> {
    token_ids.truncate(num_tokens);
    token_ids
}

impl Target for InProcess {
    type Prompt = Vec<u32>;

    async fn prompt(&self, index: u64) -> Result<Vec<u32>, Failure> {
        let special_tokens = if self.shared.is_empty() { SpecialTokens::Add } else { SpecialTokens::Omit };
        let own = self.model.tokenize(self.prompts.own_text(index), special_tokens).await;
        let own = own.map_err(|error| Failure::Failed(error.to_string()))?;
        Ok([self.shared.clone(), exactly(self.prompts.shape().num_own, own)].concat())
    }

    async fn answer(&self, prompt: Vec<u32>, pieces: &mut Pieces) -> Result<TokensUsed, Failure> {
        let request = GenerateRequest {
            prompt: Prompt::Tokens(prompt),
            num_choices: 1,
            max_tokens: Some(self.max_tokens),
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            stop: StopConditions { ignore_eos: true, ..StopConditions::default() },
            logprobs: None,
            priority: Priority::default(),
            cache_salt: None,
        };
        let mut events = self.model.generate(request).await.map_err(|error| match error {
            RequestError::QueueFull { .. } => Failure::Refused(error.to_string()),
            error => Failure::Failed(error.to_string()),
        })?;
        while let Some(event) = events.next().await {
            match event {
                TextEvent::Delta { .. } => pieces.arrived(),
                TextEvent::Finished { .. } => {}
                TextEvent::Refused { error, .. } => return Err(Failure::Refused(error.to_string())),
                TextEvent::Failed { message, .. } => return Err(Failure::Failed(message)),
            }
        }
        let usage = events.usage();
        Ok(TokensUsed {
            prompt: Some(usage.num_prompt_tokens as u64),
            cached: Some(usage.num_cached_tokens as u64),
            completion: Some(usage.num_completion_tokens as u64),
        })
    }
}
