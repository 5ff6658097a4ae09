//! Head and loss: dense and NF4 heads, ignored rows, weighted rows, more rows than one chunk; sums over segments of rows,
//! scaled rows, and sums of rows.

use burn_tensor::{DType, Tensor};
use tune_kernels::check::linear_cross_entropy::Rule;
use tune_kernels::linear::FrozenWeight;
use tune_kernels::linear_cross_entropy::{IGNORED, Logits, linear_cross_entropy, reference};
use tune_kernels::row_sum::RowLists;
use tune_kernels::{KernelBackend, check};

use crate::support::{
    Site, assert_close, assert_within, everywhere, random, random_in, tensor, tolerance, values,
};

#[test]
fn loss_and_gradient_agree_with_the_oracle() {
    everywhere!(check_shapes);
}

fn check_shapes<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for shape in [(1, 8, 2), (5, 33, 101), (1100, 16, 50), (20, 64, 1000), (70, 40, 1_300_000 / 40)] {
            for packed in [false, true] {
                if site.has_time_for(shape.0 * shape.1 * shape.2) {
                    let (device, what) = (B::Device::default(), format!("{dtype:?} on {}", site.name));
                    let on = Site::on::<B>(&device, dtype);
                    assert_within(&what, check::linear_cross_entropy::check(on, shape, packed, Rule::Plain));
                }
            }
            if shape.0 < 100 && shape.2 <= 1000 {
                for rule in [Rule::Biased, Rule::Bent] {
                    let (device, what) = (B::Device::default(), format!("{dtype:?} on {}", site.name));
                    let on = Site::on::<B>(&device, dtype);
                    assert_within(&what, check::linear_cross_entropy::check(on, shape, false, rule));
                }
            }
        }
    }
}

/// A target that the model all but excludes, and one that it is sure of: neither overflows nor loses its digits.
#[test]
fn extreme_logits_keep_their_digits() {
    everywhere!(check_extreme_logits);
}

fn check_extreme_logits<B: KernelBackend>(site: &Site) {
    // Of many tokens the largest logit is far behind the first.
    let few = vec![1.0f32, -1.0, 0.5];
    let many = (0..700).map(|token| [0.25, -1.0, 0.5][token.min(2)] * if token == 690 { 2.0 } else { 1.0 });
    let heads = [few, many.collect()];
    for (dtype, head) in site.dtypes.iter().flat_map(|dtype| heads.iter().map(move |head| (*dtype, head))) {
        let hidden = [1000.0f32, 64.0, 4.0, 4.0];
        let targets = [Some(1), Some(1), Some(0), Some(2)];
        let rows = reference::Rows::plain(head, &targets);
        let losses = reference::row_losses(&hidden, rows, 1);
        let (loss, slope, _) = reference::loss_and_gradients(&hidden, rows, 1);
        let on_device = tensor::<B, 2>(&hidden, [4, 1], dtype);
        let weight = FrozenWeight::Dense(tensor(head, [head.len(), 1], dtype));
        let found = linear_cross_entropy(&on_device, &weight, &[1, 1, 0, 2], true);
        assert_close("loss", &values(&found.loss), &[loss as f32], 2e-6);
        for (found, expected) in values(&found.rows).iter().zip(losses) {
            let error = (found - expected).abs();
            assert!(error <= 4e-6 * expected.abs(), "a loss of {found} instead of {expected}");
        }
        let gradient = values(&found.gradient.expect("it was asked for"));
        // A gradient of many tokens is a difference of numbers of the size of the head's.
        let size = if head.len() > 3 { 1.0 } else { 0.0 };
        for (found, expected) in gradient.iter().zip(slope) {
            let error = f64::from((found - expected).abs());
            assert!(
                error <= 2.0 * tolerance(dtype) * f64::from(expected.abs()).max(size),
                "{found} instead of {expected}"
            );
        }
    }
}

#[test]
fn nothing_supervised_is_a_loss_of_zero() {
    everywhere!(check_nothing_supervised);
}

fn check_nothing_supervised<B: KernelBackend>(_: &Site) {
    let hidden = tensor::<B, 2>(&random(12, 1, 1.0), [3, 4], DType::F32);
    let head = FrozenWeight::Dense(Tensor::ones([7, 4], &Default::default()));
    let found = linear_cross_entropy(&hidden, &head, &[IGNORED; 3], true);
    assert_eq!(values(&found.loss), [0.0]);
    assert_eq!(found.rows.dims(), [0]);
    assert_eq!(values(&found.gradient.expect("it was asked for")), [0.0; 12]);
}

#[test]
#[should_panic(expected = "target of row 1")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let hidden = Tensor::<burn_flex::Flex, 2>::ones([2, 4], &Default::default());
    let head = FrozenWeight::Dense(Tensor::ones([7, 4], &Default::default()));
    linear_cross_entropy(&hidden, &head, &[6, 7], false);
}

