//! What keeps a bad upstream from hurting its callers: deadlines, cancellation, retries where they are safe, and a
//! pace for reconnecting.

#[cfg(feature = "tool-forwarding")]
mod reconnect;
#[cfg(feature = "tool-forwarding")]
mod retry;

use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::error::GatewayError;

#[cfg(feature = "tool-forwarding")]
pub(crate) use reconnect::ReconnectPace;
#[cfg(feature = "tool-forwarding")]
pub(crate) use retry::{IsRepeatable, RetryPolicy, run};

/// When one call ends, whatever happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLimits<'a> {
    /// For messages: what is asked for, under its qualified name.
    pub tool: &'a str,
    /// When the call arrived.
    pub started: Instant,
    /// The earliest of what the caller and the upstream allow.
    pub deadline: Instant,
    /// Fires when the caller left.
    pub cancellation: &'a CancellationToken,
}

/// Waits for `work` no longer than `limits` allow. A future that is cut off is dropped, which cancels what it began.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_or_when_the_caller_leaves() {
        let cancellation = CancellationToken::new();
        let started = tokio::time::Instant::now().into_std();
        let deadline = started + Duration::from_secs(30);
        let limits = CallLimits { tool: "u::t", started, deadline, cancellation: &cancellation };
        let never = || std::future::pending::<Result<(), GatewayError>>();
        let error = bounded(limits, never()).await.unwrap_err();
        assert_eq!(error.to_string(), "`u::t` did not answer within 30s");
        cancellation.cancel();
        assert_eq!(bounded(limits, never()).await.unwrap_err().kind(), "cancelled");
    }
}
