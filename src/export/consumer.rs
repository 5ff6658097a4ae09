//! The programs that load adapters, what each of them supports, and writing an adapter folder for one of them.
//!
//! Only PEFT supports DoRA and `modules_to_save`: for the others such an adapter has to be merged.
//!
//! | consumer | scaling it computes | refuses |
//! |---|---|---|
//! | PEFT | all of PEFT's | |
//! | mistral.rs | patterns and rsLoRA included | tensors it does not know |
//! | vLLM | one for all modules; rsLoRA, no patterns | ranks above 512 |
//! | llama.cpp | `lora_alpha` / rank of the tensor; neither rsLoRA nor `alpha_pattern` | keys other than `lora_A`, `lora_B` |
//! | mlx-lm | one, stored in its own config; its own layout | |

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::base::OpenedBase;
use super::portable::{self, Portable};
use super::stacked::{self, has_experts, is_mistaken};
use super::{Error, mlx};
use crate::adapter::parameter::Parameter;
use crate::adapter::peft::{self, ALTERNATE, Config, GATE_UP, Numbers};
use crate::adapter::target::{Target, tensors};
use crate::assets::folder::tokenizer_files;
use crate::files::Existing;
use crate::model::DecoderSpec;

/// The largest `--max-lora-rank` of vLLM.
const VLLM_LARGEST_RANK: usize = 512;
/// Families whose experts vLLM reads stacked.
const STACKED_BY_VLLM: [&str; 2] = ["gpt_oss", "qwen3_5_moe_text"];
/// vLLM's default `--max-lora-rank`.
const VLLM_USUAL_RANK: usize = 16;

/// A program that loads adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// Hugging Face PEFT.
    Peft,
    /// vLLM.
    Vllm,
    /// llama.cpp, through its `convert_lora_to_gguf.py`.
    LlamaCpp,
    /// mlx-lm.
    Mlx,
    /// mistral.rs.
    MistralRs,
}

impl Consumer {
    /// Every consumer.
    pub const ALL: [Self; 5] = [Self::Peft, Self::MistralRs, Self::Vllm, Self::LlamaCpp, Self::Mlx];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::Vllm => "vLLM",
            Self::LlamaCpp => "llama.cpp",
            Self::Mlx => "mlx-lm",
            Self::MistralRs => "mistral.rs",
        }
    }

    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llama.cpp",
            Self::Mlx => "mlx",
            Self::MistralRs => "mistralrs",
        }
    }

    /// Whether it can load the adapter in any form.
    ///
    /// # Errors
    /// The unsupported feature, in a few words.
    pub fn knows(self, config: &Config) -> Result<(), &'static str> {
        match self {
            Self::Peft => Ok(()),
            _ if config.use_dora => Err("only PEFT supports DoRA"),
            _ if !config.modules_to_save.is_empty() => Err("only PEFT supports modules_to_save"),
            _ => Ok(()),
        }
    }

    /// Whether it computes the right result from an unchanged PEFT folder.
    ///
    /// # Errors
    /// The reason, in a few words.
    pub fn reads_as_is(self, config: &Config, targets: &[Target]) -> Result<(), &'static str> {
        let rank = |target: &Target| target.rank;
        let one_rank = targets.iter().all(|target| rank(target) == config.rank);
        let same = |left: f64, right: f64| (left - right).abs() <= 1e-12 * right.abs();
        self.knows(config)?;
        if has_experts(targets) {
            return match (self, config.target_parameters.is_empty()) {
                (Self::Peft, false) | (Self::MistralRs, true) => Ok(()),
                (Self::Peft, true) => Err("transformers has all experts in one parameter"),
                (_, _) => Err("it reads adapters of experts in its own form"),
            };
        }
        match self {
            Self::Peft | Self::MistralRs => Ok(()),
            Self::Vllm => {
                let own = crate::adapter::target::scaling(config.alpha, config.rank, config.use_rslora);
                match (one_rank, targets.iter().all(|target| same(target.scaling, own))) {
                    (true, true) if config.rank > VLLM_LARGEST_RANK => Err("its rank is too high"),
                    (true, true) => Ok(()),
                    (false, _) => Err("it ignores rank_pattern"),
                    (true, false) => Err("it ignores alpha_pattern"),
                }
            }
            Self::LlamaCpp => {
                let read = |target: &Target| same(config.alpha / target.rank as f64, target.scaling);
                match (targets.iter().all(read), config.use_rslora) {
                    (true, _) => Ok(()),
                    (false, true) => Err("it ignores rsLoRA"),
                    (false, false) => Err("it ignores alpha_pattern"),
                }
            }
            Self::Mlx => Err("it has its own layout"),
        }
    }
}

