//! Every formula against a few lines of f64, and every weight against a finite difference of its loss.

use burn_flex::Flex;
use burn_tensor::{Tensor, TensorData};

use super::feedback::{Kto, KtoLoss};
use super::preference::{Dpo, DpoLoss, Preference};
use super::statistics::LENGTH;
use super::{Answers, Comparison, Judged};
use crate::data::sequence::Side;

/// Summed negative log-likelihoods of three pairs, chosen and rejected in turn.
const NLL: [f64; 6] = [12.5, 30.25, 7.0, 3.5, 21.75, 22.5];
const REFERENCE: [f64; 6] = [13.75, 29.5, 6.5, 4.25, 20.0, 26.0];
const LENGTHS: [f64; 6] = [5.0, 11.0, 3.0, 2.0, 8.0, 9.0];
const BASELINE: f64 = 0.4;

fn tensor(values: &[f64]) -> Tensor<Flex, 1> {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn numbers(tensor: &Tensor<Flex, 1>) -> Vec<f64> {
    tensor.to_data().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn answers(baseline: bool) -> Answers<Flex> {
    Answers {
        nll: tensor(&NLL),
        lengths: tensor(&LENGTHS),
        comparison: Comparison {
            reference: Some(tensor(&REFERENCE)),
            baseline: baseline.then(|| tensor(&[BASELINE])),
        },
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_sigmoid(x: f64) -> f64 {
    -(-x).exp().ln_1p()
}

fn close(ours: f64, expected: f64, what: &str) {
    assert!((ours - expected).abs() <= 2e-5 * expected.abs().max(1.0), "{what}: {ours} for {expected}");
}

/// Compares the loss with `loss` of the sums, and the weights with its central differences.
fn check(name: &str, judged: &Judged<Flex>, loss: impl Fn(&[f64; 6]) -> f64) {
    close(numbers(&judged.loss.value)[0], loss(&NLL), name);
    for (index, weight) in numbers(&judged.weights).into_iter().enumerate() {
        let step = 1e-5;
        let moved = |by: f64| {
            let mut nll = NLL;
            nll[index] += by;
            loss(&nll)
        };
        close(weight, (moved(step) - moved(-step)) / (2.0 * step), &format!("{name}, weight {index}"));
    }
}

fn pairs(of: impl Fn(usize, usize) -> f64) -> f64 {
    (0..3).map(|pair| of(2 * pair, 2 * pair + 1)).sum()
}

#[test]
fn dpo_and_its_kin_are_their_formulas() {
    let usual = Dpo { beta: 0.3, ..Dpo::default() };
    let h = |nll: &[f64; 6], c: usize, r: usize| (REFERENCE[c] - nll[c]) - (REFERENCE[r] - nll[r]);
    let mean = |nll: &[f64; 6], c: usize, r: usize| {
        (REFERENCE[c] - nll[c]) / LENGTHS[c] - (REFERENCE[r] - nll[r]) / LENGTHS[r]
    };
    let judge = |dpo: Dpo| Preference::Dpo(dpo).judge(&answers(false));

    check("sigmoid", &judge(usual), |nll| pairs(|c, r| -log_sigmoid(0.3 * h(nll, c, r))));
    check("smoothed", &judge(Dpo { label_smoothing: 0.2, ..usual }), |nll| {
        pairs(|c, r| {
            let x = 0.3 * h(nll, c, r);
            -0.8 * log_sigmoid(x) - 0.2 * log_sigmoid(-x)
        })
    });
    check("robust", &judge(Dpo { loss: DpoLoss::Robust, label_smoothing: 0.2, ..usual }), |nll| {
        pairs(|c, r| {
            let x = 0.3 * h(nll, c, r);
            (-0.8 * log_sigmoid(x) + 0.2 * log_sigmoid(-x)) / 0.6
        })
    });
    check("hinge", &judge(Dpo { loss: DpoLoss::Hinge, ..usual }), |nll| {
        pairs(|c, r| (1.0 - 0.3 * h(nll, c, r)).max(0.0))
    });
    check("ipo", &judge(Dpo { loss: DpoLoss::Ipo, ..usual }), |nll| {
        pairs(|c, r| (mean(nll, c, r) - 1.0 / 0.6).powi(2))
    });
    check("normalized", &judge(Dpo { length_normalized: true, ..usual }), |nll| {
        pairs(|c, r| -log_sigmoid(0.3 * mean(nll, c, r)))
    });
    check("rpo", &judge(Dpo { rpo_alpha: 0.7, ..usual }), |nll| {
        pairs(|c, r| -log_sigmoid(0.3 * h(nll, c, r)) + 0.7 * nll[c] / LENGTHS[c])
    });
}

#[test]
fn orpo_and_simpo_are_their_formulas() {
    let mean = |nll: &[f64; 6], at: usize| -nll[at] / LENGTHS[at];
    let odds = |mean: f64| mean - (-mean.exp()).ln_1p();
    check("orpo", &Preference::Orpo { beta: 0.25 }.judge(&answers(false)), |nll| {
        pairs(|c, r| -mean(nll, c) - 0.25 * log_sigmoid(odds(mean(nll, c)) - odds(mean(nll, r))))
    });
    check("simpo", &Preference::SimPo { beta: 2.0, gamma: 1.0 }.judge(&answers(false)), |nll| {
        pairs(|c, r| -log_sigmoid(2.0 * (mean(nll, c) - mean(nll, r)) - 1.0))
    });
}

#[test]
fn odds_stay_finite_for_an_answer_that_is_certain() {
    let certain = Answers {
        nll: tensor(&[0.0, 1e-6]),
        lengths: tensor(&[4.0, 4.0]),
        comparison: Comparison::default(),
    };
    let judged = Preference::Orpo { beta: 0.1 }.judge(&certain);
    assert!(numbers(&judged.loss.value)[0].is_finite());
    assert!(
        numbers(&judged.weights).iter().all(|weight| weight.is_finite()),
        "{:?}",
        numbers(&judged.weights)
    );
}

#[test]
fn kto_and_apo_are_their_formulas() {
    let sides = [Side::Wanted, Side::Unwanted, Side::Wanted, Side::Wanted, Side::Unwanted, Side::Unwanted];
    let loss = |kto: Kto, baseline: f64| {
        move |nll: &[f64; 6]| -> f64 {
            let one = |at: usize| {
                let ratio = REFERENCE[at] - nll[at];
                match sides[at] {
                    Side::Wanted => kto.wanted_weight * (1.0 - sigmoid(kto.beta * (ratio - baseline))),
                    _ => kto.unwanted_weight * (1.0 - sigmoid(kto.beta * (baseline - ratio))),
                }
            };
            (0..6).map(one).sum()
        }
    };
    let kto = Kto { beta: 0.5, loss: KtoLoss::Kto, wanted_weight: 1.25, unwanted_weight: 0.75 };
    check("kto", &kto.judge(&answers(true), &sides), loss(kto, BASELINE));
    let apo = Kto { loss: KtoLoss::ApoZeroUnpaired, ..kto };
    assert!(kto.needs_baseline() && !apo.needs_baseline());
    check("apo", &apo.judge(&answers(false), &sides), loss(apo, 0.0));
    // A baseline below zero counts as zero.
    let mut below = answers(true);
    below.comparison.baseline = Some(tensor(&[-3.0]));
    check("kto, baseline below zero", &kto.judge(&below, &sides), loss(kto, 0.0));
}

#[test]
fn the_first_loss_of_a_fresh_adapter_is_ln_2() {
    let fresh = Answers {
        nll: tensor(&NLL),
        lengths: tensor(&LENGTHS),
        comparison: Comparison { reference: Some(tensor(&NLL)), baseline: None },
    };
    let judged = Preference::Dpo(Dpo::default()).judge(&fresh);
    close(numbers(&judged.loss.value)[0] / 3.0, std::f64::consts::LN_2, "mean loss");
}

#[test]
fn statistics_are_sums_of_rewards_and_log_probabilities() {
    let judged = Preference::Dpo(Dpo { beta: 0.3, ..Dpo::default() }).judge(&answers(false));
    let sums = numbers(&judged.loss.statistics.unwrap());
    let reward = |at: usize| 0.3 * (REFERENCE[at] - NLL[at]);
    let expected: [f64; LENGTH] = [
        reward(0) + reward(2) + reward(4),
        reward(1) + reward(3) + reward(5),
        -(NLL[0] + NLL[2] + NLL[4]),
        -(NLL[1] + NLL[3] + NLL[5]),
        // The first pair alone: 1.25 against −0.75; the others have −0.5 against 0.75 and −1.75 against 3.5.
        1.0,
    ];
    for (ours, expected) in sums.into_iter().zip(expected) {
        close(ours, expected, "statistic");
    }
}
