//! A recipe written out: the resolved text that is saved with a run, and the hash that identifies it.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::document::Writer;

use super::Recipe;
use super::keys::{TOP, Top, Version};

impl Recipe {
    /// The recipe as TOML with every default written out; read again, it is the same recipe.
    pub fn to_toml(&self) -> String {
        let head =
            concat!("# Resolved by tune ", env!("CARGO_PKG_VERSION"), ": every default written out.\n\n");
        format!("{head}{}", self.write(Writer::everything()))
    }

    /// SHA-256, in hexadecimal, of everything in the recipe that can change the adapter.
    ///
    /// The order of keys and tables, comments, spelled-out defaults and the way a value came in (file or
    /// override) make no difference, and neither do keys that are declared as bookkeeping.
    pub fn sha256(&self) -> String {
        let digest = Sha256::digest(self.essentials());
        digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
    }

    /// The canonical text that the hash is made of, which [`differences`](super::differences) reads.
    pub fn essentials(&self) -> String {
        self.write(Writer::canonical())
    }

    fn write(&self, mut writer: Writer) -> String {
        let output_dir = Some(self.output_dir.clone());
        let mut top = Top { version: Some(Version), output_dir, seed: self.seed, device: self.device };
        TOP.write(&mut top, &mut writer);
        self.model.write(&mut writer);
        if let Some(quantization) = &self.quantization {
            quantization.write(&mut writer);
        }
        self.adapter.write(&mut writer);
        self.objective.write(&mut writer);
        self.data.write(&mut writer);
        for dataset in &self.datasets {
            dataset.write(&mut writer);
        }
        self.train.write(&mut writer);
        self.gate.write(&mut writer);
        self.sample.write(&mut writer);
        writer.finish()
    }
}
