//! `search_tools`: the index as a tool of its own, which can stand in for a list that no model should read as a whole.

use std::sync::Arc;

use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations};
use serde::Deserialize;
use serde_json::{Value, json};

/// Its name; also answers to `mistralrs::search_tools` and `mistralrs__search_tools`.
pub(crate) const NAME: &str = "search_tools";
const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;
/// Of a description in a summary, in characters.
const SUMMARY_LENGTH: usize = 200;

/// How much of each tool that was found is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// Its name.
    Name,
    /// And the beginning of its description.
    #[default]
    Summary,
    /// All of it, as `tools/list` has it.
    Full,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolQuery {
    /// Words of names, descriptions and arguments.
    pub query: String,
    /// How much is told of each tool.
    #[serde(default)]
    pub detail: Detail,
    /// How many tools at most, 100 at most. Default: 10.
    #[serde(default = "default_limit")]
    pub limit: usize,
}

impl ToolQuery {
    /// Reads the arguments of a call.
    ///
    /// # Errors
    /// A sentence that names the argument.
    pub fn from_arguments(arguments: JsonObject) -> Result<Self, String> {
        let query: Self = serde_json::from_value(Value::Object(arguments)).map_err(|error| error.to_string())?;
        if !(1..=MAX_LIMIT).contains(&query.limit) {
            return Err(format!("`limit` must be 1 to {MAX_LIMIT}"));
        }
        Ok(query)
    }

    /// What it tells of `tool`.
    pub fn tell(&self, tool: &Tool) -> Value {
        let description = tool.description.as_deref().unwrap_or_default();
        match self.detail {
            Detail::Name => json!({ "name": tool.name }),
            Detail::Summary => json!({ "name": tool.name, "description": summary(description) }),
            Detail::Full => json!(tool),
        }
    }
}

/// As it is listed.
pub(crate) fn describe() -> Tool {
    let schema = json!({
        "type": "object",
        "properties": {
            "query": { "type": "string", "description": "Words of what the tool does or is called" },
            "detail": {
                "type": "string", "enum": ["name", "summary", "full"], "default": "summary",
                "description": "How much to tell of each tool; full has the schema of its arguments"
            },
            "limit": { "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT }
        },
        "required": ["query"],
        "additionalProperties": false
    });
    let schema = schema.as_object().cloned().unwrap_or_default();
    let description =
        "Finds tools of the connected MCP servers by words. Tools that it finds can be called by their names.";
    Tool::new(NAME, description, Arc::new(schema)).with_annotations(ToolAnnotations::new().read_only(true))
}

/// The same JSON as text: clients of revisions before 2025-06-18 read nothing else.
pub(crate) fn result(found: &[Value]) -> CallToolResult {
    let structured = json!({ "tools": found });
    let mut result = CallToolResult::success(vec![ContentBlock::text(structured.to_string())]);
    result.structured_content = Some(structured);
    result
}

/// The first line, and no more of it than a list can bear.
fn summary(description: &str) -> String {
    let line = description.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(SUMMARY_LENGTH) {
        Some((end, _)) => format!("{}…", line[..end].trim_end()),
        None => line.to_owned(),
    }
}

fn default_limit() -> usize {
    DEFAULT_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &Value) -> Result<ToolQuery, String> {
        ToolQuery::from_arguments(arguments.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn arguments_are_checked_by_name() {
        let query = read(&json!({ "query": "file" })).unwrap();
        assert_eq!((query.detail, query.limit), (Detail::Summary, 10));
        for (arguments, expected) in [
            (json!({}), "missing field `query`"),
            (json!({ "query": "x", "limit": 0 }), "`limit` must be 1 to 100"),
            (json!({ "query": "x", "detail": "all" }), "unknown variant `all`"),
            (json!({ "query": "x", "name": "y" }), "unknown field `name`"),
        ] {
            let error = read(&arguments).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_summary_is_the_first_line_within_bounds() {
        assert_eq!(summary("  Reads a file.\nIn any encoding."), "Reads a file.");
        assert_eq!(summary(&"ä".repeat(300)), format!("{}…", "ä".repeat(200)));
        assert_eq!(summary(""), "");
    }
}
