//! Where in a file a key stands, for errors about it.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A file that was read.
pub(super) struct SourceFile {
    pub path: PathBuf,
    pub text: String,
}

impl SourceFile {
    /// `path:line` of the key at the dotted path `key`, as errors begin with; the path alone if it is not to be found.
    pub fn place(&self, key: &str) -> String {
        let path = self.path.display();
        self.line_of(key).map_or_else(|| path.to_string(), |line| format!("{path}:{line}"))
    }

    /// The gateway calls all servers `mcp_client.servers`, whatever a file of another program calls them.
    fn line_of(&self, key: &str) -> Option<usize> {
        let extension = self.path.extension()?.to_str()?;
        let servers = key.strip_prefix("mcp_client.").unwrap_or(key);
        let entries = servers.strip_prefix("servers").map(|rest| format!("mcpServers{rest}"));
        let candidates = [Some(key), Some(servers), entries.as_deref()];
        candidates.into_iter().flatten().find_map(|key| line_of(&self.text, extension, key))
    }
}

/// Without the text, in which there may be secrets.
impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The line of the key at `path` in a file whose name ends in `extension`, counted from 1; of the nearest key around it, if
/// it is not there itself.
fn line_of(text: &str, extension: &str, path: &str) -> Option<usize> {
    match extension {
        "toml" => {
            let tree: Tree<toml::Spanned<String>> = toml::from_str(text).ok()?;
            let key = tree.find(path)?;
            Some(1 + text.get(..key.place())?.matches('\n').count())
        }
        // JSON is YAML too, and only its own parser does not tell where it is.
        "yaml" | "yml" | "json" => {
            let tree: Tree<serde_saphyr::Spanned<String>> = serde_saphyr::from_str(text).ok()?;
            Some(tree.find(path)?.place())
        }
        _ => None,
    }
}

/// Keys and where they stand.
enum Tree<Key> {
    Leaf,
    Table(Vec<(Key, Tree<Key>)>),
    List(Vec<Tree<Key>>),
}

/// A key that knows where it stands.
trait Placed {
    fn name(&self) -> &str;

    /// Grows from the file's beginning to its end.
    fn place(&self) -> usize;
}

impl Placed for toml::Spanned<String> {
    fn name(&self) -> &str {
        self.as_ref()
    }

    fn place(&self) -> usize {
        self.span().start
    }
}

impl Placed for serde_saphyr::Spanned<String> {
    fn name(&self) -> &str {
        &self.value
    }

    fn place(&self) -> usize {
        usize::try_from(self.referenced.line()).unwrap_or(usize::MAX)
    }
}

impl<Key: Placed> Tree<Key> {
    /// The last key on the way to `path`. `name[1] (remark).name` is a path too.
    fn find<'a>(&'a self, path: &str) -> Option<&'a Key> {
        let (mut place, mut rest, mut found) = (self, path, None);
        loop {
            rest = rest.trim_start_matches('.');
            match place {
                Self::Leaf => return found,
                Self::Table(entries) if rest.starts_with('[') => {
                    // A list that the file writes as a table: its entries in their order.
                    let Some((index, after)) = index(rest) else { return found };
                    let mut entries: Vec<_> = entries.iter().collect();
                    entries.sort_by_key(|(key, _)| key.place());
                    let Some((key, inner)) = entries.get(index) else { return found };
                    (place, rest, found) = (inner, after, Some(key));
                }
                Self::Table(entries) => {
                    // Keys may hold dots: the longest that fits is meant.
                    let fitting = entries.iter().filter(|(key, _)| begins_with(rest, key.name()));
                    let Some((key, inner)) = fitting.max_by_key(|(key, _)| key.name().len()) else { return found };
                    (place, rest, found) = (inner, &rest[key.name().len()..], Some(key));
                }
                Self::List(items) => {
                    let Some((index, after)) = index(rest) else { return found };
                    let Some(item) = items.get(index) else { return found };
                    (place, rest, found) = (item, after, item.first_key().or(found));
                }
            }
        }
    }

    fn first_key(&self) -> Option<&Key> {
        match self {
            Self::Table(entries) => entries.iter().map(|(key, _)| key).min_by_key(|key| key.place()),
            Self::Leaf | Self::List(_) => None,
        }
    }
}

/// What `[1] (remark).rest` begins with, and the rest.
fn index(path: &str) -> Option<(usize, &str)> {
    let (index, after) = path.strip_prefix('[')?.split_once(']')?;
    let rest = after.strip_prefix(" (").and_then(|after| after.split_once(')')).map_or(after, |(_, rest)| rest);
    Some((index.parse().ok()?, rest))
}

fn begins_with(path: &str, key: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

impl<'de, Key: Deserialize<'de>> Deserialize<'de> for Tree<Key> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor(PhantomData))
    }
}

struct TreeVisitor<Key>(PhantomData<Key>);

/// Declares the visits of what has no keys.
macro_rules! leaves {
    ($($visit:ident($kind:ty)),+) => {
        $(fn $visit<E>(self, _value: $kind) -> Result<Self::Value, E> {
            Ok(Tree::Leaf)
        })+
    };
}

impl<'de, Key: Deserialize<'de>> Visitor<'de> for TreeVisitor<Key> {
    type Value = Tree<Key>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of keys")
    }

    leaves!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Tree::Leaf)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Tree::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = table.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_path_in_every_syntax() {
        const TOML: &str = "a = 1\n[b]\n\"c.d\" = { e = 2 }\n\n[[servers]]\nname = 'x'\n[[servers]]\nname = 'y'\nargs = [1,\n 2]\nf = 1.5\n";
        const YAML: &str =
            "a: 1\nb:\n  c.d: {e: 2}\n\nservers:\n- name: x\n- name: y\n  args: [1,\n   2]\n  n: null\n  f: 1.5\n";
        const JSON: &str = "{\"a\": 1,\n \"b\": {\n \"c.d\": {\"e\": 2}},\n\n \"servers\": [{\n\"name\": \"x\"}, {\n \"name\": \"y\",\n\"args\": [1, true, null]}]\n}";
        for (path, lines) in [
            ("a", [1, 1, 1]),
            ("b", [2, 2, 2]),
            ("b.c.d.e", [3, 3, 3]),
            ("servers[0].name", [6, 6, 6]),
            ("servers[1] (y).args", [9, 8, 8]),
            ("servers[1].nothing", [8, 7, 7]),
            ("servers[1] (y)", [8, 7, 7]),
        ] {
            let found = [(TOML, "toml"), (YAML, "yaml"), (JSON, "json")]
                .map(|(text, extension)| line_of(text, extension, path));
            assert_eq!(found, lines.map(Some), "{path}");
        }
        let desktop = SourceFile {
            path: "x.json".into(),
            text: "{\n\"mcpServers\": {\n\"b\": {\"command\": \"x\"},\n\"a\": {\n\"url\": 1}}}".into(),
        };
        assert_eq!(desktop.place("mcp_client.servers[1] (a).url"), "x.json:5");
        assert_eq!(desktop.place("mcpServers.b.command"), "x.json:3");
        assert_eq!(desktop.place("nowhere"), "x.json");
        assert_eq!(line_of("a = 1", "toml", "b"), None);
        assert_eq!(line_of("a = ", "toml", "a"), None);
    }
}
