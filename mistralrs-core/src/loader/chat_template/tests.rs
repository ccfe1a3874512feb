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

fn user(content: &Value) -> ChatPrompt {
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
                (Ok(found), Expected::Text(expected))
                | (Err(RequestError::Template(found)), Expected::Error(Some(expected))) => found == expected,
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

#[test]
fn content_in_parts_is_joined_for_templates_that_read_text_and_wrapped_for_those_that_read_parts() {
    let parts = || user(&json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]));
    let reads_text = template("{% for m in messages %}{{ m.content + '.' }}{% endfor %}");
    assert_eq!(reads_text.render(&parts()).unwrap(), "a\nb.");
    assert_eq!(reads_text.render(&user(&json!("a"))).unwrap(), "a.");
    let reads_parts = template("{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}");
    assert_eq!(reads_parts.render(&parts()).unwrap(), "a;b;");
    assert_eq!(reads_parts.render(&user(&json!("a"))).unwrap(), "a;");
    // Printing a list is not reading it.
    let prints = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    assert_eq!(prints.render(&parts()).unwrap(), "a\nb");
}

#[test]
fn parts_that_are_not_text_are_refused() {
    let template = template("{{ messages[0].content }}");
    let error = template.render(&user(&json!([{"type": "image_url", "image_url": {"url": "data:"}}]))).unwrap_err();
    let expected = "this model reads text only, and a part of the content is of type `image_url`";
    assert_eq!(error, RequestError::Template(expected.to_owned()));
}

#[test]
fn arguments_of_tool_calls_are_in_the_shape_that_the_template_reads() {
    let prompt = |arguments: Value| ChatPrompt {
        messages: vec![json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        ]})],
        ..ChatPrompt::default()
    };
    let check = |source: &str, arguments: Value, expected: &str| {
        let loops = format!(
            "{{% for m in messages %}}{{{{ m.role if not m.tool_calls }}}}{{% for c in m.tool_calls or [] %}}{source}{{% endfor %}}{{% endfor %}}"
        );
        assert_eq!(template(&loops).render(&prompt(arguments)).unwrap(), expected, "{source}");
    };
    let as_object = "{{ c.function.arguments | tojson }}";
    check(as_object, json!("{\"a\":1}"), "{\"a\": 1}");
    check(as_object, json!({"a": 1}), "{\"a\": 1}");
    check(as_object, json!(""), "{}");
    check(as_object, json!("no JSON"), "\"no JSON\"");
    let as_text = "{{ '<' + c.function.arguments + '>' }}";
    check(as_text, json!("{\"a\":1}"), "<{\"a\":1}>");
    check(as_text, json!({"a": 1}), "<{\"a\":1}>");
}

#[test]
fn null_content_is_kept_for_templates_that_know_it_and_empty_for_the_others() {
    let prompt = ChatPrompt {
        messages: vec![json!({"role": "assistant", "content": null, "tool_calls": []})],
        ..ChatPrompt::default()
    };
    let knows = template("{{ 'null' if messages[-1].content is none else messages[-1].content + '.' }}");
    assert_eq!(knows.render(&prompt).unwrap(), "null");
    let concatenates = template("{{ messages[-1].content + '.' }}");
    assert_eq!(concatenates.render(&prompt).unwrap(), ".");
}

#[test]
fn reasoning_is_found_by_the_template_whatever_the_client_calls_it() {
    let template = template("{{ messages[0].reasoning_content }}/{{ messages[0].thinking }}");
    for field in ["reasoning_content", "thinking", "reasoning"] {
        let message = json!({"role": "assistant", "content": "x", field: "hm"});
        let prompt = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        assert_eq!(template.render(&prompt).unwrap(), "hm/hm", "{field}");
    }
}

#[test]
fn template_variables_are_those_of_the_model_and_the_request() {
    let template = template("{{ bos_token }}{{ eos_token }}{{ x }}{{ tools is none }}{{ add_generation_prompt }}");
    let mut prompt = user(&json!("a"));
    prompt.template_kwargs.insert("x".to_owned(), json!(7));
    assert_eq!(template.render(&prompt).unwrap(), "<s></s>7TrueTrue");
}

#[test]
fn contradicting_template_variables_are_refused() {
    let template = template("{{ messages[0].content }}");
    let check = |kwargs: Value, expected: &str| {
        let template_kwargs = serde_json::from_value(kwargs).unwrap();
        let prompt = ChatPrompt { template_kwargs, ..user(&json!("a")) };
        assert_eq!(template.render(&prompt).unwrap_err().to_string(), expected);
    };
    check(json!({"tools": []}), "`tools` is a field of the request and cannot be a template variable");
    check(
        json!({"continue_final_message": true, "add_generation_prompt": true}),
        "`continue_final_message` and `add_generation_prompt` cannot both be true",
    );
    check(
        json!({"continue_final_message": true}),
        "`continue_final_message` needs a last message of role `assistant` with text",
    );
}

#[test]
fn a_message_to_be_continued_keeps_its_spaces_unless_the_template_trims_it() {
    let prompt = ChatPrompt {
        messages: vec![json!({"role": "assistant", "content": [{"type": "text", "text": "One, two, "}]})],
        template_kwargs: BTreeMap::from([("continue_final_message".to_owned(), json!(true))]),
        ..ChatPrompt::default()
    };
    assert_eq!(template("[{{ messages[0].content }}]</s>").render(&prompt).unwrap(), "[One, two, ");
    assert_eq!(template("[{{ messages[0].content | trim }}]</s>").render(&prompt).unwrap(), "[One, two,");
    let error = template("{{ messages[0].role }}").render(&prompt).unwrap_err();
    assert_eq!(error, RequestError::Template("it leaves out the message that is to be continued".to_owned()));
}

#[test]
fn a_broken_or_oversized_template_is_refused_when_it_is_loaded() {
    let load = |source: String| ChatTemplate::from_source(source, None, None).map(|_| ()).unwrap_err();
    assert!(load("a\n{% if %}".to_owned()).contains(":2"), "{}", load("a\n{% if %}".to_owned()));
    assert!(load("x".repeat(super::MAX_TEMPLATE_BYTES + 1)).contains("1048576"));
}

#[test]
fn a_prompt_over_the_size_limit_is_refused() {
    let template = template("{% for i in range(100) %}{{ messages[0].content }}{% endfor %}");
    let error = template.render(&user(&json!("x".repeat(super::MAX_RENDERED_BYTES / 100 + 1)))).unwrap_err();
    assert!(matches!(error, RequestError::Template(_)), "{error}");
}
