//! The two answers of a pair beside each other, their differences marked: in colour, or where there is none, as `{+only in
//! the chosen one+}` and `[-only in the rejected one-]`, as Git marks words. Knows texts and widths, no terminal.

use anstyle::Style;

use super::style::{ERROR, FAINT, GOOD, WARNING, paint};

/// Columns of the screen that both answers take together.
const WIDTH: usize = 80;
/// What stands between them.
const BETWEEN: &str = " │ ";
/// Columns of one.
const HALF: usize = (WIDTH - 3) / 2;
/// Comparisons of two tokens that a difference may take; longer answers are compared at their ends alone.
const MOST: usize = 1 << 24;

/// One token of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// What is shown of it, without control characters.
    pub(super) text: String,
    /// What it is.
    pub(super) id: u32,
    /// Whether it is supervised.
    pub(super) supervised: bool,
    /// Whether it is cut off.
    pub(super) cut: bool,
}

/// How a character is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// In both answers.
    Common,
    /// In one alone.
    Chosen,
    Rejected,
    /// Not supervised.
    Faint,
    /// Cut off.
    Cut,
}

impl Look {
    fn style(self) -> Style {
        match self {
            Self::Common => Style::new(),
            Self::Chosen => GOOD,
            Self::Rejected => ERROR,
            Self::Faint => FAINT,
            Self::Cut => WARNING,
        }
    }

    /// What surrounds it where there is no colour.
    fn markers(self) -> [&'static str; 2] {
        match self {
            Self::Chosen => ["{+", "+}"],
            Self::Rejected => ["[-", "-]"],
            Self::Common | Self::Faint | Self::Cut => ["", ""],
        }
    }
}

/// What the colours or markers mean.
pub(super) fn legend(colored: bool) -> String {
    let shown = |look: Look, text: &str| match colored {
        true => paint(look.style(), text),
        false => look.markers().join(text),
    };
    [shown(Look::Chosen, "only in chosen"), shown(Look::Rejected, "only in rejected"), paint(FAINT, "prompt")]
        .join(" ")
}

/// How many leading tokens neither answer learns: the prompt of both.
pub(super) fn prompt(chosen: &[Token], rejected: &[Token]) -> usize {
    let is_prompt = |(left, right): &(&Token, &Token)| left == right && !left.supervised && !left.cut;
    chosen.iter().zip(rejected).take_while(is_prompt).count()
}

/// Both answers as lines of at most [`WIDTH`] columns.
pub(super) fn lines(chosen: &[Token], rejected: &[Token], colored: bool) -> Vec<String> {
    let (in_both, in_both_right) = common(chosen, rejected);
    let left = wrapped(&looks(chosen, &in_both, Look::Chosen), colored);
    let right = wrapped(&looks(rejected, &in_both_right, Look::Rejected), colored);
    let nothing = Vec::new();
    (0..left.len().max(right.len()))
        .map(|line| {
            let of = |side: &[Vec<(char, Look)>]| side.get(line).unwrap_or(&nothing).clone();
            let (left, right) = (of(&left), of(&right));
            let room = HALF.saturating_sub(left.iter().map(|(shown, _)| columns(*shown)).sum());
            let row = format!(
                "{}{}{BETWEEN}{}",
                painted(&left, colored),
                " ".repeat(room),
                painted(&right, colored)
            );
            row.trim_end().to_owned()
        })
        .collect()
}

/// Which tokens of each answer are part of a longest common sequence of both.
fn common(left: &[Token], right: &[Token]) -> (Vec<bool>, Vec<bool>) {
    let mut found = (vec![false; left.len()], vec![false; right.len()]);
    let same = |a: usize, b: usize| left[a].id == right[b].id;
    let shorter = left.len().min(right.len());
    let start = (0..shorter).take_while(|at| same(*at, *at)).count();
    let from_end = |back: &usize| same(left.len() - 1 - back, right.len() - 1 - back);
    let end = (0..shorter - start).take_while(from_end).count();
    for at in (0..start)
        .map(|at| (at, at))
        .chain((0..end).map(|back| (left.len() - 1 - back, right.len() - 1 - back)))
    {
        (found.0[at.0], found.1[at.1]) = (true, true);
    }
    let (rows, width) = (left.len() - start - end, right.len() - start - end);
    if rows.saturating_mul(width) > MOST {
        return found;
    }
    // lengths[a][b]: of the longest common sequence of what follows a and b.
    let mut lengths = vec![0_u32; (rows + 1) * (width + 1)];
    let at = |a: usize, b: usize| a * (width + 1) + b;
    for a in (0..rows).rev() {
        for b in (0..width).rev() {
            lengths[at(a, b)] = match same(start + a, start + b) {
                true => lengths[at(a + 1, b + 1)] + 1,
                false => lengths[at(a + 1, b)].max(lengths[at(a, b + 1)]),
            };
        }
    }
    let (mut a, mut b) = (0, 0);
    while a < rows && b < width {
        if same(start + a, start + b) {
            (found.0[start + a], found.1[start + b]) = (true, true);
            (a, b) = (a + 1, b + 1);
        } else if lengths[at(a + 1, b)] >= lengths[at(a, b + 1)] {
            a += 1;
        } else {
            b += 1;
        }
    }
    found
}

