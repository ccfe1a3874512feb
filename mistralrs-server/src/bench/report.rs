//! What was measured, as a table for people and as JSON for programs. docs/guides/bench.md describes the JSON: names in
//! here are names there.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::flags::{Format, Setup};
use super::load::{Load, Measured};
use super::prompts::PromptShape;
use super::statistics::{Latencies, LatencySummary, rounded};
use super::target::{Answer, Failure};

/// Raised when a name changes its meaning; names that are added leave it.
const VERSION: u32 = 1;
/// Different reasons for failures that are told; one is most often the same for all.
const MAX_ERRORS: usize = 5;

/// A whole run of `bench`.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    target: TargetReport,
    seed: u64,
    prompt_tokens: usize,
    shared_prefix_tokens: usize,
    max_tokens: usize,
    runs: Vec<RunReport>,
}

/// What answered.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum TargetReport {
    InProcess { model: String },
    Http { url: String, model: String },
}

/// Whether KV of earlier prompts was used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PrefixCache {
    On,
    Off,
    /// Over HTTP: as the server has it.
    #[serde(rename = "server")]
    OfTheServer,
}

impl PrefixCache {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::OfTheServer => "server",
        }
    }
}

/// One load.
#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    prefix_cache: PrefixCache,
    /// Streams of a closed loop.
    concurrency: Option<usize>,
    /// Requests a second of an open loop.
    offered_rate: Option<f64>,
    served_rate: f64,
    requests: RequestCounts,
    errors: Vec<String>,
    wall_seconds: f64,
    ttft_ms: Option<LatencySummary>,
    inter_token_ms: Option<LatencySummary>,
    tokens: TokenCounts,
    prefill_tokens_per_second: PrefillRate,
    decode_tokens_per_second: DecodeRate,
    #[serde(skip)]
    load: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct RequestCounts {
    ok: usize,
    failed: usize,
    refused: usize,
}

/// Of answered requests, as the target tells them; `None` where it does not.
#[expect(clippy::struct_field_names, reason = "names of the report")]
#[derive(Debug, Clone, Copy, Serialize)]
struct TokenCounts {
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PrefillRate {
    /// Prompt tokens, those from the cache left out, by the time of the whole load.
    total: Option<f64>,
    /// The same tokens by the time to the first token, waiting included.
    per_request: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct DecodeRate {
    /// Tokens of all answers by the time of the whole load.
    total: f64,
    /// Tokens after the first by the time from the first to the last, over all answers.
    per_stream: Option<f64>,
    /// Tokens of all answers, a second, while every one of them had begun and none had ended; `None` if that never was.
    together: Option<f64>,
}

impl Report {
    pub(super) fn new(target: TargetReport, setup: &Setup, runs: Vec<RunReport>) -> Self {
        let PromptShape { num_shared, num_own } = setup.prompt;
        Self {
            version: VERSION,
            target,
            seed: setup.seed,
            prompt_tokens: num_own,
            shared_prefix_tokens: num_shared,
            max_tokens: setup.max_tokens,
            runs,
        }
    }

    /// Why nothing was answered, if nothing was.
    pub fn failure(&self) -> Option<String> {
        let is_any_ok = self.runs.iter().any(|run| run.requests.ok > 0);
        let reason = || self.runs.iter().flat_map(|run| &run.errors).next().cloned().unwrap_or_default();
        (!is_any_ok).then(|| format!("no request was answered: {}", reason()))
    }

    /// The report as text, with a line break at its end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string_pretty(self).expect("a report is plain JSON") + "\n",
            Format::Table => self.to_table(),
        }
    }

