//! Edits of TOML: comments, order and spacing of all that is not touched stay as they are.

use serde_json::{Map, Value as Json};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::shape::Shape;

/// The text with one server more.
pub(super) fn insert(text: &str, shape: &Shape, name: &str, entry: &Map<String, Json>) -> Result<String, String> {
    let mut document = parse(text)?;
    let (last, parents) = shape.path().split_last().expect("a path has a key");
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in parents {
        table = table_in(table, key)?;
    }
    if let Shape::ByName { .. } = shape {
        table_in(table, last)?.insert(name, Item::Table(to_table(entry)));
        return Ok(document.to_string());
    }
    match table.entry(last).or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(servers) => servers.push(to_table(entry)),
        Item::Value(Value::Array(servers)) => {
            let mut server = Value::InlineTable(to_inline_table(entry));
            // One a line stays one a line.
            match servers.iter().last() {
                Some(last) => *server.decor_mut() = last.decor().clone(),
                None => server.decor_mut().clear(),
            }
            servers.push_formatted(server);
        }
        _ => return Err(format!("`{last}` holds no servers")),
    }
    Ok(document.to_string())
}

/// The text without the server.
pub(super) fn remove(text: &str, shape: &Shape, name: &str) -> Result<String, String> {
    let mut document = parse(text)?;
    let (last, parents) = shape.path().split_last().expect("a path has a key");
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in parents {
        table = table_in(table, key)?;
    }
    let mut left_behind = String::new();
    match table.get_mut(last) {
        Some(Item::ArrayOfTables(servers)) => {
            left_behind = remove_table(servers, name);
            if servers.is_empty() {
                table.remove(last);
            }
        }
        Some(Item::Value(Value::Array(servers))) => {
            servers.retain(|server| server.as_inline_table().is_none_or(|server| !is_named(server, name)));
        }
        Some(servers) => drop(servers.as_table_like_mut().and_then(|servers| servers.remove(name))),
        None => {}
    }
    if !left_behind.is_empty() {
        let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing(left_behind + &trailing);
    }
    Ok(document.to_string())
}

/// Removes it with the comment on top of it. What stands further up, behind an empty line, belongs to more than this server:
/// it goes to the next one, or is returned.
fn remove_table(servers: &mut ArrayOfTables, name: &str) -> String {
    let Some(place) = servers.iter().position(|server| is_named(server, name)) else { return String::new() };
    let removed = servers.remove(place);
    let prefix = removed.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
    let above = prefix.rfind("\n\n").map(|end| &prefix[..=end]).filter(|above| above.contains('#'));
    let Some(above) = above else { return String::new() };
    let Some(next) = servers.get_mut(place) else { return above.to_owned() };
    let own = next.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
    let own = if own.starts_with('\n') { own.to_owned() } else { format!("\n{own}") };
    next.decor_mut().set_prefix(above.to_owned() + &own);
    String::new()
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse().map_err(|error: toml_edit::TomlError| error.to_string())
}

/// The table under `key`, made if there is none.
fn table_in<'a>(table: &'a mut dyn TableLike, key: &str) -> Result<&'a mut dyn TableLike, String> {
    let made = || {
        let mut table = Table::new();
        // Only what stands in it is written.
        table.set_implicit(true);
        Item::Table(table)
    };
    table.entry(key).or_insert_with(made).as_table_like_mut().ok_or_else(|| format!("`{key}` is not a table"))
}

fn is_named(server: &dyn TableLike, name: &str) -> bool {
    let text = |key| server.get(key).and_then(Item::as_str);
    text("id").or_else(|| text("name")) == Some(name)
}

fn to_table(entry: &Map<String, Json>) -> Table {
    let mut table = Table::new();
    for (key, value) in entry {
        table.insert(key, Item::Value(to_value(value)));
    }
    table
}

fn to_inline_table(entry: &Map<String, Json>) -> InlineTable {
    entry.iter().map(|(key, value)| (key.as_str(), to_value(value))).collect()
}

/// Entries hold strings, lists of them and tables of them.
fn to_value(value: &Json) -> Value {
    match value {
        Json::Array(items) => Value::Array(items.iter().map(to_value).collect::<Array>()),
        Json::Object(entries) => Value::InlineTable(to_inline_table(entries)),
        Json::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}
