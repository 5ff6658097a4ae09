//! AdamW over several steps, and the sum of squares.

use burn::tensor::DType;
use burn_flex::Flex;
use tune_kernels::adamw::{AdamWConfig, Moments, adamw, reference, sum_of_squares};

use crate::support::{A, assert_close, random, tensor, values};

#[test]
fn several_steps_agree_with_the_oracle() {
    let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    for shape in [[1, 1], [3, 37], [40, 1000]] {
        let count = shape[0] * shape[1];
        let mut expected = random(count, 1, 1.0);
        let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
        let mut parameter = tensor::<Flex, 2>(&expected, shape, DType::F32);
        let mut moments = Moments::zeros_like(&parameter);
        for step in 1..=5 {
            let gradient = random(count, 10 + step, 1e-3);
            reference::update(&mut expected, &gradient, (&mut first, &mut second), &config, 1e-2, step);
            let gradient = tensor::<Flex, 2>(&gradient, shape, DType::F32);
            (parameter, moments) = adamw(parameter, gradient, moments, &config, 1e-2, step);
            assert_close("parameter", &values(&parameter), &expected, 1e-6);
            assert_close("first moment", &values(&moments.first), &first, 1e-6);
            assert_close("second moment", &values(&moments.second), &second, 1e-6);
        }
    }
}

/// A tensor that someone else still holds is not changed under them.
#[test]
fn shared_tensors_are_left_alone() {
    let parameter = tensor::<Flex, 2>(&[1.0, 2.0], [1, 2], DType::F32);
    let held = parameter.clone();
    let gradient = tensor::<Flex, 2>(&[1.0, -1.0], [1, 2], DType::F32);
    let moments = Moments::zeros_like(&parameter);
    let (updated, _) = adamw(parameter, gradient, moments, &AdamWConfig::default(), 0.1, 1);
    assert_eq!(values(&held), [1.0, 2.0]);
    assert_close("first step", &values(&updated), &[0.9, 2.1], 1e-6);
}

#[test]
fn sum_of_squares_agrees_with_the_oracle() {
    for shape in [[1, 1], [3, 37], [100, 1000]] {
        let x = random(shape[0] * shape[1], 1, 1.0);
        let expected = reference::sum_of_squares(&x);
        let found = sum_of_squares(&tensor::<A, 2>(&x, shape, DType::F32));
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} instead of {expected}");
    }
}
