//! The pace of reconnecting: plain values, no clock.

use std::time::Duration;

/// How soon a lost or failed connection may be opened again. A child that dies at once is not started in a loop.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReconnectPace {
    failures: u32,
}

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
        if self.failures == 0 {
            Duration::ZERO
        } else {
            self.doubled(Self::FIRST_PAUSE_FOR_CALL, Self::MAX_PAUSE_FOR_CALL)
        }
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
