use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::{Detokenizer, Piece, TextStart, Vocabulary};
use crate::loader::tokenizer::GgufTokenizer;
use crate::request::StopConditions;

const TEXTS: [&str; 7] = [
    "Hello, world!",
    " leading and trailing ",
    "naïve café — 東京 👩‍🔬👨‍👩‍👧‍👦 z͑ͫ̓ͪ̂ͫ̽a",
    "def f(x):\n    return x\n\n\n",
    "1234567 \u{200b}\u{feff} \t\r\n",
    "नमस्ते สวัสดี 안녕하세요",
    "",
];

/// A tokenizer of the tokenizer fixtures: a part of the family's vocabulary.
fn tokenizer(family: &str) -> Tokenizer {
    let path = format!("{}/tests/fixtures/tokenizer/{family}.gguf", env!("CARGO_MANIFEST_DIR"));
    let mut content = Content::read(&mut File::open(path).unwrap()).unwrap();
    GgufTokenizer::take(&mut content.metadata).unwrap().build().unwrap()
}

fn vocabulary(tokenizer: &Tokenizer) -> Arc<Vocabulary> {
    Arc::new(Vocabulary::from_tokenizer(tokenizer).unwrap())
}

/// All text of `token_ids`, and the stop string that ended it.
fn stream(vocabulary: &Arc<Vocabulary>, token_ids: &[u32], stop_strings: &[String]) -> (String, Option<String>) {
    let mut detokenizer = Detokenizer::new(Arc::clone(vocabulary), stop_strings, TextStart::Beginning);
    let mut text = String::new();
    for &token_id in token_ids {
        match detokenizer.push(token_id) {
            Piece::Text(piece) => text.push_str(&piece),
            Piece::Stop { text: piece, stop_string } => return (text + &piece, Some(stop_string)),
        }
    }
    match detokenizer.finish() {
        Piece::Text(piece) => (text + &piece, None),
        Piece::Stop { text: piece, stop_string } => (text + &piece, Some(stop_string)),
    }
}

/// What [`stream`] must give, from the whole text at once: it ends before the stop string that is complete first, of
/// those complete at the same place the longest.
fn stopped(text: &str, stop_strings: &[String]) -> (String, Option<String>) {
    let ends = stop_strings.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at)));
    match ends.min() {
        Some((end, at)) => (text[..at].to_owned(), Some(text[at..end].to_owned())),
        None => (text.to_owned(), None),
    }
}

#[test]
fn pieces_of_real_text_are_the_tokenizers_own_decoding() {
    for family in ["smollm", "llama-spm", "phi-3", "llama-bpe", "deepseek_v3"] {
        let tokenizer = tokenizer(family);
        let vocabulary = vocabulary(&tokenizer);
        for text in TEXTS {
            let encoding = tokenizer.encode(text, true).unwrap();
            let decoded = tokenizer.decode(encoding.get_ids(), true).unwrap();
            assert_eq!(stream(&vocabulary, encoding.get_ids(), &[]), (decoded.clone(), None), "{family}: {text:?}");
            assert_eq!(vocabulary.decode(encoding.get_ids()), decoded, "{family}: {text:?}");
        }
    }
}

