//! Learning-rate schedules: pure functions from the step to what the learning rate is multiplied by.
//! Steps are counted from 0, a step a batch, and the definitions are those of
//! `torch.optim.lr_scheduler` stepped once a batch.

use std::f64::consts::PI;

/// How the learning rate changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// It does not.
    Constant,
    /// Multiplied by `gamma` every `size` steps, as `StepLR`.
    Step {
        /// Steps from one drop to the next: those of an epoch times the epochs. Never, if 0.
        size: u64,
        /// The factor of each drop.
        gamma: f64,
    },
    /// Half a cosine from 1 to 0, as `CosineAnnealingLR`.
    Cosine,
    /// Half a cosine up from 1/`div` to 1, another down to 1/(`div`·`div_final`), as `OneCycleLR`.
    OneCycle {
        /// Share of the steps spent going up.
        pct_start: f64,
        /// The peak over the start.
        div: f64,
        /// The start over the end. fastai's `div_final` is the peak over the end: `div` times this.
        div_final: f64,
    },
}

impl Schedule {
    /// `OneCycleLR` with its defaults.
    pub const ONE_CYCLE: Self = Self::OneCycle { pct_start: 0.3, div: 25.0, div_final: 1e4 };

    /// What fastai's `fine_tune` does.
    pub const FINE_TUNE: Self = Self::OneCycle { pct_start: 0.3, div: 5.0, div_final: 2e4 };

    /// The factor at `step` of a run of `total` steps; the last one's for steps beyond.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Step { size, gamma } => {
                step.checked_div(size).map_or(1.0, |drops| gamma.powf(drops as f64))
            }
            Self::Cosine => cosine(1.0, 0.0, step as f64, total as f64),
            Self::OneCycle { pct_start, div, div_final } => {
                let (start, end) = (1.0 / div, 1.0 / (div * div_final));
                let step = step as f64;
                let (peak, last) = (pct_start * total as f64 - 1.0, total as f64 - 1.0);
                match step < peak {
                    true => cosine(start, 1.0, step, peak),
                    false => cosine(1.0, end, step - peak, last - peak),
                }
            }
        }
    }
}

/// A linear start before a schedule, as `SequentialLR` of `LinearLR` and the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// Its steps; 0 for none.
    pub steps: u64,
    /// The factor at step 0; it would be 1 at step `steps`, where the schedule begins.
    pub start: f64,
}

impl Warmup {
    /// The factor at `step` of a run of `total` steps, of which `schedule` has those after the
    /// start.
    pub fn factor(&self, schedule: Schedule, step: u64, total: u64) -> f64 {
        match step.checked_sub(self.steps) {
            Some(step) => schedule.factor(step, total.saturating_sub(self.steps)),
            None => self.start + (1.0 - self.start) * step as f64 / self.steps as f64,
        }
    }
}

/// `at` of `length` along half a cosine between two values.
fn cosine(from: f64, to: f64, at: f64, length: f64) -> f64 {
    let share = if length > 0.0 { (at / length).min(1.0) } else { 1.0 };
    to + (from - to) / 2.0 * (1.0 + (PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The numbers are those of torch 2.15:
    //
    //     def series(make, n):
    //         optimizer = SGD([Parameter(zeros(1))], lr=1.0)
    //         scheduler = make(optimizer)
    //         for _ in range(n):
    //             print(optimizer.param_groups[0]["lr"])
    //             optimizer.step()
    //             scheduler.step()
    //
    // called with what stands above each test.
    fn check(factor: impl Fn(u64) -> f64, expected: &[f64]) {
        for (step, expected) in (0..).zip(expected) {
            let found = factor(step);
            assert!((found - expected).abs() < 1e-12, "step {step}: {found}, not {expected}");
        }
    }

    // CosineAnnealingLR(optimizer, T_max=8)
    #[test]
    fn cosine_is_cosine_annealing() {
        let expected = [
            1.0,
            0.9619397662556434,
            0.8535533905932737,
            0.6913417161825449,
            0.5,
            0.30865828381745514,
            0.14644660940672627,
            0.03806023374435664,
        ];
        check(|step| Schedule::Cosine.factor(step, 8), &expected);
        assert_eq!(Schedule::Cosine.factor(9, 8), 0.0, "beyond the end it stays there");
    }

    // StepLR(optimizer, 3, 0.1)
    #[test]
    fn step_drops_at_multiples_of_its_size() {
        let schedule = Schedule::Step { size: 3, gamma: 0.1 };
        check(|step| schedule.factor(step, 8), &[1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]);
        assert_eq!(Schedule::Step { size: 0, gamma: 0.1 }.factor(5, 8), 1.0);
    }

    // OneCycleLR(optimizer, 1.0, total_steps=N, cycle_momentum=False), N = 10, 3, 1
    #[test]
    fn one_cycle_is_torch_s_default() {
        let expected = [
            0.040000000000000036,
            0.52,
            1.0,
            0.9504846320134737,
            0.8117456539497631,
            0.6112620219362893,
            0.38874197806371075,
            0.18825834605023697,
            0.049519367986526286,
            4e-06,
        ];
        check(|step| Schedule::ONE_CYCLE.factor(step, 10), &expected);
        let expected = [0.9944154354509117, 0.46263710266697505, 4e-06];
        check(|step| Schedule::ONE_CYCLE.factor(step, 3), &expected);
        check(|step| Schedule::ONE_CYCLE.factor(step, 1), &[4e-06]);
    }

    // OneCycleLR(optimizer, 1.0, total_steps=8, pct_start=0.3, div_factor=5, final_div_factor=2e4,
    //            cycle_momentum=False)
    #[test]
    fn one_cycle_can_be_fastai_s() {
        let expected = [
            0.19999999999999996,
            0.8493959207434933,
            0.9719419457375322,
            0.8117467834803573,
            0.5559866782292733,
            0.2830652998599166,
            0.07664713400685408,
            1e-05,
        ];
        check(|step| Schedule::FINE_TUNE.factor(step, 8), &expected);
    }

    // SequentialLR(optimizer, [LinearLR(optimizer, start_factor=0.01, total_iters=4),
    //                          CosineAnnealingLR(optimizer, T_max=6)], milestones=[4])
    #[test]
    fn a_warm_up_comes_before_the_schedule() {
        let warmup = Warmup { steps: 4, start: 0.01 };
        let expected = [
            0.01,
            0.2575,
            0.505,
            0.7525,
            1.0,
            0.9330127018922194,
            0.75,
            0.5,
            0.2500000000000001,
            0.06698729810778065,
        ];
        check(|step| warmup.factor(Schedule::Cosine, step, 10), &expected);
        let none = Warmup { steps: 0, start: 0.01 };
        assert_eq!(none.factor(Schedule::Cosine, 3, 10), Schedule::Cosine.factor(3, 10));
    }
}
