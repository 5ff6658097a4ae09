//! Rotary position frequencies, and the cosines and sines they give.
//!
//! Formulas: RoPE (arXiv:2104.09864); linear and dynamic NTK scaling as in transformers; YaRN (arXiv:2309.00071); Llama
//! 3.1's wavelength-dependent scaling; LongRoPE (arXiv:2402.13753). The frequencies are rounded to f32 at the same places as
//! in transformers. Where they depend on length, it is that of a document, not that of a batch as in transformers. Knows no
//! tensor engine.

mod read;

pub(in crate::model) use read::Rules;

use std::f64::consts::PI;

use tune_kernels::rope::Pairs;

/// Frequencies of the rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RotarySpec {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Dimensions of a head that are rotated, from the first on; the others pass through. Even.
    pub dimensions: usize,
    /// Positions the unscaled frequencies were made for (dynamic scaling starts beyond).
    pub max_position_embeddings: usize,
    /// How frequencies are stretched.
    pub scaling: RotaryScaling,
    /// Which dimensions are rotated together.
    pub pairs: Pairs,
    /// Factors on queries by position, beside the rotation.
    pub query_scale: Option<QueryScale>,
}

/// A factor on the queries that grows with their position: 1 + beta · ln(1 + ⌊position / original⌋).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How fast it grows.
    pub beta: f64,
    /// Positions before it begins to grow.
    pub original_max_position_embeddings: usize,
}

/// How frequencies are stretched for longer sequences.
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All divided by one factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware: the base grows with the length of a document that is longer than `max_position_embeddings`.
    Dynamic {
        /// How far it stretches.
        factor: f64,
    },
    /// Long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above original length / this are long.
        low_freq_factor: f64,
        /// Wavelengths below original length / this are short.
        high_freq_factor: f64,
        /// Positions before stretching.
        original_max_position_embeddings: usize,
    },
    /// Interpolation of slow dimensions, extrapolation of fast ones, and a temperature.
    Yarn {
        /// How far it stretches.
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// Positions before stretching.
        original_max_position_embeddings: usize,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
    /// The first pairs rotate as if all did; the others stand still.
    Proportional {
        /// Pairs that rotate.
        pairs: usize,
        /// What their frequencies are divided by.
        factor: f64,
    },
    /// Divisors for each pair, one set for short documents and one for long ones, and a temperature.
    LongRope {
        /// Divisors in documents up to `original_max_position_embeddings`.
        short: Vec<f64>,
        /// Divisors in longer ones.
        long: Vec<f64>,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Positions before stretching.
        original_max_position_embeddings: usize,
    },
}

