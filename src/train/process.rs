//! The memory of this process and of its machine, as the system reports it.

use crate::train::cgroup;

/// Largest resident set of this process so far in bytes; `None` if the system does not report it.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes_field("/proc/self/status", "VmHWM:")
}

/// Resident set of this process in bytes; `None` if the system does not report it.
pub fn resident_bytes() -> Option<u64> {
    kilobytes_field("/proc/self/status", "VmRSS:")
}

/// Memory available to this process without swapping, in bytes: that of the machine, or less in a container with a
/// limit; `None` if the system does not report it.
pub fn available_bytes() -> Option<u64> {
    least(kilobytes_field("/proc/meminfo", "MemAvailable:"), cgroup::own().available)
}

/// Memory of the machine in bytes, or the container's limit if that is less; `None` if the system does not report it.
pub fn total_bytes() -> Option<u64> {
    least(kilobytes_field("/proc/meminfo", "MemTotal:"), cgroup::own().limit)
}

fn least(machine: Option<u64>, container: Option<u64>) -> Option<u64> {
    machine.into_iter().chain(container).min()
}

fn kilobytes_field(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resident_process_has_memory() {
        if cfg!(target_os = "linux") {
            assert!(resident_bytes() <= peak_resident_bytes());
            assert!(available_bytes() > Some(0));
            assert!(available_bytes() <= total_bytes());
        }
    }
}
