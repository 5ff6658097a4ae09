//! Pieces of text against the whole, over every border.

use std::path::Path;

use proptest::prelude::*;

use super::*;

fn quickstart() -> Tokenizer {
    Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base")).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer);
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let tokenizer = quickstart();
    let text = "Ahoy 🦀, naïve 船!";
    let ids = tokenizer.encode(text).unwrap().ids;
    assert!(ids.len() > text.chars().count() / 2, "no character is parted");
    let pieces = streamed(&tokenizer, &ids);
    assert!(pieces.iter().any(String::is_empty), "every token is a character: {pieces:?}");
    assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
    assert_eq!(pieces.concat(), text);
    // Cut within the crab: what is there of it is one replacement character or more, and comes at the end.
    let crab = tokenizer.encode("a🦀").unwrap().ids;
    let pieces = streamed(&tokenizer, &crab[..crab.len() - 1]);
    assert_eq!(pieces.concat(), tokenizer.decode_plain(&crab[..crab.len() - 1]).unwrap());
    assert!(pieces.last().unwrap().ends_with(char::REPLACEMENT_CHARACTER), "{pieces:?}");
}

/// Text up to a stop string, and that string, from pieces.
fn cut(pieces: &[&str], stops: &[&str]) -> (String, Option<String>) {
    let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let mut finder = StopStrings::new(&stops);
    let mut text = String::new();
    for piece in pieces {
        match finder.push(piece) {
            ControlFlow::Continue(certain) => text += &certain,
            ControlFlow::Break((last, stop)) => return (text + &last, Some(stop)),
        }
    }
    (text + &finder.finish(), None)
}

#[test]
fn a_stop_string_is_cut_exactly() {
    let stop = |text: &str| Some(text.to_owned());
    assert_eq!(cut(&["one\n", "\ntwo"], &["\n\n"]), ("one".into(), stop("\n\n")));
    assert_eq!(cut(&["one\n", "two"], &["\n\n"]), ("one\ntwo".into(), None));
    assert_eq!(cut(&["aab"], &["ab"]), ("a".into(), stop("ab")));
    assert_eq!(cut(&["a", "a", "b"], &["aab", "ab"]), (String::new(), stop("aab")));
    // The one that is complete first, wherever the borders lie.
    for pieces in [&["xabc"][..], &["xa", "bc"], &["x", "a", "b", "c"]] {
        assert_eq!(cut(pieces, &["abc", "b"]), ("xa".into(), stop("b")));
    }
    assert_eq!(cut(&["ends with ab"], &["abc"]), ("ends with ab".into(), None));
    assert_eq!(cut(&["text"], &[""]), ("text".into(), None));
    assert_eq!(cut(&["na", "ïve"], &["ï"]), ("na".into(), stop("ï")));
}

#[test]
fn text_is_held_back_no_longer_than_it_must() {
    let mut finder = StopStrings::new(&["END".to_owned()]);
    assert_eq!(finder.push("the E"), ControlFlow::Continue("the ".to_owned()));
    assert_eq!(finder.push("N"), ControlFlow::Continue(String::new()));
    assert_eq!(finder.push("ough"), ControlFlow::Continue("ENough".to_owned()));
}

proptest! {
    #[test]
    fn borders_do_not_matter(text in "[abé ]{0,12}", cuts in proptest::collection::vec(0_usize..12, 0..4)) {
        let stops = ["ab", "b a", "éé"];
        let whole = cut(&[&text], &stops);
        let mut places: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
        places.extend([0, text.len()]);
        places.retain(|at| *at <= text.len());
        places.sort_unstable();
        let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(cut(&pieces, &stops), whole);
    }

    #[test]
    fn pieces_make_up_the_whole(ids in proptest::collection::vec(0_u32..400, 0..40)) {
        let tokenizer = quickstart();
        prop_assert_eq!(streamed(&tokenizer, &ids).concat(), tokenizer.decode_plain(&ids).unwrap());
    }
}
