//! What was downloaded from the model hub: `cache list` and `cache delete`.

use std::fmt::Write as _;
use std::io;

use hf_hub::HFError;
use hf_hub::cache::CachedRepoInfo;
use indicatif::HumanBytes;

use super::download::client;
use crate::config::HubSettings;

/// Why the cache could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be read.
    #[error("cannot read the cache: {0}")]
    Read(#[from] HFError),
    /// Nothing of that name is there.
    #[error("`{repo}` is not in the cache; there is: {cached}")]
    NotCached {
        /// What was asked for.
        repo: String,
        /// What is there, comma separated.
        cached: String,
    },
    /// The files cannot be removed.
    #[error("cannot delete `{repo}`: {source}")]
    Delete {
        /// Which.
        repo: String,
        /// Why.
        source: io::Error,
    },
}

/// A table of downloaded models: size and hub id, the largest first.
///
/// # Errors
/// [`CacheError::Read`].
pub async fn list(settings: &HubSettings) -> Result<String, CacheError> {
    let mut repos = models(settings).await?;
    repos.sort_by(|left, right| {
        right.size_on_disk.cmp(&left.size_on_disk).then_with(|| left.repo_id.cmp(&right.repo_id))
    });
    let mut table = format!("{} models in {}\n", repos.len(), settings.cache_dir.display());
    for repo in &repos {
        writeln!(table, "{:>12}  {}", HumanBytes(repo.size_on_disk).to_string(), repo.repo_id)
            .expect("strings take text");
    }
    Ok(table)
}

/// Deletes all revisions of one model and says how much that was.
///
/// # Errors
/// [`CacheError`].
pub async fn delete(settings: &HubSettings, repo: &str) -> Result<String, CacheError> {
    let repos = models(settings).await?;
    let Some(found) = repos.iter().find(|known| known.repo_id == repo) else {
        let cached = repos.iter().map(|known| known.repo_id.as_str()).collect::<Vec<_>>();
        let cached = if cached.is_empty() { "nothing".to_owned() } else { cached.join(", ") };
        return Err(CacheError::NotCached { repo: repo.to_owned(), cached });
    };
    std::fs::remove_dir_all(&found.repo_path).map_err(|source| CacheError::Delete { repo: repo.to_owned(), source })?;
    Ok(format!("deleted {repo} ({})\n", HumanBytes(found.size_on_disk)))
}

async fn models(settings: &HubSettings) -> Result<Vec<CachedRepoInfo>, CacheError> {
    let cache = client(settings)?.scan_cache().send().await?;
    for warning in &cache.warnings {
        tracing::warn!(warning, "cache");
    }
    Ok(cache.repos.into_iter().filter(|repo| repo.repo_type == "model").collect())
}
