//! Reading, judging and writing TOML.

use proptest::prelude::*;

use super::unknown::closest;
use super::*;

fn value_of(text: &str) -> Value {
    let source = Source::new(0, "text", text.to_owned());
    let (root, problems) = parse(&source);
    assert!(problems.is_empty(), "{problems:?}");
    root.nearest(&["key"]).clone()
}

proptest! {
    #[test]
    fn any_string_is_written_and_read_back(text in "\\PC*|.*|[\\x00-\\x1f\\x7f\"\\\\]*") {
        let written = format!("key = {}\n", text.written());
        prop_assert_eq!(value_of(&written).kind, Kind::String(text));
    }

    #[test]
    fn any_number_is_written_and_read_back(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let written = format!("key = {}\n", number.written());
        prop_assert_eq!(value_of(&written).kind, Kind::Float(number));
    }

    #[test]
    fn any_table_is_written_and_read_back_in_order(pairs in proptest::collection::vec(("[a-z.\"' é]{0,5}", any::<bool>()), 0..6)) {
        let mut unique: Vec<(String, bool)> = Vec::new();
        for pair in pairs {
            if unique.iter().all(|(key, _)| *key != pair.0) {
                unique.push(pair);
            }
        }
        let value = value_of(&format!("key = {}\n", unique.as_slice().written()));
        prop_assert_eq!(super::pairs(truth)(&value), Ok(unique));
    }

    #[test]
    fn places_are_always_whole_characters(text in ".{0,20}", start in 0..100_usize, length in 0..100_usize) {
        let source = Source::new(0, "text", text);
        let place = Place::new(&source, start..start + length);
        prop_assert_eq!(source.text().get(place.span()), Some(place.text()));
    }
}

#[test]
fn every_value_knows_where_it_stands() {
    let text = "a.b = 1\n[t]\n\"ke y\" = [ 2, { x = 'é' } ]\n[[l]]\n[[l]]\nz = 1.5\n";
    let source = Source::new(0, "text", text.to_owned());
    let (root, problems) = parse(&source);
    assert!(problems.is_empty(), "{problems:?}");
    let at = |path: &[&str]| root.nearest(path).place.text().to_owned();
    assert_eq!(at(&["a", "b"]), "1");
    assert_eq!(at(&["t"]), "[t]");
    assert_eq!(at(&["t", "ke y", "0"]), "2");
    assert_eq!(at(&["t", "ke y", "1", "x"]), "'é'");
    assert_eq!(at(&["l", "1", "z"]), "1.5");
    assert_eq!(at(&["l", "1", "absent"]), "[[l]]");
    assert_eq!(root.nearest(&["l", "1"]).place.line(), 5);
    assert_eq!(root.nearest(&["absent"]).place.span(), text.len() - 1..text.len() - 1);
}

#[test]
fn a_value_inside_a_text_keeps_its_place() {
    let source = Source::new(0, "text", "key=[ 1, 'é' ]".to_owned());
    let (value, problems) = parse_value(&source, 4..source.text().len()).unwrap();
    assert!(problems.is_empty());
    assert_eq!(value.place.text(), "[ 1, 'é' ]");
    assert_eq!(value.nearest(&["1"]).place.text(), "'é'");
    assert_eq!(parse_value(&source, 0..3), None, "a bare word is not a value");
    assert_eq!(parse_value(&source, 4..6), None, "neither is half a list");
}

#[test]
fn suggestions_are_near_and_never_the_whole_word() {
    let words = ["rank", "alpha", "dropout", "target_modules", "use_rslora"];
    let near = |typed: &str| closest(typed, words.into_iter());
    assert_eq!(near("rnak"), Some("rank"));
    assert_eq!(near("RANK"), Some("rank"));
    assert_eq!(near("target-module"), Some("target_modules"));
    assert_eq!(near("droput"), Some("dropout"));
    assert_eq!(near("x"), None);
    assert_eq!(near(""), None);
    assert_eq!(near("temperature"), None);
}

