//! What callers write: the arguments of the native tools, their schemas' source, and the engine's request they become.

use mistralrs_core::request::ChatPrompt;
use mistralrs_core::{GenerateRequest, Priority, Prompt, SamplingParams, StopConditions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens generated where the caller sets no limit: an answer of a page, within the minute that MCP clients wait.
pub(super) const DEFAULT_MAX_TOKENS: usize = 512;

/// Declares a struct of one field of its own and those that every generation takes. `serde(flatten)` would share them
/// too, but cannot refuse unknown fields.
macro_rules! generation_arguments {
    ($(#[$struct_meta:meta])* $name:ident { $(#[$field_meta:meta])* $field:ident: $type:ty }) => {
        $(#[$struct_meta])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(#[$field_meta])*
            pub $field: $type,
            /// Which model answers, by its id from `list_models`; the first one loaded if absent.
            pub model: Option<String>,
            /// Limit of generated tokens; 512 if absent.
            #[schemars(range(min = 1))]
            pub max_tokens: Option<usize>,
            /// Randomness; 0 always picks the likeliest token, 1 (if absent) the model's own distribution.
            #[schemars(range(min = 0, max = 2))]
            pub temperature: Option<f32>,
            /// Sample from the smallest set of tokens whose probability reaches this.
            #[schemars(range(min = 0, max = 1))]
            pub top_p: Option<f32>,
            /// Sample from this many likeliest tokens.
            #[schemars(range(min = 1))]
            pub top_k: Option<usize>,
            /// Leave out tokens less likely than this fraction of the likeliest one's probability.
            #[schemars(range(min = 0, max = 1))]
            pub min_p: Option<f32>,
            /// More than 1 makes tokens of the prompt and the output so far less likely.
            pub repetition_penalty: Option<f32>,
            /// Text before which the output ends: one string or several.
            pub stop: Option<StopStrings>,
            /// Makes the output reproducible.
            pub seed: Option<u64>,
            /// Report each piece of the text as a progress notification while the call runs.
            #[expect(dead_code, reason = "part of the schema; the transport acts on it before the call")]
            pub stream: Option<bool>,
        }

        impl $name {
            fn request(self, prompt: impl FnOnce($type) -> Prompt) -> GenerateRequest {
                let plain = SamplingParams::default();
                GenerateRequest {
                    prompt: prompt(self.$field),
                    num_choices: 1,
                    max_tokens: self.max_tokens,
                    sampling: SamplingParams {
                        temperature: self.temperature.unwrap_or(plain.temperature),
                        top_p: self.top_p.unwrap_or(plain.top_p),
                        top_k: self.top_k,
                        min_p: self.min_p.unwrap_or(plain.min_p),
                        repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
                        seed: self.seed,
                        ..plain
                    },
                    stop: StopConditions {
                        strings: self.stop.map(StopStrings::into_vec).unwrap_or_default(),
                        ..StopConditions::default()
                    },
                    logprobs: None,
                    priority: Priority::default(),
                    cache_salt: None,
                }
            }
        }
    };
}

generation_arguments! {
    /// Arguments of `generate`.
    GenerateArguments {
        /// The text to continue.
        prompt: String
    }
}

generation_arguments! {
    /// Arguments of `chat`.
    ChatArguments {
        /// The conversation so far, oldest first.
        #[schemars(length(min = 1))]
        messages: Vec<ChatMessage>
    }
}

/// One message of a conversation.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatMessage {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who says a message.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One stop string or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum StopStrings {
    One(String),
    Many(Vec<String>),
}

impl StopStrings {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(string) => vec![string],
            Self::Many(strings) => strings,
        }
    }
}

/// Arguments of `tokenize`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeArguments {
    /// The text.
    pub text: String,
    /// Whose tokenizer, by the model's id from `list_models`; the first one loaded if absent.
    pub model: Option<String>,
    /// Whether to add what the model expects around a prompt (such as a token for its beginning).
    #[serde(default = "yes")]
    pub add_special_tokens: bool,
}

/// `list_models` takes none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListModelsArguments {}

fn yes() -> bool {
    true
}

impl From<GenerateArguments> for GenerateRequest {
    fn from(arguments: GenerateArguments) -> Self {
        arguments.request(Prompt::Text)
    }
}

impl From<ChatArguments> for GenerateRequest {
    fn from(arguments: ChatArguments) -> Self {
        arguments.request(|messages| {
            let messages = messages.iter().filter_map(|message| serde_json::to_value(message).ok()).collect();
            Prompt::Chat(ChatPrompt { messages, ..ChatPrompt::default() })
        })
    }
}
