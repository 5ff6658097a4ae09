//! Where the records of a text file begin and end: lines, CSV records whose quoted fields may hold line
//! breaks, elements of a JSON array. Each scanner takes the file in pieces of any size, keeps a few words of
//! state, and can start again at any record. Knows nothing of the content of records.

use memchr::{memchr, memchr_iter, memchr2, memchr3};

/// The position of one record in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// First byte.
    pub(super) start: u64,
    /// Behind the last byte, terminators left out.
    pub(super) end: u64,
    /// The line on which it begins, from 1.
    pub(super) line: u64,
}

/// A text that does not have the expected syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: u64,
    pub(super) problem: &'static str,
}

/// How the records of a text file are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// A record per line; lines of white space alone are none.
    Lines,
    /// RFC 4180, quotes doubled inside quotes; empty lines are no records.
    Csv {
        /// Between two fields: `,` in most files.
        separator: u8,
    },
    /// The elements of one JSON array.
    Array,
    /// JSON objects one behind the other, each over as many lines as it likes.
    Objects,
}

const NO_ARRAY: &str = "expected an array of objects (`[{…}, {…}]`)";
const NO_OBJECT: &str = "expected an object (`{…}`)";

/// The state of a scan between two pieces.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    syntax: Syntax,
    state: State,
    /// Offset of the next byte.
    at: u64,
    /// Line of the next byte.
    line: u64,
    /// Of the record that has begun.
    start: u64,
    start_line: u64,
    /// Behind the last byte of the record that is not white space (arrays).
    content_end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Lines: only white space so far on this line.
    Blank,
    Line,
    CsvStart,
    CsvFieldStart,
    CsvField,
    CsvQuoted,
    /// After a quote inside quotes: the end of the field, or the first half of a doubled quote.
    CsvQuote,
    /// Before the array's bracket.
    Opening,
    /// Between elements; `first`: right behind the opening bracket, so that the array may end here.
    Between {
        first: bool,
    },
    /// Inside an element, so many brackets deep.
    Element {
        depth: u64,
    },
    Text {
        depth: u64,
    },
    Escape {
        depth: u64,
    },
    Closed,
}

impl Scanner {
    /// At the beginning of a file (`at` behind its byte order mark).
    pub(super) fn begin(syntax: Syntax, at: u64) -> Scanner {
        let state = match syntax {
            Syntax::Lines => State::Blank,
            Syntax::Csv { .. } => State::CsvStart,
            Syntax::Array => State::Opening,
            Syntax::Objects => State::Between { first: true },
        };
        Scanner { syntax, state, at, line: 1, start: at, start_line: 1, content_end: at }
    }

    /// At the first byte of a record known from before.
    pub(super) fn resume(syntax: Syntax, record_start: u64, line: u64) -> Scanner {
        let mut scanner = Scanner::begin(syntax, record_start);
        if syntax == Syntax::Array {
            scanner.state = State::Between { first: false };
        }
        Scanner { line, ..scanner }
    }

    /// Takes the next piece of the file and reports every record that ends in it.
    pub(super) fn feed(&mut self, piece: &[u8], mut found: impl FnMut(Record)) -> Result<(), Malformed> {
        let base = self.at;
        let mut at = 0;
        while at < piece.len() {
            self.at = base + at as u64;
            at += self.advance(&piece[at..], &mut found)?;
        }
        self.at = base + piece.len() as u64;
        Ok(())
    }

