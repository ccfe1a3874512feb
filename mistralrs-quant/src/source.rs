//! What activations are made of: rows as they are, or what a norm or a gate makes of them on the way.
//!
//! The made row lives in a thread's buffer only: it is rounded, or written where a product in floats reads it, while it is
//! in the first-level cache. A row depends on its own values alone, and has the same bits with any instruction set.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::{self, Level};
use crate::threads::{SendPointer, Threads};

/// Below this many elements one thread makes all rows: waking others costs more than it saves.
pub(crate) const MIN_PARALLEL_ELEMENTS: usize = 16 * 1024;

/// Rows `[T, K]` of activations.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// `[T, K]`.
    Rows(&'a [f32]),
    /// `[T, K]` rows, each divided by its root mean square and multiplied by `weight` `[K]`.
    /// Source: Zhang & Sennrich 2019 (arXiv:1910.07467).
    Normed {
        /// The rows.
        rows: &'a [f32],
        /// One factor per column.
        weight: &'a [f32],
        /// Added to the mean square.
        eps: f32,
    },
    /// `[T, 2K]`, gate beside up: `silu(gate) · up`. Source: Shazeer 2020 (arXiv:2002.05202), SwiGLU.
    Gated(&'a [f32]),
}

impl<'a> Source<'a> {
    /// T for rows of `num_inputs`.
    ///
    /// # Panics
    /// If they are not whole rows, or the norm's weight has another size.
    pub fn num_rows(self, num_inputs: usize) -> usize {
        let (len, row_size) = match self {
            Self::Rows(rows) => (rows.len(), num_inputs),
            Self::Normed { rows, weight, .. } => {
                assert_eq!(weight.len(), num_inputs, "factors of the norm");
                (rows.len(), num_inputs)
            }
            Self::Gated(rows) => (rows.len(), 2 * num_inputs),
        };
        assert!(row_size > 0 && len.is_multiple_of(row_size), "{len} values are not rows of {row_size}");
        len / row_size
    }

    /// The first `num_rows` rows of `num_inputs`, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_at(self, num_rows: usize, num_inputs: usize) -> (Self, Self) {
        let len = num_rows * num_inputs;
        match self {
            Self::Rows(rows) => {
                let (first, others) = rows.split_at(len);
                (Self::Rows(first), Self::Rows(others))
            }
            Self::Normed { rows, weight, eps } => {
                let (first, others) = rows.split_at(len);
                (Self::Normed { rows: first, weight, eps }, Self::Normed { rows: others, weight, eps })
            }
            Self::Gated(rows) => {
                let (first, others) = rows.split_at(2 * len);
                (Self::Gated(first), Self::Gated(others))
            }
        }
    }

    /// Makes all rows: `out` `[T, K]`.
    ///
    /// # Panics
    /// If `out` is not as large as the rows.
    pub fn write(self, num_inputs: usize, out: &mut [f32], threads: &dyn Threads) {
        assert_eq!(out.len(), self.num_rows(num_inputs) * num_inputs, "room for the rows");
        let level = Level::detected();
        let at = SendPointer(out.as_mut_ptr());
        let num_rows = out.len() / num_inputs;
        let work = |rows: Range<usize>| {
            for row in rows {
                // SAFETY: `row` is inside `out`, each is given to one worker, and `run` returns only after all are done.
                let out = unsafe { std::slice::from_raw_parts_mut(at.at(row * num_inputs), num_inputs) };
                self.make(level, row, out);
            }
        };
        if out.len() < MIN_PARALLEL_ELEMENTS { work(0..num_rows) } else { threads.run(num_rows, &work) }
    }

    /// Row `row`, made in `buffer` if it must be made.
    pub(crate) fn row<'b>(self, level: Level, row: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Rows(rows) => &rows[row * buffer.len()..][..buffer.len()],
            _ => self.make(level, row, buffer),
        }
    }

    /// Makes row `row` in `out`, which is K long.
    pub(crate) fn make(self, level: Level, row: usize, out: &mut [f32]) -> &mut [f32] {
        let len = out.len();
        match self {
            Self::Rows(rows) => out.copy_from_slice(&rows[row * len..][..len]),
            Self::Normed { rows, weight, eps } => {
                kernels::rms_norm(level, &rows[row * len..][..len], (weight, eps), out);
            }
            Self::Gated(rows) => {
                let (gate, up) = rows[2 * row * len..][..2 * len].split_at(len);
                kernels::swiglu(level, gate, up, out);
            }
        }
        out
    }
}

/// Lends a thread's own row of `len`, kept between calls; what is in it is left over from before.
pub(crate) fn with_row_buffer(len: usize, work: impl FnOnce(&mut [f32])) {
    thread_local! {
        static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        work(&mut buffer[..len]);
    });
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::threads::CallingThread;

    fn random(len: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..len).map(|_| rng.random_range(-20.0..20.0)).collect()
    }

    fn assert_near(found: &[f32], expected: impl Iterator<Item = f64>) {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs() + 1e-30, "{index}: {found} is not {expected}");
        }
    }

    #[test]
    fn a_normed_row_has_a_mean_square_of_one_before_its_weights() {
        for len in [1, 15, 16, 576, 577] {
            let (row, weight) = (random(len), random(2 * len).split_off(len));
            let mut out = vec![0.0; len];
            Source::Normed { rows: &row, weight: &weight, eps: 1e-5 }.write(len, &mut out, &CallingThread);
            let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            let mean = wide(&row).iter().map(|value| value * value).sum::<f64>() / len as f64;
            let scale = (mean + f64::from(1e-5f32)).sqrt().recip();
            assert_near(&out, wide(&row).iter().zip(wide(&weight)).map(|(value, weight)| value * scale * weight));
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let mut out = [1.0; 3];
        Source::Normed { rows: &[0.0; 3], weight: &[1.0; 3], eps: 1e-5 }.write(3, &mut out, &CallingThread);
        assert!(out.iter().all(|value| *value == 0.0), "{out:?}");
    }

    #[test]
    fn a_gate_passes_through_silu() {
        let gate_up = random(2 * 100);
        let (gate, up) = gate_up.split_at(100);
        let mut out = vec![0.0; 100];
        Source::Gated(&gate_up).write(100, &mut out, &CallingThread);
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        assert_near(&out, gate.iter().zip(up).map(|(gate, up)| silu(f64::from(*gate)) * f64::from(*up)));
        let mut far = [1.0; 3];
        Source::Gated(&[-1e30, 1e30, f32::NAN, 7.0, 1.0, 1.0]).write(3, &mut far, &CallingThread);
        assert!(far[0] == 0.0 && far[1] > 9e29 && far[2].is_nan(), "{far:?}");
    }

    #[test]
    fn rows_have_the_same_bits_at_every_level() {
        let (rows, weight) = (random(3 * 2 * 77), random(77));
        let sources = [Source::Normed { rows: &rows, weight: &weight, eps: 1e-6 }, Source::Gated(&rows)];
        for source in sources {
            let made = |level| {
                let mut out = vec![0.0; 77];
                source.make(level, 1, &mut out).iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            for level in Level::available() {
                assert_eq!(made(*level), made(Level::Plain), "{source:?} with {level:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "are not rows of")]
    fn a_part_of_a_row_is_refused() {
        Source::Gated(&[0.0; 6]).num_rows(2);
    }
}
