//! `$NAME`, `${NAME}` and `${NAME:-default}` in strings, replaced from the environment after parsing, so that a value
//! can never add keys. `$$` is a dollar sign; a dollar sign before anything else stays.

use serde_json::Value;

use super::{ConfigError, Environment};

/// Replaces variables in every string of `value`. `origin` and the key's path go into errors.
/// Returns the values that were put in, with their names, so that they can be hidden again where the configuration is printed.
pub(super) fn interpolate(
    value: &mut Value,
    environment: &Environment,
    origin: &str,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut used = Vec::new();
    walk(value, &mut String::new(), &mut |text, path| {
        replace(text, environment, &mut used).map_err(|problem| ConfigError::Interpolation {
            origin: origin.to_owned(),
            key: path.to_owned(),
            problem,
        })
    })?;
    Ok(used)
}

/// Applies `change` to every string below `value`, telling it the dotted path.
pub(super) fn walk<E>(
    value: &mut Value,
    path: &mut String,
    change: &mut impl FnMut(&str, &str) -> Result<Option<String>, E>,
) -> Result<(), E> {
    let parent_len = path.len();
    match value {
        Value::String(text) => {
            if let Some(new) = change(text, path)? {
                *text = new;
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.extend(["[", &index.to_string(), "]"]);
                walk(item, path, change)?;
                path.truncate(parent_len);
            }
        }
        Value::Object(entries) => {
            for (key, item) in entries.iter_mut() {
                if parent_len > 0 {
                    path.push('.');
                }
                path.push_str(key);
                walk(item, path, change)?;
                path.truncate(parent_len);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// `text` with its variables replaced; `None` if it has none.
fn replace(text: &str, environment: &Environment, used: &mut Vec<(String, String)>) -> Result<Option<String>, String> {
    if !text.contains('$') {
        return Ok(None);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let Some((reference, after)) = Reference::parse(rest)? else {
            out.push('$');
            continue;
        };
        out.push_str(&reference.resolve(environment, used)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(Some(out))
}

/// Variables that `text` refers to, without a default, and that `environment` does not have; each once.
#[cfg(feature = "http-mcp-stream")]
pub(crate) fn unset_variables(text: &str, environment: &Environment) -> Vec<String> {
    let mut unset = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        } else if let Ok(Some((reference, after))) = Reference::parse(rest) {
            let is_missing = reference.default.is_none() && environment.get(reference.name).is_none();
            if is_missing && !unset.iter().any(|known| known == reference.name) {
                unset.push(reference.name.to_owned());
            }
            rest = after;
        }
    }
    unset
}

struct Reference<'a> {
    name: &'a str,
    default: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// The reference at the start of `text` (after the dollar sign) and what follows it.
    fn parse(text: &'a str) -> Result<Option<(Self, &'a str)>, String> {
        let Some(braced) = text.strip_prefix('{') else {
            let (name, after) = text.split_at(name_len(text));
            return Ok((!name.is_empty()).then_some((Self { name, default: None }, after)));
        };
        let Some((inside, after)) = braced.split_once('}') else {
            return Err("`${` has no `}`; write `$$` for a dollar sign".to_owned());
        };
        let (name, rest) = inside.split_at(name_len(inside));
        let default = rest.strip_prefix(":-");
        if name.is_empty() || (default.is_none() && !rest.is_empty()) {
            return Err(format!(
                "`${{{inside}}}` is not `${{NAME}}` or `${{NAME:-default}}`; write `$$` for a dollar sign"
            ));
        }
        Ok(Some((Self { name, default }, after)))
    }

    fn resolve(&self, environment: &Environment, used: &mut Vec<(String, String)>) -> Result<String, String> {
        let Some(value) = environment.get(self.name) else {
            return self.default.map(str::to_owned).ok_or_else(|| {
                format!("the environment variable `{}` is not set; write `$$` for a dollar sign", self.name)
            });
        };
        used.push((self.name.to_owned(), value.to_owned()));
        Ok(value.to_owned())
    }
}

/// How many bytes at the start of `text` are a variable's name.
fn name_len(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str, expected: &str) {
        let environment: Environment = [("NAME", "value"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let mut value = json!({ "outer": [{ "key": text }] });
        let found = match interpolate(&mut value, &environment, "test.toml") {
            Ok(_) => value["outer"][0]["key"].as_str().unwrap().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn variables_are_replaced_and_all_other_dollar_signs_stay() {
        check("plain", "plain");
        check("$NAME", "value");
        check("a-${NAME}-b-$NAME!", "a-value-b-value!");
        check("${MISSING:-fallback}/${EMPTY:-}", "fallback/");
        check("pa$$word and $$NAME", "pa$word and $NAME");
        check("costs $5, ends in $", "costs $5, ends in $");
        check("^regex$|x", "^regex$|x");
    }

    #[test]
    fn a_variable_that_is_not_set_is_an_error_that_names_file_and_key() {
        check(
            "$MISSING",
            "test.toml: `outer[0].key`: the environment variable `MISSING` is not set; write `$$` for a dollar sign",
        );
        check("${NAME", "test.toml: `outer[0].key`: `${` has no `}`; write `$$` for a dollar sign");
        check(
            "${input:key}",
            "test.toml: `outer[0].key`: `${input:key}` is not `${NAME}` or `${NAME:-default}`; write `$$` for a dollar sign",
        );
    }
}
