//! One tensor of an adapter: which part of its module it is, its shape, and its key in PEFT's
//! `adapter_model.safetensors` (`base_model.model.<module path>.lora_A.weight`).

/// What PEFT puts before every module path.
pub(super) const PREFIX: &str = "base_model.model.";

/// Name and shape of one tensor of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its key in a PEFT file.
    pub name: String,
    /// Which part of its module it is.
    pub part: Part,
    /// `[rank, in]` for A, `[out, rank]` for B, `[1, out]` for magnitudes, `[vocab, hidden]` for a module to save.
    pub shape: [usize; 2],
}

/// Which part of its module a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `[rank, in]`.
    A,
    /// `[out, rank]`.
    B,
    /// DoRA's magnitudes: `[out]` in a file, a row `[1, out]` in memory.
    Magnitude,
    /// The weight of a module to save, `[vocab, hidden]`; never part of a target.
    Saved,
}

impl Part {
    /// Every part of a target, in order.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::Magnitude];

    /// PEFT's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
            Self::Magnitude => "lora_magnitude_vector",
            Self::Saved => "weight",
        }
    }

    /// Its shape in a file.
    pub fn file_shape(self, shape: [usize; 2]) -> Vec<usize> {
        match self {
            Self::A | Self::B | Self::Saved => shape.to_vec(),
            Self::Magnitude => vec![shape[1]],
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
            Self::Magnitude => ".lora_magnitude_vector",
            Self::Saved => ".weight",
        }
    }
}

/// The key of one part of the module at a path.
pub fn key(module: &str, part: Part) -> String {
    format!("{PREFIX}{module}{}", part.suffix())
}

/// Module path and part that a key names.
///
/// # Errors
/// Why a key of another kind is not supported.
pub(super) fn parse(key: &str) -> Result<(&str, Part), &'static str> {
    let Some(rest) = key.strip_prefix(PREFIX) else {
        return Err("its key does not begin with `base_model.model.`, as PEFT's do");
    };
    for part in Part::ALL {
        if let Some(module) = rest.strip_suffix(part.suffix()) {
            return Ok((module, part));
        }
    }
    if let Some(module) = rest.strip_suffix(Part::Saved.suffix()).filter(|module| !module.contains(".lora_"))
    {
        return Ok((module, Part::Saved));
    }
    Err(match rest {
        _ if rest.ends_with(".lora_B.bias") || rest.ends_with(".lora_A.bias") => {
            "a LoRA bias (lora_bias) is not supported"
        }
        _ if rest.contains(".lora_embedding_") => "an adapter on an embedding is not supported",
        _ if rest.ends_with(".trainable_tokens_delta") => "trained token embeddings are not supported",
        _ if rest.ends_with(".bias") => "a trained bias (bias = \"all\" or \"lora_only\") is not supported",
        _ if rest.contains(".lora_A.") || rest.contains(".lora_B.") => {
            "its key names an adapter inside the file, as PEFT does in memory only; save it with save_pretrained"
        }
        _ => "it is not part of a LoRA adapter",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        for part in Part::ALL {
            let written = key("model.layers.0.self_attn.q_proj", part);
            assert_eq!(parse(&written), Ok(("model.layers.0.self_attn.q_proj", part)));
        }
        assert_eq!(parse("base_model.model.lm_head.weight"), Ok(("lm_head", Part::Saved)));
        assert_eq!(key("lm_head", Part::A), "base_model.model.lm_head.lora_A.weight");
    }

    #[test]
    fn other_keys_say_what_they_are() {
        let layer = "base_model.model.model.layers.0.self_attn.q_proj";
        for (key, word) in [
            (format!("{layer}.lora_B.bias"), "lora_bias"),
            (format!("{layer}.bias"), "trained bias"),
            (format!("{layer}.lora_A.default.weight"), "save_pretrained"),
            ("base_model.model.model.embed_tokens.lora_embedding_A".into(), "embedding"),
            ("model.layers.0.self_attn.q_proj.lora_A.weight".into(), "does not begin with"),
            ("base_model.model.x".into(), "not part"),
        ] {
            let reason = parse(&key).unwrap_err();
            assert!(reason.contains(word), "{key}: {reason}");
        }
    }
}
