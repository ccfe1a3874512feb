//! Messages in the shape that a template can read.
//!
//! OpenAI's API allows more shapes than most templates know: `content` as a list of parts, a tool call's `arguments`
//! as a string of JSON, `content` as null. Which shapes a template reads is found by rendering a message of each and
//! looking for its text in the result; where both work, messages are passed as they came.

use serde_json::{Map, Value, json};

/// What a part of a message is joined with where the template wants one string; vLLM does the same.
const PART_SEPARATOR: &str = "\n";
/// Names under which clients send a message's reasoning; templates read the first or the second.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// A text that no template contains.
const PROBE: &str = "probe-4e1243bd";

/// What a template can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageShape {
    pub(super) content: ContentShape,
    pub(super) null: NullShape,
    pub(super) arguments: ArgumentsShape,
}

/// Shapes of `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentShape {
    /// A string; lists are joined.
    Text,
    /// A list of parts; strings become a list of one.
    Parts,
    /// Both.
    Either,
}

/// Shapes of the `content` of a message that has only tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NullShape {
    /// Null, as OpenAI's API carries it.
    Null,
    /// An empty string, for templates that concatenate it.
    Empty,
}

/// Shapes of a tool call's `arguments`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArgumentsShape {
    /// An object, as `transformers` documents it.
    Object,
    /// The string of JSON that OpenAI's API carries.
    Text,
}

impl MessageShape {
    /// Finds the shapes by `render`ing probes.
    pub(super) fn detect(render: impl Fn(&[Value]) -> Option<String>) -> Self {
        let reads = |messages: &[Value]| {
            // A list or object that was printed instead of read shows its keys.
            render(messages).is_some_and(|text| text.contains(PROBE) && !text.contains("probe-key"))
        };
        let text = reads(&[json!({"role": "user", "content": PROBE})]);
        let parts = reads(&[json!({"role": "user", "content": [{"type": "text", "text": PROBE, "probe-key": 0}]})]);
        let content = match (text, parts) {
            (true, true) => ContentShape::Either,
            (false, true) => ContentShape::Parts,
            _ => ContentShape::Text,
        };
        let call = |content: Value, arguments: Value| {
            let function = json!({"name": "probe", "arguments": arguments});
            let call = json!({"id": "call00000", "type": "function", "function": function});
            let user = json!({"role": "user", "content": "x"});
            render(&[user, json!({"role": "assistant", "content": content, "tool_calls": [call]})])
        };
        let reads_null = [json!({}), json!("{}")].into_iter().any(|arguments| call(Value::Null, arguments).is_some());
        let null = if reads_null { NullShape::Null } else { NullShape::Empty };
        let empty = if reads_null { Value::Null } else { json!("") };
        let arguments = match (call(empty.clone(), json!({ "a": PROBE })), call(empty, json!(PROBE))) {
            (None, Some(text)) if text.contains(PROBE) => ArgumentsShape::Text,
            _ => ArgumentsShape::Object,
        };
        Self { content, null, arguments }
    }

    /// `message` in this shape.
    ///
    /// # Errors
    /// A sentence, where it has what no template can render.
    pub(super) fn adapt(self, message: &Value) -> Result<Value, String> {
        let mut message = message.as_object().cloned().ok_or("a message is not an object")?;
        if let Some(content) = message.get_mut("content") {
            self.adapt_content(content)?;
        }
        if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
            let functions = calls.iter_mut().filter_map(|call| call.get_mut("function"));
            for arguments in functions.filter_map(|function| function.get_mut("arguments")) {
                self.adapt_arguments(arguments);
            }
        }
        alias_reasoning(&mut message);
        Ok(Value::Object(message))
    }

    fn adapt_content(self, content: &mut Value) -> Result<(), String> {
        match (&*content, self.content) {
            (Value::Null, _) if self.null == NullShape::Empty => *content = json!(""),
            (Value::String(text), ContentShape::Parts) => *content = json!([{ "type": "text", "text": text }]),
            (Value::Array(parts), shape) => {
                let texts = parts.iter().map(part_text).collect::<Result<Vec<_>, _>>()?;
                if shape == ContentShape::Text {
                    *content = texts.join(PART_SEPARATOR).into();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn adapt_arguments(self, arguments: &mut Value) {
        match (&*arguments, self.arguments) {
            (Value::String(text), ArgumentsShape::Object) if text.trim().is_empty() => *arguments = json!({}),
            (Value::String(text), ArgumentsShape::Object) => {
                // What is not JSON stays as it is: the model wrote it, and should see what it wrote.
                if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
            (Value::Object(_), ArgumentsShape::Text) => *arguments = arguments.to_string().into(),
            _ => {}
        }
    }
}

fn part_text(part: &Value) -> Result<&str, String> {
    let kind = part["type"].as_str().unwrap_or("text");
    let text = if kind == "refusal" { &part["refusal"] } else { &part["text"] };
    text.as_str().ok_or_else(|| format!("this model reads text only, and a part of the content is of type `{kind}`"))
}

fn alias_reasoning(message: &mut Map<String, Value>) {
    let reasoning = REASONING_FIELDS.iter().find_map(|field| message.get(*field).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning.cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}
