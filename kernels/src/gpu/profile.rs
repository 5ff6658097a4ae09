//! Time by kernel, by the device's own clock.
//!
//! CubeCL times each launch by itself when this is set before a device is started ([`super::configure`]), which makes
//! every launch wait for the one before, and writes a table of what ran since the last one at each wait for the
//! device. That table is a file's text: this module reads it back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the file may stay unchanged before it counts as complete.
const QUIET: Duration = Duration::from_millis(500);

/// How long to wait for the next table before giving up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Launches and time of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTime {
    /// Its name in the source.
    pub name: String,
    /// How often it was launched.
    pub launches: u64,
    /// Time of all its launches.
    pub time: Duration,
}

/// The file that launches are timed into.
#[derive(Debug)]
pub struct Profile {
    file: PathBuf,
    read: usize,
}

impl Profile {
    /// Of the file that was given to [`super::configure`].
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_path_buf(), read: 0 }
    }

    /// The kernels since the last call, the longest first. The caller has waited for the device.
    ///
    /// # Errors
    /// The file cannot be read, or does not come to an end within some seconds.
    pub fn take(&mut self) -> io::Result<Vec<KernelTime>> {
        let mut seen = 0;
        let mut changed = Instant::now();
        loop {
            let bytes = match fs::read(&self.file) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            if bytes.len() != seen {
                (seen, changed) = (bytes.len(), Instant::now());
            } else if changed.elapsed() > QUIET
                && let Some(kernels) =
                    tables(&String::from_utf8_lossy(bytes.get(self.read..).unwrap_or_default()))
            {
                self.read = seen;
                return Ok(kernels);
            }
            if changed.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the device's times did not come"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The rows of all tables; `None` where the text does not end with a whole one.
fn tables(text: &str) -> Option<Vec<KernelTime>> {
    if !text.trim_end().ends_with("⎯|") {
        return None;
    }
    let mut rows: Vec<KernelTime> = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        // A name is what is left of the three last cells, types and all.
        let [path @ .., time, launches, share] = &cells[..] else { continue };
        match path {
            [first, types @ ..] if *first != "Total" && share.ends_with('%') => {
                let (Some(time), Ok(launches)) = (duration(time), launches.parse()) else { continue };
                let name = short_name(first, types);
                match rows.iter_mut().find(|row| row.name == name) {
                    Some(row) => {
                        row.launches += launches;
                        row.time += time;
                    }
                    None => rows.push(KernelTime { name, launches, time }),
                }
            }
            _ => {}
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.time));
    Some(rows)
}

/// A kernel's own name, and of a product's many type parameters the two that say which algorithm it is.
fn short_name(name: &str, types: &[&str]) -> String {
    let own = name.strip_suffix("Kernel").unwrap_or(name);
    let algorithm: Vec<_> =
        types.iter().filter_map(|part| part.strip_suffix("MatmulFamily")).take(2).collect();
    match algorithm[..] {
        [] => own.to_owned(),
        _ => format!("{own} ({})", algorithm.join(", ")),
    }
}

/// A time as Rust's `Debug` writes it.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(unit);
    let nanoseconds = match unit {
        "s" => 1e9,
        "ms" => 1e6,
        "µs" => 1e3,
        "ns" => 1.0,
        _ => return None,
    };
    Some(Duration::from_nanos((number.parse::<f64>().ok()? * nanoseconds).round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_back() {
        let table =
            |rows: &str| format!("|⎺⎺| \n| Name | Duration | Num Computed | Ratio |\n|⎼⎼| \n{rows}|⎼⎼| \n");
        let rows = "| AdamwKernel | WgpuRuntime | 1.5ms | 3 | 60 % |\n| rope  | 900ns | 2 | 40 % |\n";
        let first = format!("| 1.2ms      | adamw\n{}", table(rows));
        assert_eq!(tables(&first), None);
        let whole = format!("{first}| Total | 1.5009ms | 5 | 100 % |\n|⎯⎯| \n\n");
        let kernel = |name: &str, launches, nanoseconds| KernelTime {
            name: name.into(),
            launches,
            time: Duration::from_nanos(nanoseconds),
        };
        assert_eq!(tables(&whole), Some(vec![kernel("Adamw", 3, 1_500_000), kernel("rope", 2, 900)]));
        // A table that is not whole yet is waited for; whole, it adds to the first.
        let more =
            format!("{whole}{}", table("| swiglu | 12.25µs | 1 | 90 % |\n| rope | 100ns | 1 | 10 % |\n"));
        assert_eq!(tables(&more), None);
        let more = format!("{more}| Total | 12.35µs | 2 | 100 % |\n|⎯⎯| \n");
        let expected = [kernel("Adamw", 3, 1_500_000), kernel("swiglu", 1, 12_250), kernel("rope", 3, 1000)];
        assert_eq!(tables(&more).as_deref(), Some(&expected[..]));
        let product = ["Args", "SimpleMatmulFamily", "UnitMatmulFamily", "Option", "OtherMatmulFamily"];
        assert_eq!(short_name("MatmulEntry", &product), "MatmulEntry (Simple, Unit)");
        assert_eq!(duration("2.5s"), Some(Duration::from_millis(2500)));
        assert_eq!(duration("fast"), None);
    }
}