impl RotarySpec {
    /// Positions that the stretched frequencies reach. Llama 3.1's own length is already the stretched one.
    pub fn positions(&self) -> usize {
        let stretched = |positions: usize, factor: f64| (positions as f64 * factor) as usize;
        match &self.scaling {
            RotaryScaling::None | RotaryScaling::Llama3 { .. } | RotaryScaling::LongRope { .. } => {
                self.max_position_embeddings
            }
            RotaryScaling::Linear { factor }
            | RotaryScaling::Dynamic { factor }
            | RotaryScaling::Proportional { factor, .. } => stretched(self.max_position_embeddings, *factor),
            RotaryScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                stretched(*original_max_position_embeddings, *factor)
            }
        }
    }

    /// Whether a document of `length` tokens has frequencies of its own.
    pub fn depends_on_length(&self, length: usize) -> bool {
        match &self.scaling {
            RotaryScaling::Dynamic { .. } => length > self.max_position_embeddings,
            RotaryScaling::LongRope { original_max_position_embeddings, .. } => {
                length > *original_max_position_embeddings
            }
            _ => false,
        }
    }

    /// Radians per position of each pair of dimensions, `[dimensions / 2]`, in a document of `length` tokens.
    pub fn inverse_frequencies(&self, length: usize) -> Vec<f32> {
        match &self.scaling {
            RotaryScaling::None => self.unscaled(self.theta).collect(),
            RotaryScaling::Linear { factor } => {
                self.unscaled(self.theta).map(|frequency| frequency / *factor as f32).collect()
            }
            RotaryScaling::Dynamic { factor } => {
                let limit = self.max_position_embeddings as f64;
                let length = (length as f64).max(limit);
                let dimensions = self.dimensions as f64;
                let stretch = (factor * length / limit) - (factor - 1.0);
                self.unscaled(self.theta * stretch.powf(dimensions / (dimensions - 2.0))).collect()
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = *original_max_position_embeddings as f64;
                let long = (original / low_freq_factor) as f32;
                let short = (original / high_freq_factor) as f32;
                let scale = |frequency: f32| {
                    let wavelength = 2.0 * PI as f32 / frequency;
                    if wavelength > long {
                        frequency / *factor as f32
                    } else if wavelength < short {
                        frequency
                    } else {
                        let smooth = (original as f32 / wavelength - *low_freq_factor as f32)
                            / (high_freq_factor - low_freq_factor) as f32;
                        (1.0 - smooth) * frequency / *factor as f32 + smooth * frequency
                    }
                };
                self.unscaled(self.theta).map(scale).collect()
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                truncate,
                ..
            } => {
                let (low, high) =
                    self.yarn_range(*beta_fast, *beta_slow, *original_max_position_embeddings, *truncate);
                let ramp = |pair: usize| ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                self.powers(self.theta)
                    .enumerate()
                    .map(|(pair, power)| {
                        let keep = 1.0 - ramp(pair);
                        let interpolated = 1.0 / (*factor as f32 * power);
                        interpolated * (1.0 - keep) + (1.0 / power) * keep
                    })
                    .collect()
            }
            RotaryScaling::Proportional { pairs, factor } => self
                .unscaled(self.theta)
                .enumerate()
                .map(|(pair, frequency)| if pair < *pairs { frequency / *factor as f32 } else { 0.0 })
                .collect(),
            RotaryScaling::LongRope { short, long, .. } => {
                let divisors = if self.depends_on_length(length) { long } else { short };
                let pairs = self.powers(self.theta).zip(divisors);
                pairs.map(|(power, divisor)| 1.0 / (*divisor as f32 * power)).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RotaryScaling::Yarn { attention_factor, .. }
            | RotaryScaling::LongRope { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Cosines and sines at `positions` of a document of `length` tokens, each row-major `[positions, dimensions / 2]`.
    pub fn tables(&self, positions: impl IntoIterator<Item = u32>, length: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.inverse_frequencies(length);
        let factor = self.attention_factor();
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in &frequencies {
                // The angle is an f32 product, as in transformers; its sine is taken exactly.
                let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                cosines.push(cosine as f32 * factor);
                sines.push(sine as f32 * factor);
            }
        }
        (cosines, sines)
    }

    /// The factor on queries at a position.
    pub fn query_factor(&self, position: u32) -> f32 {
        let Some(QueryScale { beta, original_max_position_embeddings }) = self.query_scale else {
            return 1.0;
        };
        let stretch = (position as usize / original_max_position_embeddings) as f64;
        (1.0 + beta * stretch.ln_1p()) as f32
    }

    /// base^(2i / d) for each pair i.
    fn powers(&self, base: f64) -> impl Iterator<Item = f32> {
        let dimensions = self.dimensions as f32;
        (0..self.dimensions / 2).map(move |pair| base.powf(f64::from((2 * pair) as f32 / dimensions)) as f32)
    }

    fn unscaled(&self, base: f64) -> impl Iterator<Item = f32> {
        self.powers(base).map(|power| 1.0 / power)
    }

    /// Pairs between which YaRN ramps from extrapolation to interpolation.
    fn yarn_range(&self, beta_fast: f64, beta_slow: f64, original: usize, truncate: bool) -> (f64, f64) {
        let dimensions = self.dimensions as f64;
        let pair_with = |rotations: f64| {
            dimensions * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_with(beta_fast), pair_with(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dimensions - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }
}
