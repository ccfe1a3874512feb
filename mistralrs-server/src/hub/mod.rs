//! From a model as people name it to files on this machine: a path is looked at, a hub id is fetched.
//! A path never touches the network.

pub mod cache;
mod download;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use hf_hub::HFError;
use mistralrs_core::config::ModelSource;

use self::download::Download;
use crate::config::{HubSettings, ModelFormat, ModelSelector, ModelSettings};

/// A model that is there, or that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// On this machine: a GGUF file or a directory of safetensors.
    Local(PathBuf),
    /// In a repository of the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// What is wanted of it.
        selector: ModelSelector,
    },
}

/// Why there is no model to load.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A path that leads nowhere.
    #[error("there is no file or directory `{0}`, and it does not look like a hub id (`org/name`)")]
    NoSuchPath(String),
    /// The draft model is not to be had.
    #[error("--draft-model: {0}")]
    Draft(Box<HubError>),
    /// A path or repository without what was asked of it.
    #[error("{place}: {problem}")]
    Unsuitable {
        /// The path or the repository.
        place: String,
        /// What is missing or ambiguous, and what to write instead.
        problem: String,
    },
    /// The hub answered that it will not.
    #[error("the model hub refused `{repo}`: {reason}")]
    Refused {
        /// Which repository.
        repo: String,
        /// Why, and what may help.
        reason: String,
    },
    /// The hub was not asked, because offline mode is on.
    #[error("`{repo}` is not in the cache {cache}, and HF_HUB_OFFLINE is set; unset it, or give a local path", cache = cache.display())]
    Offline {
        /// Which repository.
        repo: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub could not be asked.
    #[error("`{repo}` is neither a local path nor in the cache {cache}, and {endpoint} could not be reached: {reason}", cache = cache.display())]
    Unreachable {
        /// Which repository.
        repo: String,
        /// Where it was looked for.
        cache: PathBuf,
        /// Which hub was tried.
        endpoint: String,
        /// The innermost cause; those around it repeat the URL.
        reason: String,
        /// All of them.
        source: Box<HFError>,
    },
}

/// A model with the draft model that guesses for it, both as [`locate`] finds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedPair {
    /// The model.
    pub model: Located,
    /// Its draft model, if it has one.
    pub draft: Option<Located>,
}

impl LocatedPair {
    /// Looks at the file system only.
    ///
    /// # Errors
    /// As [`locate`].
    pub fn of(settings: &ModelSettings) -> Result<Self, HubError> {
        let model = locate(&settings.selector)?;
        let draft = settings.draft.as_ref().map(locate).transpose();
        Ok(Self { model, draft: draft.map_err(|error| HubError::Draft(Box::new(error)))? })
    }
}

/// Looks at the file system only: finds the model or decides that it is a hub id.
///
/// # Errors
/// [`HubError::NoSuchPath`], [`HubError::Unsuitable`].
pub fn locate(selector: &ModelSelector) -> Result<Located, HubError> {
    let path = Path::new(&selector.model_id);
    if path.is_dir() {
        return locate_in_directory(path, selector).map(Located::Local);
    }
    if path.exists() {
        return locate_file(path, selector).map(Located::Local);
    }
    if is_hub_id(&selector.model_id) {
        return Ok(Located::Hub { repo: selector.model_id.clone(), selector: selector.clone() });
    }
    Err(HubError::NoSuchPath(selector.model_id.clone()))
}

/// The files of both on this machine, downloading those that are missing; those of the draft model are written into the
/// engine's settings.
///
/// # Errors
/// [`HubError`], with what was tried.
pub async fn fetch_pair(located: LocatedPair, settings: &mut ModelSettings) -> Result<ModelSource, HubError> {
    let source = fetch(located.model, settings).await?;
    if let Some(draft) = located.draft {
        let fetched = fetch_files(draft, &settings.hub).await;
        let (path, _) = fetched.map_err(|error| HubError::Draft(Box::new(error)))?;
        settings.engine.draft_model = Some(path);
    }
    Ok(source)
}

