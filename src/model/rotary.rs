//! Rotary position frequencies as config.json describes them, and the cosines and sines they give.
//!
//! Formulas: RoPE (arXiv:2104.09864); linear and dynamic NTK scaling as in transformers; YaRN
//! (arXiv:2309.00071); Llama 3.1's wavelength-dependent scaling. The frequencies are rounded to f32 at the
//! same places as in transformers. Knows no tensor engine.

use std::f64::consts::PI;

use serde_json::json;

use super::Error;
use super::config::ConfigReader;

/// Frequencies of the rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RotarySpec {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Width of one head, all of it rotated.
    pub head_dim: usize,
    /// Positions the unscaled frequencies were made for (dynamic scaling starts beyond).
    pub max_position_embeddings: usize,
    /// How frequencies are stretched.
    pub scaling: RotaryScaling,
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
    /// NTK-aware: the base grows with the longest sequence of a forward pass once that is longer than
    /// `max_position_embeddings`.
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
}

impl RotarySpec {
    /// Positions that the stretched frequencies reach. Llama 3.1's own length is already the stretched one.
    pub fn positions(&self) -> usize {
        let stretched = |positions: usize, factor: f64| (positions as f64 * factor) as usize;
        match &self.scaling {
            RotaryScaling::None | RotaryScaling::Llama3 { .. } => self.max_position_embeddings,
            RotaryScaling::Linear { factor } | RotaryScaling::Dynamic { factor } => {
                stretched(self.max_position_embeddings, *factor)
            }
            RotaryScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                stretched(*original_max_position_embeddings, *factor)
            }
        }
    }

    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    pub(super) fn read(
        config: &ConfigReader<'_>,
        head_dim: usize,
        max_position_embeddings: usize,
    ) -> Result<Self, Error> {
        let old = config.object("rope_scaling")?;
        let new = config.object("rope_parameters")?;
        let key = if old.is_some() { "rope_scaling" } else { "rope_parameters" };
        if old.is_some() && new.is_some() && config.get("rope_scaling") != config.get("rope_parameters") {
            return Err(config.fail("rope_scaling", "and `rope_parameters` contradict each other; keep one"));
        }
        config.must_be("partial_rotary_factor", &[json!(1.0)])?;
        config.must_be("rope_interleaved", &[json!(false)])?;
        let outer_theta = config.positive("rope_theta")?;
        let outer_original = config.size("original_max_position_embeddings")?;
        let Some(table) = old.or(new) else {
            return Ok(Self {
                theta: outer_theta.unwrap_or(10_000.0),
                head_dim,
                max_position_embeddings,
                scaling: RotaryScaling::None,
            });
        };
        table.must_be("partial_rotary_factor", &[json!(1.0)])?;
        let theta = table.positive("rope_theta")?.or(outer_theta).unwrap_or(10_000.0);
        let kind = match (table.text("rope_type")?, table.text("type")?) {
            (Some(kind), Some(other)) if kind != other => {
                return Err(table.fail("type", format!("is {other:?}, but `rope_type` is {kind:?}")));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => "default",
        };
        let need = |name: &str| {
            table.positive(name)?.ok_or_else(|| table.fail(name, format!("is missing; `{kind}` needs it")))
        };
        // As transformers: the outer key first, then the table's, then the model's own length.
        let original = || -> Result<usize, Error> {
            let inner = table.size("original_max_position_embeddings")?;
            Ok(outer_original.or(inner).unwrap_or(max_position_embeddings))
        };
        let scaling = match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: need("factor")? },
            "dynamic" => {
                // Written by some tools, read by none for this kind.
                table.size("original_max_position_embeddings")?;
                RotaryScaling::Dynamic { factor: need("factor")? }
            }
            "llama3" => {
                let scaling = RotaryScaling::Llama3 {
                    factor: need("factor")?,
                    low_freq_factor: need("low_freq_factor")?,
                    high_freq_factor: need("high_freq_factor")?,
                    original_max_position_embeddings: original()?,
                };
                if need("high_freq_factor")? <= need("low_freq_factor")? {
                    return Err(table.fail("high_freq_factor", "is not above `low_freq_factor`"));
                }
                scaling
            }
            "yarn" => {
                let original_max_position_embeddings = original()?;
                let factor = match table.positive("factor")? {
                    Some(factor) => factor,
                    None => max_position_embeddings as f64 / original_max_position_embeddings as f64,
                };
                let attention_factor = match table.number("attention_factor")? {
                    Some(given) if given < 0.0 => {
                        return Err(
                            table.fail("attention_factor", format!("is {given}; expected it above 0"))
                        );
                    }
                    Some(given) => given,
                    None => yarn_attention_factor(
                        factor,
                        table.number("mscale")?,
                        table.number("mscale_all_dim")?,
                    ),
                };
                // Read even where `attention_factor` overrides them.
                table.number("mscale")?;
                table.number("mscale_all_dim")?;
                let or_default =
                    |given: Option<f64>, default| given.filter(|&beta| beta != 0.0).unwrap_or(default);
                RotaryScaling::Yarn {
                    factor,
                    attention_factor,
                    beta_fast: or_default(table.number("beta_fast")?, 32.0),
                    beta_slow: or_default(table.number("beta_slow")?, 1.0),
                    original_max_position_embeddings,
                    truncate: table.flag("truncate")?.unwrap_or(true),
                }
            }
            other => {
                return Err(config.fail(
                    key,
                    format!(
                        "has rope type {other:?}; implemented are default, linear, dynamic, llama3, yarn"
                    ),
                ));
            }
        };
        if theta <= 1.0 {
            return Err(config.fail("rope_theta", format!("is {theta}; expected it above 1")));
        }
        if matches!(scaling, RotaryScaling::Dynamic { .. }) && head_dim <= 2 {
            return Err(config.fail("head_dim", "of 2 or less has no dynamic scaling"));
        }
        table.finish()?;
        Ok(Self { theta, head_dim, max_position_embeddings, scaling })
    }

    /// Whether the frequencies depend on the longest sequence of the forward pass.
    pub fn depends_on_length(&self, longest: usize) -> bool {
        matches!(self.scaling, RotaryScaling::Dynamic { .. }) && longest > self.max_position_embeddings
    }

    /// Radians per position of each pair of dimensions, `[head_dim / 2]`.
    ///
    /// `longest` is the length of the longest document of the forward pass; only dynamic scaling looks at it.
    pub fn inverse_frequencies(&self, longest: usize) -> Vec<f32> {
        match &self.scaling {
            RotaryScaling::None => self.unscaled(self.theta).collect(),
            RotaryScaling::Linear { factor } => {
                self.unscaled(self.theta).map(|frequency| frequency / *factor as f32).collect()
            }
            RotaryScaling::Dynamic { factor } => {
                let limit = self.max_position_embeddings as f64;
                let length = (longest as f64).max(limit);
                let dimensions = self.head_dim as f64;
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
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RotaryScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Cosines and sines of positions `0..positions`, each row-major `[positions, head_dim / 2]`.
    pub fn tables(&self, positions: usize, longest: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.inverse_frequencies(longest);
        let factor = self.attention_factor();
        let capacity = positions * frequencies.len();
        let (mut cosines, mut sines) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        for position in 0..positions {
            for frequency in &frequencies {
                // The angle is an f32 product, as in transformers; its sine is taken exactly.
                let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                cosines.push(cosine as f32 * factor);
                sines.push(sine as f32 * factor);
            }
        }
        (cosines, sines)
    }

    /// base^(2i / d) for each pair i.
    fn powers(&self, base: f64) -> impl Iterator<Item = f32> {
        let dimensions = self.head_dim as f32;
        (0..self.head_dim / 2).map(move |pair| base.powf(f64::from((2 * pair) as f32 / dimensions)) as f32)
    }

    fn unscaled(&self, base: f64) -> impl Iterator<Item = f32> {
        self.powers(base).map(|power| 1.0 / power)
    }

    /// Pairs between which YaRN ramps from extrapolation to interpolation.
    fn yarn_range(&self, beta_fast: f64, beta_slow: f64, original: usize, truncate: bool) -> (f64, f64) {
        let dimensions = self.head_dim as f64;
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

/// YaRN's temperature when config.json gives none: 0.1 ln(factor) + 1, or the ratio of two such with `mscale`.
fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let temperature =
        |multiplier: f64| if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => temperature(mscale) / temperature(all),
        _ => temperature(1.0),
    }
}
