//! Options whose values are an enum of the library: the word for each value, and its line of help.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::data::spec::Format;
use crate::export::Consumer;
use crate::export::gguf::FileType;
use crate::export::merge::Wanted;
use crate::import::Tool;
use crate::model::FloatDtype;
use crate::model::spec::{ComputeDtype, Offload};
use crate::run::inference::Quantize;

/// Makes an enum a set of option values, in the order of its lines. A variant without a line cannot be typed.
macro_rules! choices {
    ($type:ty: $($value:ident $(($inner:expr))? = $word:literal $(| $alias:literal)?, $help:literal;)+) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$value $(($inner))?),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                $(if *self == Self::$value $(($inner))? {
                    return Some(PossibleValue::new($word)$(.alias($alias))?.help($help));
                })+
                None
            }
        }
    };
}

choices! { FloatDtype:
    F32 = "f32", "32-bit floats";
    Bf16 = "bf16", "bfloat16";
    F16 = "f16", "IEEE half precision";
}

choices! { ComputeDtype:
    F32 = "f32", "32-bit floats";
    Bf16 = "bf16", "bfloat16";
    F16 = "f16", "IEEE half precision";
}

choices! { Offload:
    Auto = "auto", "Held where they fit";
    None = "none", "Held";
    Host = "host", "In host memory; on the CPU as none";
    Disk = "disk", "In a file of packed weights";
}

choices! { Quantize:
    Nf4 = "nf4", "4 bits per weight, as in QLoRA training";
    No = "none", "As stored";
}

choices! { Format:
    Messages = "messages", "Conversations";
    Alpaca = "alpaca", "instruction, input, output";
    PromptCompletion = "prompt-completion", "prompt, completion";
    Preference = "preference", "prompt, chosen, rejected";
    Feedback = "feedback", "prompt, completion, label";
    Text = "text", "text";
    Tokens = "tokens", "input_ids, labels";
}

choices! { Wanted:
    Original = "original", "The checkpoint's own weights";
    Nf4 = "nf4", "The weights quantized to NF4 and back, as in QLoRA training";
}

/// A program that `tune export --for` writes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// One that reads an adapter's folder.
    Adapter(Consumer),
    /// Ollama, which reads a GGUF file and its Modelfile.
    Ollama,
}

choices! { Program:
    Ollama = "ollama", "Ollama: a GGUF file of adapter and base in 4 bits, with its Modelfile";
    Adapter(Consumer::Vllm) = "vllm", "vLLM: one rank and one scaling for all modules";
    Adapter(Consumer::LlamaCpp) = "llama.cpp", "llama.cpp's convert_lora_to_gguf.py: scaling in `lora_alpha` alone (--gguf-lora needs no script)";
    Adapter(Consumer::Mlx) = "mlx", "mlx-lm: its own layout";
    Adapter(Consumer::MistralRs) = "mistralrs", "mistral.rs";
    Adapter(Consumer::Peft) = "peft", "Hugging Face PEFT";
}

choices! { FileType:
    F32 = "f32", "32-bit floats";
    F16 = "f16", "IEEE half precision";
    Bf16 = "bf16", "bfloat16";
    Q8_0 = "q8_0", "8 bits";
    Q6K = "q6_k", "6 bits";
    Q5KM = "q5_k_m", "5 bits, 6 where errors cost most";
    Q4KM = "q4_k_m", "4 bits, 6 where errors cost most; the usual choice";
    Q4_0 = "q4_0", "4 bits for all tensors";
}

choices! { Tool:
    Axolotl = "axolotl", "Axolotl";
    LlamaFactory = "llama-factory", "LLaMA-Factory";
    Trl = "trl" | "unsloth", "TRL, and Unsloth, which has the same settings";
    Torchtune = "torchtune", "torchtune";
}
