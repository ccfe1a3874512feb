//! The Jinja2 environment of `transformers`: its whitespace settings, functions, filters and Python methods.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
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
    environment.set_formatter(|output, state, value| {
        // Jinja2 writes `None`, a word that no model was trained to see where content is null.
        escape_formatter(output, state, if value.is_none() { &Value::UNDEFINED } else { value })
    });
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
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
pub(super) fn replace_generation_tags(source: String) -> String {
    if !source.contains("generation") {
        return source;
    }
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source.as_str();
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

/// As in Python: strings are, null is not. Templates ask it of `tools` and of `content`.
fn is_iterable(value: &Value) -> bool {
    value.kind() == ValueKind::String || (!value.is_none() && value.try_iter().is_ok())
}

/// As in Jinja2: whatever has a length and elements.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
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
#[expect(clippy::needless_pass_by_value, reason = "the engine calls filters with their arguments by value")]
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
    let value =
        serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(json::dumps(&value, &style))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let environment = environment().unwrap();
        environment.render_str(&replace_generation_tags(source.to_owned()), ()).map_err(|error| message(&error))
    }

    fn check(source: &str, expected: &str) {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }

    #[test]
    fn blocks_leave_no_white_space_behind() {
        check("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc");
    }

    #[test]
    fn python_is_spoken() {
        check("{{ [1, 'a', none, true, {'k': 1.0}] }}", "[1, 'a', None, True, {'k': 1.0}]");
        check("{{ ' a b '.strip().split(' ')[-1].upper() }}{{ {'k': 1}.get('x', 2) }}", "B2");
        check("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2");
        check("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13");
        check(
            "{% set ns = namespace(x=None) %}{% set ns.x = [1, 2][::-1] %}{{ ns.x }}{{ True and not False }}",
            "[2, 1]True",
        );
    }

    #[test]
    fn tests_of_kind_answer_as_in_jinja2() {
        let values = "['', [], {}, none, 1, missing]";
        check(
            &format!("{{% for v in {values} %}}{{{{ v is iterable }}}} {{% endfor %}}"),
            "True True True False False True ",
        );
        check(
            &format!("{{% for v in {values} %}}{{{{ v is sequence }}}} {{% endfor %}}"),
            "True True True False False True ",
        );
    }

    #[test]
    fn null_is_written_as_nothing() {
        check("[{{ none }}]", "[]");
    }

    #[test]
    fn json_takes_the_options_of_transformers() {
        check("{{ {'b': '<é>', 'a': [1]} | tojson }}", "{\"b\": \"<é>\", \"a\": [1]}");
        check("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}", "{\"a\": 1, \"b\": \"\\u00e9\"}");
        check("{{ [1, 2] | tojson(indent=2) }}{{ [1, 2] | tojson(separators=(',', ':')) }}", "[\n  1,\n  2\n][1,2]");
        assert!(render("{{ missing | tojson }}").is_err());
        assert!(render("{{ 1 | tojson(colour=1) }}").is_err());
    }

    #[test]
    fn exceptions_reach_the_client_in_the_templates_own_words() {
        assert_eq!(render("{{ raise_exception('No tools, please.') }}"), Err("No tools, please.".to_owned()));
        assert!(render("{{ missing.attribute }}").unwrap_err().contains("undefined"));
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let loops = "{% for i in range(10000) %}{% for j in range(10000) %}{{ j }}{% endfor %}{% endfor %}";
        assert!(render(loops).unwrap_err().contains("fuel"));
        let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        assert!(render(recursion).unwrap_err().contains("recursion"));
    }

    #[test]
    fn generation_blocks_are_scopes() {
        check("{% set x = 1 %}{%- generation -%} {{ x }} {% set x = 2 %}{%- endgeneration %}{{ x }}", "1 1");
        check("generation {{ 'endgeneration' }} {% if true %}%}{% endif %}", "generation endgeneration %}");
    }

    #[test]
    fn the_date_is_formatted_as_strftime_does() {
        let date = render("{{ strftime_now('%d %b %Y') }}").unwrap();
        let parts: Vec<&str> = date.split(' ').collect();
        assert!(
            matches!(parts[..], [day, month, year] if day.len() == 2 && month.len() == 3 && year.len() == 4),
            "{date}"
        );
    }
}