/// A table of an imagined release after the first.
#[derive(Default)]
struct Toy {
    size: f64,
    name: Option<String>,
    colour: bool,
    newer: u64,
}

type K = Key<Toy>;

const TOY: KeyTable<Toy> = KeyTable {
    path: "toy",
    meaning: "A toy.",
    keys: &[
        K::number("size", Limits::from(0.0).below(9.0), |toy| &mut toy.size).means("Its size."),
        K::text("name", |toy| &mut toy.name).required("\"duck\"").means("Its name."),
        K::flag("colour", |toy| &mut toy.colour).bookkeeping().means("Whether it has one."),
        K::integer("newer", 0..=7, |toy| &mut toy.newer).added().means("Came later."),
    ],
    ..KeyTable::NEW
};

fn toy(text: &str) -> (Toy, Vec<String>) {
    let source = Source::new(0, "text", text.to_owned());
    let (root, syntax) = parse(&source);
    let mut findings = Findings::new(Place::end_of(&source), syntax);
    let toy = findings.read(&root, |top| top.table("toy", |table| TOY.read(table)));
    (toy, findings.into_problems(|_| None).iter().map(ToString::to_string).collect())
}

fn write(table: &KeyTable<Toy>, mut writer: Writer, toy: &mut Toy) -> String {
    table.write(toy, &mut writer);
    writer.finish()
}

#[test]
fn a_declared_table_is_read_with_its_defaults_and_every_problem() {
    let (read, problems) = toy("[toy]\nsize = 2\nname = \"duck\"\n");
    assert_eq!((read.size, read.name.as_deref(), read.newer, problems.len()), (2.0, Some("duck"), 0, 0));
    let (read, problems) = toy("[toy]\nsize = 9\nnewer = -1\nnew = 1\n");
    assert_eq!((read.size, read.name, read.newer), (0.0, None, 0));
    assert_eq!(
        problems,
        [
            "`toy.size`: 9 is out of range",
            "missing key `toy.name`",
            "`toy.newer`: -1 is out of range",
            "unknown key `new` in `[toy]`",
        ]
    );
}

#[test]
fn the_canonical_text_has_what_shapes_weights_and_a_later_key_only_off_its_default() {
    let (mut read, _) = toy("[toy]\nname = \"duck\"\ncolour = true\n");
    let whole = "[toy]\nsize = 0.0\nname = \"duck\"\ncolour = true\nnewer = 0\n";
    assert_eq!(write(&TOY, Writer::everything(), &mut read), whole);
    assert_eq!(write(&TOY, Writer::canonical(), &mut read), "[toy]\nsize = 0.0\nname = \"duck\"\n");
    read.newer = 3;
    let changed = "[toy]\nsize = 0.0\nname = \"duck\"\nnewer = 3\n";
    assert_eq!(write(&TOY, Writer::canonical(), &mut read), changed);
}

#[test]
fn a_later_table_at_its_defaults_is_not_in_the_canonical_text() {
    const LATER: KeyTable<Toy> = KeyTable { added: true, ..TOY };
    assert_eq!(write(&LATER, Writer::canonical(), &mut Toy::default()), "");
    let mut sized = Toy { size: 1.0, ..Toy::default() };
    assert_eq!(write(&LATER, Writer::canonical(), &mut sized), "[toy]\nsize = 1.0\n");
}

#[test]
fn a_table_of_bookkeeping_is_not_in_the_canonical_text() {
    const IDLE: KeyTable<Toy> = KeyTable {
        path: "idle",
        keys: &[Key::flag("colour", |toy: &mut Toy| &mut toy.colour).bookkeeping()],
        ..KeyTable::NEW
    };
    assert_eq!(write(&IDLE, Writer::canonical(), &mut Toy::default()), "");
    assert_eq!(write(&IDLE, Writer::everything(), &mut Toy::default()), "[idle]\ncolour = false\n");
}
