//! Head and loss: dense and NF4 heads, ignored rows, more rows than one chunk.

use burn::tensor::{DType, Tensor};
use burn_flex::Flex;
use tune_kernels::linear::FrozenWeight;
use tune_kernels::linear_cross_entropy::{IGNORED, linear_cross_entropy, reference};
use tune_kernels::nf4::{self, Nf4Weight};

use crate::support::{
    A, DTYPES, assert_close, gradient, ids, random, random_in, rounded, tensor, tolerance, values,
};

#[test]
fn loss_and_gradient_agree_with_the_oracle() {
    for dtype in DTYPES {
        for (tokens, width, vocabulary) in [(1, 8, 2), (5, 33, 101), (700, 16, 50), (20, 64, 1000)] {
            for packed in [false, true] {
                let what = format!("{dtype:?} [{tokens}, {width}] x {vocabulary}, packed {packed}");
                let original = random(vocabulary * width, 2, 1.0);
                let (head, dense) = if packed {
                    let quantized = nf4::quantize(&original, [vocabulary, width], 64, true);
                    let dense = rounded(&quantized.dequantize(), dtype);
                    (FrozenWeight::Nf4(Nf4Weight::new(quantized, &Default::default())), dense)
                } else {
                    let head = tensor(&original, [vocabulary, width], dtype);
                    (FrozenWeight::Dense(head), rounded(&original, dtype))
                };
                let hidden = random_in(tokens * width, 1, 1.0, dtype);
                let targets: Vec<Option<usize>> =
                    (0..tokens).map(|i| (i % 5 != 3).then_some(i * 31 % vocabulary)).collect();
                let (loss, slope) = reference::loss_and_gradient(&hidden, &dense, &targets, width);

                let leaf = tensor::<A, 2>(&hidden, [tokens, width], dtype).require_grad();
                let on_device: Vec<i32> = targets.iter().map(|t| t.map_or(IGNORED, |t| t as i32)).collect();
                let found = linear_cross_entropy(leaf.clone(), &head, &ids(&on_device));
                assert_eq!(found.dtype(), DType::F32);
                assert_close(&format!("loss, {what}"), &values(&found), &[loss as f32], 2e-6);
                let gradients = (found * 0.5).backward();
                let slope: Vec<f32> = slope.iter().map(|x| 0.5 * x).collect();
                assert_close(
                    &format!("dhidden, {what}"),
                    &gradient(&leaf, &gradients),
                    &slope,
                    tolerance(dtype),
                );
                let plain = tensor::<Flex, 2>(&hidden, [tokens, width], dtype);
                let plain = linear_cross_entropy::<Flex>(plain, &head, &ids(&on_device));
                assert_close(&format!("untracked loss, {what}"), &values(&plain), &[loss as f32], 2e-6);
            }
        }
    }
}

#[test]
fn nothing_supervised_is_a_loss_of_zero() {
    let hidden = tensor::<A, 2>(&random(12, 1, 1.0), [3, 4], DType::F32).require_grad();
    let head = FrozenWeight::Dense(Tensor::ones([7, 4], &Default::default()));
    let loss = linear_cross_entropy(hidden.clone(), &head, &ids(&[IGNORED; 3]));
    assert_eq!(values(&loss), [0.0]);
    assert_eq!(gradient(&hidden, &loss.backward()), [0.0; 12]);
}

#[test]
#[should_panic(expected = "target of row 1")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let hidden = Tensor::<Flex, 2>::ones([2, 4], &Default::default());
    let head = FrozenWeight::Dense(Tensor::ones([7, 4], &Default::default()));
    linear_cross_entropy::<Flex>(hidden, &head, &ids(&[6, 7]));
}
