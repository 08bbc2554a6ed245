//! Routing against a plain reference in f64 that sorts: every variant, over random logits with many ties.

mod common;

use billfish_kernels::{Backend, Choice, ExpertGroups, GroupScore, Isa, Routing, Scoring};
use common::Rng;

/// Experts and weights of one token. Scores are f64; candidates are sorted stably, so that ties go to the lower index.
fn reference(r: &Routing, logits: &[f32], correction: Option<&[f32]>) -> Vec<(u32, f64)> {
    let e: Vec<f64> = logits.iter().map(|&v| f64::from(v).exp()).collect();
    let sum: f64 = e.iter().sum();
    let score = |i: usize| match r.scoring {
        Scoring::Softmax => e[i] / sum,
        Scoring::Sigmoid => 1.0 / (1.0 + (-f64::from(logits[i])).exp()),
    };
    let scores: Vec<f64> = (0..r.experts).map(score).collect();
    let choice: Vec<f64> = (0..r.experts).map(|i| scores[i] + correction.map_or(0.0, |c| f64::from(c[i]))).collect();
    let sorted = |candidates: Vec<usize>, value: &dyn Fn(usize) -> f64| {
        let mut order = candidates;
        order.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap());
        order
    };
    let mut candidates: Vec<usize> = (0..r.experts).collect();
    if let Some(g) = r.groups {
        let size = r.experts / g.count;
        let of_group = |i: usize| {
            let mut s = choice[i * size..(i + 1) * size].to_vec();
            s.sort_by(|a, b| b.partial_cmp(a).unwrap());
            if g.score == GroupScore::BestTwo { s[0] + s[1] } else { s[0] }
        };
        let seen = sorted((0..g.count).collect(), &of_group)[..g.chosen].to_vec();
        candidates.retain(|i| seen.contains(&(i / size)));
    }
    let chosen = sorted(candidates, &|i| choice[i])[..r.top_k].to_vec();
    let sum: f64 = if r.renormalize { chosen.iter().map(|&i| scores[i]).sum() } else { 1.0 };
    chosen.into_iter().map(|i| (i as u32, scores[i] / sum * f64::from(r.scaling))).collect()
}

fn route(isa: Isa, threads: usize, r: &Routing, logits: &[f32], correction: Option<&[f32]>) -> Vec<Choice> {
    let mut logits = logits.to_vec();
    let mut choices = vec![Choice::default(); logits.len() / r.experts * r.top_k];
    Backend::new(isa, threads).unwrap().route(r, &mut logits, correction, &mut choices);
    choices
}