    /// The file is at its end: reports the record that no terminator ended.
    pub(super) fn finish(self, mut found: impl FnMut(Record)) -> Result<(), Malformed> {
        match self.state {
            State::Blank | State::CsvStart | State::Closed => Ok(()),
            State::Line | State::CsvFieldStart | State::CsvField | State::CsvQuote => {
                self.report(self.at, &mut found);
                Ok(())
            }
            State::CsvQuoted => Err(Malformed {
                line: self.start_line,
                problem: "a quoted field begins in this record and never ends",
            }),
            State::Opening => Err(Malformed { line: self.line, problem: NO_ARRAY }),
            State::Between { .. } if self.syntax == Syntax::Objects => Ok(()),
            _ if self.syntax == Syntax::Objects => {
                Err(Malformed { line: self.start_line, problem: "an object begins here and never ends" })
            }
            State::Between { .. } | State::Element { .. } | State::Text { .. } | State::Escape { .. } => {
                Err(Malformed { line: self.line, problem: "the file ends inside the array: no `]`" })
            }
        }
    }

    /// Takes at least one byte of `rest`, which is not empty, and says how many.
    fn advance(&mut self, rest: &[u8], found: &mut impl FnMut(Record)) -> Result<usize, Malformed> {
        let byte = rest[0];
        match self.state {
            State::Blank | State::Line => return Ok(self.advance_line(rest, found)),
            State::CsvStart | State::CsvFieldStart | State::CsvField | State::CsvQuoted | State::CsvQuote => {
                return Ok(self.advance_csv(rest, found));
            }
            State::Text { depth } => {
                let mut taken = 0;
                while taken < rest.len() {
                    let Some(found) = memchr2(b'"', b'\\', &rest[taken..]) else {
                        taken = rest.len();
                        break;
                    };
                    taken += found + 1;
                    if rest[taken - 1] == b'"' {
                        self.state = State::Element { depth };
                        break;
                    }
                    match taken < rest.len() {
                        true => taken += 1,
                        false => self.state = State::Escape { depth },
                    }
                }
                // Line breaks do not belong into a text, which the row will say; they still count.
                self.line += newlines(&rest[..taken]);
                self.content_end = self.at + taken as u64;
                return Ok(taken);
            }
            State::Escape { depth } => self.state = State::Text { depth },
            _ if byte.is_ascii_whitespace() => {}
            State::Opening if byte == b'[' => self.state = State::Between { first: true },
            State::Opening => return Err(self.malformed(NO_ARRAY)),
            State::Between { .. } if self.syntax == Syntax::Objects && byte != b'{' => {
                return Err(self.malformed(NO_OBJECT));
            }
            State::Between { first } => match byte {
                b']' if first => self.state = State::Closed,
                b']' => {
                    return Err(self.malformed("a `,` before the `]`, which JSON does not have; remove it"));
                }
                b',' | b'}' | b':' => return Err(self.malformed("expected an element of the array")),
                _ => {
                    (self.start, self.start_line) = (self.at, self.line);
                    self.state = State::Element { depth: 0 };
                    self.element_byte(byte, 0, found)?;
                }
            },
            State::Element { depth } => self.element_byte(byte, depth, found)?,
            State::Closed => return Err(self.malformed("expected the end of the file after the array's `]`")),
        }
        self.line += u64::from(byte == b'\n');
        Ok(1)
    }

    fn element_byte(
        &mut self,
        byte: u8,
        depth: u64,
        found: &mut impl FnMut(Record),
    ) -> Result<(), Malformed> {
        match byte {
            b'"' => self.state = State::Text { depth },
            b'{' | b'[' => self.state = State::Element { depth: depth + 1 },
            b',' if depth == 0 => {
                self.report(self.content_end, found);
                self.state = State::Between { first: false };
                return Ok(());
            }
            b']' if depth == 0 => {
                self.report(self.content_end, found);
                self.state = State::Closed;
                return Ok(());
            }
            b'}' if depth == 0 => return Err(self.malformed("a `}` that closes nothing")),
            b'}' | b']' if depth == 1 && self.syntax == Syntax::Objects => {
                self.report(self.at + 1, found);
                self.state = State::Between { first: false };
            }
            b'}' | b']' => self.state = State::Element { depth: depth - 1 },
            _ => {}
        }
        self.content_end = self.at + 1;
        Ok(())
    }

