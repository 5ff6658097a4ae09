//! The fast way against the crate's own, on texts that every rule of the patterns has a say in.

use std::path::Path;

use serde_json::{Value, json};

use crate::data::tokenize::Tokenizer;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The quickstart's vocabulary with other rules around it.
fn tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base");
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    Tokenizer::from_bytes(json.to_string().as_bytes(), Value::Null, &Value::Null, "tokenizer.json").unwrap()
}

fn split(regex: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
}

fn gpt2() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// Tokenizers that the fast way takes, by name.
fn taken() -> Vec<(&'static str, Tokenizer)> {
    let with = |pre_tokenizer: Value| tokenizer(move |json| json["pre_tokenizer"] = pre_tokenizer);
    let added = |id: u32, content: &str, normalized: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": normalized, "special": false})
    };
    vec![
        ("digits", tokenizer(|_| {})),
        ("GPT-2", with(gpt2())),
        ("Llama 3", with(split(LLAMA3))),
        ("Qwen 2", with(split(&LLAMA3.replace("{1,3}", "")))),
        (
            "NFC, and tokens of both kinds",
            tokenizer(|json| {
                json["normalizer"] = json!({"type": "NFC"});
                json["pre_tokenizer"] = split(LLAMA3);
                let tokens = json["added_tokens"].as_array_mut().unwrap();
                tokens.extend([
                    added(2048, "abc", true),
                    added(2049, "abcd", true),
                    added(2050, "<a>", false),
                ]);
            }),
        ),
    ]
}

/// Numbers that are random enough, and the same every time.
fn draws() -> impl FnMut(usize) -> usize {
    let mut state = 12345_u64;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

fn texts() -> Vec<String> {
    const WORDS: [&str; 47] = [
        "the",
        " a",
        "Word",
        " words",
        "don't",
        "'s",
        "'S",
        "'ll",
        "'VE",
        "'re",
        "'x",
        "'ſt",
        "'",
        "''",
        "I'd",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        " \n",
        "\n\n ",
        "\u{a0}",
        "\u{3000}",
        "\u{85}",
        "1",
        "12",
        "345",
        "6789",
        "½",
        "٣٤",
        "Ⅷ",
        "!",
        "!?\n",
        " ...",
        "=>",
        "é",
        "e\u{301}",
        "naïve",
        "文字",
        "😀",
        "ⓐ",
        "abcd",
        "<|im_start|>",
        "<|im_",
        "<a>",
    ];
    let mut draw = draws();
    let mut texts: Vec<String> =
        (0..400).map(|_| (0..draw(24)).map(|_| WORDS[draw(WORDS.len())]).collect()).collect();
    texts.extend(["x".repeat(500), " ".repeat(300), "é".repeat(99), "!".repeat(77), String::new()]);
    // Of every class, next to every other.
    let any: String = (0..4000).filter_map(|_| char::from_u32(draw(0x1_1000) as u32)).collect();
    texts.push(any);
    texts
}

#[test]
fn ids_and_offsets_are_those_of_the_crate() {
    let texts = texts();
    for (name, tokenizer) in taken() {
        assert!(tokenizer.byte_level.is_some(), "{name}");
        // Twice: what was kept is as good as what is merged.
        for text in texts.iter().chain(&texts) {
            let (fast, general) = (tokenizer.encode(text).unwrap(), tokenizer.encode_by_crate(text).unwrap());
            assert_eq!((&fast.ids, &fast.offsets), (&general.ids, &general.offsets), "{name}: {text:?}");
            let is_exact = fast.is_exact && tokenizer.decode(&fast.ids).unwrap() == *text;
            assert!(is_exact || name.starts_with("NFC"), "{name}: {text:?}");
        }
    }
}

#[test]
fn other_tokenizers_are_left_to_the_crate() {
    let changes: [fn(&mut Value); 7] = [
        |json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true),
        |json| json["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = json!(false),
        |json| json["pre_tokenizer"] = split(r"\w+|\s+|."),
        |json| json["pre_tokenizer"] = Value::Null,
        |json| json["normalizer"] = json!({"type": "Lowercase"}),
        |json| json["added_tokens"][1]["lstrip"] = json!(true),
        |json| json["model"]["byte_fallback"] = json!(true),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert!(tokenizer(change).byte_level.is_none(), "change {number}");
    }
    // And single texts that a normalizer changes.
    let (_, normalizing) = taken().pop().unwrap();
    let ids = |text: &str| normalizing.encode(text).unwrap().ids;
    assert_eq!(ids("e\u{301}"), ids("é"));
}
