//! What a training run is asked to do; kept in its checkpoints.

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::schedule::{Decay, Ema, EmaWarmup};
use crate::diffusion::{LossWeighting, Objective};
use crate::graph::AdamW;

/// Examples that the 32-bit counters of the random numbers can tell apart.
pub const MAX_EXAMPLES: u64 = 1 << 32;

/// The options of a training run.
///
/// ```
/// use warpdiff::train::TrainOptions;
/// let options = TrainOptions { steps: 2_000, batch_size: 16, ..TrainOptions::default() };
/// assert!(options.validate().is_ok());
/// assert!(TrainOptions { batch_size: 0, ..options }.validate().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Updates of the weights in the whole run.
    pub steps: u64,
    /// Examples per step, N.
    pub batch_size: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
    /// What the learning rate does after the warm-up.
    pub decay: Decay,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added by AdamW to the root of the second moment.
    pub adam_eps: f64,
    /// Decoupled weight decay, times the learning rate per step.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global 2-norm; `None` leaves them alone.
    pub max_grad_norm: Option<f64>,
    /// The moving average of the weights that samplers use.
    pub ema: Ema,
    /// Probability of replacing an example's label by the model's null class, for classifier-free guidance (2207.12598).
    pub label_dropout: f64,
    /// Mirror every other example, drawn per example. Wrong for data whose mirror image means something else, such as digits.
    pub flip: bool,
    /// What is minimised.
    pub objective: Objective,
    /// How timesteps weigh in the squared error.
    pub weighting: LossWeighting,
    /// Seed of the initial weights, the order of the examples, noise, timesteps, flips and dropout.
    pub seed: u64,
    /// Steps between checkpoints; one is also written at the end. It has no influence on the weights.
    pub checkpoint_every: u64,
}

impl Default for TrainOptions {
    /// The settings of DDPM for CIFAR-10 (2006.11239, appendix B), with a shorter warm-up and an EMA that warms up.
    fn default() -> Self {
        Self {
            steps: 10_000,
            batch_size: 64,
            learning_rate: 2e-4,
            warmup_steps: 500,
            decay: Decay::Constant,
            beta1: 0.9,
            beta2: 0.999,
            adam_eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            ema: Ema { max_decay: 0.9999, warmup: EmaWarmup::Rational },
            label_dropout: 0.0,
            flip: false,
            objective: Objective::Simple,
            weighting: LossWeighting::None,
            seed: 0,
            checkpoint_every: 1_000,
        }
    }
}

impl TrainOptions {
    /// Checks every option by itself.
    ///
    /// # Errors
    /// [`TrainError::Option`] with the option, its value and what is accepted; [`TrainError::TooManyExamples`].
    pub fn validate(&self) -> Result<(), TrainError> {
        let positive = |x: f64| x > 0.0 && fits_f32(x);
        let not_negative = |x: f64| x >= 0.0 && fits_f32(x);
        let probability = |x: f64| (0.0..=1.0).contains(&x);
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        check("steps", self.steps, self.steps > 0, "at least 1")?;
        check("batch_size", self.batch_size, self.batch_size > 0, "at least 1")?;
        let lr = self.learning_rate;
        check("learning_rate", lr, positive(lr), "a positive finite number; 2e-4 is usual")?;
        if let Decay::Cosine { final_learning_rate: last } = self.decay {
            check("final_learning_rate", last, not_negative(last), "a finite number that is not negative")?;
        }
        check("beta1", self.beta1, below_one(self.beta1), "a number in [0, 1); 0.9 is usual")?;
        check("beta2", self.beta2, below_one(self.beta2), "a number in [0, 1); 0.999 is usual")?;
        check("adam_eps", self.adam_eps, positive(self.adam_eps), "a positive finite number; 1e-8 is usual")?;
        check(
            "weight_decay",
            self.weight_decay,
            not_negative(self.weight_decay),
            "a finite number that is not negative",
        )?;
        if let Some(norm) = self.max_grad_norm {
            check("max_grad_norm", norm, positive(norm), "a positive finite number, or none at all for no clipping")?;
        }
        check("max_decay of the EMA", self.ema.max_decay, probability(self.ema.max_decay), "a number in [0, 1]")?;
        if let EmaWarmup::Power { inv_gamma, power } = self.ema.warmup {
            check("inv_gamma of the EMA", inv_gamma, positive(inv_gamma), "a positive finite number; 1 is usual")?;
            check("power of the EMA", power, positive(power), "a positive finite number; 0.75 is usual")?;
        }
        check(
            "label_dropout",
            self.label_dropout,
            probability(self.label_dropout),
            "a probability in [0, 1]; 0.1 is usual",
        )?;
        if let Objective::Hybrid { lambda } = self.objective {
            check(
                "lambda of the hybrid objective",
                lambda,
                positive(lambda),
                "a positive finite number; T / 1000 is usual",
            )?;
        }
        if let LossWeighting::MinSnr { gamma } = self.weighting {
            check("gamma of min-SNR", gamma, positive(gamma), "a positive finite number; 5 is usual")?;
        }
        let every = self.checkpoint_every;
        check("checkpoint_every", every, every > 0, "at least 1; a number above steps writes one at the end only")?;
        match self.steps.checked_mul(self.batch_size as u64) {
            Some(examples) if examples <= MAX_EXAMPLES => Ok(()),
            _ => Err(TrainError::TooManyExamples { steps: self.steps, batch_size: self.batch_size }),
        }
    }

