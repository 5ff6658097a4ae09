//! AdamW over several steps, and the sum of squares that clipping needs.

use super::{Deviation, On, random, values};
use crate::KernelBackend;
use crate::adamw::{AdamWConfig, Moments, Update, adamw, reference, sum_of_squares};

const STEPS: u64 = 5;

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [[1, 1], [3, 37], [40, 300]].into_iter().flat_map(|shape| check(on, shape)).collect()
}

/// Five steps of [`adamw`] with clipping and decay, and [`sum_of_squares`].
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
        // Clipping halves a gradient of twice the size.
        let update = Update { parameter, gradient: Some(gradient * 2.0), moments };
        (parameter, moments) = adamw(vec![update], 0.5, &config, 1e-2, step).remove(0);
        let case = format!("{case}, step {step}");
        deviations.push(Deviation::new("parameter", &case, &values(&parameter), &expected, 1e-6));
        deviations.push(Deviation::new("first moment", &case, &values(&moments.first), &first, 1e-6));
        deviations.push(Deviation::new("second moment", &case, &values(&moments.second), &second, 1e-6));
    }
    let x = random(count, 1, 1.0);
    let sum = reference::sum_of_squares(&x);
    let error = (sum_of_squares(&[&on.single::<2>(&x, shape)]) - sum).abs() / sum;
    // A GPU adds parts in compensated f32.
    deviations.push(Deviation { part: "sum of squares", case, error, tolerance: 1e-7 });
    deviations
}
