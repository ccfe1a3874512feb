//! What keeps a bad upstream from hurting its callers: deadlines, cancellation, retries where they are safe, and a
//! pace for reconnecting. What decides is plain values; only [`run`] and [`bounded`] wait.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::GatewayError;

/// When one call ends, whatever happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLimits<'a> {
    /// For messages: qualified name of the tool.
    pub tool: &'a str,
    /// When the call arrived.
    pub started: Instant,
    /// The earliest of what the caller and the upstream allow.
    pub deadline: Instant,
    /// Fires when the caller left.
    pub cancellation: &'a CancellationToken,
}

/// How often a call is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    max_attempts: u32,
    first_delay: Duration,
    max_delay: Duration,
}

impl RetryPolicy {
    /// For tools that a local model waits for: a second attempt, soon.
    pub const LOCAL_LLM: Self =
        Self { max_attempts: 2, first_delay: Duration::from_millis(50), max_delay: Duration::from_secs(1) };

    /// How long to wait before trying again after `attempt` (1 is the first) ended in `error`; `None`: not at all.
    /// A tool must not run twice, so the first try cannot have begun, or the tool must be `is_repeatable`.
    fn pause_after(&self, attempt: u32, error: &GatewayError, is_repeatable: IsRepeatable) -> Option<Duration> {
        let is_safe = error.is_safe_to_retry() || (is_repeatable.0 && error.is_connection_failure());
        let pause = self.first_delay.saturating_mul(1 << (attempt - 1).min(16)).min(self.max_delay);
        (is_safe && attempt < self.max_attempts).then_some(pause)
    }
}

/// Whether a second run of a tool changes nothing that the first did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IsRepeatable(pub bool);

/// Runs `attempt`, again where `policy` allows, within `limits`. A future that is cut off is dropped, which cancels the
/// call upstream.
pub(crate) async fn run<T, Attempt: Future<Output = Result<T, GatewayError>>>(
    policy: &RetryPolicy,
    limits: CallLimits<'_>,
    is_repeatable: IsRepeatable,
    mut attempt: impl FnMut() -> Attempt,
) -> Result<T, GatewayError> {
    let attempts = async {
        let mut number = 1;
        loop {
            let error = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = policy.pause_after(number, &error, is_repeatable) else { return Err(error) };
            tracing::debug!(tool = limits.tool, %error, "trying again");
            tokio::time::sleep(pause).await;
            number += 1;
        }
    };
    bounded(limits, attempts).await
}

/// Waits for `work` no longer than `limits` allow.
pub(crate) async fn bounded<T>(
    limits: CallLimits<'_>,
    work: impl Future<Output = Result<T, GatewayError>>,
) -> Result<T, GatewayError> {
    // Work first: where it has its own timer for the same moment, it knows better what it was waiting for.
    tokio::select! {
        biased;
        answer = work => answer,
        () = limits.cancellation.cancelled() => Err(GatewayError::Cancelled),
        () = tokio::time::sleep_until(limits.deadline.into()) => Err(GatewayError::Timeout {
            tool: limits.tool.to_owned(),
            waited: limits.deadline.saturating_duration_since(limits.started),
        }),
    }
}

/// How soon a lost or failed connection may be opened again. A child that dies at once is not started in a loop.
#[cfg(feature = "tool-forwarding")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReconnectPace {
    failures: u32,
}

#[cfg(feature = "tool-forwarding")]
impl ReconnectPace {
    /// A connection that lived this long was a good one; its loss starts the count anew.
    const STABLE_AFTER: Duration = Duration::from_secs(10);
    const FIRST_PAUSE_FOR_CALL: Duration = Duration::from_millis(100);
    const MAX_PAUSE_FOR_CALL: Duration = Duration::from_secs(2);
    const FIRST_PAUSE_UNASKED: Duration = Duration::from_secs(1);
    const MAX_PAUSE_UNASKED: Duration = Duration::from_mins(1);

