//! Rotary position embedding and its scalings. Source: Su et al. 2021 (arXiv:2104.09864).

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::rows::MatrixMut;

/// Which two values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairing {
    /// `(2i, 2i + 1)`: the original paper, and GGUF files of Llama, whose converter permutes q and k for it.
    Interleaved,
    /// `(i, i + size / 2)`: Hugging Face checkpoints, and GGUF files of most other architectures.
    HalfSplit,
}

/// How frequencies are stretched for contexts longer than the training's.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// As trained.
    None,
    /// All frequencies divided by this factor.
    Linear(f32),
    /// Llama 3.1: long wavelengths divided, short ones kept, a ramp between.
    Llama3(Llama3Scaling),
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` stores a scaling.
    Divisors(Vec<f32>),
}

/// The numbers of Llama 3.1's scaling, named as in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// What long wavelengths are stretched by.
    pub factor: f32,
    /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are stretched in full.
    pub low_freq_factor: f32,
    /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f32,
    /// Context length of the training, in tokens.
    pub original_max_position_embeddings: f32,
}

/// All that the rotation depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryConfig {
    /// Base of the geometric series of frequencies (`rope_theta`).
    pub theta: f32,
    /// Leading values of each head that are turned; even. The rest pass through.
    pub size: usize,
    /// Which values turn together.
    pub pairing: RotaryPairing,
    /// Stretching.
    pub scaling: RotaryScaling,
}

/// The frequencies of a model.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// `[size / 2]` radians per position.
    frequencies: Vec<f32>,
    pairing: RotaryPairing,
}

/// Sines and cosines of one step's positions, shared by all its layers.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    /// `[T, size / 2]` cosine and sine.
    turns: Vec<(f32, f32)>,
    num_pairs: usize,
    pairing: RotaryPairing,
}

/// Where the heads to turn lie in a row.
#[derive(Debug, Clone, Copy)]
pub struct HeadColumns {
    /// First column of the first head.
    pub first: usize,
    /// Heads, side by side.
    pub num_heads: usize,
    /// Columns of one head.
    pub head_size: usize,
}

impl RotaryEmbedding {
    /// # Errors
    /// An odd or zero size, or a number of divisors that is not half of it.
    pub fn new(config: &RotaryConfig) -> Result<Self> {
        if config.size == 0 || !config.size.is_multiple_of(2) {
            candle_core::bail!("rotary size {} is not even and positive", config.size)
        }
        let mut frequencies: Vec<f32> =
            (0..config.size / 2).map(|pair| config.theta.powf(-((2 * pair) as f32) / config.size as f32)).collect();
        match &config.scaling {
            RotaryScaling::None => {}
            RotaryScaling::Linear(factor) => {
                for frequency in &mut frequencies {
                    *frequency /= factor;
                }
            }
            RotaryScaling::Llama3(scaling) => {
                for frequency in &mut frequencies {
                    *frequency = scaling.stretch(*frequency);
                }
            }
            RotaryScaling::Divisors(divisors) if divisors.len() == frequencies.len() => {
                for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
                    *frequency /= divisor;
                }
            }
            RotaryScaling::Divisors(divisors) => {
                candle_core::bail!("{} rotary divisors for {} frequencies", divisors.len(), frequencies.len())
            }
        }
        Ok(Self { frequencies, pairing: config.pairing })
    }

    /// Room for the turns of a step.
    pub fn angles(&self) -> RotaryAngles {
        RotaryAngles { turns: Vec::new(), num_pairs: self.frequencies.len(), pairing: self.pairing }
    }

    /// Makes `angles` the turns of tokens at `positions` `[T]`.
    pub fn fill(&self, angles: &mut RotaryAngles, positions: &[u32]) {
        angles.turns.clear();
        for position in positions {
            angles.turns.extend(self.frequencies.iter().map(|frequency| {
                let (sine, cosine) = (*position as f32 * frequency).sin_cos();
                (cosine, sine)
            }));
        }
    }
}

impl RotaryAngles {
    /// Turns the heads at `columns` of `values` `[T, any]` in place.
    ///
    /// # Errors
    /// Tokens or columns are not as many as they should be.
    pub fn turn(&self, values: &Tensor, columns: HeadColumns) -> Result<()> {
        values.inplace_op1(&Turn { angles: self, columns })
    }

    fn turn_head(&self, turns: &[(f32, f32)], head: &mut [f32]) {
        let head = &mut head[..2 * self.num_pairs];
        match self.pairing {
            RotaryPairing::Interleaved => {
                for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    (pair[0], pair[1]) = turned((pair[0], pair[1]), *turn);
                }
            }
            RotaryPairing::HalfSplit => {
                let (low, high) = head.split_at_mut(self.num_pairs);
                for ((low, high), turn) in low.iter_mut().zip(high).zip(turns) {
                    (*low, *high) = turned((*low, *high), *turn);
                }
            }
        }
    }
}

#[inline]
fn turned((first, second): (f32, f32), (cosine, sine): (f32, f32)) -> (f32, f32) {
    (first * cosine - second * sine, first * sine + second * cosine)
}

impl Llama3Scaling {
    /// Source: Llama 3.1's reference code, `apply_scaling` in llama-models' `model.py`.
    fn stretch(self, frequency: f32) -> f32 {
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        let turns = self.original_max_position_embeddings / wavelength;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - kept) * frequency / self.factor + kept * frequency
        }
    }
}

struct Turn<'a> {
    angles: &'a RotaryAngles,
    columns: HeadColumns,
}

impl InplaceOp1 for Turn<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let values = MatrixMut::of(storage, layout)?;
        let HeadColumns { first, num_heads, head_size } = self.columns;
        let num_pairs = self.angles.num_pairs;
        if values.num_rows * num_pairs != self.angles.turns.len() {
            let num_tokens = self.angles.turns.len() / num_pairs;
            candle_core::bail!("{} rows for the angles of {num_tokens} tokens", values.num_rows)
        }
        if first + num_heads * head_size > values.num_columns || 2 * num_pairs > head_size {
            candle_core::bail!("{:?} turned by {num_pairs} pairs do not fit {layout:?}", self.columns)
        }
        values.for_each(|row, values| {
            let turns = &self.angles.turns[row * num_pairs..(row + 1) * num_pairs];
            for head in values[first..first + num_heads * head_size].chunks_exact_mut(head_size) {
                self.angles.turn_head(turns, head);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn config(pairing: RotaryPairing, scaling: RotaryScaling) -> RotaryConfig {
        RotaryConfig { theta: 100.0, size: 4, pairing, scaling }
    }

    /// Turns one head of 6 values, 4 of them rotary, behind one foreign column, at `position`.
    fn turned(pairing: RotaryPairing, position: u32) -> Vec<f32> {
        let rotary = RotaryEmbedding::new(&config(pairing, RotaryScaling::None)).unwrap();
        let input = Tensor::new(&[[9f32, 1., 2., 3., 4., 5., 6.]], &Device::Cpu).unwrap();
        let columns = HeadColumns { first: 1, num_heads: 1, head_size: 6 };
        let mut angles = rotary.angles();
        rotary.fill(&mut angles, &[position]);
        angles.turn(&input, columns).unwrap();
        let mut row = input.to_vec2::<f32>().unwrap().remove(0);
        assert_eq!(row.remove(0).to_bits(), 9f32.to_bits(), "the foreign column");
        row
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (one, other) in found.iter().zip(expected) {
            assert!((one - other).abs() < 1e-6, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn position_zero_changes_nothing() {
        assert_close(&turned(RotaryPairing::Interleaved, 0), &[1., 2., 3., 4., 5., 6.]);
    }

    #[test]
    fn pairs_turn_by_position_times_frequency_and_the_rest_passes() {
        // Frequencies 1 and 0.1 at position 2.
        let ((s, c), (t, d)) = (2f32.sin_cos(), 0.2f32.sin_cos());
        let interleaved = [c - 2. * s, s + 2. * c, 3. * d - 4. * t, 3. * t + 4. * d, 5., 6.];
        assert_close(&turned(RotaryPairing::Interleaved, 2), &interleaved);
        let half_split = [c - 3. * s, 2. * d - 4. * t, s + 3. * c, 2. * t + 4. * d, 5., 6.];
        assert_close(&turned(RotaryPairing::HalfSplit, 2), &half_split);
    }

    #[test]
    fn scalings_divide_frequencies() {
        let frequencies =
            |scaling| RotaryEmbedding::new(&config(RotaryPairing::HalfSplit, scaling)).unwrap().frequencies;
        assert_close(&frequencies(RotaryScaling::None), &[1., 0.1]);
        assert_close(&frequencies(RotaryScaling::Linear(4.)), &[0.25, 0.025]);
        assert_close(&frequencies(RotaryScaling::Divisors(vec![1., 5.])), &[1., 0.02]);
    }

    #[test]
    fn llama3_keeps_short_waves_stretches_long_ones_and_ramps_between() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let wave = |wavelength: f32| 2.0 * std::f32::consts::PI / wavelength;
        assert_close(&[scaling.stretch(wave(2000.))], &[wave(2000.)]);
        assert_close(&[scaling.stretch(wave(9000.))], &[wave(9000.) / 8.0]);
        // 8192 / 3276.8 = 2.5 turns: half way between 1 and 4.
        assert_close(&[scaling.stretch(wave(3276.8))], &[wave(3276.8) * (0.5 + 0.5 / 8.0)]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let mut odd = config(RotaryPairing::HalfSplit, RotaryScaling::None);
        odd.size = 3;
        assert!(RotaryEmbedding::new(&odd).is_err());
        let divisors = config(RotaryPairing::HalfSplit, RotaryScaling::Divisors(vec![1.; 3]));
        let error = RotaryEmbedding::new(&divisors).unwrap_err().to_string();
        assert!(error.starts_with("3 rotary divisors for 2 frequencies"), "{error}");
        let rotary = RotaryEmbedding::new(&config(RotaryPairing::HalfSplit, RotaryScaling::None)).unwrap();
        let mut angles = rotary.angles();
        rotary.fill(&mut angles, &[0]);
        let input = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(angles.turn(&input, HeadColumns { first: 1, num_heads: 1, head_size: 4 }).is_err());
        let two_rows = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(angles.turn(&two_rows, HeadColumns { first: 0, num_heads: 1, head_size: 4 }).is_err());
    }
}
