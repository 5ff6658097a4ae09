//! Every family with a golden: logits against transformers, decoding with a cache, documents that share a batch, backward
//! passes.

use crate::golden::{assert_decoding, assert_logits, assert_packed, assert_slopes};
use crate::{dense, families};

#[test]
fn logits_agree_with_transformers() {
    families().iter().for_each(|name| assert_logits(name, &dense(name)));
}

#[test]
fn decoding_with_a_cache_equals_the_whole_sequence() {
    for name in families() {
        // A cache holds keys that were rotated when the sequence was short: see the README on longrope.
        let tokens = (name == "phi3_longrope").then_some(24);
        assert_decoding(&name, &dense(&name), tokens, 8e-5);
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    families().iter().for_each(|name| assert_packed(name, &dense(name)));
}

#[test]
fn a_layers_backward_is_the_slope_of_its_forward() {
    for name in families() {
        // Scores of normalized heads that nothing scales down bend the most.
        let most = if name == "gemma4_small" { 1e-2 } else { 5e-3 };
        assert_slopes(&name, &dense(&name), None, most);
    }
}