#[test]
fn a_trained_head_agrees_with_the_oracle() {
    everywhere!(check_trained_head);
}

fn check_trained_head<B: KernelBackend>(site: &Site) {
    use tune_kernels::linear_cross_entropy::trained::trained_linear_cross_entropy;
    // The last has more rows than one chunk.
    for (tokens, width, vocabulary) in [(1, 8, 2), (9, 33, 101), (700, 16, 50), (90, 2, 131_000)] {
        if !site.has_time_for(tokens * width * vocabulary) {
            continue;
        }
        for dtype in site.dtypes.clone() {
            if vocabulary > 1000 && dtype != DType::F32 {
                continue;
            }
            let what =
                format!("trained head, {dtype:?} [{tokens}, {width}] x {vocabulary}, on {}", site.name);
            let head = random(vocabulary * width, 2, 1.0);
            let hidden = random_in(tokens * width, 1, 1.0, dtype);
            let targets: Vec<Option<usize>> =
                (0..tokens).map(|i| (i % 5 != 3).then_some(i * 31 % vocabulary)).collect();
            let supervised = targets.iter().flatten().count();
            let weights = random(supervised, 3, 2.0);
            let logits = match vocabulary {
                101 => Logits { scale: 0.75, soft_cap: Some(3.0) },
                _ => Logits::PLAIN,
            };
            let rows = reference::Rows { logits, ..reference::Rows::plain(&head, &targets) };
            let losses = reference::row_losses(&hidden, rows, width);
            let (loss, dhidden, dhead) = reference::loss_and_gradients(&hidden, rows, width);
            let weighed = reference::Rows { weights: Some(&weights), ..rows };
            let (_, weighed_hidden, weighed_head) = reference::loss_and_gradients(&hidden, weighed, width);
            let weights = tensor::<B, 1>(&weights, [supervised], DType::F32);
            let on_device: Vec<i32> = targets.iter().map(|t| t.map_or(IGNORED, |t| t as i32)).collect();
            let hidden = tensor::<B, 2>(&hidden, [tokens, width], dtype);
            let head = tensor::<B, 2>(&head, [vocabulary, width], DType::F32);
            let found = trained_linear_cross_entropy(&hidden, &head, logits, &on_device, None, None);
            assert_close(&format!("loss, {what}"), &values(&found.loss), &[loss as f32], 4e-6);
            assert_eq!(found.hidden.dtype(), dtype);
            // A GPU adds up the vocabulary in one row of f32.
            let allowed = tolerance(dtype) * if site.is_gpu { 8.0 } else { 1.0 };
            assert_close(&format!("dhidden, {what}"), &values(&found.hidden), &dhidden, allowed);
            assert_close(&format!("dhead, {what}"), &values(&found.head), &dhead, 4e-6);
            assert_close(&format!("losses, {what}"), &values(&found.rows()), &losses, 4e-6);
            let weighed =
                trained_linear_cross_entropy(&hidden, &head, logits, &on_device, Some(&weights), None);
            assert_eq!(values(&weighed.loss), values(&found.loss), "{what}");
            assert_close(
                &format!("weighted dhidden, {what}"),
                &values(&weighed.hidden),
                &weighed_hidden,
                allowed,
            );
            assert_close(&format!("weighted dhead, {what}"), &values(&weighed.head), &weighed_head, 4e-6);
            let sum = Some(found.head.clone());
            let twice = trained_linear_cross_entropy(&hidden, &head, logits, &on_device, None, sum);
            let doubled: Vec<f32> = dhead.iter().map(|value| 2.0 * value).collect();
            assert_close(&format!("sum, {what}"), &values(&twice.head), &doubled, 4e-6);
        }
    }
}

#[test]
fn sums_and_scaled_rows_agree_with_the_oracle() {
    everywhere!(check_rows);
}

fn check_rows<B: KernelBackend>(site: &Site) {
    let device = B::Device::default();
    for offsets in [vec![0, 1], vec![0, 0, 5, 5, 70, 1000], (0..=300).map(|end| end * end).collect()] {
        let found = check::rows::check_segment_sum::<B>(Site::on(&device, DType::F32), &offsets);
        assert_within(&format!("segment_sum on {}", site.name), found);
    }
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (7, 37), (300, 513)] {
            let found = check::rows::check_row_scale::<B>(Site::on(&device, dtype), rows, width);
            assert_within(&format!("row_scale in {dtype:?} on {}", site.name), found);
        }
        for (ranges, width) in
            [(vec![0..1, 0..1], 1), (vec![0..70, 3..66, 3..66, 99..100], 37), (vec![5..9, 7..8], 513)]
        {
            let lists = RowLists::copies(ranges, 100);
            let found = check::rows::check_row_sum::<B>(Site::on(&device, dtype), &lists, width);
            assert_within(&format!("row_sum in {dtype:?} on {}", site.name), found);
        }
    }
}