    fn to_table(&self) -> String {
        let what = match &self.target {
            TargetReport::InProcess { model } => format!("{model}, in this process"),
            TargetReport::Http { url, model } => format!("{model} at {url}"),
        };
        let Self { prompt_tokens, shared_prefix_tokens, max_tokens, .. } = self;
        let mut text = format!(
            "{what}: prompts of {shared_prefix_tokens} shared + {prompt_tokens} own tokens, answers of {max_tokens}\n\n"
        );
        let mut rows = vec![HEADER.map(str::to_owned)];
        rows.extend(self.runs.iter().map(RunReport::to_row));
        let widths: [usize; HEADER.len()] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        for run in self.runs.iter().filter(|run| !run.errors.is_empty()) {
            let _ = write!(text, "\n{}, prefix cache {}:\n", run.load, run.prefix_cache.as_str());
            run.errors.iter().for_each(|error| text.extend(["  ", error.as_str(), "\n"]));
        }
        text
    }
}

/// Times in milliseconds, rates in tokens a second, prefill by request and decode in total and by stream.
const HEADER: [&str; 15] = [
    "cache", "load", "ok", "failed", "refused", "req/s", "ttft p50", "p99", "itl p50", "p99", "prefill", "decode",
    "/stream", "cached", "wall s",
];

impl RunReport {
    pub fn new(load: Load, prefix_cache: PrefixCache, measured: &Measured) -> Self {
        let wall = measured.wall.as_secs_f64();
        let answers: Vec<&Answer> = measured.outcomes.iter().flatten().collect();
        let tokens = TokenCounts::of(&answers);
        let requests = RequestCounts::of(&measured.outcomes);
        Self {
            prefix_cache,
            concurrency: match load {
                Load::Closed { concurrency } => Some(concurrency),
                Load::Open { .. } => None,
            },
            offered_rate: measured.offered_rate.map(rounded),
            served_rate: rounded(requests.ok as f64 / wall),
            requests,
            errors: errors(&measured.outcomes),
            wall_seconds: rounded(wall),
            ttft_ms: summary(answers.iter().filter_map(|answer| answer.time_to_first)),
            inter_token_ms: summary(answers.iter().flat_map(|answer| answer.gaps.iter().copied())),
            tokens,
            prefill_tokens_per_second: PrefillRate::of(&answers, tokens, wall),
            decode_tokens_per_second: DecodeRate::of(&answers, tokens, wall),
            load: load.to_string(),
        }
    }

    fn to_row(&self) -> [String; HEADER.len()] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let latency =
            |summary: Option<LatencySummary>| [summary.map(|it| it.p50), summary.map(|it| it.p99)].map(number);
        let [ttft_p50, ttft_p99] = latency(self.ttft_ms);
        let [itl_p50, itl_p99] = latency(self.inter_token_ms);
        [
            self.prefix_cache.as_str().to_owned(),
            self.load.clone(),
            self.requests.ok.to_string(),
            self.requests.failed.to_string(),
            self.requests.refused.to_string(),
            format!("{:.2}", self.served_rate),
            ttft_p50,
            ttft_p99,
            itl_p50,
            itl_p99,
            number(self.prefill_tokens_per_second.per_request),
            number(Some(self.decode_tokens_per_second.total)),
            number(self.decode_tokens_per_second.per_stream),
            self.tokens.cached_tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
            number(Some(self.wall_seconds)),
        ]
    }
}

impl RequestCounts {
    fn of(outcomes: &[Result<Answer, Failure>]) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes {
            match outcome {
                Ok(_) => counts.ok += 1,
                Err(Failure::Failed(_)) => counts.failed += 1,
                Err(Failure::Refused(_)) => counts.refused += 1,
            }
        }
        counts
    }
}

impl TokenCounts {
    fn of(answers: &[&Answer]) -> Self {
        // Where one answer does not tell, the sum of the others would mislead.
        let prompt_tokens = answers.iter().map(|answer| answer.used.prompt).sum();
        let cached_tokens = answers.iter().map(|answer| answer.used.cached).sum();
        let completion_tokens = answers.iter().filter_map(|answer| answer.used.completion).sum();
        Self { prompt_tokens, cached_tokens, completion_tokens }
    }
}

impl PrefillRate {
    fn of(answers: &[&Answer], tokens: TokenCounts, wall: f64) -> Self {
        let computed =
            tokens.prompt_tokens.map(|prompt| prompt.saturating_sub(tokens.cached_tokens.unwrap_or(0)) as f64);
        let waited: Duration = answers.iter().filter_map(|answer| answer.time_to_first).sum();
        Self {
            total: computed.map(|computed| rounded(computed / wall)),
            per_request: computed
                .filter(|_| !waited.is_zero())
                .map(|computed| rounded(computed / waited.as_secs_f64())),
        }
    }
}

