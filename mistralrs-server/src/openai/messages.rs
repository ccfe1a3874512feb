//! Chat messages as clients write them, made into what a model's template can take.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Messages of one conversation; more is a mistake of the client, and costs the template time.
pub(crate) const MAX_MESSAGES: usize = 10_000;

/// A message of a conversation. The model's chat template gets all its other keys too.
#[derive(Serialize, JsonSchema)]
pub(super) struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant`, or another role that the model's template knows.
    role: String,
    /// A text, or its parts; it may be absent where there are `tool_calls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<ChatContent>,
}

/// A text, or its parts.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what `check` reads by hand")]
enum ChatContent {
    Text(String),
    Parts(Vec<ChatPart>),
}

/// A part of a text; parts become lines of one.
#[derive(Serialize, JsonSchema)]
struct ChatPart {
    #[schemars(extend("const" = "text"))]
    r#type: String,
    text: String,
}

/// Checks `messages` and flattens their content to plain text, in OpenAI's order and with all other keys kept.
///
/// # Errors
/// [`ApiError::Invalid`] with the path of the message or part.
pub(super) fn check(messages: &[Value]) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let message = format!("`messages` has {} messages; expected 1 to {MAX_MESSAGES}", messages.len());
        return Err(ApiError::invalid("messages", message));
    }
    messages.iter().enumerate().map(|(index, message)| check_one(&format!("messages[{index}]"), message)).collect()
}

/// Variables for the template, by name.
pub(crate) fn template_kwargs(kwargs: Option<&Map<String, Value>>) -> BTreeMap<String, Value> {
    kwargs.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn check_one(path: &str, message: &Value) -> Result<Value, ApiError> {
    let Value::Object(message) = message else {
        return Err(ApiError::invalid(path, format!("`{path}`: expected an object with `role` and `content`")));
    };
    let Some(role) = message.get("role").and_then(Value::as_str) else {
        return Err(ApiError::invalid(
            format!("{path}.role"),
            format!("`{path}.role`: expected a string such as \"user\""),
        ));
    };
    let mut checked = message.clone();
    if role == "developer" {
        // OpenAI's newer word for the same thing; templates know the older one.
        checked.insert("role".to_owned(), "system".into());
    }
    match message.get("content") {
        Some(Value::Array(parts)) => {
            let text = join_parts(&format!("{path}.content"), parts)?;
            checked.insert("content".to_owned(), text.into());
        }
        Some(Value::String(_)) => {}
        // An assistant that only called tools has said nothing.
        None | Some(Value::Null) if message.contains_key("tool_calls") => {}
        _ => {
            let path = format!("{path}.content");
            return Err(ApiError::invalid(
                path.clone(),
                format!("`{path}`: expected a string or a list of text parts"),
            ));
        }
    }
    Ok(Value::Object(checked))
}

/// Text parts become lines of one text: most templates take strings only.
fn join_parts(path: &str, parts: &[Value]) -> Result<String, ApiError> {
    let texts = parts.iter().enumerate().map(|(index, part)| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match (kind, part.get("text").and_then(Value::as_str)) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(ApiError::invalid(
                format!("{path}[{index}].text"),
                format!("`{path}[{index}].text`: expected a string"),
            )),
            ("", _) => Err(ApiError::invalid(
                format!("{path}[{index}].type"),
                format!("`{path}[{index}].type`: expected \"text\""),
            )),
            (other, _) => Err(ApiError::invalid(
                format!("{path}[{index}]"),
                format!("`{path}[{index}]`: `{other}` parts are not supported; this model takes text only"),
            )),
        }
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_case(messages: &Value, expected: &str) {
        let messages = messages.as_array().unwrap();
        let found = match check(messages) {
            Ok(checked) => Value::Array(checked).to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn content_becomes_plain_text_and_other_keys_stay() {
        check_case(
            &json!([{ "role": "developer", "content": "Be brief." }, { "role": "user", "name": "Ann", "content": [
                { "type": "text", "text": "one" }, { "type": "text", "text": "two" }] }]),
            r#"[{"role":"system","content":"Be brief."},{"role":"user","name":"Ann","content":"one\ntwo"}]"#,
        );
        let call = r#"[{"role":"assistant","content":null,"tool_calls":[]}]"#;
        check_case(&serde_json::from_str(call).unwrap(), call);
    }

    #[test]
    fn what_cannot_be_rendered_is_named_by_its_path() {
        check_case(&json!([]), "`messages` has 0 messages; expected 1 to 10000");
        check_case(&json!(["hi"]), "`messages[0]`: expected an object with `role` and `content`");
        check_case(&json!([{ "content": "hi" }]), "`messages[0].role`: expected a string such as \"user\"");
        check_case(&json!([{ "role": "user" }]), "`messages[0].content`: expected a string or a list of text parts");
        check_case(
            &json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "http://x" } }] }]),
            "`messages[0].content[0]`: `image_url` parts are not supported; this model takes text only",
        );
        check_case(
            &json!([{ "role": "user", "content": [{ "type": "text", "text": 5 }] }]),
            "`messages[0].content[0].text`: expected a string",
        );
    }
}
