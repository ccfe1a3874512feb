//! The effective configuration and its schema, as `config check` and `config schema` print them.

use serde_json::Value;

use super::interpolate::walk;
use super::{ConfigFile, Configuration};

/// Stands where a secret was.
const REDACTED: &str = "***";

/// Keys whose strings are secrets, wherever they stand; below `env` and `headers` all values are.
const SECRET_KEYS: &[&str] =
    &["api_keys", "token", "bearer_token", "password", "secret", "client_secret", "env", "headers"];

/// A shorter value would be found in unrelated text, and is no secret.
const MIN_HIDDEN_BYTES: usize = 4;

impl Configuration {
    /// What is in force, defaults included, as TOML without secrets: those are known by their key, and
    /// variables are shown by name again.
    pub fn to_redacted_toml(&self) -> String {
        let mut value = serde_json::to_value(&self.file).expect("the configuration is plain values");
        if let (Some((source, servers)), Some(root)) = (&self.mcp_config, value.as_object_mut()) {
            root.insert(format!("mcp_config from {}", source.path.display()), servers.clone());
        }
        let Ok(()) = walk(&mut value, &mut String::new(), &mut |text, path| {
            Ok::<_, std::convert::Infallible>(Some(self.redact(text, path)))
        });
        toml::to_string_pretty(&without_nulls(value)).expect("tables, lists and plain values are TOML")
    }

    fn redact(&self, text: &str, path: &str) -> String {
        let is_secret = path.split(['.', '[']).any(|key| SECRET_KEYS.contains(&key));
        if is_secret || text.starts_with("literal:") {
            return REDACTED.to_owned();
        }
        self.interpolated
            .iter()
            .filter(|(_, value)| value.len() >= MIN_HIDDEN_BYTES)
            .fold(text.to_owned(), |text, (name, value)| text.replace(value, &format!("${{{name}}}")))
    }
}

/// The JSON Schema of the configuration file.
pub fn json_schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(ConfigFile)).expect("a schema is plain JSON")
}

/// TOML has no null: what is null is absent.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(entries) => entries
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().filter(|item| !item.is_null()).map(without_nulls).collect(),
        other => other,
    }
}
