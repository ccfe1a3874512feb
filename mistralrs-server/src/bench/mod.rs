//! `mistralrs-server bench`: how fast a model answers, in this process or behind any OpenAI-compatible server.
//!
//! [`BenchFlags`] are what people write, [`BenchPlan`] what they come to. `prompts` makes requests that no prefix cache
//! knows, `target` says what answers them (`in_process`, `http`), `load` sends them, and `statistics` makes a
//! [`Report`] of what came back. One instrument for all servers: figures differ by the server, not by the tool.

mod flags;
mod http;
mod in_process;
mod load;
mod prompts;
mod report;
mod statistics;
mod target;

use std::sync::Arc;

pub use flags::{BenchFlags, BenchPlan};
pub use report::Report;

use self::flags::{Setup, TargetPlan};
use self::http::HttpTarget;
use self::in_process::InProcess;
use self::load::Load;
use self::prompts::Prompts;
use self::report::{PrefixCache, RunReport, TargetReport};
use self::target::Target;
use crate::hub::HubError;

/// Why nothing was measured. Requests that fail are counted instead.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The flags contradict each other.
    #[error("{0}")]
    Flags(String),
    /// The model could not be found or fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model could not be loaded.
    #[error("cannot load the model: {0}")]
    Load(#[from] mistralrs_core::LoadError),
    /// The model cannot make a prompt of plain words.
    #[error("cannot make prompts: {0}")]
    Prompt(#[from] mistralrs_core::RequestError),
    /// The server does not answer at all.
    #[error("{url}: {problem}")]
    Server {
        /// What was asked.
        url: String,
        /// What came of it.
        problem: String,
    },
}

/// Runs all of `plan`, one load after the other.
///
/// # Errors
/// [`BenchError`], if there is nothing to send requests to.
pub async fn run(plan: BenchPlan) -> Result<Report, BenchError> {
    let BenchPlan { target, setup, .. } = plan;
    let prompts = Prompts::new(setup.prompt, setup.seed);
    let mut runs = Vec::new();
    let target = match target {
        TargetPlan::Http { url, api_key, model } => {
            let target = HttpTarget::connect(&url, api_key, model, prompts, setup.max_tokens).await?;
            let report = TargetReport::Http { url: target.url().to_owned(), model: target.model().to_owned() };
            runs.extend(measure(Arc::new(target), &setup, PrefixCache::OfTheServer).await);
            report
        }
        TargetPlan::InProcess { located, mut settings, prefix_caches } => {
            let source = crate::hub::fetch_pair(located, &mut settings).await?;
            let mut model = String::new();
            for prefix_cache in prefix_caches {
                let mut engine = settings.engine.clone();
                engine.enable_prefix_cache = prefix_cache == PrefixCache::On;
                let target = InProcess::load(source.clone(), engine, prompts.clone(), setup.max_tokens).await?;
                target.model_id().clone_into(&mut model);
                let target = Arc::new(target);
                runs.extend(measure(Arc::clone(&target), &setup, prefix_cache).await);
                target.shutdown().await;
            }
            TargetReport::InProcess { model }
        }
    };
    Ok(Report::new(target, &setup, runs))
}

/// Warms `target` up, then puts each load on it. No two requests of all have the same prompt.
async fn measure<T: Target>(target: Arc<T>, setup: &Setup, prefix_cache: PrefixCache) -> Vec<RunReport> {
    let mut next_prompt = 0;
    let mut take = |num_requests: usize| {
        let first = next_prompt;
        next_prompt += num_requests as u64;
        first..next_prompt
    };
    let warm_up = take(setup.num_warm_up_requests);
    load::drive(&target, Load::Closed { concurrency: 1 }, warm_up, setup.seed).await;
    let mut runs = Vec::new();
    for &load in &setup.loads {
        let prompts = take(setup.num_requests(load));
        tracing::info!(%load, prefix_cache = prefix_cache.as_str(), requests = setup.num_requests(load), "measuring");
        let measured = load::drive(&target, load, prompts, setup.seed).await;
        runs.push(RunReport::new(load, prefix_cache, &measured));
    }
    runs
}
