//! Files that are not what their names say: what they are instead, by their first bytes, and the way out.

use std::fmt;
use std::path::Path;

/// What a file is, whatever its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disguise {
    /// A pointer of Git LFS, in place of the file.
    LfsPointer,
    /// A web page, in place of a download.
    Html,
    /// A Python pickle, as `torch.save` once wrote it.
    Pickle,
    /// A ZIP archive, as `torch.save` writes it.
    Zip,
    /// Compressed by the program of that name.
    Compressed(&'static str),
    /// An Arrow IPC file.
    Arrow,
    /// A Parquet file.
    Parquet,
    /// A GGUF file.
    Gguf,
}

/// Bytes at the beginning of a file that tell what it is.
const HEAD: usize = 512;

impl Disguise {
    /// What a file with these first bytes is; `None`: it may be what its name says.
    pub fn of(head: &[u8]) -> Option<Disguise> {
        let text = head[..head.len().min(HEAD)].trim_ascii_start();
        let begins = |word: &str| {
            text.get(..word.len()).is_some_and(|text| text.eq_ignore_ascii_case(word.as_bytes()))
        };
        if begins("version https://git-lfs.github.com/spec/") {
            return Some(Disguise::LfsPointer);
        }
        if begins("<!doctype html") || begins("<html") {
            return Some(Disguise::Html);
        }
        match head {
            // Protocols 2 to 5, and the first operations of a dictionary, a list, a tuple or a class.
            [0x80, 2..=5, b'}' | b']' | b'(' | b'c' | 0x8a | 0x95, ..] => Some(Disguise::Pickle),
            [b'P', b'K', 3, 4, ..] => Some(Disguise::Zip),
            [0x1f, 0x8b, ..] => Some(Disguise::Compressed("gzip")),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Disguise::Compressed("zstd")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Disguise::Compressed("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => Some(Disguise::Compressed("bzip2")),
            [b'A', b'R', b'R', b'O', b'W', b'1', 0, 0, ..] => Some(Disguise::Arrow),
            [b'P', b'A', b'R', b'1', ..] => Some(Disguise::Parquet),
            [b'G', b'G', b'U', b'F', ..] => Some(Disguise::Gguf),
            _ => None,
        }
    }

    /// What the file of that name is; `None` also if it cannot be read.
    pub fn of_file(path: &Path) -> Option<Disguise> {
        use std::io::Read;
        let mut head = Vec::with_capacity(HEAD);
        let file = std::fs::File::open(path).ok()?;
        file.take(HEAD as u64).read_to_end(&mut head).ok()?;
        Disguise::of(&head)
    }
}

/// As a sentence about the file continues: "is a Git LFS pointer, …".
impl fmt::Display for Disguise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disguise::LfsPointer => formatter.write_str(
                "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`, or a model with \
                 `tune download`",
            ),
            Disguise::Html => formatter.write_str(
                "is a web page, not the file itself; download it again from the address of the raw file, or a model with \
                 `tune download`",
            ),
            Disguise::Pickle | Disguise::Zip => formatter.write_str(
                "is a Python pickle or ZIP archive, as `torch.save` writes it; tune does not run code from files: save \
                 weights as safetensors, rows as JSON lines or Parquet",
            ),
            Disguise::Compressed(program) => {
                write!(formatter, "is compressed; decompress it with `{program} -d` first")
            }
            Disguise::Arrow => formatter.write_str("is an Arrow file; rename it to .arrow"),
            Disguise::Parquet => formatter.write_str("is a Parquet file; rename it to .parquet"),
            Disguise::Gguf => {
                formatter.write_str("is a GGUF file; tune reads a model's Hugging Face folder with safetensors")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognized_by_their_first_bytes() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for (head, expected) in [
            (&pointer[..], Some(Disguise::LfsPointer)),
            (b"\n<!DOCTYPE html><html>", Some(Disguise::Html)),
            (b"<html lang=en>", Some(Disguise::Html)),
            (b"\x80\x04\x95\x10", Some(Disguise::Pickle)),
            (b"\x80\x02}q\x00", Some(Disguise::Pickle)),
            (b"PK\x03\x04\x00", Some(Disguise::Zip)),
            (b"\x1f\x8b\x08", Some(Disguise::Compressed("gzip"))),
            (b"PAR1\x15", Some(Disguise::Parquet)),
            (b"{\"a\": 1}", None),
            (b"version,text\n", None),
            (b"GG", None),
            (b"", None),
        ] {
            assert_eq!(Disguise::of(head), expected, "{head:?}");
        }
    }
}
