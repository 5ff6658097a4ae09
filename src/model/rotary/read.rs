//! Rotary positions from config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).

use serde_json::json;
use tune_kernels::rope::Pairs;

use super::{QueryScale, RotaryScaling, RotarySpec};
use crate::model::Error;
use crate::model::config::ConfigReader;

/// What a family fixes about its rotary positions, and its values for keys that are absent.
#[derive(Clone, Copy)]
pub(in crate::model) struct Rules {
    /// `rope_theta`.
    pub(in crate::model) theta: f64,
    /// Width of one head.
    pub(in crate::model) head_dim: usize,
    /// Positions the model was made for.
    pub(in crate::model) max_position_embeddings: usize,
    /// `original_max_position_embeddings` where the file has none; `None`: the model's own length.
    pub(in crate::model) original_max_position_embeddings: Option<usize>,
    /// The share of a head that is rotated, unless `partial_rotary_factor` says otherwise; `None`: all of it, whatever the
    /// checkpoint, so that a key with another value is refused.
    pub(in crate::model) partial: Option<f64>,
    /// The rope type that files of the family call `su` or `yarn` is longrope.
    pub(in crate::model) yarn_is_longrope: bool,
    /// Dynamic scaling with an `alpha` is a fixed change of the base.
    pub(in crate::model) takes_alpha: bool,
    /// Which dimensions are rotated together.
    pub(in crate::model) pairs: Pairs,
    /// The key of the base outside the table.
    pub(in crate::model) theta_key: &'static str,
    /// Sections of dimensions for the axes of images may be named; the positions of text are the same in all of them.
    pub(in crate::model) has_sections: bool,
    /// Queries are scaled by position where `llama_4_scaling_beta` says so.
    pub(in crate::model) scales_queries: bool,
}

/// Keys outside the table of rotary parameters.
struct Outer {
    theta: Option<f64>,
    partial: Option<f64>,
    original: Option<usize>,
}

impl RotarySpec {
    /// Reads the rotary positions that all layers share.
    pub(in crate::model) fn read(config: &ConfigReader<'_>, rules: &Rules) -> Result<Self, Error> {
        let outer = Outer::read(config, rules)?;
        let old = config.object("rope_scaling")?;
        let new = config.object("rope_parameters")?;
        if old.is_some() && new.is_some() && config.get("rope_scaling") != config.get("rope_parameters") {
            return Err(config.fail("rope_scaling", "and `rope_parameters` contradict each other; keep one"));
        }
        rules.table(config, old.or(new).as_ref(), &outer)
    }

    /// Reads the rotary positions of `kinds` of layers: from an object for each kind in `rope_parameters`. Of
    /// `rope_scaling` only the first kind takes notice.
    pub(in crate::model) fn read_by_kind<const N: usize>(
        config: &ConfigReader<'_>,
        kinds: [(&str, Rules); N],
    ) -> Result<[Self; N], Error> {
        let scaling = config.object("rope_scaling")?;
        let parameters = config.object("rope_parameters")?;
        let mut specs = Vec::with_capacity(N);
        for (index, (kind, rules)) in kinds.into_iter().enumerate() {
            let outer = Outer::read(config, &rules)?;
            let own = match &parameters {
                Some(parameters) => parameters.object(kind)?,
                None => None,
            };
            let table = own.as_ref().or(scaling.as_ref().filter(|_| index == 0));
            specs.push(rules.table(config, table, &outer)?);
        }
        if let Some(parameters) = parameters {
            parameters.finish()?;
        }
        specs.try_into().map_err(|_| config.fail("rope_parameters", "has too few kinds of layers"))
    }
}

impl Outer {
    fn read(config: &ConfigReader<'_>, rules: &Rules) -> Result<Self, Error> {
        config.must_be("rope_interleaved", &[json!(false)])?;
        Ok(Self {
            theta: config.positive(rules.theta_key)?,
            partial: rules.partial_of(config)?,
            original: config.size("original_max_position_embeddings")?,
        })
    }
}

