//! The Jinja2 environment of `transformers`: its whitespace settings, functions, filters and Python methods.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::{filters, globals, pycompat};

use super::json::{self, JsonStyle};

/// Instructions one rendering may run. The longest conversations need thousands; a template that loops over
/// products of its input is stopped within about a second.
const MAX_INSTRUCTIONS: u64 = 20_000_000;

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

/// An environment without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

/// The message for a client: the template's own words where it refused, the engine's with the line number otherwise.
pub(super) fn message(error: &Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return message.clone();
        }
        source = cause.source();
    }
    error.to_string()
}

/// `{% generation %}` marks what the assistant wrote, for training. Here it is a scope, as it is there.
pub(super) fn replace_generation_tags(source: &str) -> String {
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        replaced.push_str(before);
        replaced.push_str(&match tag[..end].trim_matches(['{', '%', '}', '-', '+']).trim() {
            "generation" => tag[..end].replace("generation", "with"),
            "endgeneration" => tag[..end].replace("endgeneration", "endwith"),
            _ => tag[..end].to_owned(),
        });
        rest = &tag[end..];
    }
    replaced + rest
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The time now, in UTC, so that servers in different places render the same prompt.
fn strftime_now(state: &mut State, format: &str) -> Result<Value, Error> {
    let format = Kwargs::from_iter([("format", Value::from(format))]);
    filters::datetimeformat(state, globals::now(), format).map(Value::from)
}

/// Python's `json.dumps` with the defaults of `transformers`: no HTML escapes, no ASCII escapes.
fn to_json(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = JsonStyle {
        ensure_ascii: ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false),
        indent: options.get("indent")?,
        separators: separators.and_then(|separators| <[String; 2]>::try_from(separators).ok()),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no JSON"));
    }
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(json::dumps(&value, &style))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let environment = environment().unwrap();
        environment.render_str(&replace_generation_tags(source), ()).map_err(|error| message(&error))
    }
}
