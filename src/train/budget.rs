//! Budgets of a run, `train.max_time` and `train.max_tokens`: the run ends early, with a checkpoint and its adapter.
//!
//! Tokens are counted over the whole run, resumed or not, so that a run bounded by them always ends at the same step.
//! Time is that of one command: a run that is resumed gets it anew, and one that is replayed ends behind the step that
//! the first one ended behind.

use std::time::{Duration, Instant};

use crate::document::{Kind, Parsed, Shaped, Value, ValueError, Written};

/// Longer than any run; every sum of times stays far from overflow.
const LONGEST: u64 = 10 * 365 * 24 * 3600;
/// More tokens than any run reads.
pub(super) const MOST_TOKENS: u64 = 1_000_000_000_000_000;
const EXAMPLE: &str = "write it as \"90s\", \"45m\", \"2h\" or \"1h30m\"";

/// Limits at which a run ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Wall-clock time of one command, loading included. The step under way is finished, and so are the last
    /// evaluation and the adapter.
    pub max_time: Option<Duration>,
    /// Tokens read, whether supervised or not. The run ends behind the step that reaches it.
    pub max_tokens: Option<u64>,
}

/// A budget that ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// `train.max_time`.
    Time,
    /// `train.max_tokens`.
    Tokens,
}

/// When `train.max_time` is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Never: the recipe has no `max_time`.
    Still,
    /// At a moment, but not before the command has made a step.
    Until(Instant),
    /// After this optimizer step, at which the replayed run ended.
    Replayed(u64),
}

impl Clock {
    /// The clock of a command that began at `began`.
    pub fn of(max_time: Option<Duration>, began: Instant) -> Self {
        max_time.and_then(|time| began.checked_add(time)).map_or(Self::Still, Self::Until)
    }

    /// Whether the time is spent after `step`; `has_stepped`: this command has made a step.
    pub(super) fn is_spent(self, step: u64, has_stepped: bool) -> bool {
        match self {
            Self::Still => false,
            Self::Until(moment) => has_stepped && Instant::now() >= moment,
            Self::Replayed(last) => step >= last,
        }
    }
}

impl Spent {
    /// The recipe's key.
    pub fn key(self) -> &'static str {
        match self {
            Self::Time => "max_time",
            Self::Tokens => "max_tokens",
        }
    }
}

/// A time such as `"1h30m"`: numbers with units from large to small, each at most once.
impl Parsed for Duration {
    fn expected() -> String {
        "time such as \"45m\" or \"1h30m\"".to_owned()
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({"type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2})
    }

    fn read(value: &Value) -> Shaped<Self> {
        duration(value)
    }

    fn written(&self) -> String {
        written(*self).written()
    }
}

fn duration(value: &Value) -> Shaped<Duration> {
    let error = |message: &str| vec![ValueError::new(value, message, "not a time").help(EXAMPLE)];
    let text = match &value.kind {
        Kind::String(text) => text.trim(),
        Kind::Broken => return Err(Vec::new()),
        _ => return Err(error("expected a time with a unit, as a string")),
    };
    parse(text).map_err(error)
}

/// A time such as `1h30m`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "a time is a number and a unit: d, h, m or s";
    let mut rest = text;
    let mut seconds = 0_u64;
    let mut smallest = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let unit = match behind.chars().next() {
            Some('d') => 24 * 3600,
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(FORM),
        };
        let number: u64 = number.parse().map_err(|_| FORM)?;
        if unit >= smallest {
            return Err("units go from large to small, each once");
        }
        smallest = unit;
        seconds = number
            .checked_mul(unit)
            .and_then(|more| seconds.checked_add(more))
            .filter(|seconds| *seconds <= LONGEST)
            .ok_or("longer than ten years")?;
        rest = &behind[1..];
    }
    match seconds {
        0 => Err("the time must be above zero"),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// The canonical spelling, which reads back to the same time.
fn written(duration: Duration) -> String {
    let mut text = String::new();
    let mut seconds = duration.as_secs();
    for (unit, name) in [(24 * 3600, 'd'), (3600, 'h'), (60, 'm'), (1, 's')] {
        if seconds >= unit {
            text += &format!("{}{name}", seconds / unit);
            seconds %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Source, parse_value};

    fn read(text: &str) -> Result<u64, String> {
        let source = Source::new(0, "test", format!("\"{text}\""));
        let (value, _) = parse_value(&source, 0..text.len() + 2).unwrap();
        duration(&value).map(|time| time.as_secs()).map_err(|errors| format!("{errors:?}"))
    }

    #[test]
    fn times_are_numbers_with_units() {
        for (text, seconds) in [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("1d1s", 86_401)] {
            assert_eq!(read(text), Ok(seconds), "{text}");
            assert_eq!(read(&written(Duration::from_secs(seconds))), Ok(seconds), "{text}");
        }
        for text in
            ["", "90", "m", "1.5h", "30m1h", "1h1h", "0s", "-1s", "99999999999999999999s", "20000d", "5 m"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
