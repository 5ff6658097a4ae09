//! Damage to bytes, by a seed: what bit rot does, and what somebody would do who knows the formats.

/// A small generator (SplitMix64): the same seed gives the same damage anywhere.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Lengths, offsets and counts that somebody would try.
const WORDS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 40,
    1 << 62,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];
const NUMBERS: [&str; 11] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999999",
    "1.5",
    "null",
];
const TEXTS: [&[u8]; 10] = [
    b"{}",
    b"[]",
    b"\"\"",
    b"true",
    b"\xff\xfe",
    b"\0",
    b"../../../../etc/passwd",
    b"\\ud800",
    b"{%",
    b"]]]]}}}}",
];

/// The bytes with one to four injuries.
pub(crate) fn damaged(original: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..1 + chance.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        injure(&mut bytes, chance);
    }
    bytes
}

/// What no file holds in the place of a whole one: values within values without end, nothing, a single value.
pub(crate) fn extremes() -> Vec<Vec<u8>> {
    let deep = ["[", "{\"a\":", "{\"a\":[", "a = [", "[a.", "- ", "(", "{% if ", "{{ a(", "\"\\"];
    let mut all: Vec<Vec<u8>> = deep.map(|opening| opening.repeat(100_000).into_bytes()).to_vec();
    // Closed as well, so that nothing is wrong with it but its depth.
    all.push(format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes());
    all.push(format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)).into_bytes());
    all.extend([&b""[..], b"null", b"0", b"\"\"", b"{}", b"[]", b"{\"a\":1e999999999}"].map(<[u8]>::to_vec));
    all
}

fn injure(bytes: &mut Vec<u8>, chance: &mut Chance) {
    let at = position(bytes, chance);
    match chance.below(11) {
        0 => bytes[at] ^= 1 << chance.below(8),
        1 => bytes[at] = chance.next() as u8,
        2 | 3 => {
            let word = chance.of(&WORDS).to_le_bytes();
            let width = *chance.of(&[1, 2, 4, 8]);
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&word[..end - at]);
        }
        4 => bytes.truncate(at),
        5 => _ = bytes.drain(at..(at + 1 + chance.below(64)).min(bytes.len())),
        6 => {
            let end = (at + 1 + chance.below(256)).min(bytes.len());
            let copied = bytes[at..end].to_vec();
            let to = chance.below(bytes.len());
            bytes.splice(to..to, copied);
        }
        7 | 8 => {
            // A run of digits becomes another number.
            let digits = |byte: &u8| byte.is_ascii_digit();
            let Some(start) = bytes[at..].iter().position(digits).map(|offset| at + offset) else { return };
            let end = bytes[start..]
                .iter()
                .position(|byte| !byte.is_ascii_digit())
                .map_or(bytes.len(), |n| start + n);
            bytes.splice(start..end, chance.of(&NUMBERS).bytes());
        }
        9 => {
            let deep = [b"[".as_slice(), b"{\"a\":", b"("][chance.below(3)].repeat(1 + chance.below(3000));
            bytes.splice(at..at, deep);
        }
        _ => _ = bytes.splice(at..at, chance.of(&TEXTS).iter().copied()),
    }
}

/// Anywhere, but half the time where headers lie: near the beginning or near the end.
fn position(bytes: &[u8], chance: &mut Chance) -> usize {
    match chance.below(4) {
        0 => chance.below(bytes.len().min(256)),
        1 => bytes.len() - 1 - chance.below(bytes.len().min(256)),
        _ => chance.below(bytes.len()),
    }
}
