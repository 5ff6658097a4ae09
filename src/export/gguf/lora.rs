//! An adapter alone as a GGUF file: `<name of the weight>.lora_a` `[rank, in]` and `.lora_b` `[out, rank]`.
//!
//! llama.cpp computes `alpha / rank of the tensor · B·A` with one alpha for the file. If all targets share
//! scaling · rank, that is alpha (with rsLoRA too, and ranks may differ); else the remaining factor of each target's
//! scaling is multiplied into its B. The rows of B of q and k are reordered like those of the weight. Those of the experts of
//! a layer lie one behind the other in one tensor, `[experts, rank, in]` and `[experts, out, rank]`: of one rank, and zeros
//! where an expert has no adapter.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use tune_kernels::ggml::BlockType;

use super::super::Error;
use super::super::base::OpenedBase;
use super::super::folder::{Text, end_tokens};
use super::container::{Keys, Layout, TensorHeader, Value};
use super::model::encode;
use super::modelfile::{self, Modelfile};
use super::rows::Rows;
use super::{family, names};
use crate::adapter::peft;
use crate::adapter::target::Target;
use crate::files::{self, Existing};
use crate::model::FloatDtype;

/// The inputs of the file.
pub struct Lora<'a> {
    /// The adapter.
    pub adapter: &'a peft::Adapter,
    /// Its targets on the base.
    pub targets: &'a [Target],
    /// The base.
    pub base: &'a OpenedBase,
    /// Tokenizer and template, for the Modelfile.
    pub text: &'a Text,
    /// The dtype of all matrices.
    pub dtype: FloatDtype,
    /// Provenance keys.
    pub provenance: Keys,
}

/// The result of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Name of the file in the folder.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What was converted, in words.
    pub changes: Vec<String>,
}

