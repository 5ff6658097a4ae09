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

#[test]
fn tables_that_hold_only_bookkeeping_are_left_out_of_the_essentials() {
    let write = |mut writer: Writer| {
        writer.bookkeeping("a", 1_u64);
        writer.key("b", true);
        writer.bookkeeping_table("c");
        writer.key("d", 2.0);
        writer.table("e");
        writer.optional("f", None::<bool>);
        writer.key("g", "x");
        writer.finish()
    };
    assert_eq!(write(Writer::everything()), "a = 1\nb = true\n\n[c]\nd = 2.0\n\n[e]\ng = \"x\"\n");
    assert_eq!(write(Writer::essentials()), "b = true\n\n[e]\ng = \"x\"\n");
}