#[test]
fn every_variant_agrees_with_the_reference_and_is_the_same_everywhere() {
    let mut rng = Rng(7);
    // few values, whose sums of two all differ, so that ties are exact ones
    let values = [-1.9f32, -1.1, -0.3, 0.45, 1.3];
    let corrections = [0.0f32, 0.11, 0.37];
    for experts in [4, 8, 12, 60, 64, 128] {
        for top_k in [1, 2, 4, 8].into_iter().filter(|k| *k <= experts) {
            for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
                let group = |count, chosen, score| Some(ExpertGroups { count, chosen, score });
                let groups = [
                    None,
                    group(1, 1, GroupScore::BestTwo),
                    group(2, 1, GroupScore::Largest),
                    group(4, 3, GroupScore::BestTwo),
                    group(4, 2, GroupScore::Largest),
                ];
                for groups in groups {
                    for (renormalize, scaling, corrected) in [(true, 1.0, false), (false, 1.0, true), (true, 2.5, true)] {
                        let r = Routing { experts, top_k, scoring, groups, renormalize, scaling };
                        if r.check().is_err() {
                            continue;
                        }
                        let m = 37;
                        let logits: Vec<f32> = (0..m * experts).map(|_| values[rng.below(5)]).collect();
                        // the sum of two corrected scores rounds by the order of its parts, so there ties are left out
                        let sums = groups.is_some_and(|g| g.score == GroupScore::BestTwo);
                        let correct = |_| if sums { rng.unit() } else { corrections[rng.below(3)] };
                        let correction: Vec<f32> = (0..experts).map(correct).collect();
                        let correction = corrected.then_some(&correction[..]);
                        let choices = route(Isa::Scalar, 1, &r, &logits, correction);
                        for (row, got) in logits.chunks(experts).zip(choices.chunks(top_k)) {
                            let want = reference(&r, row, correction);
                            for (g, (expert, weight)) in got.iter().zip(&want) {
                                let off = (f64::from(g.weight) - weight).abs();
                                assert!(g.expert == *expert && off <= 1e-6 * weight.abs(), "{r:?}: {got:?} against {want:?}");
                            }
                            // a row alone
                            assert_eq!(route(Isa::Scalar, 1, &r, row, correction), got, "{r:?}");
                        }
                        for isa in Isa::available() {
                            assert_eq!(route(isa, 2, &r, &logits, correction), choices, "{r:?} {isa:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn all_equal_goes_to_the_first() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let r = Routing { experts: 9, top_k: 3, scoring, groups: None, renormalize: true, scaling: 1.0 };
        let choices = route(Isa::Scalar, 1, &r, &[0.7; 9], None);
        assert_eq!(choices.iter().map(|c| c.expert).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(choices.iter().all(|c| (c.weight - 1.0 / 3.0).abs() < 1e-6), "{choices:?}");
    }
}

#[test]
fn a_correction_changes_the_choice_and_not_the_weight() {
    let r = Routing { experts: 4, top_k: 1, scoring: Scoring::Sigmoid, groups: None, renormalize: false, scaling: 2.0 };
    let choice = route(Isa::Scalar, 1, &r, &[2.0, 0.0, 0.0, 0.0], Some(&[0.0, 0.0, 5.0, 0.0]))[0];
    assert!(choice.expert == 2 && (choice.weight - 1.0).abs() < 1e-6, "{choice:?}");
    // a negative one may bring every score of a group below that of the rest
    let grouped = Routing { groups: Some(ExpertGroups { count: 2, chosen: 1, score: GroupScore::BestTwo }), top_k: 2, ..r };
    let chosen = route(Isa::Scalar, 1, &grouped, &[0.0; 4], Some(&[-7.0, -7.0, -6.0, -6.5]));
    assert_eq!(chosen.iter().map(|c| c.expert).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn what_is_not_a_number_stays_so() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let r = Routing { experts: 20, top_k: 2, scoring, groups: None, renormalize: true, scaling: 1.0 };
        for bad in [f32::NAN, f32::INFINITY] {
            for place in [0, 7, 19] {
                let mut logits = [0.5; 20];
                logits[place] = bad;
                assert!(route(Isa::Scalar, 1, &r, &logits, None).iter().all(|c| c.weight.is_nan()), "{scoring:?} {bad} at {place}");
            }
        }
    }
    // far below every other is a number: a weight of nothing
    let r = Routing { experts: 2, top_k: 2, scoring: Scoring::Softmax, groups: None, renormalize: false, scaling: 1.0 };
    let choices = route(Isa::Scalar, 1, &r, &[200.0, -200.0], None);
    assert!(choices[0].weight == 1.0 && choices[1].weight < 1e-30, "{choices:?}");
    // sigmoids of very small logits may all be nothing; their shares are then nothing too, and no quotient of zeros
    let r = Routing { scoring: Scoring::Sigmoid, renormalize: true, ..r };
    assert!(route(Isa::Scalar, 1, &r, &[-500.0, -500.0], None).iter().all(|c| c.weight.is_finite()));
}

#[test]
fn numbers_that_do_not_fit_are_named() {
    let r = Routing { experts: 8, top_k: 2, scoring: Scoring::Softmax, groups: None, renormalize: true, scaling: 1.0 };
    assert_eq!(r.check(), Ok(()));
    let group = |count, chosen, score| Some(ExpertGroups { count, chosen, score });
    for (wrong, words) in [
        (Routing { top_k: 9, ..r.clone() }, "1 to 8 experts"),
        (Routing { top_k: 0, ..r.clone() }, "1 to 8 experts"),
        (Routing { groups: group(3, 1, GroupScore::Largest), ..r.clone() }, "divide 8 experts"),
        (Routing { groups: group(8, 4, GroupScore::BestTwo), ..r.clone() }, "at least 2"),
        (Routing { groups: group(8, 1, GroupScore::Largest), ..r.clone() }, "hold 2 experts"),
        (Routing { groups: group(2, 3, GroupScore::Largest), ..r.clone() }, "1 to 2 chosen"),
    ] {
        let message = wrong.check().unwrap_err();
        assert!(message.contains(words), "{message}");
    }
}
