//! TensorBoard event files: the scalars of a run, written as they occur.
//!
//! A file is a sequence of TFRecords. Each is its payload's length (u64, little-endian), the masked CRC-32C of those
//! eight bytes, the payload, and the masked CRC-32C of the payload; the payload is an `Event` message of protocol
//! buffers (`tensorflow/core/util/event.proto`), of which the few fields used here are written by hand. Each session
//! of a run writes its own file; a resumed one first marks the step from which on it replaces earlier events. Knows
//! nothing of training.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files;
use crate::objective::statistics::Means;
use crate::train::event::{Event, Observer};

/// Folder of the event files in the run folder.
pub const FOLDER: &str = "tensorboard";
/// Largest number of sessions that start in the same second.
const MOST_FILES_A_SECOND: u32 = 1000;

/// An event file, open for appending.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Creates a new file in `folder`, under the name that TensorBoard looks for.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self, files::Error> {
        files::create_folder(folder)?;
        let seconds = now() as u64;
        for number in 0..MOST_FILES_A_SECOND {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.tune.{number:03}"));
            match files::create_new(&path) {
                Ok(file) => {
                    let mut created = Self { file, path };
                    created.write(0, &file_version())?;
                    return Ok(created);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(files::Error::io(files::Action::Create, &path)(error)),
            }
        }
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "too many event files of this second exist");
        Err(files::Error::io(files::Action::Create, folder)(taken))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks the events of `step` and later ones in earlier files as replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replaces_from(&mut self, step: u64) -> Result<(), files::Error> {
        self.write(step, &session_start())
    }

    /// Writes the scalars of one step, at one instant.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), files::Error> {
        self.write(step, &summary(scalars))
    }

    /// One record, in one call, so that a reader never sees half of it but for the end of the file.
    fn write(&mut self, step: u64, what: &[u8]) -> Result<(), files::Error> {
        let written = self.file.write_all(&record(&event(now(), step, what)));
        written.map_err(files::Error::io(files::Action::Write, &self.path))
    }
}

/// An [`Observer`] that writes an event file from the run's start on.
#[derive(Debug, Default)]
pub struct Recorder {
    file: Option<EventFile>,
    fault: Option<files::Error>,
}

impl Recorder {
    /// Why the events are incomplete, if they are. A full disk here does not stop training.
    pub fn fault(&self) -> Option<&files::Error> {
        self.fault.as_ref()
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) {
        if let (Some(file), None) = (&mut self.file, &self.fault) {
            self.fault = file.scalars(step, scalars).err();
        }
    }
}

impl Observer for Recorder {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Start(start) => {
                let opened = EventFile::create(&start.output_dir.join(FOLDER)).and_then(|mut file| {
                    if start.done_steps > 0 {
                        file.replaces_from(start.done_steps + 1)?;
                    }
                    Ok(file)
                });
                match opened {
                    Ok(file) => self.file = Some(file),
                    Err(error) => self.fault = Some(error),
                }
            }
            Event::Step { logged: Some(report), .. } => {
                let mut scalars = vec![
                    ("train/loss", report.loss),
                    ("train/learning_rate", report.learning_rate),
                    ("train/grad_norm", report.grad_norm),
                    ("train/epoch", report.epoch),
                    ("throughput/tokens", report.tokens as f64),
                    ("throughput/tokens_per_second", report.tokens_per_second),
                ];
                let memory = [
                    ("memory/peak_bytes", report.peak_memory_bytes),
                    ("memory/device_bytes", report.device_memory_bytes),
                    ("memory/device_reserved_bytes", report.device_reserved_bytes),
                ];
                scalars.extend(memory.into_iter().filter_map(|(name, bytes)| Some((name, bytes? as f64))));
                scalars.extend(report.experts.expert_load_max.map(|most| ("experts/load_max", most)));
                let answers = answers("train", report.answers.as_ref());
                scalars.extend(answers.iter().map(|(name, value)| (name.as_str(), *value)));
                self.scalars(report.step, &scalars);
            }
            Event::Evaluated(report) => {
                let answers = answers("eval", report.answers.as_ref());
                let answers = answers.iter().map(|(name, value)| (name.as_str(), *value));
                let scalars: Vec<_> = [("eval/loss", report.eval_loss)].into_iter().chain(answers).collect();
                self.scalars(report.step, &scalars);
            }
            _ => {}
        }
    }
}

/// Means over answers, under the names of `metrics.jsonl`.
fn answers(prefix: &str, means: Option<&Means>) -> Vec<(String, f64)> {
    let Some(means) = means else { return Vec::new() };
    let named = Means::NAMES.into_iter().zip(means.to_array());
    named.filter_map(|(name, value)| Some((format!("{prefix}/{name}"), value?))).collect()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Wire type of eight bytes.
const FIXED_64: u8 = 1;
/// Wire type of a length and so many bytes.
const DELIMITED: u8 = 2;
/// Wire type of four bytes.
const FIXED_32: u8 = 5;

/// An event: time, step and content.
fn event(wall_time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | FIXED_64];
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        event.extend(number(2, step));
    }
    event.extend(what);
    event
}

/// The first event of every file.
fn file_version() -> Vec<u8> {
    message(3, b"brain.Event:2")
}

/// The start of a session, which replaces earlier events of its step and later ones.
fn session_start() -> Vec<u8> {
    const START: u64 = 1;
    message(7, &number(1, START))
}

/// Named scalars.
fn summary(scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut entry = message(1, tag.as_bytes());
        entry.push(2 << 3 | FIXED_32);
        entry.extend((*value as f32).to_le_bytes());
        summary.extend(message(1, &entry));
    }
    message(5, &summary)
}

/// A varint field.
fn number(field: u8, value: u64) -> Vec<u8> {
    let mut bytes = vec![field << 3];
    bytes.extend(varint(value));
    bytes
}

/// A field of bytes: text, or a message.
fn message(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | DELIMITED];
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A payload in its frame.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(payload.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(masked_crc(payload).to_le_bytes());
    bytes
}

/// The checksum as TFRecords store it: rotated and shifted, since a checksum of data that holds checksums is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: the payloads are a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values of RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// `tests/golden/tensorboard_events.py` writes the same three events with TensorBoard's own writer.
    #[test]
    fn the_bytes_are_tensorboards() {
        let at = 1_700_000_000.25;
        let scalars = summary(&[("train/loss", 2.5), ("train/learning_rate", 1e-3)]);
        let events =
            [event(at, 0, &file_version()), event(at, 301, &session_start()), event(at, 301, &scalars)];
        let ours: Vec<u8> = events.iter().flat_map(|event| record(event)).collect();
        assert_eq!(ours, include_bytes!("../tests/golden/tensorboard/events.tfevents"));
    }

    #[test]
    fn numbers_are_written_seven_bits_at_a_time() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }
}