    fn advance_line(&mut self, rest: &[u8], found: &mut impl FnMut(Record)) -> usize {
        let newline = memchr(b'\n', rest);
        let line = &rest[..newline.unwrap_or(rest.len())];
        if self.state == State::Blank
            && let Some(indent) = line.iter().position(|byte| !byte.is_ascii_whitespace())
        {
            self.state = State::Line;
            (self.start, self.start_line) = (self.at + indent as u64, self.line);
        }
        let Some(newline) = newline else { return rest.len() };
        if self.state == State::Line {
            self.report(self.at + newline as u64, found);
        }
        self.state = State::Blank;
        self.line += 1;
        newline + 1
    }

    fn advance_csv(&mut self, rest: &[u8], found: &mut impl FnMut(Record)) -> usize {
        let byte = rest[0];
        let separator = match self.syntax {
            Syntax::Csv { separator } => separator,
            _ => b',',
        };
        match (self.state, byte) {
            (State::CsvQuoted, _) => {
                let mut taken = 0;
                while taken < rest.len() {
                    let Some(found) = memchr(b'"', &rest[taken..]) else {
                        taken = rest.len();
                        break;
                    };
                    taken += found + 1;
                    if rest.get(taken) != Some(&b'"') {
                        self.state = State::CsvQuote;
                        break;
                    }
                    taken += 1;
                }
                self.line += newlines(&rest[..taken]);
                return taken;
            }
            (State::CsvStart, b'\r' | b'\n') => {}
            (State::CsvQuote, b'"') => self.state = State::CsvQuoted,
            (_, b'\r' | b'\n') => {
                self.report(self.at, found);
                self.state = State::CsvStart;
            }
            (state, byte) => {
                if state == State::CsvStart {
                    (self.start, self.start_line) = (self.at, self.line);
                }
                let at_field_start = matches!(state, State::CsvStart | State::CsvFieldStart);
                self.state = match byte {
                    _ if byte == separator => State::CsvFieldStart,
                    b'"' if at_field_start => State::CsvQuoted,
                    _ => State::CsvField,
                };
                if self.state == State::CsvField {
                    return memchr3(separator, b'\r', b'\n', rest).unwrap_or(rest.len()).max(1);
                }
            }
        }
        self.line += u64::from(byte == b'\n');
        1
    }

    fn report(&self, end: u64, found: &mut impl FnMut(Record)) {
        found(Record { start: self.start, end, line: self.start_line });
    }

