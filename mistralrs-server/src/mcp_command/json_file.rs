//! Edits of JSON: keys stay in their order, and lines as far indented as they were.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use super::shape::{Shape, name_of};

/// The root with one server more.
pub(super) fn insert(root: &mut Value, shape: &Shape, name: &str, entry: Map<String, Value>) -> Result<(), String> {
    let (last, parents) = shape.path().split_last().expect("a path has a key");
    let mut table = root;
    for key in parents {
        table = object(table, key)?.entry(*key).or_insert_with(|| Value::Object(Map::new()));
    }
    let empty = match shape {
        Shape::ByName { .. } => Value::Object(Map::new()),
        Shape::List { .. } | Shape::MistralRs => Value::Array(Vec::new()),
    };
    match object(table, last)?.entry(*last).or_insert(empty) {
        Value::Object(servers) => drop(servers.insert(name.to_owned(), Value::Object(entry))),
        Value::Array(servers) => servers.push(Value::Object(entry)),
        _ => return Err(format!("`{last}` holds no servers")),
    }
    Ok(())
}

/// The root without the server.
pub(super) fn remove(root: &mut Value, shape: &Shape, name: &str) {
    let servers = shape.path().iter().try_fold(root, |value, key| value.get_mut(key));
    match servers {
        Some(Value::Object(servers)) => drop(servers.shift_remove(name)),
        Some(Value::Array(servers)) => servers.retain(|server| name_of(server) != Some(name)),
        _ => {}
    }
}

/// `root` as text that looks like `before`.
pub(super) fn render(root: &Value, before: &str) -> String {
    let mut text = Vec::new();
    let indent = indent_of(before);
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    root.serialize(&mut Serializer::with_formatter(&mut text, formatter)).expect("a value is plain JSON");
    let mut text = String::from_utf8(text).expect("JSON is text");
    if before.is_empty() || before.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What the first line that is indented begins with.
fn indent_of(text: &str) -> &str {
    let indent = text.lines().map(|line| &line[..line.len() - line.trim_start().len()]);
    indent.into_iter().find(|indent| !indent.is_empty()).unwrap_or("  ")
}

fn object<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Map<String, Value>, String> {
    value.as_object_mut().ok_or_else(|| format!("`{key}` has no place: the file is not a table of keys"))
}