proptest! {
    #[test]
    fn pieces_of_random_tokens_are_the_tokenizers_own_decoding(ids in prop::collection::vec(0_u32..1000, 0..60)) {
        thread_local!(static SMOLLM: (Tokenizer, Arc<Vocabulary>) = {
            let tokenizer = tokenizer("smollm");
            let vocabulary = vocabulary(&tokenizer);
            (tokenizer, vocabulary)
        });
        SMOLLM.with(|(tokenizer, vocabulary)| {
            let decoded = tokenizer.decode(&ids, true).unwrap();
            prop_assert_eq!(stream(vocabulary, &ids, &[]), (decoded, None));
            Ok(())
        })?;
    }

    #[test]
    fn stop_strings_split_in_any_way_are_found_as_in_the_whole_text(
        text in "[abé]{0,30}",
        stop_strings in prop::collection::vec("[abé]{1,5}", 0..4),
        cuts in prop::collection::vec(0_usize..60, 0..30),
    ) {
        // Tokens end anywhere, inside characters too.
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < text.len()).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let tokens: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
        let vocabulary = Arc::new(Vocabulary::from_bytes(&tokens));
        let token_ids: Vec<u32> = (0..tokens.len() as u32).collect();
        prop_assert_eq!(stream(&vocabulary, &token_ids, &stop_strings), stopped(&text, &stop_strings));
    }

    #[test]
    fn bytes_split_in_any_way_become_the_text_of_the_whole(tokens in prop::collection::vec(prop::collection::vec(
        prop::sample::select(vec![b'a', 0x80, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0xff]), 0..4), 0..12)
    ) {
        let slices: Vec<&[u8]> = tokens.iter().map(Vec::as_slice).collect();
        let vocabulary = Arc::new(Vocabulary::from_bytes(&slices));
        let token_ids: Vec<u32> = (0..tokens.len() as u32).collect();
        let whole = String::from_utf8_lossy(&tokens.concat()).into_owned();
        prop_assert_eq!(stream(&vocabulary, &token_ids, &[]), (whole, None));
    }
}

#[test]
fn complete_characters_are_sent_at_once_and_parts_of_them_held_back() {
    let vocabulary = Arc::new(Vocabulary::from_bytes(&[b"a", b"\xe2\x82", b"\xacb", b"\xf0", b"c"]));
    let mut detokenizer = Detokenizer::new(vocabulary, &[], TextStart::AfterPrompt);
    let pieces: Vec<Piece> = (0..5).map(|token_id| detokenizer.push(token_id)).collect();
    assert_eq!(pieces, ["a", "", "€b", "", "\u{fffd}c"].map(|piece| Piece::Text(piece.to_owned())));
    assert_eq!(detokenizer.push(3), Piece::Text(String::new()));
    assert_eq!(detokenizer.finish(), Piece::Text("\u{fffd}".to_owned()));
}

#[test]
fn text_that_may_begin_a_stop_string_is_held_back_until_it_does_not() {
    let vocabulary = Arc::new(Vocabulary::from_bytes(&[b"one #", b"#", b"#x", b" two"]));
    let mut detokenizer = Detokenizer::new(vocabulary, &["###".to_owned()], TextStart::AfterPrompt);
    let pieces = [0, 1, 3, 1, 2].map(|token_id| detokenizer.push(token_id));
    assert_eq!(pieces, ["one ", "", "## two", "", "##x"].map(|piece| Piece::Text(piece.to_owned())));
    assert_eq!(detokenizer.push(0), Piece::Text("one ".to_owned()));
    assert_eq!(detokenizer.push(1), Piece::Text(String::new()));
    assert_eq!(detokenizer.push(2), Piece::Stop { text: String::new(), stop_string: "###".to_owned() });
    assert_eq!(detokenizer.push(3), Piece::Text(String::new()));
    assert_eq!(detokenizer.finish(), Piece::Text(String::new()));
}

#[test]
fn what_was_held_back_for_a_stop_string_comes_at_the_end() {
    let vocabulary = Arc::new(Vocabulary::from_bytes(&[b"a##\xc3"]));
    assert_eq!(stream(&vocabulary, &[0], &["###".to_owned()]), ("a##\u{fffd}".to_owned(), None));
    assert_eq!(stream(&vocabulary, &[0], &["#\u{fffd}".to_owned()]), ("a#".to_owned(), Some("#\u{fffd}".to_owned())));
}

#[test]
fn special_tokens_and_unknown_ids_have_no_text() {
    let tokenizer = tokenizer("smollm");
    let encoding = tokenizer.encode("<|im_start|>user\nHi<|im_end|>", false).unwrap();
    let mut token_ids = encoding.get_ids().to_vec();
    token_ids.insert(2, u32::MAX);
    assert_eq!(stream(&vocabulary(&tokenizer), &token_ids, &[]).0, "user\nHi");
}