impl fmt::Display for Consumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which consumers can use an adapter folder, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compatibility {
    /// Consumers that load it unchanged.
    pub as_is: Vec<Consumer>,
    /// Consumers that need `tune export`, and why.
    pub exported: Vec<(Consumer, &'static str)>,
    /// Consumers that need `tune merge`, and why.
    pub merged: Vec<(Consumer, &'static str)>,
}

impl Compatibility {
    /// Sorts all consumers by the form that they need of an adapter.
    pub fn of(config: &Config, targets: &[Target]) -> Self {
        let mut compatibility = Self { as_is: Vec::new(), exported: Vec::new(), merged: Vec::new() };
        for consumer in Consumer::ALL {
            match (consumer.knows(config), consumer.reads_as_is(config, targets)) {
                (Err(reason), _) => compatibility.merged.push((consumer, reason)),
                (Ok(()), Ok(())) => compatibility.as_is.push(consumer),
                (Ok(()), Err(reason)) => compatibility.exported.push((consumer, reason)),
            }
        }
        compatibility
    }

    /// Of an adapter with LoRA on the output head or the embeddings.
    pub fn with_tables() -> Self {
        let others = Consumer::ALL.into_iter().filter(|consumer| *consumer != Consumer::Peft);
        let merged = others.map(|consumer| (consumer, "only PEFT supports LoRA on lm_head and embed_tokens"));
        Self { as_is: vec![Consumer::Peft], exported: Vec::new(), merged: merged.collect() }
    }
}

impl fmt::Display for Compatibility {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.as_is.iter().map(|consumer| consumer.name()).collect();
        let load = if names.len() == 1 { "loads" } else { "load" };
        write!(formatter, "{} {load} it unchanged", names.join(", "))?;
        for (consumer, reason) in &self.exported {
            write!(formatter, "; {consumer} after `tune export --for {}` ({reason})", consumer.word())?;
        }
        if let Some((_, reason)) = self.merged.first() {
            let names: Vec<&str> = self.merged.iter().map(|(consumer, _)| consumer.name()).collect();
            write!(formatter, "; {} after `tune merge` ({reason})", names.join(", "))?;
        }
        Ok(())
    }
}

/// The result of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// What was converted, in words; empty if values are unchanged.
    pub changes: Vec<String>,
    /// The command or call that loads it.
    pub usage: String,
}

