//! The files beside 4-bit weights: config.json with the quantization, tokenizer, licences and a model card.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::assets::folder::copy_tokenizer_file;
use crate::export::Error;
use crate::export::base::OpenedBase;
use crate::files;
use crate::model::{DecoderSpec, FloatDtype, tensors};
use crate::quant::spec::{Quantization, Spec};

/// Name prefixes of files that must accompany a redistributed model.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
/// Largest README, in bytes, that is searched for licence lines.
const CARD_LIMIT: usize = 1 << 20;

/// Writes everything in the folder besides the weights.
pub(super) fn write(
    folder: &Path,
    base: &OpenedBase,
    decoder: &DecoderSpec,
    quantization: &Quantization,
) -> Result<(), Error> {
    let dtype = tensors::checkpoint_dtype(decoder, base.folder.weights());
    let config = config(base.folder.config(), decoder, quantization.blocks, dtype);
    files::write_bytes(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    let mut copied = base.folder.tokenizer_files()?;
    if base.folder.generation_config().is_some() {
        copied.push(base.folder.root().join("generation_config.json"));
    }
    copied.extend(licences(base.folder.root())?);
    for file in copied {
        copy_tokenizer_file(&file, folder)?;
    }
    files::write_bytes(&folder.join("README.md"), card(base, quantization)?.as_bytes())?;
    Ok(())
}

/// The base's config.json with the `quantization_config` that transformers writes.
fn config(base: &Value, decoder: &DecoderSpec, blocks: Spec, dtype: FloatDtype) -> Value {
    let Spec::Nf4 { double_quant, .. } = blocks;
    let mut config = base.clone();
    if let Value::Object(entries) = &mut config {
        let compute_dtype = match dtype {
            FloatDtype::F32 => "float32",
            FloatDtype::Bf16 => "bfloat16",
            FloatDtype::F16 => "float16",
        };
        let skipped = dense_modules(decoder, entries.contains_key("text_config"));
        let quantization = json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": compute_dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        });
        entries.insert("quantization_config".into(), quantization);
    }
    config
}

/// What a loader must not expect in 4 bits: the head, towers, and projections that stay dense. `None` where it knows
/// itself: the head of a model without the others.
fn dense_modules(decoder: &DecoderSpec, has_towers: bool) -> Option<Vec<String>> {
    const TOWERS: [&str; 6] =
        ["vision_tower", "visual", "multi_modal_projector", "audio_tower", "embed_vision", "embed_audio"];
    let expected = tensors::expected(decoder);
    let kept = expected.iter().filter(|tensor| tensor.projection && tensor.dense);
    let kept = kept.filter_map(|tensor| tensor.name.strip_suffix(".weight"));
    let towers = TOWERS.into_iter().filter(|_| has_towers);
    let others: Vec<String> = towers.chain(kept).map(str::to_owned).collect();
    (!others.is_empty()).then(|| [decoder.paths.head.to_owned()].into_iter().chain(others).collect())
}

/// Licence files of a model, in alphabetical order.
fn licences(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |source| Error::from(files::Error::io(files::Action::Read, root)(source));
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if LICENCES.iter().any(|start| name.starts_with(start)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The model card, with the licence lines of the base's own card.
fn card(base: &OpenedBase, quantization: &Quantization) -> Result<String, Error> {
    let Quantization { blocks: Spec::Nf4 { block_size, double_quant }, keep } = quantization;
    let name = base.base.hub.as_ref().map(|hub| &hub.id);
    let mut lines = name.map_or_else(String::new, |name| {
        format!("base_model: {}\nbase_model_relation: quantized\n", json!(name))
    });
    let path = base.folder.root().join("README.md");
    let readme = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(files::Error::io(files::Action::Read, &path))?,
    };
    for line in licence_lines(&String::from_utf8_lossy(&readme[..readme.len().min(CARD_LIMIT)])) {
        lines.push_str(&format!("{line}\n"));
    }
    Ok(format!(
        "---\n{lines}library_name: transformers\npipeline_tag: text-generation\ntags:\n- bitsandbytes\n- 4-bit\n- tune\n---\n\n\
         # {} in 4 bits\n\n\
         NF4 in blocks of {block_size}{}, in the layout of bitsandbytes. Embeddings, output head and norms{} are as they \
         were.\nThe metadata of the safetensors files records hashes of the original files.\n",
        name.map_or("A model", String::as_str),
        if *double_quant { ", scales in 8 bits (double quantization)" } else { "" },
        keep.iter().map(|pattern| format!(", and what `{pattern}` matches,")).collect::<String>(),
    ))
}

/// The lines on the licence in the front matter of a model card.
fn licence_lines(card: &str) -> Vec<&str> {
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    lines
        .take_while(|line| line.trim_end() != "---")
        .filter(|line| ["license:", "license_name:", "license_link:"].iter().any(|key| line.starts_with(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::licence_lines;

    #[test]
    fn the_licence_is_taken_from_the_front_matter_alone() {
        let card = "---\nlanguage: en\nlicense: other\nlicense_name: its-own\n---\nlicense: not this\n";
        assert_eq!(licence_lines(card), ["license: other", "license_name: its-own"]);
        assert_eq!(licence_lines("# No front matter\nlicense: mit\n"), Vec::<&str>::new());
    }
}
