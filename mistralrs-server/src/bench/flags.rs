//! What people write behind `bench`, and the checked plan it comes to.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::BenchError;
use super::load::Load;
use super::prompts::PromptShape;
use super::report::PrefixCache;
use crate::config::ModelSettings;
use crate::hub::LocatedPair;

/// Without `--seed`: any, but the same every time, so that two runs measure the same prompts.
const DEFAULT_SEED: u64 = 42;
/// Streams at once that `--concurrency` may ask for: each is a task and, over HTTP, a socket.
const MAX_CONCURRENCY: usize = 4096;
/// Tokens of one prompt or answer: no model has a longer context, and each answer's times are kept until it is counted.
const MAX_TOKENS: usize = 1 << 20;
/// Where `--requests` is absent: this many per stream, so that every stream starts in all phases of the others,
const REQUESTS_PER_STREAM: usize = 4;
/// but at least this many, for a median worth its name,
const MIN_REQUESTS: usize = 8;
/// and in an open loop what arrives in this many seconds.
const OPEN_LOOP_SECONDS: f64 = 30.0;

/// Flags of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchFlags {
    /// A path or a hub id, loaded into this process; with --url, the model's name over there
    #[arg(short, long, visible_alias = "model", value_name = "PATH_OR_ID", value_hint = ValueHint::AnyPath)]
    pub model_id: Option<String>,
    /// The GGUF file in it, where there are several
    #[arg(short, long, visible_alias = "quantized-filename", value_name = "FILE", conflicts_with = "url")]
    pub file: Option<String>,
    /// Measure a running server of OpenAI's API instead, such as http://localhost:1234
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub url: Option<String>,
    /// Bearer token for that server
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// Tokens of each prompt that no other has; over HTTP words, which are about as many
    #[arg(long, value_name = "N", default_value = "512")]
    prompt_tokens: NonZeroUsize,
    /// Tokens that all prompts begin with, before their own
    #[arg(long, value_name = "N", default_value = "0")]
    shared_prefix_tokens: usize,
    /// Tokens of each answer, end tokens ignored
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: NonZeroUsize,
    /// Streams at once; each sends its next request when the last is answered. Several are measured in turn
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,32")]
    concurrency: Vec<NonZeroUsize>,
    /// Requests a second instead, at random times, whether the server keeps up or not
    #[arg(long, value_name = "R,…", value_delimiter = ',', conflicts_with = "concurrency")]
    rate: Vec<f64>,
    /// Requests of each measurement [default: 4 per stream, at least 8; with --rate those of 30 s]
    #[arg(long, value_name = "N")]
    requests: Option<NonZeroUsize>,
    /// Requests before the first measurement that are not counted, one after the other
    #[arg(long, value_name = "N", default_value = "2")]
    warmup: usize,
    /// Whether KV of earlier prompts is used again; `both` measures without and with [default: as configured]
    #[arg(long, value_name = "MODE", conflicts_with = "url")]
    prefix_cache: Option<PrefixCacheMode>,
    /// How the report is written
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Where the report goes instead of standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrefixCacheMode {
    On,
    Off,
    Both,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; docs/guides/bench.md describes it.
    Json,
}

/// What is measured, how, and where the result goes.
#[derive(Debug)]
pub struct BenchPlan {
    pub(super) target: TargetPlan,
    pub(super) setup: Setup,
    /// How the report is written.
    pub format: Format,
    /// Where to; `None`: standard output.
    pub output: Option<PathBuf>,
}

/// What answers.
#[derive(Debug)]
pub(super) enum TargetPlan {
    InProcess { located: LocatedPair, settings: Box<ModelSettings>, prefix_caches: Vec<PrefixCache> },
    Http { url: String, api_key: Option<String>, model: Option<String> },
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub seed: u64,
    pub prompt: PromptShape,
    pub max_tokens: usize,
    pub loads: Vec<Load>,
    pub num_warm_up_requests: usize,
    pub num_requests: Option<usize>,
}

impl Setup {
    /// How many requests one load is measured with.
    pub fn num_requests(&self, load: Load) -> usize {
        self.num_requests.unwrap_or(match load {
            Load::Closed { concurrency } => (REQUESTS_PER_STREAM * concurrency).max(MIN_REQUESTS),
            Load::Open { rate } => ((rate * OPEN_LOOP_SECONDS) as usize).max(MIN_REQUESTS),
        })
    }
}

