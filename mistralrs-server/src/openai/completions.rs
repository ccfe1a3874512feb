//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mistralrs_core::model::MAX_CHOICES;
use mistralrs_core::request::TokenLogprob;
use mistralrs_core::{GenerateRequest, Model, Prompt};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::generation::{Generation, Piece};
use super::labels::Labels;
use super::logprobs::TextLogprobs;
use super::options::{GenerateOptions, MAX_TOP_LOGPROBS};
use super::ranking::{Likelihood, keep_likeliest};
use super::sse::{self, Chunks};
use super::types::{AnswerId, AnswerObject, UsageField};
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::{Json, RequestBody, fields};
use crate::openapi::{Operation, Tag, merged};

/// Tokens generated where the request names no number: OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Continues texts.
pub async fn completions(
    State(app): State<AppState>,
    Json(request): Json<CompletionRequest>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let model = app.route(request.options.model.as_deref())?;
    let requests = request.to_generate()?;
    let beginnings = request.beginnings(&model).await?;
    let generation = Generation::start(&model, requests, deadline).await?;
    let answer = TextAnswer::new(AnswerId::new("cmpl", &model.info().id), beginnings, request.text.logprobs.is_some());
    if request.options.wants_stream() {
        return Ok(sse::stream(generation, answer, request.options.usage_report()));
    }
    answer.collect(generation, request.choices()?).await
}

/// What it does, for the API's document.
pub(crate) fn describe_completions() -> Operation {
    Operation::new("createCompletion", Tag::OpenAi, "Continues texts.")
        .body::<CompletionRequest>(json!({ "model": "default", "prompt": "Once upon a time", "max_tokens": 32 }))
        .answers::<AnswerObject<TextChoice>>()
        .streams::<AnswerObject<TextChoice>>("chunks, then `[DONE]`; a failure is an error object before it")
        .generates()
}

/// The body, checked as far as it can be without a model.
pub struct CompletionRequest {
    options: GenerateOptions,
    text: TextFields,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct TextFields {
    prompt: Prompts,
    /// Whether answers begin with their prompt.
    echo: Option<bool>,
    /// The likeliest tokens at each position; 0: only those that were drawn.
    #[schemars(range(max = MAX_TOP_LOGPROBS))]
    logprobs: Option<usize>,
    /// Answers generated per prompt, of which the `n` likeliest are sent.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    best_of: Option<usize>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One prompt or several, as text or as tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of lists of token ids"
)]
pub(super) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    pub fn to_vec(&self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text.clone())],
            Self::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
            Self::Tokens(token_ids) => vec![Prompt::Tokens(token_ids.clone())],
            Self::ManyTokens(lists) => lists.iter().cloned().map(Prompt::Tokens).collect(),
        }
    }
}

impl RequestBody for CompletionRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let request = Self { options: fields(body)?, text: fields(body)? };
        fields::<Labels>(body)?.check()?;
        request.options.check(&request.text.rest)?;
        request.text.check()?;
        request.choices()?;
        Ok(request)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = [TextFields::json_schema, GenerateOptions::json_schema, Labels::json_schema];
        merged(parts.map(|part| part(generator)), &[])
    }
}

impl TextFields {
    fn check(&self) -> Result<(), ApiError> {
        match self.logprobs {
            Some(logprobs) if logprobs > MAX_TOP_LOGPROBS => Err(ApiError::invalid(
                "logprobs",
                format!("`logprobs` is {logprobs}; expected 0 to {MAX_TOP_LOGPROBS}"),
            )),
            Some(_) if self.wants_echo() => Err(ApiError::invalid(
                "echo",
                "`echo` with `logprobs`: log-probabilities of the prompt are not supported yet",
            )),
            _ => Ok(()),
        }
    }

    fn wants_echo(&self) -> bool {
        self.echo.unwrap_or(false)
    }
}

/// How many choices each prompt gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choices {
    pub num_generated: usize,
    /// The likeliest ones are sent; all of them, in order, where no more are generated.
    pub num_sent: usize,
}

impl CompletionRequest {
    fn choices(&self) -> Result<Choices, ApiError> {
        let num_sent = self.options.num_choices()?;
        let num_generated = self.text.best_of.unwrap_or(num_sent);
        let invalid = |message| Err(ApiError::invalid("best_of", message));
        if !(num_sent..=MAX_CHOICES).contains(&num_generated) {
            return invalid(format!(
                "`best_of` is {num_generated}; expected `n`, which is {num_sent}, to {MAX_CHOICES}"
            ));
        }
        if num_generated > num_sent && self.options.wants_stream() {
            return invalid(
                "`best_of` greater than `n` cannot be streamed: the best choices are known at the end only".to_owned(),
            );
        }
        Ok(Choices { num_generated, num_sent })
    }