#[test]
fn the_space_before_the_first_word_is_dropped_only_at_the_beginning_of_a_text() {
    let tokenizer = tokenizer("llama-spm");
    let vocabulary = vocabulary(&tokenizer);
    let token_ids = tokenizer.encode("Hello world", false).unwrap().get_ids().to_vec();
    let text = |start| {
        let mut detokenizer = Detokenizer::new(Arc::clone(&vocabulary), &[], start);
        let pieces = token_ids.iter().map(|&token_id| match detokenizer.push(token_id) {
            Piece::Text(text) | Piece::Stop { text, .. } => text,
        });
        pieces.collect::<String>()
    };
    assert_eq!(text(TextStart::Beginning), "Hello world");
    assert_eq!(text(TextStart::AfterPrompt), " Hello world");
}

#[test]
fn single_tokens_have_text_and_bytes_for_logprobs() {
    let tokenizer = tokenizer("smollm");
    let vocabulary = vocabulary(&tokenizer);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(vocabulary.token_text(id("Ġworld")), (" world".to_owned(), b" world".to_vec()));
    assert_eq!(vocabulary.token_text(id("Ã")), ("\u{fffd}".to_owned(), vec![0xc3]));
    assert_eq!(vocabulary.token_text(id("<|im_end|>")), ("<|im_end|>".to_owned(), b"<|im_end|>".to_vec()));
    assert_eq!(vocabulary.token_text(u32::MAX), (String::new(), vec![]));
}

#[test]
fn every_byte_that_a_byte_level_token_stands_for_is_read() {
    let tokenizer = tokenizer("llama-bpe");
    let vocabulary = vocabulary(&tokenizer);
    let tokens = (0..vocabulary.len() as u32).map(|token_id| vocabulary.bytes(token_id));
    let bytes: BTreeSet<u8> = tokens.filter(|bytes| bytes.len() == 1).map(|bytes| bytes[0]).collect();
    assert_eq!(bytes, (0..=255).collect());
}

#[test]
fn stop_strings_out_of_limits_are_refused() {
    let check = |strings: Vec<String>, expected: &str| {
        let conditions = StopConditions { strings, ..StopConditions::default() };
        assert_eq!(conditions.validate().unwrap_err().to_string(), expected);
    };
    check(vec!["x".to_owned(); 65], "65 stop strings; at most 64 are allowed");
    check(vec![String::new()], "a stop string is empty; it must have at least one character");
    check(vec!["x".repeat(5000)], "a stop string has 5000 bytes; at most 4096 are allowed");
}

#[test]
fn stop_strings_complete_within_the_first_tokens_are_ordinary_text() {
    let tokens: Vec<[u8; 1]> = (0..128).map(|byte| [byte]).collect();
    let vocabulary = Arc::new(Vocabulary::from_bytes(&tokens.iter().map(<[u8; 1]>::as_slice).collect::<Vec<_>>()));
    let check = |min_tokens: usize, text: &str, expected: &str| {
        let stops = ["END".to_owned(), "aa".to_owned()];
        let mut detokenizer =
            Detokenizer::new(Arc::clone(&vocabulary), &stops, TextStart::Beginning).with_min_tokens(min_tokens);
        let mut found = String::new();
        for byte in text.bytes() {
            match detokenizer.push(u32::from(byte)) {
                Piece::Text(piece) => found.push_str(&piece),
                Piece::Stop { text: piece, .. } => {
                    return assert_eq!(found + &piece + "|", expected, "{min_tokens} {text}");
                }
            }
        }
        let (Piece::Text(rest) | Piece::Stop { text: rest, .. }) = detokenizer.finish();
        assert_eq!(found + &rest, expected, "{min_tokens} {text}");
    };
    check(0, "xENDy", "x|");
    check(3, "xENDy", "x|");
    check(4, "xENDy", "xENDy");
    check(4, "xENDyENDz", "xENDy|");
    // Complete after the limit, begun before it.
    check(2, "xENDy", "x|");
    check(3, "xaaay", "xa|");
    check(9, "END", "END");
}