impl DecodeRate {
    fn of(answers: &[&Answer], tokens: TokenCounts, wall: f64) -> Self {
        let decoding: Duration = answers.iter().map(|answer| answer.decode_time()).sum();
        let num_decoded: u64 =
            answers.iter().filter_map(|answer| answer.used.completion).map(|tokens| tokens.saturating_sub(1)).sum();
        Self {
            total: rounded(tokens.completion_tokens as f64 / wall),
            per_stream: (!decoding.is_zero()).then(|| rounded(num_decoded as f64 / decoding.as_secs_f64())),
            together: Self::together(answers).map(rounded),
        }
    }

    fn together(answers: &[&Answer]) -> Option<f64> {
        let begin = answers.iter().filter_map(|answer| answer.first_at).max()?;
        let end = answers.iter().filter_map(|answer| answer.last_at()).min()?;
        let time = end.checked_duration_since(begin).filter(|time| !time.is_zero())?;
        let num_tokens: f64 = answers.iter().map(|answer| answer.tokens_between(begin, end)).sum();
        Some(num_tokens / time.as_secs_f64())
    }
}

fn summary(latencies: impl Iterator<Item = Duration>) -> Option<LatencySummary> {
    let mut all = Latencies::new();
    latencies.for_each(|latency| all.record(latency));
    all.summary()
}

/// The different reasons why requests were not answered.
fn errors(outcomes: &[Result<Answer, Failure>]) -> Vec<String> {
    let reasons = outcomes.iter().filter_map(|outcome| match outcome {
        Ok(_) => None,
        Err(Failure::Failed(reason) | Failure::Refused(reason)) => Some(reason.clone()),
    });
    reasons.collect::<BTreeSet<_>>().into_iter().take(MAX_ERRORS).collect()
}

#[cfg(test)]
mod tests {
    use super::super::target::TokensUsed;
    use super::*;

    fn setup() -> Setup {
        Setup {
            seed: 1,
            prompt: PromptShape { num_shared: 0, num_own: 100 },
            max_tokens: 5,
            loads: Vec::new(),
            num_warm_up_requests: 0,
            num_requests: None,
        }
    }

    fn answer(first_ms: u64, gaps_ms: &[u64], used: TokensUsed) -> Answer {
        Answer {
            first_at: None,
            time_to_first: Some(Duration::from_millis(first_ms)),
            gaps: gaps_ms.iter().map(|&gap| Duration::from_millis(gap)).collect(),
            used,
        }
    }

    /// Two answers, one refusal, two failures of one kind, in two seconds.
    fn measured(used: TokensUsed) -> Measured {
        let failed = || Err(Failure::Failed("out of memory".to_owned()));
        let outcomes = vec![
            Ok(answer(100, &[10, 10, 20, 10], used)),
            Ok(answer(300, &[10, 10, 10, 20], used)),
            Err(Failure::Refused("503: full".to_owned())),
            failed(),
            failed(),
        ];
        Measured { outcomes, wall: Duration::from_secs(2), offered_rate: None }
    }

    fn report(runs: Vec<RunReport>) -> Report {
        Report::new(TargetReport::InProcess { model: "tiny".to_owned() }, &setup(), runs)
    }

    const USED: TokensUsed = TokensUsed { prompt: Some(100), cached: Some(60), completion: Some(5) };

