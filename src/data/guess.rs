//! The format of files whose user has not named one: by their columns, or the keys of their first row.

use std::collections::BTreeMap;

use super::schema::usual_names;
use super::spec::Format;

/// What each format is known by, the most telling first: fields that must be there, under their own or a usual name.
const KNOWN_BY: [(Format, &[&str]); 7] = [
    (Format::Messages, &["messages"]),
    (Format::Preference, &["chosen", "rejected"]),
    (Format::Feedback, &["completion", "label"]),
    (Format::Tokens, &["input_ids"]),
    (Format::PromptCompletion, &["prompt", "completion"]),
    (Format::Alpaca, &["instruction", "output"]),
    (Format::Text, &["text"]),
];

/// A format, and the columns of its fields where they have other names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The format.
    pub format: Format,
    /// Our field → their column.
    pub fields: BTreeMap<String, String>,
}

/// The format of rows with these columns; `None` if they fit none.
pub fn guess(columns: &[String]) -> Option<Guess> {
    let fitting = |(format, needed): &(Format, &[&str])| {
        let mut fields = BTreeMap::new();
        let mut own = 0;
        for field in *needed {
            let names = |name: &&str| columns.iter().any(|column| column == name);
            // ShareGPT's name is read as it is.
            let aliases: &[&str] = if *field == "messages" { &["conversations"] } else { &[] };
            if std::iter::once(field).chain(aliases).any(names) {
                own += 1;
                continue;
            }
            let theirs = usual_names(field)
                .iter()
                .find(|name| names(name) && !fields.values().any(|known| known == *name))?;
            fields.insert((*field).to_owned(), (*theirs).to_owned());
        }
        Some((own, Guess { format: *format, fields }))
    };
    let mut fitting: Vec<(usize, Guess)> = KNOWN_BY.iter().filter_map(fitting).collect();
    // Names of our own tell more than usual ones; among equals the order above decides.
    fitting.sort_by_key(|(own, guess)| (guess.fields.len(), usize::MAX - own));
    fitting.into_iter().next().map(|(_, guess)| guess)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Word;

    #[test]
    fn columns_tell_the_format() {
        let guessed = |columns: &[&str]| {
            let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
            guess(&columns).map(|guess| {
                let fields: Vec<String> =
                    guess.fields.iter().map(|(ours, theirs)| format!("{ours}={theirs}")).collect();
                format!("{} {}", guess.format.word(), fields.join(" ")).trim_end().to_owned()
            })
        };
        for (columns, expected) in [
            (&["id", "messages"][..], "messages"),
            (&["conversations"], "messages"),
            (&["instruction", "input", "output"], "alpaca"),
            (&["question", "answer"], "prompt-completion completion=answer prompt=question"),
            (&["prompt", "completion"], "prompt-completion"),
            (&["prompt", "response"], "prompt-completion completion=response"),
            (&["prompt", "chosen", "rejected"], "preference"),
            (&["prompt", "completion", "label"], "feedback"),
            (&["text"], "text"),
            (&["body", "url"], "text text=body"),
            (&["input_ids", "labels"], "tokens"),
        ] {
            assert_eq!(guessed(columns).as_deref(), Some(expected), "{columns:?}");
        }
        assert_eq!(guessed(&["a", "b"]), None);
    }
}