impl Rules {
    /// `partial_rotary_factor` of a table.
    fn partial_of(&self, table: &ConfigReader<'_>) -> Result<Option<f64>, Error> {
        const KEY: &str = "partial_rotary_factor";
        if self.partial.is_none() {
            table.must_be(KEY, &[json!(1.0)])?;
            return Ok(None);
        }
        match table.positive(KEY)? {
            Some(factor) if factor > 1.0 => {
                Err(table.fail(KEY, format!("is {factor}; a head has no more than all of its dimensions")))
            }
            factor => Ok(factor),
        }
    }

    /// The spec of a table, or of none.
    fn table(
        &self,
        config: &ConfigReader<'_>,
        table: Option<&ConfigReader<'_>>,
        outer: &Outer,
    ) -> Result<RotarySpec, Error> {
        let mut spec = RotarySpec {
            theta: outer.theta.unwrap_or(self.theta),
            dimensions: self.dimensions(config, outer.partial)?,
            max_position_embeddings: self.max_position_embeddings,
            scaling: RotaryScaling::None,
            pairs: self.pairs,
            query_scale: None,
        };
        let Some(table) = table else { return Ok(spec) };
        spec.dimensions = self.dimensions(config, self.partial_of(table)?.or(outer.partial))?;
        spec.theta = table.positive("rope_theta")?.unwrap_or(spec.theta);
        let kind = match (table.text("rope_type")?, table.text("type")?) {
            (Some(kind), Some(other)) if kind != other => {
                return Err(table.fail("type", format!("is {other:?}, but `rope_type` is {kind:?}")));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => "default",
        };
        // As transformers: the outer key first, then the table's, then the model's own length.
        let inner = table.size("original_max_position_embeddings")?;
        let own = self.original_max_position_embeddings.unwrap_or(self.max_position_embeddings);
        let original = outer.original.or(inner).unwrap_or(own);
        spec.scaling = match kind {
            "su" | "yarn" if self.yarn_is_longrope => self.long_rope(table, original, spec.dimensions)?,
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: needed(table, kind, "factor")? },
            "dynamic" => match if self.takes_alpha { table.positive("alpha")? } else { None } {
                Some(alpha) => {
                    // Written beside it, read by none.
                    for key in ["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"] {
                        table.number(key)?;
                    }
                    let dimensions = spec.dimensions as f64;
                    spec.theta *= alpha.powf(dimensions / (dimensions - 2.0));
                    RotaryScaling::None
                }
                None => RotaryScaling::Dynamic { factor: needed(table, kind, "factor")? },
            },
            "llama3" => llama3(table, original)?,
            "yarn" => self.yarn(table, original)?,
            "longrope" => self.long_rope(table, original, spec.dimensions)?,
            "proportional" => {
                spec.dimensions = self.head_dim;
                let share = self.partial_of(table)?.unwrap_or(1.0);
                let factor = table.positive("factor")?.unwrap_or(1.0);
                RotaryScaling::Proportional { pairs: (share * self.head_dim as f64 / 2.0) as usize, factor }
            }
            other => {
                return Err(table.fail(
                    "rope_type",
                    format!(
                        "is {other:?}; implemented are default, linear, dynamic, llama3, yarn, longrope and proportional"
                    ),
                ));
            }
        };
        if self.has_sections {
            for key in ["mrope_section", "mrope_interleaved"] {
                table.get(key);
            }
        }
        if self.scales_queries {
            // A copy of the model's own length.
            table.size("max_position_embeddings")?;
            let scale = |beta| QueryScale { beta, original_max_position_embeddings: original };
            let beta = table.number("llama_4_scaling_beta")?;
            spec.query_scale = beta.filter(|&beta| beta != 0.0).map(scale);
        }
        if spec.theta <= 1.0 {
            return Err(config.fail("rope_theta", format!("is {}; expected it above 1", spec.theta)));
        }
        if kind == "dynamic" && spec.dimensions <= 2 {
            return Err(config.fail("head_dim", "of 2 or less has no dynamic scaling"));
        }
        table.finish()?;
        Ok(spec)
    }

