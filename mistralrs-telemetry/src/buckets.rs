//! Histogram bucket bounds, in seconds, shared by every crate.

/// From half a millisecond to a minute: requests, queue waits.
pub const LATENCY_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// From a tenth of a millisecond to ten seconds: one engine step, one token.
pub const STEP_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From a hundred nanoseconds to ten seconds: lock waits and holds. Fine below a millisecond, where a healthy lock
/// lives; above it the decade is enough to know that something is wrong.
pub const LOCK_BUCKETS: &[f64] = &[
    0.000_000_1,
    0.000_000_25,
    0.000_000_5,
    0.000_001,
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_1,
    0.000_25,
    0.001,
    0.01,
    0.1,
    1.0,
    10.0,
];