/// Writes an adapter for one consumer; the folder is complete or absent.
///
/// # Errors
/// [`Error::NotPortable`] if the consumer supports it in no form; files cannot be read or written.
pub fn export(
    adapter: &peft::Adapter,
    targets: &[Target],
    base: Option<&OpenedBase>,
    consumer: Consumer,
    out: &Path,
    existing: Existing,
) -> Result<Exported, Error> {
    let original = adapter.config();
    if let Err(reason) = consumer.knows(original) {
        return Err(Error::NotPortable {
            consumer: consumer.name(),
            reason: reason.to_owned(),
            adapter: adapter.folder().to_path_buf(),
        });
    }
    let modules = match base {
        Some(base) => base.spec.modules(),
        None => portable::lattice(targets),
    };
    let needs_base = |why: &str| Error::Choice {
        message: format!(
            "{why}, so the export needs the base model: add `--base MODEL` (the adapter names `{}`, which was not found here)",
            original.base_model.as_deref().unwrap_or_default()
        ),
    };
    let experts = match (has_experts(targets), base) {
        (false, _) => None,
        (true, Some(base)) => Some(&base.spec),
        (true, None) => return Err(needs_base("the adapter has pairs on experts")),
    };
    let mut metadata = adapter.metadata().clone();
    metadata.insert("tune.exported_for".into(), consumer.word().into());
    let shown = out.display();
    let base_name = original.base_model.as_deref().filter(|name| !name.is_empty()).unwrap_or("BASE");
    let write = |config: &Config, targets: &[Target], values: Vec<Vec<f32>>| -> Result<(), Error> {
        write_peft(adapter, config, tensors(targets), values, &metadata, out, existing)
    };
    // Of experts that are all in one pair of tensors.
    let write_stacked = |spec: &DecoderSpec, targets: &[Target], values: &[Vec<f32>], rslora: bool| {
        let stacked = stacked::stack(spec, targets, values, rslora);
        let config = portable::config(original, &stacked.targets, &modules, rslora);
        let config = stacked.config(config, spec);
        let mut metadata = metadata.clone();
        let alternates = modules.iter().any(|module| module.alternates);
        metadata.insert(GATE_UP.into(), if alternates { ALTERNATE } else { "halves" }.into());
        let (parameters, values) = stacked.tensors();
        write_peft(adapter, &config, parameters, values, &metadata, out, existing)
    };
    let is_stacked = "experts stacked in the parameters that hold all of them";
    let in_peft = format!("PeftModel.from_pretrained(base, \"{shown}\")");
    let by_name = |spec: &&DecoderSpec| targets.iter().any(|target| is_mistaken(spec, target));
    let parameters = experts.or(base.map(|base| &base.spec).filter(by_name)).filter(|_| !original.use_dora);
    match consumer {
        Consumer::Peft if let Some(spec) = parameters => {
            write_stacked(spec, targets, &adapter.values(targets)?, original.use_rslora)?;
            Ok(Exported { changes: vec![is_stacked.to_owned()], usage: in_peft })
        }
        Consumer::Peft | Consumer::MistralRs => {
            let config = portable::config(original, targets, &modules, original.use_rslora);
            write(&config, targets, adapter.values(targets)?)?;
            let usage = match consumer {
                Consumer::Peft => in_peft,
                _ => format!("mistralrs serve lora -m {base_name} -a {shown}"),
            };
            Ok(Exported { changes: Vec::new(), usage })
        }
        Consumer::Vllm | Consumer::LlamaCpp => {
            let Portable { mut targets, mut values, mut changes } = portable::fold(adapter, targets)?;
            let rank = targets.first().map_or(0, |target| target.rank);
            if consumer == Consumer::Vllm && rank > VLLM_LARGEST_RANK {
                return Err(Error::NotPortable {
                    consumer: consumer.name(),
                    reason: format!("its rank is {rank}, and vLLM supports at most {VLLM_LARGEST_RANK}"),
                    adapter: adapter.folder().to_path_buf(),
                });
            }
            match experts {
                Some(spec) if consumer == Consumer::Vllm && STACKED_BY_VLLM.contains(&spec.family) => {
                    write_stacked(spec, &targets, &values, false)?;
                    changes.push(is_stacked.to_owned());
                }
                experts => {
                    let mut modules = modules.clone();
                    if let Some(spec) = experts {
                        let before = targets.len();
                        (targets, values) = stacked::complete(spec, &targets, values);
                        if targets.len() > before {
                            changes.push(format!(
                                "{} pairs of zeros for experts without one",
                                targets.len() - before
                            ));
                        }
                        let own = targets.iter_mut().map(|target| &mut target.module);
                        for module in own.chain(&mut modules).filter(|_| spec.family == "mixtral") {
                            module.path = stacked::named_as_mixtral(&module.path);
                        }
                    }
                    let config = portable::config(original, &targets, &modules, false);
                    write(&config, &targets, values)?;
                }
            }
            let usage = match consumer {
                Consumer::Vllm => {
                    let sizes = [8, 16, 32, 64, 128, 256, 320, 512];
                    let size = sizes.into_iter().find(|size| *size >= rank).unwrap_or(VLLM_LARGEST_RANK);
                    let option = if rank > VLLM_USUAL_RANK {
                        format!(" --max-lora-rank {size}")
                    } else {
                        String::new()
                    };
                    format!("vllm serve {base_name} --enable-lora{option} --lora-modules tuned={shown}")
                }
                _ => format!("python convert_lora_to_gguf.py --base BASE_FOLDER {shown}"),
            };
            Ok(Exported { changes, usage })
        }
        Consumer::Mlx => {
            let Some(base) = base else {
                return Err(needs_base("mlx-lm counts layers from the last one"));
            };
            let portable = portable::fold(adapter, targets)?;
            mlx::write(&portable, base, &metadata, out, existing)?;
            let usage = format!("mlx_lm.generate --model {base_name} --adapter-path {shown}");
            let mut changes = portable.changes;
            changes.push("A and B transposed and renamed to mlx-lm's keys".into());
            Ok(Exported { changes, usage })
        }
    }
}

fn write_peft(
    adapter: &peft::Adapter,
    config: &Config,
    mut parameters: Vec<Parameter>,
    mut values: Vec<Vec<f32>>,
    metadata: &BTreeMap<String, String>,
    out: &Path,
    existing: Existing,
) -> Result<(), Error> {
    for saved in adapter.saved_modules(&adapter.own_saved_modules())? {
        values.push(adapter.saved_values(&saved)?);
        parameters.push(saved.parameter());
    }
    let value = |index: usize| Ok(values[index].clone());
    let numbers = Numbers { parameters: &parameters, values: &value };
    let beside = tokenizer_files(adapter.folder())?;
    Ok(peft::write_folder(out, existing, &numbers, config, metadata, &beside, None)?)
}
