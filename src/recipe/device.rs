//! `device = "…"`: what a run computes on, by name. Whether the machine has it is checked where it is opened.

use std::fmt;
use std::str::FromStr;

use crate::document::{Kind, Parsed, Shaped, Value, ValueError, Written, alternatives};

/// What a run computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The best device of the machine.
    Auto,
    /// This device.
    Named(DeviceId),
}

/// One device. GPUs of a kind are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceId {
    /// The processor.
    Cpu,
    /// A GPU through CUDA.
    Cuda(usize),
    /// A GPU through Vulkan.
    Vulkan(usize),
    /// The GPU of a Mac.
    Metal,
}

/// The names of devices.
const FORMS: &str = "auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal";

/// A text that is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a device{hint}; the choices are {FORMS}")]
pub struct NoDeviceName {
    text: String,
    hint: &'static str,
}

impl FromStr for DeviceSpec {
    type Err = NoDeviceName;

    fn from_str(text: &str) -> Result<Self, NoDeviceName> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number)),
            None => (text, None),
        };
        // Digits alone: `+1` and ` 1` are slips.
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let index = match number {
            None => Some(0),
            Some(number) if is_number(number) => number.parse().ok().filter(|index| *index < 256),
            Some(_) => None,
        };
        let id = match (kind, index, number) {
            ("auto", _, None) => return Ok(Self::Auto),
            ("cpu", _, None) => Some(DeviceId::Cpu),
            ("metal", _, None) => Some(DeviceId::Metal),
            ("cuda", Some(index), _) => Some(DeviceId::Cuda(index)),
            ("vulkan", Some(index), _) => Some(DeviceId::Vulkan(index)),
            _ => None,
        };
        id.map(Self::Named).ok_or_else(|| NoDeviceName { text: text.to_owned(), hint: hint(kind) })
    }
}

/// The device that another tool's name means here.
fn hint(kind: &str) -> &'static str {
    match kind.to_lowercase().as_str() {
        "gpu" | "nvidia" => ": an NVIDIA GPU is `cuda`, or `vulkan` without the CUDA toolkit",
        "rocm" | "hip" | "amd" | "xpu" | "intel" | "wgpu" => ": GPUs of AMD and Intel are `vulkan`",
        "mps" | "apple" => ": a Mac's GPU is `metal`",
        "cuda" | "vulkan" => ": its index is a whole number from 0 to 255, as in `cuda:1`",
        "cpu" | "auto" | "metal" => ": it is written in lower case and takes no index",
        _ => "",
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Named(id) => id.fmt(formatter),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::Vulkan(index) => write!(formatter, "vulkan:{index}"),
            Self::Metal => formatter.write_str("metal"),
        }
    }
}

impl Parsed for DeviceSpec {
    fn expected() -> String {
        alternatives(FORMS.split(", ").map(|form| format!("\"{form}\"")))
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({"type": "string", "pattern": "^(auto|cpu|metal|(cuda|vulkan)(:[0-9]+)?)$"})
    }

    fn read(value: &Value) -> Shaped<Self> {
        match &value.kind {
            Kind::String(text) => text.parse().map_err(|error: NoDeviceName| {
                let NoDeviceName { text, hint } = error;
                let error = ValueError::new(value, format!("`{text}` is not a device{hint}"), "not a device");
                vec![error.help(format!("the choices are {FORMS}"))]
            }),
            Kind::Broken => Err(Vec::new()),
            kind => {
                let error =
                    ValueError::new(value, format!("expected a device, found {}", kind.noun()), kind.noun());
                Err(vec![error.help(format!("the choices are {FORMS}"))])
            }
        }
    }

    fn written(&self) -> String {
        self.to_string().written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let named = |id| Ok(DeviceSpec::Named(id));
        for (text, expected) in [
            ("auto", Ok(DeviceSpec::Auto)),
            ("cpu", named(DeviceId::Cpu)),
            ("cuda", named(DeviceId::Cuda(0))),
            ("cuda:3", named(DeviceId::Cuda(3))),
            ("vulkan", named(DeviceId::Vulkan(0))),
            ("vulkan:1", named(DeviceId::Vulkan(1))),
            ("metal", named(DeviceId::Metal)),
        ] {
            let parsed = text.parse::<DeviceSpec>();
            assert_eq!(parsed, expected, "{text}");
            let written = parsed.unwrap().to_string();
            assert_eq!(written.parse::<DeviceSpec>(), expected, "{written}");
        }
    }

    #[test]
    fn wrong_devices_are_explained() {
        for (text, hint) in [
            ("gpu", "`cuda`"),
            ("CUDA", "the choices are"),
            ("cuda:", "whole number"),
            ("cuda:-1", "whole number"),
            ("cuda:+1", "whole number"),
            ("vulkan:999999999999999999999", "whole number"),
            ("cpu:1", "takes no index"),
            ("mps", "`metal`"),
            ("", "the choices are"),
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