    fn malformed(&self, problem: &'static str) -> Malformed {
        Malformed { line: self.line, problem }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMAS: Syntax = Syntax::Csv { separator: b',' };

    type Scanned = Result<Vec<(String, u64)>, Malformed>;

    /// The records of `text` and their lines, fed in pieces of `size`.
    fn scan(syntax: Syntax, text: &[u8], size: usize) -> Scanned {
        let mut records = Vec::new();
        let mut scanner = Scanner::begin(syntax, 0);
        for piece in text.chunks(size) {
            scanner.feed(piece, |record| records.push(record))?;
        }
        scanner.finish(|record| records.push(record))?;
        let text_of = |record: Record| {
            let bytes = &text[record.start as usize..record.end as usize];
            (String::from_utf8_lossy(bytes).into_owned(), record.line)
        };
        Ok(records.into_iter().map(text_of).collect())
    }

    fn check(syntax: Syntax, text: &str, expected: &[(&str, u64)]) {
        for size in [1, 2, 3, 1000] {
            let expected: Vec<_> = expected.iter().map(|(text, line)| ((*text).to_owned(), *line)).collect();
            assert_eq!(scan(syntax, text.as_bytes(), size), Ok(expected), "pieces of {size}");
        }
    }

    #[test]
    fn lines() {
        check(Syntax::Lines, "", &[]);
        check(Syntax::Lines, "a\nb", &[("a", 1), ("b", 2)]);
        check(Syntax::Lines, "\n  \t\n a \r\n\nb\n\n", &[("a \r", 3), ("b", 5)]);
    }

    #[test]
    fn csv() {
        check(COMMAS, "a,b\r\n1,\"x\ny\"\n\n2,z", &[("a,b", 1), ("1,\"x\ny\"", 2), ("2,z", 5)]);
        check(COMMAS, "\"a \"\"b\"\"\n\",c\nx\"y,\"\"\n", &[("\"a \"\"b\"\"\n\",c", 1), ("x\"y,\"\"", 3)]);
        check(COMMAS, ",\n,", &[(",", 1), (",", 2)]);
        assert_eq!(scan(COMMAS, b"a\nb,\"c\nd", 3).unwrap_err().line, 2);
        check(Syntax::Csv { separator: b';' }, "a;b,\"c\n1;\"2\n3\"", &[("a;b,\"c", 1), ("1;\"2\n3\"", 2)]);
    }

    #[test]
    fn objects() {
        check(Syntax::Objects, " \n", &[]);
        check(
            Syntax::Objects,
            "{\n \"a\": [{}, \"}{\"]\n}\n{}{\"b\": 1}\n",
            &[("{\n \"a\": [{}, \"}{\"]\n}", 1), ("{}", 4), ("{\"b\": 1}", 4)],
        );
        for (text, line, problem) in [
            ("{},\n{}", 1, NO_OBJECT),
            ("{}\n[1]", 2, NO_OBJECT),
            ("{}\n{\"a\": [\n", 2, "an object begins here and never ends"),
        ] {
            for size in [1, 2, 1000] {
                assert_eq!(scan(Syntax::Objects, text.as_bytes(), size), Err(Malformed { line, problem }));
            }
        }
    }

    #[test]
    fn arrays() {
        check(Syntax::Array, " [ ] ", &[]);
        check(
            Syntax::Array,
            "[1,\n {\"a]\": [\"\\\"}\", 2]} ,\"x\"\n]\n",
            &[("1", 1), ("{\"a]\": [\"\\\"}\", 2]}", 2), ("\"x\"", 2)],
        );
        for (text, line, problem) in [
            ("{\"a\": 1}", 1, NO_ARRAY),
            (" ", 1, NO_ARRAY),
            ("[1,\n]", 2, "a `,` before the `]`, which JSON does not have; remove it"),
            ("[1,,2]", 1, "expected an element of the array"),
            ("[1\n,\"]", 2, "the file ends inside the array: no `]`"),
            ("[1] \n 2", 2, "expected the end of the file after the array's `]`"),
            ("[1}]", 1, "a `}` that closes nothing"),
        ] {
            for size in [1, 2, 1000] {
                assert_eq!(
                    scan(Syntax::Array, text.as_bytes(), size),
                    Err(Malformed { line, problem }),
                    "{text}"
                );
            }
        }
    }

    proptest! {
        /// Every piece size sees the same records.
        #[test]
        fn pieces_do_not_matter(text in r#"[\[\]{},:"\\ \r\na1]{0,40}"#, size in 1_usize..9) {
            for syntax in [Syntax::Lines, COMMAS, Syntax::Array, Syntax::Objects] {
                prop_assert_eq!(scan(syntax, text.as_bytes(), size), scan(syntax, text.as_bytes(), 1000));
            }
        }

        /// Arrays written by serde_json come apart into their elements.
        #[test]
        fn arrays_come_apart(elements in prop::collection::vec(any::<(String, Option<i32>, Vec<String>)>(), 0..6)) {
            let pretty = serde_json::to_string_pretty(&elements).unwrap();
            let compact = serde_json::to_string(&elements).unwrap();
            for text in [pretty, compact] {
                let records = scan(Syntax::Array, text.as_bytes(), 7).unwrap();
                let back: Vec<(String, Option<i32>, Vec<String>)> =
                    records.iter().map(|(record, _)| serde_json::from_str(record).unwrap()).collect();
                prop_assert_eq!(&back, &elements);
            }
        }
    }
}
