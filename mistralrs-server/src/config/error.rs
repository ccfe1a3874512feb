//! What can be wrong with a configuration: which file, key, variable or flag, and what would be right.

use std::path::PathBuf;

/// Why a configuration was refused. Nothing was bound or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, YAML or JSON, or not a table.
    #[error("{path}: {message}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A key that is not known, or whose value has the wrong type.
    #[error("{origin}: {message}")]
    Key {
        /// The file.
        origin: String,
        /// The key, what is wrong with it and what would be right.
        message: String,
    },
    /// A string refers to the environment and cannot be filled.
    #[error("{origin}: `{key}`: {problem}")]
    Interpolation {
        /// The file.
        origin: String,
        /// The dotted path of the key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// An environment variable that configures something has a wrong value.
    #[error("environment variable {variable}: {message}")]
    Environment {
        /// Which.
        variable: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Each key is right for itself, but not together, or this build or version cannot do it.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// From what serde says at `path`; `origin` tells where a key stands.
    pub(super) fn key(origin: impl Fn(&str) -> String, path: &str, problem: &str) -> Self {
        match UnknownName::parse(problem) {
            Some(unknown) => Self::Key { origin: origin(&unknown.path(path)), message: unknown.describe(path) },
            None if path == "." => Self::Key { origin: origin(""), message: problem.to_owned() },
            None => Self::Key { origin: origin(path), message: format!("`{path}`: {problem}") },
        }
    }
}

/// serde's "unknown field `x`, expected one of `y`, `z`", taken apart.
struct UnknownName<'a> {
    what: &'static str,
    name: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownName<'a> {
    fn parse(problem: &'a str) -> Option<Self> {
        let (what, rest) = [("key", "unknown field `"), ("value", "unknown variant `")]
            .into_iter()
            .find_map(|(what, prefix)| Some((what, problem.strip_prefix(prefix)?)))?;
        let (name, expected) = rest.split_once("`, expected ")?;
        // Names alternate with the words between them: `a` or `b`; one of `a`, `b`.
        let known = expected.split('`').skip(1).step_by(2).collect();
        Some(Self { what, name, known })
    }

    /// Of an unknown key serde gives the path of the table around it, or its own.
    fn path(&self, path: &str) -> String {
        let path = path.trim_end_matches('.');
        let is_its_own = path == self.name || path.ends_with(&format!(".{}", self.name));
        match self.what {
            "key" if path.is_empty() => self.name.to_owned(),
            "key" if !is_its_own => format!("{path}.{}", self.name),
            _ => path.to_owned(),
        }
    }

    fn describe(&self, path: &str) -> String {
        let parent = match path.strip_suffix(self.name) {
            Some(parent) if self.what == "key" => parent.trim_end_matches('.'),
            _ => path.trim_end_matches('.'),
        };
        let place = match (self.what, parent) {
            ("value", _) => format!(" of `{path}`"),
            (_, "") => String::new(),
            (_, parent) => format!(" in `{parent}`"),
        };
        let hint = nearest(self.name, &self.known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        let known = self.known.join(", ");
        format!("unknown {} `{}`{place}{hint} (known: {known})", self.what, self.name)
    }
}

/// The candidate that `name` is most likely a slip of.
pub(crate) fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    /// Below this, two words have little in common.
    const MIN_SIMILARITY: f64 = 0.7;
    candidates
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}
