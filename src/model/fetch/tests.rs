//! A disk that is slow, stalls, and fails now and then, under layers that are read ahead.

use std::path::Path;
use std::time::Duration;

use burn_flex::Flex;

use super::*;
use crate::assets::ModelDir;
use crate::model::layers::{Layers, Order};
use crate::model::load::load;
use crate::model::{Decoder, family};

/// Hidden states, once nothing fails; how often something did.
fn hidden(decoder: &Decoder<Flex>, ids: &[u32]) -> (Vec<f32>, usize) {
    let mut failures = 0;
    loop {
        match decoder.hidden(ids, None, None) {
            Ok(hidden) => return (hidden.into_data().into_vec().unwrap(), failures),
            Err(error) => assert!(error.to_string().contains("a bad sector"), "{error}"),
        }
        failures += 1;
        assert!(failures < 200, "nothing but failures");
    }
}

#[test]
fn a_disk_that_is_slow_or_fails_for_a_while_changes_no_number() {
    for base in ["trajectory/base", "mixture_experts/base"] {
        let folder =
            ModelDir::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(base)).unwrap();
        let spec = family::decoder_spec(folder.config()).unwrap();
        let (dtype, device) = (FloatDtype::F32, Default::default());
        let held = load::<Flex>(folder.weights(), &spec, None, dtype, &device, &mut |_| {}).unwrap();
        // Many tokens, and one, which brings experts by use.
        let many: Vec<u32> = (0..24).collect();
        let expected = [hidden(&held, &many).0, hidden(&held, &many[3..4]).0];
        for (slots, fails_every) in [(1, 0), (2, 0), (2, 4), (3, 3)] {
            let shelf = Shelf::open(folder.weights().folder(), &spec, None, dtype).unwrap();
            let mut reads = 0_u64;
            let shelf = Arc::new(shelf);
            let placer = Placer::new(Waiting::Files(Arc::clone(&shelf)), &shelf, &device);
            let fetcher = Fetcher::start(placer, move |layer, with_experts| {
                reads += 1;
                // Mostly fast, sometimes far slower than a layer is computed.
                let hash = (reads ^ slots as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                thread::sleep(Duration::from_millis(if hash.is_multiple_of(5) { 12 } else { hash % 2 }));
                match fails_every > 0 && hash.is_multiple_of(fails_every) {
                    true => Err(Error::LayerReader { message: "a bad sector".to_owned() }),
                    false => shelf.layer(layer, with_experts),
                }
            });
            let mut slow = held.clone();
            let count = spec.layers.len();
            slow.layers = Layers::streaming(fetcher.unwrap().by_use(&spec), slots, count, 0, Vec::new());
            let mut failures = 0;
            for _ in 0..6 {
                for (ids, expected) in [&many[..], &many[3..4]].into_iter().zip(&expected) {
                    let (found, failed) = hidden(&slow, ids);
                    assert!(found == *expected, "{base}, {slots} slots");
                    failures += failed;
                }
                // A walk down, as a backward pass goes.
                let down = slow.layers.walk_with(Order::Down(0..count), many.len());
                failures += down.filter(Result::is_err).count();
            }
            assert_eq!(failures > 0, fails_every > 0, "{base}: {failures} failures");
        }
    }
}
