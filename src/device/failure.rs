//! Failures of a device, recognised from the messages of GPU runtimes, which report lack of memory in many ways.

use crate::units::Bytes;

/// A failure of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Out of memory.
    #[error("{device} is out of memory{}", wanted(*bytes))]
    OutOfMemory {
        /// The device.
        device: String,
        /// Size of the requested buffer in bytes, if the runtime reports it.
        bytes: Option<u64>,
    },
    /// Anything else.
    #[error("{device} failed: {message}")]
    Broken {
        /// The device.
        device: String,
        /// The runtime's message.
        message: String,
    },
}

fn wanted(bytes: Option<u64>) -> String {
    bytes.map_or(String::new(), |bytes| format!(": cannot allocate a buffer of {}", Bytes(bytes)))
}

/// What follows the size in wgpu's message for a buffer that is too large; it says "Buffer size" of other faults too.
const TOO_LARGE: &str = "is greater than the maximum buffer size";

/// Messages of drivers and runtimes for lack of memory, in lower case and without separators.
const OUT_OF_MEMORY: [&str; 4] = ["outofmemory", "outofdevicememory", "outofhostmemory", "notenoughmemory"];

impl Failed {
    /// Classifies a runtime's message.
    pub fn new(device: String, said: &str) -> Self {
        let after = |before: &str| said.split_once(before).map(|(_, rest)| rest);
        let size = after("can't allocate buffer of size: ")
            .or_else(|| after("Buffer size ").filter(|rest| rest.contains(TOO_LARGE)));
        if let Some(rest) = size {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return Self::OutOfMemory { device, bytes: digits.parse().ok() };
        }
        let bare: String =
            said.chars().filter(|character| character.is_alphanumeric()).collect::<String>().to_lowercase();
        if OUT_OF_MEMORY.iter().any(|words| bare.contains(words)) {
            return Self::OutOfMemory { device, bytes: None };
        }
        Self::Broken { device, message: without_backtrace(said) }
    }
}

/// Joins a message into one line, without the stack frames that runtimes append.
fn without_backtrace(said: &str) -> String {
    let is_frame = |line: &str| {
        let (number, _) = line.split_once(':').unwrap_or(("", ""));
        (!number.is_empty() && number.chars().all(|character| character.is_ascii_digit()))
            || line.starts_with("No backtrace")
            || line.starts_with("stack backtrace")
            || line.starts_with("BackTrace")
    };
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take_while(|line| !is_frame(line)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_be_out_of_memory_is_one() {
        let of = |said: &str| Failed::new("cuda:0".into(), said);
        let cubecl = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 188743680\n\
                      No backtrace available";
        assert_eq!(of(cubecl).to_string(), "cuda:0 is out of memory: cannot allocate a buffer of 180.00 MiB");
        let wgpu = "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_buffer\n    Buffer size 2147483648 is \
                    greater than the maximum buffer size (1073741824)";
        assert_eq!(of(wgpu).to_string(), "cuda:0 is out of memory: cannot allocate a buffer of 2.00 GiB");
        for said in [
            "wgpu error: Out of Memory",
            "CUDA allocation error: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "VK_ERROR_OUT_OF_DEVICE_MEMORY",
            "wgpu error: Validation Error\n\nCaused by:\n  Not enough memory left",
        ] {
            assert_eq!(of(said), Failed::OutOfMemory { device: "cuda:0".into(), bytes: None }, "{said}");
        }
        let unaligned = "wgpu error: Validation Error\n\nCaused by:\n  Buffer size 10 is not a multiple of 4";
        assert!(matches!(of(unaligned), Failed::Broken { .. }));
        let lost = of(
            "wgpu error: Validation Error\n\nCaused by:\n  Parent device is lost\n   0: rust_begin_unwind\n",
        );
        assert_eq!(
            lost.to_string(),
            "cuda:0 failed: wgpu error: Validation Error Caused by: Parent device is lost"
        );
    }
}