    /// Dimensions that are rotated where this share of a head is.
    fn dimensions(&self, config: &ConfigReader<'_>, partial: Option<f64>) -> Result<usize, Error> {
        let share = partial.or(self.partial).unwrap_or(1.0);
        let dimensions = (self.head_dim as f64 * share) as usize;
        match dimensions > 0 && dimensions.is_multiple_of(2) {
            true => Ok(dimensions),
            false => Err(config.fail(
                "partial_rotary_factor",
                format!(
                    "is {share}, which leaves {dimensions} of {} dimensions; rotation takes pairs",
                    self.head_dim
                ),
            )),
        }
    }

    fn yarn(&self, table: &ConfigReader<'_>, original: usize) -> Result<RotaryScaling, Error> {
        let factor = match table.positive("factor")? {
            Some(factor) => factor,
            None => self.max_position_embeddings as f64 / original as f64,
        };
        let (mscale, mscale_all_dim) = (table.number("mscale")?, table.number("mscale_all_dim")?);
        let attention_factor = match attention_factor(table)? {
            Some(given) => given,
            None => yarn_attention_factor(factor, mscale, mscale_all_dim),
        };
        let or_default = |given: Option<f64>, default| given.filter(|&beta| beta != 0.0).unwrap_or(default);
        Ok(RotaryScaling::Yarn {
            factor,
            attention_factor,
            beta_fast: or_default(table.number("beta_fast")?, 32.0),
            beta_slow: or_default(table.number("beta_slow")?, 1.0),
            original_max_position_embeddings: original,
            truncate: table.flag("truncate")?.unwrap_or(true),
        })
    }

    fn long_rope(
        &self,
        table: &ConfigReader<'_>,
        original: usize,
        dimensions: usize,
    ) -> Result<RotaryScaling, Error> {
        let divisors = |key: &str| {
            let found = table.numbers(key)?;
            let found = found.ok_or_else(|| table.fail(key, "is missing; `longrope` needs it"))?;
            let fits = found.len() == dimensions / 2 && found.iter().all(|&divisor| divisor > 0.0);
            fits.then_some(found).ok_or_else(|| {
                table.fail(key, format!("is not a list of {} numbers above 0", dimensions / 2))
            })
        };
        let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
        let stretch =
            table.positive("factor")?.unwrap_or(self.max_position_embeddings as f64 / original as f64);
        let attention_factor = match attention_factor(table)? {
            Some(given) => given,
            None if stretch <= 1.0 => 1.0,
            None => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
        };
        Ok(RotaryScaling::LongRope {
            short,
            long,
            attention_factor,
            original_max_position_embeddings: original,
        })
    }
}

fn needed(table: &ConfigReader<'_>, kind: &str, key: &str) -> Result<f64, Error> {
    table.positive(key)?.ok_or_else(|| table.fail(key, format!("is missing; `{kind}` needs it")))
}

fn attention_factor(table: &ConfigReader<'_>) -> Result<Option<f64>, Error> {
    match table.number("attention_factor")? {
        Some(given) if given < 0.0 => {
            Err(table.fail("attention_factor", format!("is {given}; expected it above 0")))
        }
        given => Ok(given),
    }
}

fn llama3(table: &ConfigReader<'_>, original: usize) -> Result<RotaryScaling, Error> {
    let need = |key| needed(table, "llama3", key);
    let (low_freq_factor, high_freq_factor) = (need("low_freq_factor")?, need("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(table.fail("high_freq_factor", "is not above `low_freq_factor`"));
    }
    Ok(RotaryScaling::Llama3 {
        factor: need("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original,
    })
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
