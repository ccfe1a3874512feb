//! Fetching a model from the hub into its cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};
use mistralrs_telemetry::Mutex;

use super::{HubError, Wanted, locate_in_directory};
use crate::config::{HubSettings, ModelSelector};

/// A hub that does not accept a connection within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A download that stands still for this long has failed.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// Second tries after a failure that may pass.
const MAX_RETRIES: usize = 2;

/// Files of one repository that are looked at; a model has a few dozen.
const MAX_REPO_FILES: usize = 10_000;

/// Beside the weights: what a safetensors model consists of.
const SAFETENSORS_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "modules.json",
    "1_Pooling/config.json",
];

/// One repository of the hub.
pub(super) struct Download<'a> {
    repo: &'a str,
    settings: &'a HubSettings,
    client: HFClient,
}

impl<'a> Download<'a> {
    /// # Errors
    /// [`HubError::Refused`] if the configured endpoint is no URL.
    pub fn new(repo: &'a str, settings: &'a HubSettings) -> Result<Self, HubError> {
        let client = client(settings).map_err(|error| refused(repo, &error))?;
        Ok(Self { repo, settings, client })
    }

    /// The snapshot's directory, or the GGUF file in it.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn run(&self, selector: &ModelSelector) -> Result<PathBuf, HubError> {
        if self.settings.offline {
            return match self.cached(selector).await {
                Some(found) => found,
                None => Err(HubError::Offline { repo: self.repo.to_owned(), cache: self.settings.cache_dir.clone() }),
            };
        }
        match self.download(selector).await {
            Err(HubError::Unreachable { reason, .. })
                if self.cached(selector).await.is_some_and(|found| found.is_ok()) =>
            {
                tracing::warn!(repo = self.repo, reason, "the hub cannot be reached; using what is in the cache");
                self.cached(selector).await.expect("was there a moment ago")
            }
            outcome => outcome,
        }
    }

    async fn download(&self, selector: &ModelSelector) -> Result<PathBuf, HubError> {
        let names = self.list_files().await?;
        let wanted = Wanted::among(&names, selector)
            .map_err(|problem| HubError::Unsuitable { place: format!("the hub's `{}`", self.repo), problem })?;
        let patterns = match &wanted {
            Wanted::Gguf(file) => vec![file.clone()],
            Wanted::Safetensors => names.iter().filter(|name| is_part_of_model(name)).cloned().collect(),
        };
        let progress = DownloadProgress::new(self.repo);
        let snapshot = self
            .repository()
            .snapshot_download()
            .allow_patterns(patterns)
            .progress(progress)
            .send()
            .await
            .map_err(|error| self.explain(error))?;
        Ok(match wanted {
            Wanted::Safetensors => snapshot,
            Wanted::Gguf(file) => snapshot.join(file),
        })
    }

    /// What the cache has; `None` if it has nothing of this repository.
    async fn cached(&self, selector: &ModelSelector) -> Option<Result<PathBuf, HubError>> {
        let snapshot = self.repository().snapshot_download().local_files_only(true).send().await.ok()?;
        Some(locate_in_directory(&snapshot, selector))
    }

    async fn list_files(&self) -> Result<Vec<String>, HubError> {
        let repository = self.repository();
        let entries = repository.list_tree().recursive(true).limit(MAX_REPO_FILES).send();
        let entries = entries.map_err(|error| self.explain(error))?;
        pin_mut!(entries);
        let mut names = Vec::new();
        while let Some(entry) = entries.next().await {
            // Folders hold the same model in other formats.
            if let RepoTreeEntry::File { path, .. } = entry.map_err(|error| self.explain(error))?
                && (!path.contains('/') || is_part_of_model(&path))
            {
                names.push(path);
            }
        }
        Ok(names)
    }

    fn repository(&self) -> HFRepository<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(self.repo);
        self.client.model(owner, name)
    }

    fn explain(&self, error: HFError) -> HubError {
        let is_down = match &error {
            HFError::Request { .. } => true,
            HFError::Http { context } => context.status.is_server_error(),
            _ => false,
        };
        if !is_down {
            return refused(self.repo, &error);
        }
        HubError::Unreachable {
            repo: self.repo.to_owned(),
            cache: self.settings.cache_dir.clone(),
            endpoint: self.client.endpoint().to_owned(),
            reason: innermost(&error),
            source: Box::new(error),
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string)
}

fn refused(repo: &str, error: &HFError) -> HubError {
    let status = match error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            context.status.as_u16()
        }
        HFError::RepoNotFound { .. } => 404,
        _ => 0,
    };
    // Without a token the hub answers 401 for what does not exist, too.
    let help = match status {
        401 | 403 | 404 => {
            "; either it does not exist, or it needs a token that may read it: set HF_TOKEN or --token-source"
        }
        _ => "",
    };
    HubError::Refused { repo: repo.to_owned(), reason: format!("{error}{help}") }
}

/// A client for the configured hub.
pub(super) fn client(settings: &HubSettings) -> Result<HFClient, HFError> {
    let http = reqwest::Client::builder()
        .user_agent(concat!("mistralrs-server/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build()?;
    // Left unset, hf-hub would look for a token itself, `--token-source none` or not. A line feed cannot be in a
    // header, so this one is never sent.
    let token = settings.token.clone().unwrap_or_else(|| "\n".to_owned());
    let builder =
        HFClient::builder().client(http).cache_dir(&settings.cache_dir).token(token).retry_max_attempts(MAX_RETRIES);
    match &settings.endpoint {
        Some(endpoint) => builder.endpoint(endpoint).build(),
        None => builder.build(),
    }
}

fn is_part_of_model(name: &str) -> bool {
    SAFETENSORS_FILES.contains(&name) || (name.ends_with(".safetensors") && !name.contains('/'))
}

/// Shows a download: a bar on a terminal, a line for each finished file elsewhere.
struct DownloadProgress {
    bar: ProgressBar,
    /// Bytes that have come, by file; hf-hub reports from as many tasks as there are downloads.
    received: Mutex<HashMap<String, u64>>,
}

impl DownloadProgress {
    fn new(repo: &str) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .expect("the template is a constant and valid")
            .progress_chars("=> ");
        let bar = ProgressBar::no_length().with_style(style).with_message(repo.to_owned());
        Self { bar, received: Mutex::new("download_progress", HashMap::new()) }
    }

    fn set(&self, file: &str, num_bytes: u64) {
        let mut received = self.received.lock();
        received.insert(file.to_owned(), num_bytes);
        self.bar.set_position(received.values().sum());
    }
}

impl ProgressHandler for DownloadProgress {
    fn on_progress(&self, event: &ProgressEvent) {
        /// Files of the hub's content-addressed store are reported as one.
        const CONTENT_ADDRESSED: &str = "";
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_files, total_bytes } => {
                self.bar.set_length(*total_bytes);
                tracing::debug!(files = total_files, bytes = total_bytes, "downloading");
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    self.set(&file.filename, file.bytes_completed);
                    if file.status == FileStatus::Complete && self.bar.is_hidden() {
                        tracing::info!(file = file.filename, bytes = file.total_bytes, "downloaded");
                    }
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.set(CONTENT_ADDRESSED, *bytes_completed),
            DownloadEvent::Complete => self.bar.finish_and_clear(),
        }
    }
}
