//! Words of a command line for a POSIX shell.

/// A word that a shell reads back as `word`: as it is, or in single quotes.
pub fn quoted(word: &str) -> String {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"_-./=:,@%+".contains(&byte) || !byte.is_ascii();
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A command line that can be typed as it stands.
pub fn command(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    words.into_iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for (word, typed) in [
            ("runs/a-b_c.toml", "runs/a-b_c.toml"),
            ("train.epochs=40", "train.epochs=40"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("model.base=\"x\"", "'model.base=\"x\"'"),
            ("$HOME", "'$HOME'"),
            ("~/x", "'~/x'"),
        ] {
            assert_eq!(quoted(word), typed);
        }
        assert_eq!(command(["tune", "run", "my recipe.toml"]), "tune run 'my recipe.toml'");
    }
}