impl BenchPlan {
    /// Checks the flags; `model` is what they and the configuration name, if anything.
    ///
    /// # Errors
    /// [`BenchError::Flags`] and, for a path that leads nowhere, [`BenchError::Hub`].
    pub fn new(flags: &BenchFlags, model: Option<ModelSettings>, seed: Option<u64>) -> Result<Self, BenchError> {
        let setup = Setup {
            seed: seed.unwrap_or(DEFAULT_SEED),
            prompt: PromptShape {
                num_shared: at_most("--shared-prefix-tokens", flags.shared_prefix_tokens, MAX_TOKENS)?,
                num_own: at_most("--prompt-tokens", flags.prompt_tokens.get(), MAX_TOKENS)?,
            },
            max_tokens: at_most("--max-tokens", flags.max_tokens.get(), MAX_TOKENS)?,
            loads: loads(flags)?,
            num_warm_up_requests: flags.warmup,
            num_requests: flags.requests.map(NonZeroUsize::get),
        };
        let target = match (&flags.url, model) {
            (Some(url), _) => {
                TargetPlan::Http { url: url.clone(), api_key: flags.api_key.clone(), model: flags.model_id.clone() }
            }
            (None, Some(settings)) => TargetPlan::InProcess {
                located: LocatedPair::of(&settings)?,
                prefix_caches: prefix_caches(flags.prefix_cache, settings.engine.enable_prefix_cache),
                settings: Box::new(settings),
            },
            (None, None) => {
                return Err(BenchError::Flags(
                    "nothing to measure: name a model (`bench -m MODEL`) or a server (`bench --url URL`)".to_owned(),
                ));
            }
        };
        Ok(Self { target, setup, format: flags.format, output: flags.output.clone() })
    }
}

fn loads(flags: &BenchFlags) -> Result<Vec<Load>, BenchError> {
    if flags.rate.is_empty() {
        let streams = flags.concurrency.iter();
        return streams
            .map(|streams| {
                let concurrency = at_most("--concurrency", streams.get(), MAX_CONCURRENCY)?;
                Ok(Load::Closed { concurrency })
            })
            .collect();
    }
    let rates = flags.rate.iter().map(|&rate| {
        if rate > 0.0 && rate.is_finite() {
            Ok(Load::Open { rate })
        } else {
            Err(BenchError::Flags(format!("--rate {rate}: expected more than 0 requests a second")))
        }
    });
    rates.collect()
}

fn prefix_caches(mode: Option<PrefixCacheMode>, is_configured: bool) -> Vec<PrefixCache> {
    match mode {
        None if is_configured => vec![PrefixCache::On],
        Some(PrefixCacheMode::On) => vec![PrefixCache::On],
        None | Some(PrefixCacheMode::Off) => vec![PrefixCache::Off],
        Some(PrefixCacheMode::Both) => vec![PrefixCache::Off, PrefixCache::On],
    }
}

fn at_most(flag: &str, value: usize, max: usize) -> Result<usize, BenchError> {
    if value <= max { Ok(value) } else { Err(BenchError::Flags(format!("{flag} {value}: expected at most {max}"))) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: BenchFlags,
    }

    /// What a command line comes to, or what is wrong with it.
    fn check(arguments: &str, expected: &str) {
        let line = Line::try_parse_from(std::iter::once("bench").chain(arguments.split_whitespace()));
        let found = match line.map(|line| BenchPlan::new(&line.flags, None, None)) {
            Ok(Ok(BenchPlan { setup, .. })) => {
                let loads = setup.loads.iter().map(|&load| format!("{load} x{}", setup.num_requests(load)));
                let PromptShape { num_shared, num_own } = setup.prompt;
                format!("{num_shared}+{num_own} → {}: {}", setup.max_tokens, loads.collect::<Vec<_>>().join(", "))
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        };
        assert_eq!(found, expected, "{arguments}");
    }

    #[test]
    fn flags_come_to_loads_and_numbers_of_requests() {
        check("--url u", "0+512 → 128: 1 stream x8, 8 streams x32, 32 streams x128");
        check("--url u --concurrency 2,100 --requests 50", "0+512 → 128: 2 streams x50, 100 streams x50");
        check(
            "--url u --rate 0.5,4 --prompt-tokens 8 --max-tokens 3",
            "0+8 → 3: 0.5 requests/s x15, 4 requests/s x120",
        );
        check("--url u --shared-prefix-tokens 2048 --concurrency 1", "2048+512 → 128: 1 stream x8");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        check("", "nothing to measure: name a model (`bench -m MODEL`) or a server (`bench --url URL`)");
        check("--url u --concurrency 5000", "--concurrency 5000: expected at most 4096");
        check("--url u --max-tokens 9999999", "--max-tokens 9999999: expected at most 1048576");
        check("--url u --rate 0", "--rate 0: expected more than 0 requests a second");
        check(
            "--url u --rate 1 --concurrency 1",
            "error: the argument '--rate <R,…>' cannot be used with '--concurrency <N,…>'",
        );
        check(
            "--url u --prefix-cache on",
            "error: the argument '--url <URL>' cannot be used with '--prefix-cache <MODE>'",
        );
        check(
            "--concurrency 0",
            "error: invalid value '0' for '--concurrency <N,…>': number would be zero for non-zero type",
        );
    }

    #[test]
    fn both_measures_without_the_prefix_cache_first() {
        assert_eq!(prefix_caches(Some(PrefixCacheMode::Both), true), [PrefixCache::Off, PrefixCache::On]);
        assert_eq!(prefix_caches(None, false), [PrefixCache::Off]);
        assert_eq!(prefix_caches(None, true), [PrefixCache::On]);
    }
}
