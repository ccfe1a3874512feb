//! A second try, where the first cannot have begun or a second run changes nothing.

use std::time::Duration;

use super::{CallLimits, bounded};
use crate::error::GatewayError;

/// How often a call is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    max_attempts: u32,
    first_pause: Duration,
    max_pause: Duration,
}

/// Whether a second run of a tool changes nothing that the first did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IsRepeatable(pub bool);

impl RetryPolicy {
    /// For tools that a local model waits for: a second attempt, soon.
    pub const LOCAL_LLM: Self =
        Self { max_attempts: 2, first_pause: Duration::from_millis(50), max_pause: Duration::from_secs(1) };

    /// How long to wait before trying again after `attempt` (1 is the first) ended in `error`; `None`: not at all.
    fn pause_after(&self, attempt: u32, error: &GatewayError, is_repeatable: IsRepeatable) -> Option<Duration> {
        let is_safe = error.is_safe_to_retry() || (is_repeatable.0 && error.is_connection_failure());
        let pause = self.first_pause.saturating_mul(1 << (attempt - 1).min(16)).min(self.max_pause);
        (is_safe && attempt < self.max_attempts).then_some(pause)
    }
}

/// Runs `attempt`, again where `policy` allows, within `limits`.
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::UpstreamId;
    use crate::mcp_server::security::DenyReason;

    /// Attempts made when each one fails with `error`.
    async fn check(error: GatewayError, is_repeatable: bool, expected: u32) {
        let (mut made, cancellation, started) = (0, CancellationToken::new(), Instant::now());
        let deadline = started + Duration::from_mins(1);
        let limits = CallLimits { tool: "u::t", started, deadline, cancellation: &cancellation };
        let outcome: Result<(), _> = run(&RetryPolicy::LOCAL_LLM, limits, IsRepeatable(is_repeatable), || {
            made += 1;
            std::future::ready(Err(error.clone()))
        })
        .await;
        outcome.unwrap_err();
        assert_eq!(made, expected, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_only_where_a_second_run_is_safe() {
        let upstream = UpstreamId::new("u");
        let unavailable = GatewayError::Unavailable { upstream: upstream.clone(), reason: "refused".into() };
        let lost = GatewayError::ConnectionLost { upstream, reason: "closed".into() };
        check(unavailable, false, 2).await;
        check(lost.clone(), false, 1).await;
        check(lost, true, 2).await;
        check(GatewayError::Timeout { tool: "u::t".into(), waited: Duration::ZERO }, true, 1).await;
        check(GatewayError::Denied { tool: "u::t".into(), reason: DenyReason::Blocked }, true, 1).await;
    }
}
