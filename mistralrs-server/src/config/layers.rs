//! One layer of configuration over another, and a file's text as a layer.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::ConfigError;
use super::source::SourceFile;

/// Lays `over` onto `base`: tables merge key by key, anything else replaces.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Puts `value`, if there is one, at the dotted `path`, making tables on the way.
pub(crate) fn set<T: Serialize>(layer: &mut Value, path: &str, value: Option<T>) {
    let Some(value) = value else { return };
    let mut place = layer;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = place.as_object_mut().expect("made an object above").entry(key).or_insert(Value::Null);
    }
    *place = serde_json::to_value(value).expect("flags and variables are plain values");
}

/// Reads `path` as TOML, YAML or JSON, by its extension.
pub(super) fn read_file(path: &Path) -> Result<(SourceFile, Value), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let parsed = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(|error| error.to_string()),
        Some("yaml" | "yml") => serde_saphyr::from_str(&text).map_err(|error| error.to_string()),
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("the name must end in .toml, .yaml, .yml or .json".to_owned()),
    };
    let value: Value = parsed
        .map_err(|message| ConfigError::Parse { path: path.to_owned(), message: message.trim_end().to_owned() })?;
    let source = SourceFile { path: path.to_owned(), text };
    match value {
        // An empty YAML document is a file that says nothing.
        Value::Null => Ok((source, Value::Object(Map::new()))),
        Value::Object(_) => Ok((source, value)),
        _ => Err(ConfigError::Parse { path: path.to_owned(), message: "the file must hold a table of keys".into() }),
    }
}
