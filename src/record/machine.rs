//! The machine of a run, as far as it affects speed or results. Contains no host or user name.

use std::thread;

use serde::{Deserialize, Serialize};

use crate::train::process;

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
    /// Model of the processor, if the system reports it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub processor: Option<String>,
    /// Instruction sets that the kernels choose between.
    pub processor_features: Vec<String>,
    /// Number of hardware threads.
    pub threads: u64,
    /// Total memory in bytes, or the limit of the container; `None` if the system does not report it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processor: processor(),
            processor_features: processor_features().into_iter().map(str::to_owned).collect(),
            threads: thread::available_parallelism().map_or(1, |threads| threads.get() as u64),
            memory_bytes: process::total_bytes(),
        }
    }
}

fn processor() -> Option<String> {
    let line = field("/proc/cpuinfo", "model name")?;
    Some(line.trim_start_matches([':', ' ', '\t']).to_owned())
}

/// The rest of the first line that starts with `name`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

/// The instruction sets of this processor that can change which kernels run.
pub(super) fn processor_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
        ];
        found.extend(known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let known = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ];
        found.extend(known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name));
    }
    found
}