    /// An attempt to connect failed.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A connection ended that had lived this long.
    pub fn lost(&mut self, lived: Duration) {
        self.failures = if lived >= Self::STABLE_AFTER { 0 } else { self.failures.saturating_add(1) };
    }

    /// How long to wait while a call waits too.
    pub fn pause_for_call(self) -> Duration {
        if self.failures == 0 { Duration::ZERO } else { self.doubled(Self::FIRST_PAUSE_FOR_CALL, Self::MAX_PAUSE_FOR_CALL) }
    }

    /// How long to wait while nobody calls.
    pub fn pause_unasked(self) -> Duration {
        self.doubled(Self::FIRST_PAUSE_UNASKED, Self::MAX_PAUSE_UNASKED)
    }

    fn doubled(self, first: Duration, max: Duration) -> Duration {
        first.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamId;

    fn unavailable() -> GatewayError {
        GatewayError::Unavailable { upstream: UpstreamId::new("u"), reason: "refused".into() }
    }

    fn lost() -> GatewayError {
        GatewayError::ConnectionLost { upstream: UpstreamId::new("u"), reason: "closed".into() }
    }

    /// Attempts made when each one fails with `error`.
    async fn attempts(error: GatewayError, is_repeatable: bool) -> u32 {
        let (mut made, cancellation) = (0, CancellationToken::new());
        let started = Instant::now();
        let deadline = started + Duration::from_mins(1);
        let limits = CallLimits { tool: "u::t", started, deadline, cancellation: &cancellation };
        let outcome: Result<(), _> = run(&RetryPolicy::LOCAL_LLM, limits, IsRepeatable(is_repeatable), || {
            made += 1;
            std::future::ready(Err(error.clone()))
        })
        .await;
        outcome.unwrap_err();
        made
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_only_where_a_second_run_is_safe() {
        assert_eq!(attempts(unavailable(), false).await, 2);
        assert_eq!(attempts(lost(), false).await, 1);
        assert_eq!(attempts(lost(), true).await, 2);
        let timeout = GatewayError::Timeout { tool: "u::t".into(), waited: Duration::ZERO };
        assert_eq!(attempts(timeout, true).await, 1);
        let refused = GatewayError::Denied { tool: "u::t".into(), reason: crate::mcp_server::security::DenyReason::Blocked };
        assert_eq!(attempts(refused, true).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_or_when_the_caller_leaves() {
        let cancellation = CancellationToken::new();
        let started = tokio::time::Instant::now().into_std();
        let deadline = started + Duration::from_secs(30);
        let limits = CallLimits { tool: "u::t", started, deadline, cancellation: &cancellation };
        let never = || std::future::pending::<Result<(), GatewayError>>();
        let error = bounded(limits, never()).await.unwrap_err();
        assert_eq!(error.to_string(), "tool `u::t` did not answer within 30s");
        cancellation.cancel();
        assert_eq!(bounded(limits, never()).await.unwrap_err().kind(), "cancelled");
    }

    #[cfg(feature = "tool-forwarding")]
    #[test]
    fn reconnecting_slows_down_until_a_connection_lasts() {
        let mut pace = ReconnectPace::default();
        pace.lost(Duration::from_mins(10));
        assert_eq!(pace.pause_for_call(), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pace.failed();
            pauses.push((pace.pause_for_call().as_millis(), pace.pause_unasked().as_secs()));
        }
        let expected = [(100, 1), (200, 2), (400, 4), (800, 8), (1600, 16), (2000, 32), (2000, 60), (2000, 60)];
        assert_eq!(pauses, expected);
        pace.lost(Duration::from_millis(3));
        assert_eq!(pace.pause_unasked(), Duration::from_mins(1));
        pace.lost(Duration::from_secs(11));
        assert_eq!(pace.pause_unasked(), Duration::from_secs(1));
    }
}