    /// The optimiser's settings as the graph takes them.
    pub(super) fn optimizer(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm.unwrap_or(f64::INFINITY),
        }
    }

    /// Learning rate of update `k`, counted from 1: see [`Decay`].
    pub fn learning_rate_at(&self, k: u64) -> f64 {
        let (k, warmup, steps) = (k as f64, self.warmup_steps as f64, self.steps as f64);
        if k <= warmup {
            return self.learning_rate * k / warmup;
        }
        self.decay.at(self.learning_rate, ((k - warmup) / (steps - warmup)).min(1.0))
    }

    /// What update `k`, counted from 1, needs beside the gradients: see [`AdamW`].
    pub(super) fn hyper(&self, k: u64) -> [f32; AdamW::HYPER] {
        let correction = |beta: f64| (1.0 - beta.powf(k as f64)) as f32;
        [self.learning_rate_at(k) as f32, correction(self.beta1), correction(self.beta2), self.ema.decay_at(k) as f32]
    }

    /// The options that differ in `other` and have an influence on the weights, as `name: this -> other`.
    ///
    /// `steps` is left out, since a run may be extended, and so is `checkpoint_every`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |options: &Self| serde_json::to_value(options).unwrap_or_default();
        let (old, new) = (fields(self), fields(other));
        let changed = |name: &&String| old[*name] != new[*name] && *name != "steps" && *name != "checkpoint_every";
        let names = new.as_object().into_iter().flat_map(|map| map.keys());
        names.filter(changed).map(|name| format!("{name}: {} -> {}", old[name], new[name])).collect()
    }
}

/// Whether `x` stays finite as the f32 in which devices compute.
fn fits_f32(x: f64) -> bool {
    (x as f32).is_finite()
}

