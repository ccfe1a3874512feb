//! Who comes first: the class, then arrival, with a bound on how long a class can wait for another.

use crate::sequence::{Sequence, SequenceId};

/// A place in line, fixed at arrival; the smaller one is served first and preempted last.
///
/// Each class further down costs a sequence `priority_aging` places, as if it had come that many arrivals later. So
/// classes age without anything being sorted again: whoever waits is passed by at most `priority_aging` later
/// arrivals for each class between them, and then by nobody. Within a class the line is first come, first served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    place: i64,
    /// Of equal places the earlier arrival.
    id: SequenceId,
}

impl Rank {
    pub(super) fn of(sequence: &Sequence, priority_aging: usize) -> Self {
        let arrival = i64::try_from(sequence.id.0).unwrap_or(i64::MAX);
        let aging = i64::try_from(priority_aging).unwrap_or(i64::MAX);
        Self { place: arrival.saturating_add(sequence.priority.get().saturating_mul(aging)), id: sequence.id }
    }
}
