//! `mcp add` and `mcp remove`: the file that names the servers, edited in place.
//!
//! The new text is written beside the file, read and checked as the server would at its start, and only then put in its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mistralrs_mcp::config::FileFormat;
use serde_json::Value;

use super::new_server::NewServer;
use super::replacement::Replacement;
use super::shape::{FileRole, Shape};
use super::{json_file, toml_file};
use crate::config::{Configuration, Environment, Sources, nearest, unset_variables};

/// Stands for a variable that this process does not have, so that the rest can be checked.
const UNSET: &str = "unset";

/// What is to be done.
#[derive(Debug, Clone)]
pub enum ServerChange {
    /// Adds a server.
    Add(NewServer),
    /// Removes the server of this name.
    Remove(String),
}

/// Why the file stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// No file was named.
    #[error("which file names the servers? Give --mcp-config FILE, or --config FILE")]
    NoFile,
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be edited.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A server of this name is there already.
    #[error("{}: there is a server `{name}` already; `mcp remove {name}` removes it", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// There is no server of this name.
    #[error("{}: there is no server `{name}`{}", path.display(), among(name, known))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The server would not start with it.
    #[error("{} is left as it is; with this change it would be wrong: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The complaint.
        reason: String,
    },
}

/// A change that was found good, and is not made yet.
#[derive(Debug)]
pub struct PendingEdit {
    path: PathBuf,
    replacement: Replacement,
    /// What was done, for standard output.
    done: String,
    /// What people should know, for standard error.
    pub warnings: Vec<String>,
}

impl PendingEdit {
    /// Edits the file of `--mcp-config`, else that of `--config` or of the environment, and checks the result.
    ///
    /// # Errors
    /// [`EditError`]; nothing has changed then.
    pub fn new(change: &ServerChange, sources: Sources, environment: Environment) -> Result<Self, EditError> {
        let (path, role) = match (&sources.mcp_config, &sources.config) {
            (Some(path), _) => (path.clone(), FileRole::Servers),
            (None, Some(path)) => (path.clone(), FileRole::Everything),
            (None, None) => (environment.config_file().ok_or(EditError::NoFile)?, FileRole::Everything),
        };
        let before = read(&path, change)?;
        let text = edit(before.as_deref().unwrap_or_default(), &path, role, change)?;
        let (done, mut warnings) = match change {
            ServerChange::Add(server) => (format!("added `{}` to {}", server.name, path.display()), server.warnings()),
            ServerChange::Remove(name) => (format!("removed `{name}` from {}", path.display()), Vec::new()),
        };
        let unset = unset_variables(&text, &environment);
        warnings.extend(
            unset
                .iter()
                .filter(|name| change.mentions(name))
                .map(|name| format!("`${name}` is not set here; the server does not start without it")),
        );
        let replacement = Replacement::write(&path, before, &text).map_err(|source| in_file(&path, source))?;
        let environment = unset.iter().fold(environment, |environment, name| environment.or(name, UNSET));
        check(&path, &replacement, role, sources, environment)?;
        Ok(Self { path, replacement, done, warnings })
    }

    /// Makes the change, and says what it was.
    ///
    /// # Errors
    /// [`EditError::File`]; the file is as it was then.
    pub fn commit(self) -> Result<String, EditError> {
        self.replacement.commit().map_err(|source| in_file(&self.path, source))?;
        Ok(format!("{}; a running server reads it when it is started again", self.done))
    }
}

impl ServerChange {
    fn name(&self) -> &str {
        match self {
            Self::Add(server) => &server.name,
            Self::Remove(name) => name,
        }
    }

    fn mentions(&self, variable: &str) -> bool {
        let Self::Add(server) = self else { return false };
        let values = server.env.iter().chain(&server.headers).map(|pair| &pair.value);
        let refers =
            |text: &String| text.contains(&format!("${variable}")) || text.contains(&format!("${{{variable}}}"));
        values.chain(&server.command).chain(&server.url).any(refers)
    }
}

/// `None` for a file that will be made.
fn read(path: &Path, change: &ServerChange) -> Result<Option<String>, EditError> {
    match (fs::read_to_string(path), change) {
        (Ok(text), _) => Ok(Some(text)),
        (Err(error), ServerChange::Add(_)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), _) => Err(in_file(path, error)),
    }
}

/// The text after the change.
fn edit(text: &str, path: &Path, role: FileRole, change: &ServerChange) -> Result<String, EditError> {
    let wrong = |reason: String| EditError::Format { path: path.to_owned(), reason };
    let format = FileFormat::from_path(path).map_err(|_| wrong("the name must end in .toml or .json".to_owned()))?;
    let mut root: Value = match format {
        FileFormat::Toml => toml::from_str(text).map_err(|error| wrong(error.to_string()))?,
        FileFormat::Json if text.trim().is_empty() => Value::Object(serde_json::Map::new()),
        FileFormat::Json => serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?,
        FileFormat::Yaml => {
            return Err(wrong("YAML is read, but not edited: its comments would be lost".to_owned()));
        }
    };
    let shape = Shape::of(&root, role, format).map_err(wrong)?;
    let (known, name) = (shape.names(&root), change.name());
    let is_known = known.iter().any(|known| known == name);
    match (change, format) {
        (ServerChange::Add(_), _) if is_known => {
            Err(EditError::Duplicate { path: path.to_owned(), name: name.to_owned() })
        }
        (ServerChange::Remove(_), _) if !is_known => {
            Err(EditError::Unknown { path: path.to_owned(), name: name.to_owned(), known })
        }
        (ServerChange::Add(server), FileFormat::Toml) => {
            let entry = server.to_entry(&shape).map_err(wrong)?;
            toml_file::insert(text, &shape, name, &entry).map_err(wrong)
        }
        (ServerChange::Remove(_), FileFormat::Toml) => toml_file::remove(text, &shape, name).map_err(wrong),
        (ServerChange::Add(server), _) => {
            let entry = server.to_entry(&shape).map_err(wrong)?;
            json_file::insert(&mut root, &shape, name, entry).map_err(wrong)?;
            Ok(json_file::render(&root, text))
        }
        (ServerChange::Remove(_), _) => {
            json_file::remove(&mut root, &shape, name);
            Ok(json_file::render(&root, text))
        }
    }
}

/// Reads the new text as the server would, with the other file that was named.
fn check(
    path: &Path,
    replacement: &Replacement,
    role: FileRole,
    mut sources: Sources,
    environment: Environment,
) -> Result<(), EditError> {
    match role {
        FileRole::Servers => sources.mcp_config = Some(replacement.path().to_owned()),
        FileRole::Everything => sources.config = Some(replacement.path().to_owned()),
    }
    let checked = Configuration::load(sources, environment).and_then(|configuration| configuration.gateway());
    checked.map(drop).map_err(|error| {
        // Nobody knows the file by the name it has now.
        let [now, known] = [replacement.path(), path].map(|path| path.display().to_string());
        let reason = error.to_string().replace(&now, &known);
        EditError::Invalid { path: path.to_owned(), reason }
    })
}

fn in_file(path: &Path, source: io::Error) -> EditError {
    EditError::File { path: path.to_owned(), source }
}

/// Behind "there is no server": the one that may be meant, or all there are.
pub(super) fn among(name: &str, known: &[String]) -> String {
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    match (nearest(name, &names), names.as_slice()) {
        (Some(near), _) => format!("; did you mean `{near}`?"),
        (None, []) => "; there are none".to_owned(),
        (None, names) => format!(" (there are {})", names.join(", ")),
    }
}