fn check(name: &'static str, value: impl ToString, holds: bool, expected: &'static str) -> Result<(), TrainError> {
    if holds { Ok(()) } else { Err(TrainError::Option { name, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut TrainOptions);

    #[test]
    fn every_bad_option_is_named() {
        let cases: [(&str, Change); 28] = [
            ("steps", |o| o.steps = 0),
            ("batch_size", |o| o.batch_size = 0),
            ("learning_rate", |o| o.learning_rate = f64::NAN),
            ("learning_rate", |o| o.learning_rate = f64::INFINITY),
            ("learning_rate", |o| o.learning_rate = 1e39),
            ("learning_rate", |o| o.learning_rate = 0.0),
            ("learning_rate", |o| o.learning_rate = -1e-4),
            ("final_learning_rate", |o| o.decay = Decay::Cosine { final_learning_rate: -1.0 }),
            ("final_learning_rate", |o| o.decay = Decay::Cosine { final_learning_rate: f64::NAN }),
            ("beta1", |o| o.beta1 = 1.0),
            ("beta1", |o| o.beta1 = f64::NAN),
            ("beta2", |o| o.beta2 = -0.1),
            ("beta2", |o| o.beta2 = 1.0),
            ("adam_eps", |o| o.adam_eps = 0.0),
            ("weight_decay", |o| o.weight_decay = -1.0),
            ("weight_decay", |o| o.weight_decay = f64::INFINITY),
            ("max_grad_norm", |o| o.max_grad_norm = Some(0.0)),
            ("max_grad_norm", |o| o.max_grad_norm = Some(f64::NAN)),
            ("max_decay", |o| o.ema.max_decay = 1.1),
            ("max_decay", |o| o.ema.max_decay = f64::NAN),
            ("inv_gamma", |o| o.ema.warmup = EmaWarmup::Power { inv_gamma: 0.0, power: 0.75 }),
            ("power", |o| o.ema.warmup = EmaWarmup::Power { inv_gamma: 1.0, power: f64::NAN }),
            ("label_dropout", |o| o.label_dropout = 1.5),
            ("label_dropout", |o| o.label_dropout = -0.1),
            ("label_dropout", |o| o.label_dropout = f64::NAN),
            ("lambda", |o| o.objective = Objective::Hybrid { lambda: 0.0 }),
            ("gamma", |o| o.weighting = LossWeighting::MinSnr { gamma: -5.0 }),
            ("checkpoint_every", |o| o.checkpoint_every = 0),
        ];
        for (expected, change) in cases {
            let mut options = TrainOptions::default();
            change(&mut options);
            let error = options.validate().unwrap_err();
            assert!(
                matches!(&error, TrainError::Option { name, .. } if name.contains(expected)),
                "{expected}: {error}"
            );
            assert!(error.to_string().contains(expected));
        }
        assert!(TrainOptions::default().validate().is_ok());
    }

    #[test]
    fn the_counters_bound_the_number_of_examples() {
        let run = |steps, batch_size| TrainOptions { steps, batch_size, ..TrainOptions::default() }.validate();
        assert!(run(1 << 26, 64).is_ok());
        for (steps, batch_size) in [((1 << 26) + 1, 64), (u64::MAX, 2)] {
            assert!(matches!(run(steps, batch_size), Err(TrainError::TooManyExamples { .. })));
        }
    }

    #[test]
    fn text_gives_back_every_bit() {
        for bits in [0x3f1a36e2eb1c432du64, 0x3fb999999999999a, 0x3ff0000000000001, 0x3f2a36e2eb1c432e] {
            let mut options = TrainOptions { learning_rate: f64::from_bits(bits), ..TrainOptions::default() };
            options.ema.max_decay = 1.0 / 3.0;
            options.decay = Decay::Cosine { final_learning_rate: 0.1 + 0.2 };
            options.max_grad_norm = None;
            let text = serde_json::to_string_pretty(&options).unwrap();
            assert_eq!(serde_json::from_str::<TrainOptions>(&text).unwrap(), options);
        }
        assert!(serde_json::from_str::<TrainOptions>(r#"{"steps": 3, "unknown": 1}"#).is_err());
    }

    #[test]
    fn differences_are_listed_without_those_that_may_change() {
        let old = TrainOptions::default();
        let mut new = TrainOptions { steps: 99, checkpoint_every: 7, ..old.clone() };
        assert!(old.differences(&new).is_empty());
        new.seed = 4;
        new.ema.max_decay = 0.5;
        let list = old.differences(&new);
        assert_eq!(list.len(), 2, "{list:?}");
        assert!(list.contains(&"seed: 0 -> 4".to_string()));
    }

    #[test]
    fn hyper_is_what_the_optimiser_documents() {
        let options = TrainOptions::default();
        for k in [1u64, 2, 500, 501, 100_000] {
            let [lr, c1, c2, ema] = options.hyper(k);
            let power = |beta: f64| (0..k).fold(1.0, |p, _| p * beta);
            assert_eq!(lr, (2e-4 * (k as f64 / 500.0).min(1.0)) as f32);
            assert!((f64::from(c1) - (1.0 - power(0.9))).abs() < 1e-7);
            assert!((f64::from(c2) - (1.0 - power(0.999))).abs() < 1e-7);
            assert_eq!(ema, ((1.0 + k as f64) / (10.0 + k as f64)).min(0.9999) as f32);
        }
    }
}
