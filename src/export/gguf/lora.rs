//! An adapter alone as a GGUF file: `<name of the weight>.lora_a` `[rank, in]` and `.lora_b` `[out, rank]`.
//!
//! llama.cpp computes `alpha / rank of the tensor · B·A` with one alpha for the file. If all targets share
//! scaling · rank, that is alpha (with rsLoRA too, and ranks may differ); else the remaining factor of each target's
//! scaling is multiplied into its B. The rows of B of q and k are reordered like those of the weight.

use std::io::{self, Write};
use std::path::Path;

use tune_kernels::ggml::BlockType;

use super::super::Error;
use super::super::base::OpenedBase;
use super::super::folder::{Text, end_tokens};
use super::container::{Keys, Layout, TensorHeader, Value};
use super::family;
use super::model::encode;
use super::modelfile::{self, Modelfile};
use super::rows::Rows;
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
        let mut headers = Vec::with_capacity(2 * self.targets.len());
        for target in self.targets {
            let module = &target.module;
            let name = family::projection_name(spec, module.layer, module.role)?;
            let mut push = |half: &str, shape: [usize; 2]| {
                headers.push(TensorHeader {
                    name: format!("{name}.weight.{half}"),
                    shape: shape.to_vec(),
                    kind,
                });
            };
            push("lora_a", [target.rank, module.in_features]);
            push("lora_b", [module.out_features, target.rank]);
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
                    self.coded(index, folded.then_some(alpha), kind).map_err(|error| {
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
        if self.targets.iter().any(|target| self.rows(target) != Rows::All) {
            changes.push("rows of queries and keys in the order that llama.cpp has them in".into());
        }
        Ok(Outcome { file, bytes: layout.bytes(), changes })
    }

    /// The order of the rows of B.
    fn rows(&self, target: &Target) -> Rows {
        Rows::of(&self.base.spec, target.module.layer, target.module.role)
    }

    /// The alpha of the file, and whether any target needs another factor.
    fn alpha(&self) -> (f32, bool) {
        let own = |target: &Target| (target.scaling * target.rank as f64) as f32;
        let Some(first) = self.targets.first() else { return (1.0, false) };
        // llama.cpp ignores an alpha of 0.
        match own(first) != 0.0 && self.targets.iter().all(|target| own(target) == own(first)) {
            true => (own(first), false),
            false => (first.rank as f32, true),
        }
    }

    /// The bytes of A (even index) or B (odd) of a target; `folded` is the file's alpha if B carries the remaining
    /// factor.
    fn coded(&self, index: usize, folded: Option<f32>, kind: BlockType) -> Result<Vec<u8>, Error> {
        let target = &self.targets[index / 2];
        let mut values = self.adapter.values(std::slice::from_ref(target))?.swap_remove(index % 2);
        if index % 2 == 1 {
            if let Some(alpha) = folded {
                let factor = target.scaling * target.rank as f64 / f64::from(alpha);
                for value in &mut values {
                    *value = (f64::from(*value) * factor) as f32;
                }
            }
            values = self.rows(target).arranged(values, target.rank);
        }
        let half = if index.is_multiple_of(2) { "lora_A" } else { "lora_B" };
        encode(&format!("{}.{half}", target.module.path), &values, kind)
    }
}
