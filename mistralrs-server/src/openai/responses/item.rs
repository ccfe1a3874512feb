//! What a conversation is made of: items as clients write them, as they are kept and listed, and as the template takes
//! them.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::extract::fields_at;
use crate::openai::logprobs::ChatLogprob;
use crate::openai::messages::MAX_MESSAGES;
use crate::openai::types::fresh_id;

/// One item of a conversation.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Item {
    /// What a user, system or developer said.
    Input(InputMessage),
    /// What the assistant said, here or elsewhere.
    Output(OutputMessage),
}

/// A message to the model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct InputMessage {
    id: String,
    r#type: &'static str,
    status: ItemStatus,
    role: InputRole,
    content: Vec<InputText>,
}

/// A message of the model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct OutputMessage {
    /// `msg_…`.
    pub id: String,
    r#type: &'static str,
    /// Whether more comes.
    pub status: ItemStatus,
    role: &'static str,
    /// One part, or none while it has not begun.
    pub content: Vec<OutputText>,
}

/// Whether more of an item comes.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ItemStatus {
    /// More comes.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut off.
    Incomplete,
}

/// Who speaks to the model.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum InputRole {
    User,
    System,
    Developer,
}

/// Text to the model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
struct InputText {
    r#type: &'static str,
    text: String,
}

/// Text of the model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct OutputText {
    r#type: &'static str,
    /// Citations of files and pages; this server has none.
    annotations: [(); 0],
    /// Its tokens, if they were asked for.
    pub logprobs: Vec<ChatLogprob>,
    /// The text.
    pub text: String,
}

impl OutputMessage {
    /// A message that has not begun.
    pub fn new() -> Self {
        Self {
            id: fresh_id("msg"),
            r#type: "message",
            status: ItemStatus::InProgress,
            role: "assistant",
            content: Vec::new(),
        }
    }

    /// The same message with its text.
    pub fn with_text(&self, text: OutputText, status: ItemStatus) -> Self {
        Self { status, content: vec![text], ..self.clone() }
    }
}

impl OutputText {
    /// A part with `text`, without tokens.
    pub fn new(text: String) -> Self {
        Self { r#type: "output_text", annotations: [], logprobs: Vec::new(), text }
    }
}

impl Item {
    fn new(role: &str, texts: Vec<String>) -> Option<Self> {
        let role = match role {
            "assistant" => {
                let content = texts.into_iter().map(OutputText::new).collect();
                return Some(Self::Output(OutputMessage {
                    status: ItemStatus::Completed,
                    content,
                    ..OutputMessage::new()
                }));
            }
            "user" => InputRole::User,
            "system" => InputRole::System,
            "developer" => InputRole::Developer,
            _ => return None,
        };
        Some(Self::Input(InputMessage {
            id: fresh_id("msg"),
            r#type: "message",
            status: ItemStatus::Completed,
            role,
            content: texts.into_iter().map(|text| InputText { r#type: "input_text", text }).collect(),
        }))
    }

    /// Its `msg_…`.
    pub fn id(&self) -> &str {
        match self {
            Self::Input(message) => &message.id,
            Self::Output(message) => &message.id,
        }
    }

    /// As the chat template takes it: parts become lines of one text, and developers are the newer word for the system.
    pub fn to_chat(&self) -> Value {
        let (role, texts): (_, Vec<&str>) = match self {
            Self::Input(InputMessage { role: InputRole::User, content, .. }) => ("user", texts(content)),
            Self::Input(InputMessage { content, .. }) => ("system", texts(content)),
            Self::Output(message) => ("assistant", message.content.iter().map(|part| part.text.as_str()).collect()),
        };
        ChatMessage { role, content: &texts.join("\n") }.to_value()
    }
}

fn texts(content: &[InputText]) -> Vec<&str> {
    content.iter().map(|part| part.text.as_str()).collect()
}

/// A message as chat templates know it.
#[derive(Debug, Serialize)]
pub(super) struct ChatMessage<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// Its text.
    pub content: &'a str,
}

impl ChatMessage<'_> {
    /// The message as JSON.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("two strings are plain JSON")
    }
}

/// The `input` of a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of input items")]
pub(super) enum Input {
    /// What the user says.
    Text(String),
    /// Items; each is checked for itself, so that an error names its place.
    Items(#[schemars(with = "Vec<MessageFields>", length(min = 1, max = MAX_MESSAGES))] Vec<Value>),
}

/// A message item as clients write it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `role` and `content`")]
#[schemars(rename = "InputItem")]
struct MessageFields {
    #[schemars(extend("enum" = ["user", "assistant", "system", "developer"]))]
    role: String,
    content: MessageContent,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of text parts")]
enum MessageContent {
    Text(String),
    Parts(#[schemars(with = "Vec<PartFields>")] Vec<Value>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `type` and `text`")]
#[schemars(rename = "InputPart")]
struct PartFields {
    #[schemars(extend("enum" = ["input_text", "output_text"]))]
    r#type: String,
    #[schemars(required)]
    text: Option<String>,
}

impl Input {
    /// The checked items, each with a fresh id.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with the path of the item or part.
    pub fn items(&self) -> Result<Vec<Arc<Item>>, ApiError> {
        match self {
            Self::Text(text) => Ok(Item::new("user", vec![text.clone()]).map(Arc::new).into_iter().collect()),
            Self::Items(items) if items.is_empty() || items.len() > MAX_MESSAGES => Err(ApiError::invalid(
                "input",
                format!("`input` has {} items; expected 1 to {MAX_MESSAGES}", items.len()),
            )),
            Self::Items(items) => {
                let items = items.iter().enumerate();
                items.map(|(index, item)| check_item(&format!("input[{index}]"), item).map(Arc::new)).collect()
            }
        }
    }
}

fn check_item(path: &str, item: &Value) -> Result<Item, ApiError> {
    // Messages may leave their type out.
    match item.get("type").map_or(Some("message"), Value::as_str) {
        Some("message") => {}
        Some(other) => {
            let message = format!("`{path}`: `{other}` items are not supported yet; only messages are");
            return Err(ApiError::invalid(path, message));
        }
        None => {
            let path = format!("{path}.type");
            return Err(ApiError::invalid(path.clone(), format!("`{path}`: expected \"message\"")));
        }
    }
    let MessageFields { role, content } = fields_at(path, item)?;
    let texts = match content {
        MessageContent::Text(text) => vec![text],
        MessageContent::Parts(parts) => {
            let parts = parts.iter().enumerate();
            parts
                .map(|(index, part)| check_part(&format!("{path}.content[{index}]"), part))
                .collect::<Result<_, _>>()?
        }
    };
    Item::new(&role, texts).ok_or_else(|| {
        let path = format!("{path}.role");
        let message = format!("`{path}` is `{role}`; expected \"user\", \"assistant\", \"system\" or \"developer\"");
        ApiError::invalid(path, message)
    })
}

fn check_part(path: &str, part: &Value) -> Result<String, ApiError> {
    let PartFields { r#type, text } = fields_at(path, part)?;
    match (r#type.as_str(), text) {
        ("input_text" | "output_text", Some(text)) => Ok(text),
        ("input_text" | "output_text", None) => {
            let path = format!("{path}.text");
            Err(ApiError::invalid(path.clone(), format!("`{path}`: expected a string")))
        }
        (other, _) => Err(ApiError::invalid(
            path,
            format!("`{path}`: `{other}` parts are not supported; this model takes `input_text` and `output_text`"),
        )),
    }
}
