//! The compiled template and what it is rendered with.

use std::io::{self, Write};

use minijinja::value::Serde;
use minijinja::{Environment, Error};
use serde_json::{Map, Value, json};

use super::environment;
use super::messages::{ArgumentsShape, ContentShape, MessageShape, NullShape};
use crate::error::RequestError;
use crate::request::ChatPrompt;

/// Size of a template's source: the longest in use are about 20 kB.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Size of a rendered prompt: far over any context length, so that only a template gone wild meets it.
pub const MAX_RENDERED_BYTES: usize = 64 << 20;

/// The template's name in messages about it.
const NAME: &str = "chat_template";
/// Put behind a message that is to be continued, to find its end in the prompt. The space shows whether the template
/// trims.
const CONTINUE_MARK: &str = "<|continue-4e1243bd|> ";

/// A compiled template. Rendering is pure (but for the date, where a template asks for it) and runs on blocking threads.
pub struct ChatTemplate {
    /// As the model's files have it.
    source: String,
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    shape: MessageShape,
}

/// What follows the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PromptEnd {
    /// The beginning of the assistant's turn (`add_generation_prompt`).
    NewTurn,
    /// Nothing: the last message goes on (`continue_final_message`).
    OpenMessage,
    /// The end of the last message.
    ClosedMessage,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the tokens that it may name.
    ///
    /// # Errors
    /// The template engine's message, or that the source is over [`MAX_TEMPLATE_BYTES`].
    pub fn from_source(source: String, bos: Option<String>, eos: Option<String>) -> Result<Self, String> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(format!("it has {} bytes; at most {MAX_TEMPLATE_BYTES} are allowed", source.len()));
        }
        let mut environment = environment::environment().map_err(|error| error.to_string())?;
        let adapted = environment::replace_generation_tags(source.clone());
        environment.add_template_owned(NAME, adapted).map_err(|error| error.to_string())?;
        let as_they_are =
            MessageShape { content: ContentShape::Either, null: NullShape::Null, arguments: ArgumentsShape::Object };
        let mut template = Self { source, environment, bos_token: bos, eos_token: eos, shape: as_they_are };
        template.shape = MessageShape::detect(|messages| {
            template.render_messages(messages, &ChatPrompt::default(), PromptEnd::NewTurn).ok()
        });
        Ok(template)
    }

    /// Its source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `prompt`'s messages.
    ///
    /// It ends in the beginning of the assistant's turn, unless `template_kwargs` say `add_generation_prompt: false`.
    /// With `continue_final_message: true` it ends in the last message, the assistant's, for the model to go on with.
    /// The other `template_kwargs` are variables of the template.
    ///
    /// # Errors
    /// [`RequestError::Template`] with the template's own words where it refuses the messages;
    /// [`RequestError::Invalid`] for contradicting `template_kwargs`.
    pub fn render(&self, prompt: &ChatPrompt) -> Result<String, RequestError> {
        let end = PromptEnd::of(prompt)?;
        let mut messages = prompt.messages.clone();
        if end == PromptEnd::OpenMessage {
            mark_end(&mut messages)?;
        }
        let messages = messages.iter().map(|message| self.shape.adapt(message)).collect::<Result<Vec<_>, _>>();
        let messages = messages.map_err(RequestError::Template)?;
        let text = self.render_messages(&messages, prompt, end);
        let text = text.map_err(|error| RequestError::Template(environment::message(&error)))?;
        if end == PromptEnd::OpenMessage { cut_at_mark(text) } else { Ok(text) }
    }

    fn render_messages(&self, messages: &[Value], prompt: &ChatPrompt, end: PromptEnd) -> Result<String, Error> {
        let mut variables = Map::new();
        variables.insert("documents".to_owned(), Value::Null);
        let special_tokens = [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)];
        variables.extend(
            special_tokens.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text.as_ref()?)))),
        );
        variables.extend(prompt.template_kwargs.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.insert("messages".to_owned(), messages.into());
        variables.insert("tools".to_owned(), if prompt.tools.is_empty() { Value::Null } else { json!(prompt.tools) });
        variables.insert("add_generation_prompt".to_owned(), (end == PromptEnd::NewTurn).into());
        let mut rendered = LimitedText(Vec::new());
        self.environment.get_template(NAME)?.render_captured_to(Serde(variables), &mut rendered)?;
        Ok(String::from_utf8(rendered.0).expect("the engine writes text"))
    }
}

impl PromptEnd {
    fn of(prompt: &ChatPrompt) -> Result<Self, RequestError> {
        let invalid = |param, message: &str| Err(RequestError::Invalid { param, message: message.to_owned() });
        for reserved in ["messages", "tools"] {
            if prompt.template_kwargs.contains_key(reserved) {
                let message = format!("`{reserved}` is a field of the request and cannot be a template variable");
                return invalid("chat_template_kwargs", &message);
            }
        }
        let flag = |name: &str| prompt.template_kwargs.get(name).and_then(Value::as_bool);
        match (flag("add_generation_prompt"), flag("continue_final_message").unwrap_or(false)) {
            (Some(true), true) => invalid(
                "continue_final_message",
                "`continue_final_message` and `add_generation_prompt` cannot both be true",
            ),
            (_, true) => Ok(Self::OpenMessage),
            (Some(false), false) => Ok(Self::ClosedMessage),
            (_, false) => Ok(Self::NewTurn),
        }
    }
}

fn mark_end(messages: &mut [Value]) -> Result<(), RequestError> {
    let last = messages.last_mut().filter(|message| message["role"] == "assistant");
    let text = last.and_then(|message| match message.get_mut("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    });
    let Some(text) = text else {
        let message = "`continue_final_message` needs a last message of role `assistant` with text".to_owned();
        return Err(RequestError::Invalid { param: "continue_final_message", message });
    };
    text.push_str(CONTINUE_MARK);
    Ok(())
}

/// The prompt up to the mark; where the template trimmed the message, so is the text before the mark.
fn cut_at_mark(mut text: String) -> Result<String, RequestError> {
    let Some(end) = text.rfind(CONTINUE_MARK.trim_end()) else {
        return Err(RequestError::Template("it leaves out the message that is to be continued".to_owned()));
    };
    let is_trimmed = !text[end..].starts_with(CONTINUE_MARK);
    text.truncate(end);
    if is_trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Text up to [`MAX_RENDERED_BYTES`].
struct LimitedText(Vec<u8>);

impl Write for LimitedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other(format!("the prompt is longer than {MAX_RENDERED_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