/// The model's files on this machine, downloading those that are missing.
///
/// # Errors
/// [`HubError`], with what was tried.
pub async fn fetch(located: Located, settings: &ModelSettings) -> Result<ModelSource, HubError> {
    let (path, name) = fetch_files(located, &settings.hub).await?;
    Ok(ModelSource {
        path,
        id: settings.served_model_name.clone().or(name),
        chat_template: settings.chat_template.clone(),
        packed_cache: settings.packed_cache.clone(),
    })
}

/// Where the files are, and the repository they are of.
async fn fetch_files(located: Located, hub: &HubSettings) -> Result<(PathBuf, Option<String>), HubError> {
    Ok(match located {
        Located::Local(path) => (path, None),
        Located::Hub { repo, selector } => (Download::new(&repo, hub)?.run(&selector).await?, Some(repo)),
    })
}

/// `org/name`, in the characters that hubs allow, and nothing that can only be a path.
fn is_hub_id(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let is_file =
        Path::new(text).extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    // `models/smol` where there is a directory `models` is a slip of the pen, not an organization.
    let is_id = |(org, name)| is_part(org) && is_part(name) && !Path::new(org).is_dir();
    text.split_once('/').is_some_and(is_id) && !is_file
}

fn locate_file(path: &Path, selector: &ModelSelector) -> Result<PathBuf, HubError> {
    let unsuitable =
        |problem: &str| Err(HubError::Unsuitable { place: path.display().to_string(), problem: problem.to_owned() });
    match selector.format {
        ModelFormat::Safetensors => unsuitable("`plain` needs the directory that holds config.json and the weights"),
        _ if selector.file.is_some() => unsuitable("is a file; with `-f FILE`, `-m` names the directory that holds it"),
        ModelFormat::Auto if path.extension().is_some_and(|extension| extension == "safetensors") => {
            unsuitable("is a single file of weights; name the directory that holds it and config.json")
        }
        ModelFormat::Auto | ModelFormat::Gguf => Ok(path.to_owned()),
    }
}

fn locate_in_directory(directory: &Path, selector: &ModelSelector) -> Result<PathBuf, HubError> {
    let names = file_names(directory);
    let wanted = Wanted::among(&names, selector)
        .map_err(|problem| HubError::Unsuitable { place: directory.display().to_string(), problem })?;
    Ok(match wanted {
        Wanted::Safetensors => directory.to_owned(),
        Wanted::Gguf(file) => directory.join(file),
    })
}

/// Names of the files in `directory`, sorted; what cannot be read is not there.
fn file_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// What a directory or repository is used as.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Safetensors,
    Gguf(String),
}

fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

impl Wanted {
    /// Decides by the names of the files that are there.
    fn among(names: &[String], selector: &ModelSelector) -> Result<Self, String> {
        let ggufs: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_gguf(name)).collect();
        let has = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
        // A directory with config.json and no weights at all is the loader's to complain about: it knows more. Many
        // repositories of GGUF files have a config.json too.
        let has_safetensors =
            names.iter().any(|name| name == "config.json") && (has(".safetensors") || ggufs.is_empty());
        match (selector.format, selector.file.as_deref()) {
            (ModelFormat::Gguf, Some(file)) if ggufs.contains(&file) || names.iter().any(|name| name == file) => {
                Ok(Self::Gguf(file.to_owned()))
            }
            (ModelFormat::Gguf, Some(file)) => Err(format!("has no file `{file}`; {}", list(&ggufs))),
            (ModelFormat::Safetensors | ModelFormat::Auto, _) if has_safetensors => Ok(Self::Safetensors),
            (ModelFormat::Safetensors, _) => Err("has no config.json with *.safetensors beside it".to_owned()),
            (ModelFormat::Auto | ModelFormat::Gguf, _) => match ggufs.as_slice() {
                [only] => Ok(Self::Gguf((*only).to_owned())),
                [] => Err("has neither config.json with *.safetensors nor a .gguf file".to_owned()),
                several => Err(format!(
                    "has several GGUF files; choose one with `gguf -f FILE`, a draft model's by its path. {}",
                    list(several)
                )),
            },
        }
    }
}

fn list(ggufs: &[&str]) -> String {
    match ggufs {
        [] => "there is no .gguf file".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    }
}
