//! What can be wrong with a configuration.

/// A configuration that was refused: which key, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text does not parse at all.
    #[error("not valid {format}: {message}")]
    Syntax {
        /// `TOML`, `JSON` or `YAML`.
        format: &'static str,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A key that nobody reads.
    #[error("unknown key `{path}`{}", did_you_mean(nearest.as_deref()))]
    UnknownKey {
        /// Where, dotted, with the key.
        path: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A key with a value that cannot be right.
    #[error("`{path}`: {reason}")]
    Invalid {
        /// Where, dotted.
        path: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A variable that the environment does not have.
    #[error("`{path}`: environment variable `{variable}` is not set (`$$` stands for a plain dollar sign)")]
    UnsetVariable {
        /// The key whose value names it.
        path: String,
        /// Its name.
        variable: String,
    },
    /// Something this version does not do, so that it is not silently left out.
    #[error("`{path}`: {feature} is not supported in this version")]
    NotSupported {
        /// The key that asks for it.
        path: String,
        /// What it asks for.
        feature: &'static str,
    },
}

impl ConfigError {
    pub(crate) fn invalid(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn not_supported(path: impl Into<String>, feature: &'static str) -> Self {
        Self::NotSupported { path: path.into(), feature }
    }

    /// The dotted path of the key that it is about.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Syntax { .. } => None,
            Self::UnknownKey { path, .. }
            | Self::Invalid { path, .. }
            | Self::UnsetVariable { path, .. }
            | Self::NotSupported { path, .. } => Some(path),
        }
    }

    /// The same error, below `prefix`.
    pub(crate) fn within(mut self, prefix: &str) -> Self {
        let (Self::UnknownKey { path, .. }
        | Self::Invalid { path, .. }
        | Self::UnsetVariable { path, .. }
        | Self::NotSupported { path, .. }) = &mut self
        else {
            return self;
        };
        if path.is_empty() {
            prefix.clone_into(path);
        } else if !prefix.is_empty() {
            *path = format!("{prefix}.{path}");
        }
        self
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}
