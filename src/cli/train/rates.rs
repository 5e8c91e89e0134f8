//! Options of how weights are updated: the optimizer, and its rates over the epochs.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::optim::Algorithm;
use crate::train::config::LrScheduler;

#[derive(Args, Debug)]
#[command(next_help_heading = "Optimizer")]
pub struct OptimizerOptions {
    /// What the options below are where they are not given
    #[arg(long, value_enum, default_value_t = Recipe::Plain)]
    pub recipe: Recipe,

    /// PyTorch's definitions [default: sgd; adamw with --recipe fastai]
    #[arg(long, value_enum)]
    pub opt: Option<OptimizerName>,

    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub momentum: Option<f64>,

    /// Nesterov's momentum, for sgd [default: off]
    #[arg(long)]
    pub nesterov: bool,

    /// Weight decay of everything but batch norm [default: 0.0001; 0.01 with --recipe fastai]
    #[arg(
        long = "weight-decay",
        visible_alias = "wd",
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub weight_decay: Option<f64>,

    /// Weight decay of batch norm's weights and biases
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub norm_weight_decay: f64,
}

/// What `--recipe` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Recipe {
    /// sgd at one rate that falls along a cosine
    Plain,
    /// As fastai's fine_tune: adamw, --lr 0.001, --lr-mult 100, --wd 0.01, onecycle with --div-factor
    /// 5; the classifier alone at 2 × --lr, rising for 99 % of its steps
    FastAi,
}

/// What `--opt` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum OptimizerName {
    Sgd,
    Adam,
    AdamW,
}

impl OptimizerOptions {
    pub fn resolve(&self) -> Result<Algorithm> {
        let opt = self.opt.unwrap_or(match self.recipe {
            Recipe::Plain => OptimizerName::Sgd,
            Recipe::FastAi => OptimizerName::AdamW,
        });
        if opt != OptimizerName::Sgd && (self.momentum.is_some() || self.nesterov) {
            let text = "--momentum and --nesterov are options of --opt sgd; leave them out";
            return Err(Error::Usage(text.into()));
        }
        Ok(match opt {
            OptimizerName::Sgd => {
                Algorithm::Sgd { momentum: self.momentum.unwrap_or(0.9), nesterov: self.nesterov }
            }
            OptimizerName::Adam => Algorithm::Adam,
            OptimizerName::AdamW => Algorithm::AdamW,
        })
    }

    pub fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(match self.recipe {
            Recipe::Plain => 1e-4,
            Recipe::FastAi => 1e-2,
        })
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Learning rate")]
pub struct RateOptions {
    /// Learning rate of the whole network; auto finds it by a range test first [default: 0.01 for
    /// sgd, 0.001 for adam and adamw]
    #[arg(long, value_name = "X|auto", allow_negative_numbers = true)]
    pub lr: Option<LearningRate>,

    /// Do that range test only (100 steps from 1e-7 to 10, or until the loss is 4 times its best), and
    /// write its curve to lr_find.png and lr_find.csv [default: off]
    #[arg(long)]
    pub lr_find: bool,

    /// Learning rate of the classifier alone, in --freeze-epochs [default: 5 × --lr for sgd, --lr
    /// for adam and adamw, 2 × --lr with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub head_lr: Option<f64>,

    /// Earlier layers learn at lr/X, those between geometrically between [default: 1; 100 with
    /// --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub lr_mult: Option<f64>,

    /// How the rate changes from step to step, in each of the two phases [default: cosine; onecycle
    /// with --recipe fastai]
    #[arg(long, value_enum)]
    pub lr_scheduler: Option<SchedulerName>,

    /// Epochs of the whole network in which the rate rises linearly before that [default: 0]
    #[arg(long, value_name = "N")]
    pub lr_warmup_epochs: Option<u32>,

    /// Epochs between two drops of step [default: 7]
    #[arg(long, value_name = "N")]
    pub lr_step_size: Option<u32>,

    /// What a drop of step multiplies the rate by [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub lr_gamma: Option<f64>,

    /// The share of the steps in which onecycle rises [default: 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub pct_start: Option<f64>,

    /// The highest rate of onecycle over its first [default: 25; 5 with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub div_factor: Option<f64>,

    /// The first rate of onecycle over its last [default: 10000; 20000 with --recipe fastai]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub final_div_factor: Option<f64>,
}

/// What `--lr` takes.
#[derive(Clone, Copy, Debug)]
pub enum LearningRate {
    Auto,
    Given(f64),
}

impl FromStr for LearningRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(rate)) => Ok(Self::Given(rate)),
            (_, Err(_)) => Err("a number or auto is expected".into()),
        }
    }
}

/// What `--lr-scheduler` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum SchedulerName {
    /// It does not
    Constant,
    /// Drops every --lr-step-size epochs
    Step,
    /// Falls to 0 along half a cosine
    Cosine,
    /// Rises to --lr, then falls: PyTorch's OneCycleLR, without its cycle of momentum
    OneCycle,
}

impl RateOptions {
    /// The schedules of the whole network and of the classifier alone.
    pub fn resolve(&self, recipe: Recipe) -> Result<[LrScheduler; 2]> {
        let chosen = self.lr_scheduler.unwrap_or(match recipe {
            Recipe::Plain => SchedulerName::Cosine,
            Recipe::FastAi => SchedulerName::OneCycle,
        });
        let of_step = self.lr_step_size.is_some() || self.lr_gamma.is_some();
        if chosen != SchedulerName::Step && of_step {
            let text = "--lr-step-size and --lr-gamma are options of --lr-scheduler step; leave \
                        them out, or add that";
            return Err(Error::Usage(text.into()));
        }
        let of_cycle = [self.pct_start, self.div_factor, self.final_div_factor];
        if chosen != SchedulerName::OneCycle && of_cycle.iter().any(Option::is_some) {
            let text = "--pct-start, --div-factor and --final-div-factor are options of \
                        --lr-scheduler onecycle; leave them out, or add that";
            return Err(Error::Usage(text.into()));
        }
        let (div, final_div) = match recipe {
            Recipe::Plain => (25.0, 1e4),
            Recipe::FastAi => (5.0, 2e4),
        };
        let scheduler = match chosen {
            SchedulerName::Constant => LrScheduler::Constant,
            SchedulerName::Step => LrScheduler::Step {
                size: self.lr_step_size.unwrap_or(7),
                gamma: self.lr_gamma.unwrap_or(0.1),
            },
            SchedulerName::Cosine => LrScheduler::Cosine,
            SchedulerName::OneCycle => LrScheduler::OneCycle {
                pct_start: self.pct_start.unwrap_or(0.3),
                div_factor: self.div_factor.unwrap_or(div),
                final_div_factor: self.final_div_factor.unwrap_or(final_div),
            },
        };
        let of_head = match (recipe, self.lr_scheduler) {
            (Recipe::FastAi, None) => {
                LrScheduler::OneCycle { pct_start: 0.99, div_factor: 25.0, final_div_factor: 4e3 }
            }
            _ => scheduler,
        };
        Ok([scheduler, of_head])
    }
}