    /// One request per prompt.
    pub(super) fn to_generate(&self) -> Result<Vec<GenerateRequest>, ApiError> {
        let Choices { num_generated: num_choices, num_sent } = self.choices()?;
        let prompts = self.text.prompt.to_vec();
        let total = prompts.len() * num_choices;
        if !(1..=MAX_CHOICES).contains(&total) {
            let name = if num_choices > num_sent { "best_of" } else { "n" };
            let message = format!(
                "{} prompts with `{name}` {num_choices} are {total} choices; expected 1 to {MAX_CHOICES}",
                prompts.len()
            );
            return Err(ApiError::invalid("prompt", message));
        }
        let template = GenerateRequest {
            prompt: Prompt::Tokens(Vec::new()),
            num_choices,
            max_tokens: Some(self.options.max_tokens()?.unwrap_or(DEFAULT_MAX_TOKENS)),
            sampling: self.options.sampling()?,
            stop: self.options.stop()?,
            // Ranking needs them, whoever else reads them.
            logprobs: self.text.logprobs.or((num_choices > num_sent).then_some(0)),
            priority: self.options.priority()?,
            cache_salt: self.options.cache_salt.clone(),
        };
        Ok(prompts.into_iter().map(|prompt| GenerateRequest { prompt, ..template.clone() }).collect())
    }

    /// The text that each choice begins with: its prompt with `echo`, nothing without.
    async fn beginnings(&self, model: &Model) -> Result<Vec<String>, ApiError> {
        let num_choices = self.choices()?.num_generated;
        let mut beginnings = Vec::new();
        for prompt in self.text.prompt.to_vec() {
            let text = match prompt {
                _ if !self.text.wants_echo() => String::new(),
                Prompt::Text(text) => text,
                Prompt::Tokens(token_ids) => model.detokenize(token_ids).await?,
                Prompt::Chat(_) => unreachable!("a completion's prompt is text or tokens"),
            };
            beginnings.extend(std::iter::repeat_n(text, num_choices));
        }
        Ok(beginnings)
    }
}

/// Renders the choices of one answer, whole or in chunks.
pub(super) struct TextAnswer {
    answer: AnswerId,
    /// What each choice begins with; taken when it is sent.
    beginnings: Vec<String>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    has_logprobs: bool,
}

/// One choice, of a chunk or of a whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Completion")]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

impl TextAnswer {
    pub fn new(answer: AnswerId, beginnings: Vec<String>, has_logprobs: bool) -> Self {
        let offsets = vec![0; beginnings.len()];
        Self { answer, beginnings, offsets, has_logprobs }
    }

    fn logprobs(&mut self, choice: usize, tokens: &[TokenLogprob]) -> Option<TextLogprobs> {
        self.has_logprobs.then(|| {
            let mut logprobs = TextLogprobs::default();
            logprobs.extend(tokens, &mut self.offsets[choice]);
            logprobs
        })
    }

    pub async fn collect(mut self, mut generation: Generation, sent: Choices) -> Result<Response, ApiError> {
        let beginnings = std::mem::take(&mut self.beginnings);
        let choice = |(index, text)| TextChoice {
            index,
            text,
            logprobs: self.has_logprobs.then(TextLogprobs::default),
            finish_reason: None,
        };
        let mut choices: Vec<(TextChoice, Likelihood)> =
            beginnings.into_iter().enumerate().map(|numbered| (choice(numbered), Likelihood::default())).collect();
        while let Some(piece) = generation.next().await {
            match piece? {
                Piece::Text { choice, text, logprobs } => {
                    let offset = &mut self.offsets[choice];
                    let (choice, likelihood) = &mut choices[choice];
                    choice.text.push_str(&text);
                    likelihood.extend(&logprobs);
                    if let Some(all) = &mut choice.logprobs {
                        all.extend(&logprobs, offset);
                    }
                }
                Piece::End { choice, reason, .. } => choices[choice].0.finish_reason = Some(reason.as_str()),
            }
        }
        let Choices { num_generated, num_sent } = sent;
        let mut choices = if num_generated > num_sent {
            keep_likeliest(choices, num_generated, num_sent)
        } else {
            choices.into_iter().map(|(choice, _)| choice).collect()
        };
        choices.iter_mut().enumerate().for_each(|(index, choice)| choice.index = index);
        let usage = UsageField::Known(generation.usage().into());
        Ok(axum::Json(self.answer.object("text_completion", choices, usage)).into_response())
    }
}

impl Chunks for TextAnswer {
    fn render(&mut self, piece: Piece, usage: UsageField) -> Vec<String> {
        let choice = match piece {
            Piece::Text { choice, text, logprobs } => {
                let text = std::mem::take(&mut self.beginnings[choice]) + &text;
                if text.is_empty() && logprobs.is_empty() {
                    return Vec::new();
                }
                TextChoice { index: choice, text, logprobs: self.logprobs(choice, &logprobs), finish_reason: None }
            }
            Piece::End { choice, reason, .. } => TextChoice {
                index: choice,
                text: std::mem::take(&mut self.beginnings[choice]),
                logprobs: None,
                finish_reason: Some(reason.as_str()),
            },
        };
        vec![self.answer.object("text_completion", vec![choice], usage).to_json()]
    }

    fn render_usage(&mut self, usage: UsageField) -> String {
        self.answer.object("text_completion", Vec::<TextChoice>::new(), usage).to_json()
    }
}
