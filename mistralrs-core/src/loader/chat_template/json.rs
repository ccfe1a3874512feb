//! JSON as Python's `json.dumps` writes it: models were trained on that text.

use std::fmt::Write;

use serde_json::{Number, Value};

/// `json.dumps`' options.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    /// Escape all but ASCII.
    pub(super) ensure_ascii: bool,
    /// Spaces per level; `None`: all on one line.
    pub(super) indent: Option<usize>,
    /// Between items, between key and value.
    pub(super) separators: Option<[String; 2]>,
    /// Order members by key.
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
pub(super) fn dumps(value: &Value, style: &JsonStyle) -> String {
    let [item, key] = match &style.separators {
        Some([item, key]) => [item.as_str(), key.as_str()],
        None if style.indent.is_some() => [",", ": "],
        None => [", ", ": "],
    };
    let mut writer = Writer { text: String::new(), style, item_separator: item, key_separator: key, depth: 0 };
    writer.value(value);
    writer.text
}

struct Writer<'a> {
    text: String,
    style: &'a JsonStyle,
    item_separator: &'a str,
    key_separator: &'a str,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.text.push_str("null"),
            Value::Bool(true) => self.text.push_str("true"),
            Value::Bool(false) => self.text.push_str("false"),
            Value::Number(number) => self.text.push_str(&python_number(number)),
            Value::String(string) => self.string(string),
            Value::Array(items) => self.container(['[', ']'], items.iter(), Self::value),
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                if self.style.sort_keys {
                    members.sort_by_key(|(key, _)| *key);
                }
                self.container(['{', '}'], members.into_iter(), |writer, (key, value)| {
                    writer.string(key);
                    writer.text.push_str(writer.key_separator);
                    writer.value(value);
                });
            }
        }
    }

    fn container<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        let is_empty = items.len() == 0;
        self.text.push(open);
        self.depth += 1;
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.text.push_str(self.item_separator);
            }
            self.line_break();
            write(self, item);
        }
        self.depth -= 1;
        if !is_empty {
            self.line_break();
        }
        self.text.push(close);
    }

    fn line_break(&mut self) {
        if let Some(indent) = self.style.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * self.depth));
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for character in string.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                control if control < ' ' => self.escape(control),
                // Python escapes DEL with the rest of what is not printable ASCII.
                other if self.style.ensure_ascii && !(' '..='~').contains(&other) => self.escape(other),
                plain => self.text.push(plain),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(self.text, "\\u{unit:04x}");
        }
    }
}

/// A number as Python prints it: floats keep a fraction or an exponent of at least two digits.
fn python_number(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        -4..16 if float.fract() == 0.0 => format!("{float:.1}"),
        -4..16 => float.to_string(),
        _ => format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: &Value, style: &JsonStyle, expected: &str) {
        assert_eq!(dumps(value, style), expected);
    }

    #[test]
    fn json_is_spaced_like_pythons_and_keeps_the_order_of_members() {
        let value = json!({"b": [1, 2.0, true, null], "a": {"x": "<é> & '\"'\n"}, "empty": [{}, []]});
        check(
            &value,
            &JsonStyle::default(),
            r#"{"b": [1, 2.0, true, null], "a": {"x": "<é> & '\"'\n"}, "empty": [{}, []]}"#,
        );
        let sorted = JsonStyle { sort_keys: true, separators: Some([",".into(), ":".into()]), ..JsonStyle::default() };
        check(&value, &sorted, r#"{"a":{"x":"<é> & '\"'\n"},"b":[1,2.0,true,null],"empty":[{},[]]}"#);
    }

    #[test]
    fn indented_json_breaks_lines_everywhere_but_in_empty_containers() {
        let style = JsonStyle { indent: Some(2), ..JsonStyle::default() };
        check(&json!({"a": [1, {}], "b": []}), &style, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    }

    #[test]
    fn ascii_json_writes_characters_beyond_the_basic_plane_as_surrogates() {
        let style = JsonStyle { ensure_ascii: true, ..JsonStyle::default() };
        check(&json!("é😀\u{7f}\u{1}"), &style, "\"\\u00e9\\ud83d\\ude00\\u007f\\u0001\"");
    }

    #[test]
    fn numbers_look_like_pythons() {
        let numbers = json!([0.1, 1e16, 1e-5, 1.5e300, 123_456_789.0, 0.0001, -0.0, 9_007_199_254_740_993_u64]);
        let expected = "[0.1, 1e+16, 1e-05, 1.5e+300, 123456789.0, 0.0001, -0.0, 9007199254740993]";
        check(&numbers, &JsonStyle::default(), expected);
    }
}
