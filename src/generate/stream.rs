//! Text as it comes: pieces of an answer that can be printed at once and together are the whole.
//!
//! A token may hold part of a character, and a decoder may treat the first token it is given differently from
//! the rest (sentencepiece drops its leading space). So the new tokens are decoded together with the last ones
//! printed, and nothing is given out while the end is a broken character. Knows a function from ids to text;
//! refuses to know tokenizers.

/// Decodes ids one by one.
#[derive(Debug)]
pub struct TextStream<F> {
    decode: F,
    ids: Vec<u32>,
    /// The first id decoded along for the sake of those after it.
    context: usize,
    /// Ids whose text has been given out.
    printed: usize,
}

impl<E, F: FnMut(&[u32]) -> Result<String, E>> TextStream<F> {
    /// A stream over `decode`, which turns ids into text and bytes that are no text into U+FFFD.
    pub fn new(decode: F) -> Self {
        Self { decode, ids: Vec::new(), context: 0, printed: 0 }
    }

    /// The text that one more id completes; often empty.
    ///
    /// # Errors
    /// As the decoding function.
    pub fn push(&mut self, id: u32) -> Result<String, E> {
        self.ids.push(id);
        let before = (self.decode)(&self.ids[self.context..self.printed])?;
        let after = (self.decode)(&self.ids[self.context..])?;
        match after.strip_prefix(&before) {
            Some(new) if !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER) => {
                self.context = self.printed;
                self.printed = self.ids.len();
                Ok(new.to_owned())
            }
            _ => Ok(String::new()),
        }
    }

    /// What was held back, broken characters and all.
    ///
    /// # Errors
    /// As the decoding function.
    pub fn finish(mut self) -> Result<String, E> {
        let before = (self.decode)(&self.ids[self.context..self.printed])?;
        let after = (self.decode)(&self.ids[self.context..])?;
        let common = before.chars().zip(after.chars()).take_while(|(left, right)| left == right);
        let length: usize = common.map(|(character, _)| character.len_utf8()).sum();
        Ok(after[length..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// A tokenizer whose ids are bytes.
    fn bytes(ids: &[u32]) -> Result<String, Infallible> {
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A tokenizer of words, each with a space before it that is dropped in front, as sentencepiece does.
    fn words(ids: &[u32]) -> Result<String, Infallible> {
        let text: String = ids.iter().map(|id| format!(" w{id}")).collect();
        Ok(text.trim_start().to_owned())
    }

    fn pieces(decode: fn(&[u32]) -> Result<String, Infallible>, ids: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(decode);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    fn ids(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|&byte| u32::from(byte)).collect()
    }

    #[test]
    fn a_character_comes_whole() {
        assert_eq!(pieces(bytes, &ids("aé🙂b".as_bytes())), ["a", "", "é", "", "", "", "🙂", "b", ""]);
    }

    #[test]
    fn spaces_between_words_are_kept() {
        assert_eq!(pieces(words, &[1, 2, 3]), ["w1", " w2", " w3", ""]);
    }

    #[test]
    fn a_broken_end_is_shown_at_the_end() {
        assert_eq!(pieces(bytes, &ids(b"a\xf0\x9f")), ["a", "", "", "\u{fffd}"]);
        assert_eq!(pieces(bytes, &ids(b"\xf0\x9fa")), ["", "", "\u{fffd}a", ""]);
        assert_eq!(pieces(bytes, &[]), [""]);
    }

    #[test]
    fn errors_pass_through() {
        let mut stream = TextStream::new(|_: &[u32]| Err::<String, _>("no"));
        assert_eq!(stream.push(1), Err("no"));
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(text in "[a-cé🙂\u{fffd}]{0,12}", noise in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mixed = [text.as_bytes(), &noise, text.as_bytes()].concat();
            prop_assert_eq!(pieces(bytes, &ids(&mixed)).concat(), String::from_utf8_lossy(&mixed));
            // Of text that is not broken, nothing but whole characters is ever given out early.
            let clean = text.replace(char::REPLACEMENT_CHARACTER, "");
            for piece in pieces(bytes, &ids(clean.as_bytes())) {
                prop_assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
            }
            let numbers = ids(&noise);
            prop_assert_eq!(pieces(words, &numbers).concat(), words(&numbers).unwrap());
        }
    }
}
