//! `$NAME` and `${NAME}` in strings. It runs on parsed values, so that what the environment holds can never add a key.

use serde_json::Value;

use super::ConfigError;

/// Where variables come from. This crate never reads the process environment itself.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Replaces variables in every string of `value`, at any depth. `$$` stands for one dollar sign; a dollar sign that
/// no name follows stays as it is. Keys are left alone.
///
/// # Errors
/// [`ConfigError::UnsetVariable`] and, for `${` without `}`, [`ConfigError::Invalid`], with the dotted path.
pub fn interpolate(value: &mut Value, environment: &Environment<'_>) -> Result<(), ConfigError> {
    walk(value, "", environment)
}

fn walk(value: &mut Value, path: &str, environment: &Environment<'_>) -> Result<(), ConfigError> {
    match value {
        Value::String(text) if text.contains('$') => *text = expand(text, path, environment)?,
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                walk(item, &format!("{path}[{index}]"), environment)?;
            }
        }
        Value::Object(entries) => {
            for (key, item) in entries.iter_mut() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(item, &path, environment)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand(text: &str, path: &str, environment: &Environment<'_>) -> Result<String, ConfigError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let (name, tail) = match after.as_bytes().first() {
            Some(b'$') => {
                expanded.push('$');
                rest = &after[1..];
                continue;
            }
            Some(b'{') => after[1..].split_once('}').ok_or_else(|| {
                ConfigError::invalid(path, "`${` has no closing `}` (`$$` stands for a plain dollar sign)")
            })?,
            _ => after.split_at(name_length(after)),
        };
        if name.is_empty() {
            expanded.push('$');
            rest = after;
            continue;
        }
        let value = environment(name)
            .ok_or_else(|| ConfigError::UnsetVariable { path: path.to_owned(), variable: name.to_owned() })?;
        expanded.push_str(&value);
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Bytes of the variable name that `text` begins with: a letter or underscore, then digits too.
fn name_length(text: &str) -> usize {
    let is_name =
        |(index, c): &(usize, char)| *c == '_' || c.is_ascii_alphabetic() || (*index > 0 && c.is_ascii_digit());
    text.char_indices().take_while(is_name).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let environment = |name: &str| match name {
            "USER" => Some("ada".to_owned()),
            "TOKEN_2" => Some("s$cret\"}".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let mut value = serde_json::json!({ "servers": [{ "env": { "KEY": text } }] });
        let told = match interpolate(&mut value, &environment) {
            Ok(()) => value["servers"][0]["env"]["KEY"].as_str().unwrap().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(told, expected, "{text}");
    }

    #[test]
    fn variables_in_strings_come_from_the_environment() {
        check("plain", "plain");
        check("$USER", "ada");
        check("${USER}", "ada");
        check("/home/$USER/x", "/home/ada/x");
        check("${USER}s and $USER.", "adas and ada.");
        check("$EMPTY|", "|");
    }

    #[test]
    fn values_are_not_interpolated_again_and_cannot_add_keys() {
        check("$TOKEN_2", "s$cret\"}");
    }

    #[test]
    fn a_dollar_sign_can_be_written() {
        check("$$USER costs $5 or 10$", "$USER costs $5 or 10$");
        check("^a$|b$", "^a$|b$");
        check("${}", "${}");
    }

    #[test]
    fn an_unset_variable_names_its_key() {
        let unset = "environment variable `NOPE` is not set (`$$` stands for a plain dollar sign)";
        check("$NOPE", &format!("`servers[0].env.KEY`: {unset}"));
        check("x${NOPE}", &format!("`servers[0].env.KEY`: {unset}"));
        check("${USER", "`servers[0].env.KEY`: `${` has no closing `}` (`$$` stands for a plain dollar sign)");
    }
}
