//! AdamW over several steps, and the norm that clipping needs.

use burn_tensor::Tensor;

use super::measure::{Deviation, On, random, values};
use crate::KernelBackend;
use crate::adamw::{AdamWConfig, CLIP_EPSILON, Guard, Moments, Update, adamw, norm, reference};

const STEPS: u64 = 5;

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [[1, 1], [3, 37], [40, 300]].into_iter().flat_map(|shape| check(on, shape)).collect()
}

/// Five steps of [`adamw`] with clipping and decay, one that its guard forbids, and [`norm`].
pub fn check<B: KernelBackend>(on: On<'_, B>, shape: [usize; 2]) -> Vec<Deviation> {
    let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    let case = format!("{shape:?}");
    let count = shape[0] * shape[1];
    let mut expected = random(count, 1, 1.0);
    let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
    let mut parameter = on.single::<2>(&expected, shape);
    let mut moments = Moments::zeros_like(&parameter);
    let mut deviations = Vec::new();
    for step in 1..=STEPS {
        let gradient = random(count, 10 + step, 1e-3);
        reference::update(&mut expected, &gradient, (&mut first, &mut second), &config, 1e-2, step);
        let gradient = on.single::<2>(&gradient, shape);
        // A gradient of eight times the size, halved twice by the scale, and again by clipping it to half its norm.
        let gradient = gradient * 8.0;
        let norm = norm(&[&gradient], on.device);
        let half = 0.5 * (0.25 * f64::from(values(&norm)[0]) + CLIP_EPSILON);
        let numbers = Tensor::cat(vec![on.single::<1>(&[3.0], [1]), norm], 0);
        let guard = Guard { numbers, scale: 0.25, max_norm: half };
        let update = Update { parameter, gradient: Some(gradient), moments };
        (parameter, moments) = adamw(vec![update], &guard, &config, 1e-2, step).remove(0);
        let case = format!("{case}, step {step}");
        deviations.push(Deviation::new("parameter", &case, &values(&parameter), &expected, 1e-6));
        deviations.push(Deviation::new("first moment", &case, &values(&moments.first), &first, 1e-6));
        deviations.push(Deviation::new("second moment", &case, &values(&moments.second), &second, 1e-6));
    }
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for numbers in [[fault, 1.0, 1.0], [1.0, fault, 1.0], [1.0, 1.0, fault]] {
            let guard = Guard { numbers: on.single::<1>(&numbers, [3]), scale: 1.0, max_norm: 1.0 };
            let gradient = Some(parameter.full_like(fault));
            let update = Update { parameter: parameter.clone(), gradient, moments: moments.clone() };
            let (kept, kept_moments) = adamw(vec![update], &guard, &config, 1e-2, STEPS + 1).remove(0);
            let case = format!("{case}, forbidden by {numbers:?}");
            let mut same = |part, found: &Tensor<B, 2>, expected: &Tensor<B, 2>| {
                deviations.push(Deviation::new(part, &case, &values(found), &values(expected), 0.0));
            };
            same("parameter", &kept, &parameter);
            same("first moment", &kept_moments.first, &moments.first);
            same("second moment", &kept_moments.second, &moments.second);
        }
    }
    let x = random(count, 1, 1.0);
    let expected = reference::sum_of_squares(&x).sqrt();
    let found = norm(&[&on.single::<2>(&x, shape)], on.device);
    let error = (f64::from(values(&found)[0]) - expected).abs() / expected;
    deviations.push(Deviation { part: "norm", case, error, tolerance: 3e-7 });
    deviations
}