impl Lora<'_> {
    /// Writes a folder with the file and its Modelfile; it is complete or absent.
    ///
    /// # Errors
    /// llama.cpp lacks the family, a value is outside the dtype's range, or a file cannot be read or written.
    pub fn write(&self, out: &Path, existing: Existing) -> Result<Outcome, Error> {
        let spec = &self.base.spec;
        let kind = match self.dtype {
            FloatDtype::F32 => BlockType::F32,
            FloatDtype::F16 => BlockType::F16,
            FloatDtype::Bf16 => BlockType::Bf16,
        };
        let (alpha, folded) = self.alpha();
        let mut keys: Keys = vec![
            ("general.architecture".into(), family::declared(spec)?.architecture.into()),
            ("general.type".into(), "adapter".into()),
            ("adapter.type".into(), "lora".into()),
            ("adapter.lora.alpha".into(), Value::F32(alpha)),
        ];
        // A base that llama.cpp does not support cannot be used with an adapter either.
        family::hyperparameters(spec)?;
        keys.extend(self.provenance.iter().cloned());
        let pairs = self.pairs();
        let mut headers = Vec::with_capacity(2 * pairs.len());
        for Pair { targets, rank, .. } in &pairs {
            let Some(module) = targets.iter().flatten().next().map(|target| &target.module) else { continue };
            let own = spec.layers[module.layer].projections().find(|own| own.slot == module.slot);
            let name = match own {
                Some(projection) => names::projection_name(spec, module.layer, projection)?,
                None => return Err(family::not_carried(spec, format!("it has no `{}`", module.path))),
            };
            let mut push = |half: &str, shape: [usize; 2]| {
                let experts = module.role.is_routed().then_some(targets.len());
                let shape = experts.into_iter().chain(shape).collect();
                headers.push(TensorHeader { name: format!("{name}.weight.{half}"), shape, kind });
            };
            push("lora_a", [*rank, module.in_features]);
            push("lora_b", [module.out_features, *rank]);
        }
        let layout = Layout::new(&keys, headers);
        let file = format!("adapter-{}.gguf", self.dtype.name());
        let stops: Vec<String> = self.text.tokenizer.as_ref().map_or_else(Vec::new, |tokenizer| {
            let ends = end_tokens(tokenizer, self.text.template.as_ref());
            let mut stops: Vec<String> = ends.into_iter().filter_map(|end| tokenizer.token(end)).collect();
            stops.dedup();
            stops
        });
        let base = self.base.name();
        let modelfile = Modelfile {
            file: &file,
            base: Some(&base),
            template: self.text.template.as_ref(),
            stops: &stops,
        };
        files::write_folder_atomically(out, existing, |inside| -> Result<(), Error> {
            // The writer returns only I/O errors: others are stored here.
            let mut fault = None;
            let written = files::write_atomically(&inside.join(&file), |out: &mut dyn Write| {
                layout.write(out, |index| {
                    self.coded(&pairs[index / 2], index % 2, folded.then_some(alpha), kind).map_err(|error| {
                        fault = Some(error);
                        io::Error::other("the tensor cannot be written")
                    })
                })
            });
            match fault {
                Some(error) => return Err(error),
                None => written?,
            }
            Ok(files::write_bytes(&inside.join(modelfile::FILE), modelfile.text().as_bytes())?)
        })?;
        let mut changes = Vec::new();
        if folded {
            changes.push(
                "the part of each module's scaling that one alpha cannot express multiplied into its B"
                    .to_owned(),
            );
        } else if self.adapter.config().use_rslora {
            changes.push(format!("rsLoRA expressed as alpha = {alpha}"));
        }
        let moved = |target: &Target| self.rows(target) != Rows::All || self.columns(target) != Rows::All;
        if self.targets.iter().any(moved) {
            changes.push("heads, or the rows in them, in the order that llama.cpp has them in".into());
        }
        Ok(Outcome { file, bytes: layout.bytes(), changes })
    }

    /// The order of the rows of B.
    fn rows(&self, target: &Target) -> Rows {
        Rows::of(&self.base.spec, target.module.layer, target.module.role)
    }

    /// The order of the columns of A.
    fn columns(&self, target: &Target) -> Rows {
        Rows::of_columns(&self.base.spec, target.module.layer, target.module.role)
    }

    /// The alpha of the file, and whether any target needs another factor.
    fn alpha(&self) -> (f32, bool) {
        let pairs = self.pairs();
        let alpha = |target: &Target, rank: usize| (target.scaling * rank as f64) as f32;
        let mut alphas = pairs
            .iter()
            .flat_map(|pair| pair.targets.iter().flatten().map(|target| alpha(target, pair.rank)));
        let Some(first) = alphas.next() else { return (1.0, false) };
        // llama.cpp ignores an alpha of 0.
        match first != 0.0 && alphas.all(|other| other == first) {
            true => (first, false),
            false => (pairs[0].rank as f32, true),
        }
    }

    /// The pairs of tensors in the file, in the order of the targets.
    fn pairs(&self) -> Vec<Pair<'_>> {
        let mut pairs: Vec<Pair<'_>> = Vec::new();
        let mut stacks = BTreeMap::new();
        for target in self.targets {
            let module = &target.module;
            let Some(expert) = module.expert() else {
                pairs.push(Pair { targets: vec![Some(target)], rank: target.rank });
                continue;
            };
            let index = *stacks.entry((module.layer, module.role)).or_insert_with(|| {
                let experts = self.base.spec.layers[module.layer].mixture();
                let count = experts.map_or(0, |mixture| mixture.experts.len()).max(expert + 1);
                pairs.push(Pair { targets: vec![None; count], rank: 0 });
                pairs.len() - 1
            });
            let pair = &mut pairs[index];
            pair.targets[expert] = Some(target);
            pair.rank = pair.rank.max(target.rank);
        }
        pairs
    }

    /// The bytes of A (half 0) or B (half 1) of a pair; `folded` is the file's alpha if B carries the remaining factor.
    fn coded(
        &self,
        pair: &Pair<'_>,
        half: usize,
        folded: Option<f32>,
        kind: BlockType,
    ) -> Result<Vec<u8>, Error> {
        let (mut all, mut path) = (Vec::new(), "");
        let size = pair.targets.iter().flatten().next().map_or(0, |target| {
            path = &target.module.path;
            pair.rank * [target.module.in_features, target.module.out_features][half]
        });
        for target in &pair.targets {
            let filled = all.len() + size;
            if let Some(target) = target {
                let mut values = self.adapter.values(std::slice::from_ref(target))?.swap_remove(half);
                if half == 1 {
                    if let Some(alpha) = folded {
                        let factor = target.scaling * pair.rank as f64 / f64::from(alpha);
                        for value in &mut values {
                            *value = (f64::from(*value) * factor) as f32;
                        }
                    }
                    values = widened(self.rows(target).arranged(values, target.rank), target.rank, pair.rank);
                } else if self.columns(target) != Rows::All {
                    let rows = values.chunks_exact(target.module.in_features);
                    values = rows.flat_map(|row| self.columns(target).arranged(row.to_vec(), 1)).collect();
                }
                all.extend(values);
            }
            // More rows of A, or no adapter at all.
            all.resize(filled, 0.0);
        }
        encode(&format!("{path}.{}", ["lora_A", "lora_B"][half]), &all, kind)
    }
}

/// A pair of tensors: of one target, or of those of the experts of a layer, by expert.
struct Pair<'a> {
    targets: Vec<Option<&'a Target>>,
    /// The largest of theirs.
    rank: usize,
}

/// The rows of a matrix filled up with zeros.
fn widened(values: Vec<f32>, columns: usize, wide: usize) -> Vec<f32> {
    if columns == wide {
        return values;
    }
    let filled = |row: &[f32]| {
        let mut row = row.to_vec();
        row.resize(wide, 0.0);
        row
    };
    values.chunks_exact(columns).flat_map(filled).collect()
}