/// The characters of an answer, each with its look.
fn looks(tokens: &[Token], in_both: &[bool], alone: Look) -> Vec<(char, Look)> {
    let look = |token: &Token, in_both: bool| match (token.cut, token.supervised, in_both) {
        (true, ..) => Look::Cut,
        (_, false, _) => Look::Faint,
        (_, true, true) => Look::Common,
        (_, true, false) => alone,
    };
    let one = |(token, in_both): (&Token, &bool)| {
        let look = look(token, *in_both);
        token.text.chars().map(move |shown| (shown, look)).collect::<Vec<_>>()
    };
    tokens.iter().zip(in_both).flat_map(one).collect()
}

/// Lines of at most [`HALF`] columns, broken behind spaces where there are any. Without colour the markers of every run are
/// part of its text.
fn wrapped(text: &[(char, Look)], colored: bool) -> Vec<Vec<(char, Look)>> {
    let mut marked = Vec::with_capacity(text.len());
    for run in text.chunk_by(|left, right| left.1 == right.1) {
        let [before, after] = if colored { ["", ""] } else { run[0].1.markers() };
        marked.extend(before.chars().map(|shown| (shown, run[0].1)));
        marked.extend(run.iter().copied());
        marked.extend(after.chars().map(|shown| (shown, run[0].1)));
    }
    let mut lines = vec![Vec::new()];
    let mut word = Vec::new();
    let width = |text: &[(char, Look)]| text.iter().map(|(shown, _)| columns(*shown)).sum::<usize>();
    let mut put = |word: &mut Vec<(char, Look)>, breaks: bool| {
        let line = lines.last_mut();
        let used = line.as_ref().map_or(0, |line| width(line));
        let solid = word.iter().rposition(|(shown, _)| *shown != ' ').map_or(0, |last| last + 1);
        match line {
            Some(line) if used + width(&word[..solid]) <= HALF => line.append(word),
            _ if used > 0 => lines.push(std::mem::take(word)),
            Some(line) => line.append(word),
            None => {}
        }
        if breaks {
            lines.push(Vec::new());
        }
    };
    for &(shown, look) in &marked {
        let shown = if shown == '\t' { ' ' } else { shown };
        if shown == '\n' {
            put(&mut word, true);
            continue;
        }
        let ends = word.last().is_some_and(|(last, _)| *last == ' ') && shown != ' ';
        if ends || width(&word) + columns(shown) > HALF {
            put(&mut word, false);
        }
        word.push((shown, look));
    }
    put(&mut word, false);
    for line in &mut lines {
        while line.last().is_some_and(|(shown, _)| *shown == ' ') {
            line.pop();
        }
    }
    while lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    lines
}

fn painted(line: &[(char, Look)], colored: bool) -> String {
    let run = |run: &[(char, Look)]| {
        let text: String = run.iter().map(|(shown, _)| shown).collect();
        if colored && run[0].1 != Look::Common { paint(run[0].1.style(), text) } else { text }
    };
    line.chunk_by(|left, right| left.1 == right.1).map(run).collect()
}

/// Columns that a character takes on a screen: two for those of East Asia and for pictures, none for marks on others.
fn columns(shown: char) -> usize {
    match u32::from(shown) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f | 0x20d0..=0x20ff => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token for each word; those before `|` are not supervised.
    fn tokens(text: &str) -> Vec<Token> {
        let (prompt, answer) = text.split_once('|').unwrap();
        let token = |(text, supervised): (&str, bool)| Token {
            text: text.to_owned(),
            id: text.bytes().fold(7, |id, byte| id * 31 % 1_000_003 + u32::from(byte)),
            supervised,
            cut: false,
        };
        let prompt = prompt.split_inclusive(' ').map(|word| (word, false));
        prompt.chain(answer.split_inclusive(' ').map(|word| (word, true))).map(token).collect()
    }

    #[test]
    fn what_differs_is_marked_and_what_both_learn_is_not() {
        let (chosen, rejected) =
            (tokens("Say hi. |Hello my dear friend"), tokens("Say hi. |Hello you friend"));
        assert_eq!(prompt(&chosen, &rejected), 2);
        assert_eq!(
            lines(&chosen[2..], &rejected[2..], false),
            [format!("{:<HALF$}{BETWEEN}{}", "Hello {+my dear +}friend", "Hello [-you -]friend")]
        );
        let colored = lines(&chosen[2..], &rejected[2..], true).join("\n");
        assert!(
            colored.contains(&paint(GOOD, "my dear ")) && colored.contains(&paint(ERROR, "you ")),
            "{colored}"
        );
        assert!(!colored.contains("{+"), "{colored}");
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        let long = format!("|{} {}", "word ".repeat(40), "x".repeat(100));
        let wide = format!("|{}", "日本語 ".repeat(30));
        let plain: Vec<String> = lines(&tokens(&long), &tokens(&wide), false);
        let width = |line: &String| line.chars().map(columns).sum::<usize>();
        assert!(plain.iter().all(|line| width(line) <= WIDTH), "{plain:#?}");
        assert!(plain.len() > 5);
        let text: String = plain.iter().filter_map(|line| line.split(BETWEEN).next()).collect();
        assert_eq!(text.matches("word").count(), 40);
        assert_eq!(text.matches('x').count(), 100);
    }

    #[test]
    fn line_breaks_of_an_answer_are_kept() {
        let shown = lines(&tokens("|one\ntwo"), &tokens("|one\nsix"), false);
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("{+one") && shown[1].starts_with("two+}"), "{shown:?}");
    }
}
