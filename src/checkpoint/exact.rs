//! Floats as text in JSON: the shortest text that parses to exactly the same number, NaN included.
//!
//! serde_json may parse a number one unit in the last place off, and cannot represent NaN; a resumed run needs the
//! exact number.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes a float as text.
///
/// # Errors
/// Errors of the serializer.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:?}"))
}

/// Reads a float from text.
///
/// # Errors
/// The text is not a number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("`{text}` is not a number")))
}

/// The same for a float that may be absent.
pub mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Exact(#[serde(with = "super")] f64);

    /// Writes a float as text, or null.
    ///
    /// # Errors
    /// Errors of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Exact).serialize(serializer)
    }

    /// Reads a float from text, or null.
    ///
    /// # Errors
    /// It is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Exact>::deserialize(deserializer)?.map(|exact| exact.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Sample {
        #[serde(with = "super")]
        one: f64,
        #[serde(with = "super::optional")]
        other: Option<f64>,
    }

    fn read_back(one: f64, other: Option<f64>) -> Sample {
        serde_json::from_slice(&serde_json::to_vec(&Sample { one, other }).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn every_float_comes_back_bit_for_bit(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            let read = read_back(value, Some(value));
            for read in [read.one, read.other.unwrap()] {
                prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()));
            }
        }
    }

    #[test]
    fn nothing_stays_nothing_and_other_text_is_refused() {
        assert!(read_back(0.5, None).other.is_none());
        assert!(serde_json::from_str::<Sample>(r#"{"one": "half", "other": null}"#).is_err());
        assert!(serde_json::from_str::<Sample>(r#"{"one": 0.5, "other": null}"#).is_err());
    }
}
