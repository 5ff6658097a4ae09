//! Results over rows: answers extracted from texts, shares and means with their confidence intervals.

use regex::Regex;
use serde::Serialize;

/// The 97.5 % quantile of the normal distribution: intervals are of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// Finds the answer in a text.
#[derive(Clone, Debug)]
pub struct Extraction(Regex);

impl Extraction {
    /// The first match of `pattern` is the answer: its first group where it has one.
    ///
    /// # Errors
    /// The message of a pattern that is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self, String> {
        Regex::new(pattern).map(Self).map_err(|error| error.to_string())
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        self.0.as_str()
    }

    /// The answer in a text, normalized for comparison: without commas and a final full stop.
    pub fn find(&self, text: &str) -> Option<String> {
        let found = self.0.captures(text)?;
        let found = found.get(1).or(found.get(0))?.as_str();
        let plain: String = found.chars().filter(|character| *character != ',').collect();
        Some(plain.trim().trim_end_matches('.').to_owned())
    }
}

/// A share of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Rows that have the property.
    pub count: u64,
    /// All rows.
    pub of: u64,
    /// `count / of`.
    pub share: f64,
    /// Lower end of the 95 % confidence interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Share {
    /// With Wilson's interval: Wilson, *Probable inference, the law of succession, and statistical inference* (1927).
    pub fn new(count: u64, of: u64) -> Self {
        if of == 0 {
            return Self { high: 1.0, ..Self::default() };
        }
        let (n, share) = (of as f64, count as f64 / of as f64);
        let middle = share + Z * Z / (2.0 * n);
        let margin = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        let (low, high) = ((middle - margin) / scale, (middle + margin) / scale);
        Self { count, of, share, low: low.max(0.0), high: high.min(1.0) }
    }
}

/// Sums of loss over rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Losses {
    /// (Σ nll, supervised tokens) of each row.
    rows: Vec<(f64, u64)>,
}

/// A loss over supervised tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// Σ nll / supervised tokens, over all rows.
    pub loss: f64,
    /// e^loss.
    pub perplexity: f64,
    /// Half the width of the 95 % confidence interval over rows like these; `None` for a single row.
    pub margin: Option<f64>,
}

impl Losses {
    /// Adds a row.
    pub(super) fn push(&mut self, sum: f64, tokens: u64) {
        self.rows.push((sum, tokens));
    }

    /// All rows together. The interval is that of a ratio of sums over rows drawn independently: rows differ, and tokens
    /// of one row are not independent.
    pub(super) fn together(&self) -> Loss {
        let sum: f64 = self.rows.iter().map(|(sum, _)| sum).sum();
        let tokens = self.rows.iter().map(|(_, tokens)| tokens).sum::<u64>().max(1) as f64;
        let loss = sum / tokens;
        let n = self.rows.len() as f64;
        let margin = (self.rows.len() > 1).then(|| {
            let residual = |(sum, tokens): &(f64, u64)| (sum - loss * *tokens as f64).powi(2);
            let variance: f64 = self.rows.iter().map(residual).sum::<f64>() * n / (n - 1.0);
            Z * variance.sqrt() / tokens
        });
        Loss { loss, perplexity: loss.exp(), margin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_is_the_answer() {
        let gsm8k = Extraction::new(crate::run::evaluate::GSM8K_ANSWER).unwrap();
        assert_eq!(gsm8k.find("so 5 + 1,229 =\n#### 1,234.").as_deref(), Some("1234"));
        assert_eq!(gsm8k.find("#### -3\n#### 4").as_deref(), Some("-3"));
        assert_eq!(gsm8k.find("#### 2.50").as_deref(), Some("2.50"));
        assert_eq!(gsm8k.find("the answer is 4"), None);
        assert_eq!(Extraction::new("(?i)yes|no").unwrap().find("I say No!").as_deref(), Some("No"));
        assert!(Extraction::new("(").is_err());
    }

    #[test]
    fn intervals_are_those_of_the_textbook() {
        // 8 of 10: 0.4902 to 0.9433; none of 20 still leaves 0 to 0.1611.
        let share = Share::new(8, 10);
        assert!((share.low - 0.490_162).abs() < 1e-6 && (share.high - 0.943_318).abs() < 1e-6, "{share:?}");
        let none = Share::new(0, 20);
        assert!(none.low == 0.0 && (none.high - 0.161_125).abs() < 1e-6, "{none:?}");
        assert_eq!((Share::new(0, 0).low, Share::new(0, 0).high), (0.0, 1.0));
    }

    #[test]
    fn a_loss_weighs_tokens() {
        let mut losses = Losses::default();
        losses.push(10.0, 10);
        assert_eq!(losses.together().margin, None);
        losses.push(6.0, 2);
        let loss = losses.together();
        assert_eq!(loss.loss, 16.0 / 12.0);
        assert_eq!(loss.perplexity, (16.0_f64 / 12.0).exp());
        // Residuals −10/3 and 10/3: Z · √(2 · 2 · 100/9) / 12.
        let expected = Z * (400.0_f64 / 9.0).sqrt() / 12.0;
        assert!((loss.margin.unwrap() - expected).abs() < 1e-12);
    }
}