    #[test]
    #[expect(clippy::too_many_lines, reason = "one report and its snapshot")]
    fn programs_read_counts_latencies_and_rates() {
        let run = RunReport::new(Load::Closed { concurrency: 2 }, PrefixCache::On, &measured(USED));
        insta::assert_snapshot!(report(vec![run]).render(Format::Json), @r#"
        {
          "version": 1,
          "target": {
            "kind": "in_process",
            "model": "tiny"
          },
          "seed": 1,
          "prompt_tokens": 100,
          "shared_prefix_tokens": 0,
          "max_tokens": 5,
          "runs": [
            {
              "prefix_cache": "on",
              "concurrency": 2,
              "offered_rate": null,
              "served_rate": 1.0,
              "requests": {
                "ok": 2,
                "failed": 2,
                "refused": 1
              },
              "errors": [
                "503: full",
                "out of memory"
              ],
              "wall_seconds": 2.0,
              "ttft_ms": {
                "mean": 199.952,
                "p50": 100.031,
                "p95": 300.031,
                "p99": 300.031,
                "max": 300.031,
                "count": 2
              },
              "inter_token_ms": {
                "mean": 12.505,
                "p50": 10.007,
                "p95": 20.015,
                "p99": 20.015,
                "max": 20.015,
                "count": 8
              },
              "tokens": {
                "prompt_tokens": 200,
                "cached_tokens": 120,
                "completion_tokens": 10
              },
              "prefill_tokens_per_second": {
                "total": 40.0,
                "per_request": 200.0
              },
              "decode_tokens_per_second": {
                "total": 5.0,
                "per_stream": 80.0,
                "together": null
              }
            }
          ]
        }
        "#);
    }

    #[test]
    fn what_streams_decode_together_leaves_out_who_waits_and_who_is_done() {
        let sent_at = tokio::time::Instant::now();
        let check = |answers: &[(u64, &[u64])], expected: Option<f64>| {
            let used = |gaps: &[u64]| TokensUsed { completion: Some(gaps.len() as u64 + 1), ..TokensUsed::default() };
            let answers: Vec<Answer> = answers
                .iter()
                .map(|(first, gaps)| {
                    let first_at = Some(sent_at + Duration::from_millis(*first));
                    Answer { first_at, ..answer(*first, gaps, used(gaps)) }
                })
                .collect();
            assert_eq!(DecodeRate::together(&answers.iter().collect::<Vec<_>>()), expected, "{answers:?}");
        };
        // From 300 ms to 500 ms: 2 tokens of the first, 4 of the second.
        check(&[(100, &[100; 4]), (300, &[50; 6])], Some(30.0));
        check(&[(100, &[100; 4])], Some(10.0));
        // The first has ended when the second begins.
        check(&[(100, &[10; 4]), (300, &[50; 6])], None);
        check(&[], None);
    }

    #[test]
    fn people_read_a_table() {
        let unknown = TokensUsed { prompt: None, cached: None, completion: Some(5) };
        let runs = vec![
            RunReport::new(Load::Closed { concurrency: 1 }, PrefixCache::Off, &measured(USED)),
            RunReport::new(Load::Open { rate: 2.5 }, PrefixCache::OfTheServer, &measured(unknown)),
        ];
        insta::assert_snapshot!(report(runs).render(Format::Table), @"
        tiny, in this process: prompts of 0 shared + 100 own tokens, answers of 5

         cache            load  ok  failed  refused  req/s  ttft p50    p99  itl p50   p99  prefill  decode  /stream  cached  wall s
           off        1 stream   2       2        1   1.00     100.0  300.0     10.0  20.0    200.0     5.0     80.0     120     2.0
        server  2.5 requests/s   2       2        1   1.00     100.0  300.0     10.0  20.0        -     5.0     80.0       -     2.0

        1 stream, prefix cache off:
          503: full
          out of memory

        2.5 requests/s, prefix cache server:
          503: full
          out of memory
        ");
    }

    #[test]
    fn a_report_without_one_answer_is_a_failure() {
        let failed = Measured {
            outcomes: vec![Err(Failure::Failed("connection refused".to_owned()))],
            wall: Duration::from_secs(1),
            offered_rate: None,
        };
        let run = |measured| RunReport::new(Load::Closed { concurrency: 1 }, PrefixCache::On, measured);
        assert_eq!(report(vec![run(&failed)]).failure().unwrap(), "no request was answered: connection refused");
        assert_eq!(report(vec![run(&failed), run(&measured(USED))]).failure(), None);
    }
}
