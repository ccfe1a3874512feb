//! A server as the command line names it.

use std::convert::Infallible;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::shape::Shape;

/// Words in the names of headers and variables whose values are secrets.
const SECRET_WORDS: [&str; 8] = ["auth", "token", "secret", "key", "passw", "cookie", "credential", "session"];

/// A server to add.
#[derive(Debug, Clone, Default)]
pub struct NewServer {
    /// Its name.
    pub name: String,
    /// What stands before its tool names, if not the name.
    pub namespace: Option<String>,
    /// How it is reached, if `command` and `url` do not say it.
    pub transport: Option<String>,
    /// Program and arguments of a child process.
    pub command: Vec<String>,
    /// Variables of the child.
    pub env: Vec<Pair>,
    /// Its URL.
    pub url: Option<String>,
    /// Headers sent with each request.
    pub headers: Vec<Pair>,
}

/// `NAME=VALUE`, or `NAME` alone for the environment's variable of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Before the first `=` or `:`.
    pub name: String,
    /// Behind it; may refer to variables.
    pub value: String,
}

impl FromStr for Pair {
    type Err = Infallible;

    /// Neither sign can be part of a header's name, so that `Name: value` as curl takes it is read too.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (name, value) = match text.split_once(['=', ':']) {
            Some((name, value)) => (name, value.trim_start().to_owned()),
            None => (text, format!("${text}")),
        };
        Ok(Self { name: name.trim().to_owned(), value })
    }
}

impl NewServer {
    /// It, in the words of a file of this shape.
    ///
    /// # Errors
    /// The flag that such a file has no word for.
    pub(super) fn to_entry(&self, shape: &Shape) -> Result<Map<String, Value>, String> {
        match shape {
            Shape::List { .. } => {
                let mut entry = Map::from_iter([("name".to_owned(), json!(self.name))]);
                put(&mut entry, "namespace", self.namespace.as_ref());
                put(&mut entry, "transport", self.transport.as_ref());
                self.put_reached(&mut entry);
                Ok(entry)
            }
            Shape::ByName { .. } => {
                if self.namespace.is_some() {
                    return Err("--namespace: a file of this format cannot say it".to_owned());
                }
                let mut entry = Map::new();
                put(&mut entry, "type", self.transport.as_ref());
                self.put_reached(&mut entry);
                Ok(entry)
            }
            Shape::MistralRs => self.to_mistral_rs(),
        }
    }

    fn to_mistral_rs(&self) -> Result<Map<String, Value>, String> {
        let is_web_socket = self.url.as_deref().is_some_and(|url| url.starts_with("ws"));
        let kind = match (self.transport.as_deref(), self.command.is_empty()) {
            (Some("sse"), _) => return Err("--transport sse: a file of this format cannot say it".to_owned()),
            (_, false) => "Process",
            (_, true) if is_web_socket => "WebSocket",
            (_, true) => "Http",
        };
        let mut source = Map::from_iter([("type".to_owned(), json!(kind))]);
        self.put_reached(&mut source);
        let mut entry = Map::from_iter([("name".to_owned(), json!(self.name))]);
        put(&mut entry, "tool_prefix", self.namespace.as_ref());
        entry.insert("source".to_owned(), Value::Object(source));
        Ok(entry)
    }

    fn put_reached(&self, entry: &mut Map<String, Value>) {
        if let Some((program, arguments)) = self.command.split_first() {
            entry.insert("command".to_owned(), json!(program));
            put(entry, "args", (!arguments.is_empty()).then_some(arguments));
        }
        put(entry, "env", table(&self.env));
        put(entry, "url", self.url.as_ref());
        put(entry, "headers", table(&self.headers));
    }

    /// Sentences about values that would be better off in the environment: they are in the file now, and in the shell's
    /// history.
    pub(super) fn warnings(&self) -> Vec<String> {
        let pairs =
            self.env.iter().map(|pair| ("--env", pair)).chain(self.headers.iter().map(|pair| ("--header", pair)));
        let open = pairs.filter(|(_, Pair { name, value })| {
            let name = name.to_lowercase();
            SECRET_WORDS.iter().any(|word| name.contains(word)) && !value.contains('$') && !value.is_empty()
        });
        open.map(|(flag, Pair { name, .. })| {
            let suggested: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
            format!(
                "{flag} {name}: the value is written to the file as it is; `{flag} '{name}=${suggested}'` reads it from the \
                 environment instead"
            )
        })
        .collect()
    }
}

fn put<T: serde::Serialize>(entry: &mut Map<String, Value>, key: &str, value: Option<T>) {
    if let Some(value) = value {
        entry.insert(key.to_owned(), json!(value));
    }
}

fn table(pairs: &[Pair]) -> Option<Map<String, Value>> {
    let table: Map<_, _> = pairs.iter().map(|pair| (pair.name.clone(), json!(pair.value))).collect();
    (!table.is_empty()).then_some(table)
}
