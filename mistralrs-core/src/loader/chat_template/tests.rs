use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::ChatTemplate;
use crate::error::RequestError;
use crate::request::ChatPrompt;

/// Conversations, and what `transformers` made of them by each template; see the fixtures' README.
#[derive(Deserialize)]
struct Cases {
    conversations: BTreeMap<String, Conversation>,
    templates: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    template_kwargs: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct TemplateCase {
    name: String,
    bos_token: String,
    eos_token: String,
    expected: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
enum Expected {
    #[serde(rename = "text")]
    Text(String),
    /// With the template's own words, if it has any.
    #[serde(rename = "error")]
    Error(Option<String>),
}

impl Conversation {
    fn prompt(&self) -> ChatPrompt {
        ChatPrompt {
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            template_kwargs: self.template_kwargs.clone(),
        }
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat_template"))
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source.to_owned(), Some("<s>".to_owned()), Some("</s>".to_owned())).unwrap()
}

fn user(content: Value) -> ChatPrompt {
    ChatPrompt { messages: vec![json!({"role": "user", "content": content})], ..ChatPrompt::default() }
}

#[test]
fn prompts_are_those_of_transformers_for_every_template() {
    let cases: Cases = serde_json::from_str(&std::fs::read_to_string(fixtures().join("cases.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in &cases.templates {
        let source = std::fs::read_to_string(fixtures().join(format!("{}.jinja", case.name))).unwrap();
        let template =
            ChatTemplate::from_source(source, Some(case.bos_token.clone()), Some(case.eos_token.clone())).unwrap();
        for (title, conversation) in &cases.conversations {
            let found = template.render(&conversation.prompt());
            let is_right = match (&found, &case.expected[title]) {
                (Ok(found), Expected::Text(expected)) => found == expected,
                (Err(RequestError::Template(found)), Expected::Error(Some(expected))) => found == expected,
                (Err(RequestError::Template(_)), Expected::Error(None)) => true,
                _ => false,
            };
            if !is_right {
                wrong.push(format!("{}, {title}: {found:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
