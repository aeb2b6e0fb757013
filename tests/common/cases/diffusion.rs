//! Noising, losses and sampler steps.

use std::sync::Arc;

use warpdiff::diffusion::{
    Algorithm, BetaConfig, Compat, DataRange, Guidance, LossWeighting, Objective, PredictionType, SamplerKind,
    Schedule, SchedulerConfig, SolverType, StepTable, TrainingObjective, VarianceType,
};
use warpdiff::graph::NoiseSource;
use warpdiff::graph::op::{LossNoise, Noising, Op, SamplerStep};
use warpdiff::levels::Levels;

use super::{Case, Operand, extent, fixed, random};

const PREDICTIONS: [(&str, PredictionType); 3] =
    [("eps", PredictionType::Epsilon), ("x0", PredictionType::Sample), ("v", PredictionType::VPrediction)];
const VARIANCES: [VarianceType; 6] = [
    VarianceType::FixedSmall,
    VarianceType::FixedSmallLog,
    VarianceType::FixedLarge,
    VarianceType::FixedLargeLog,
    VarianceType::Learned,
    VarianceType::LearnedRange,
];

fn integers(data: &[u32]) -> Operand {
    Operand::Integers(data.to_vec())
}

fn key() -> Operand {
    integers(&[11, 12])
}

/// Grey levels of 8-bit images, black and white among them: the outermost have their own formula in the decoder.
fn pixels(dims: &[usize]) -> Operand {
    let n = dims.iter().product();
    let level = |(i, u): (usize, f32)| if i % 5 < 2 { (i % 5) as f32 * 255.0 } else { (u * 255.0).round() };
    let data = fixed(1, n, 0.0..1.0).into_iter().enumerate().map(|p| 2.0 * level(p) / 255.0 - 1.0).collect();
    Operand::Values(dims.to_vec(), data)
}

/// A model output with the variance channels in 0.05..0.55, where they hold the variance itself.
fn model_output(dims: &[usize], variance: VarianceType) -> Operand {
    let channels = dims[3];
    if !variance.is_learned() {
        return random(dims);
    }
    let wide = [dims[0], dims[1], dims[2], 2 * channels];
    if variance == VarianceType::LearnedRange {
        return random(&wide);
    }
    let mut data = fixed(2, wide.iter().product(), -1.0..1.0);
    for (i, v) in data.iter_mut().enumerate() {
        if i % (2 * channels) >= channels {
            *v = 0.3 + 0.25 * *v;
        }
    }
    Operand::Values(wide.to_vec(), data)
}

pub(super) fn noising() -> Vec<Case> {
    let mut cases = Vec::new();
    let schedule = Schedule::new(&BetaConfig::linear(1000)).unwrap();
    for (dims, examples) in [
        ([2, 3, 5, 3], vec![7, 1_000_003]),
        ([1, 1, 1, 1], vec![0]),
        ([1, 8, 8, 3], vec![u32::MAX]),
        ([5, 2, 3, 1], vec![0, 1, 2, 3, 4]),
        ([1, 3, 3, 8], vec![9]),
    ] {
        for eps in [false, true] {
            let op = Op::Noising(Noising::new(&schedule.alpha_bars, eps));
            let form = if eps { "with-eps" } else { "x_t-t" };
            let operands = vec![pixels(&dims), integers(&examples), key()];
            cases.push(Case::new(format!("noising/{form}/{}", extent(&dims)), op, operands));
        }
    }
    cases
}

/// Every objective of every parameterisation and variance, at the first, an inner and the last timestep.
pub(super) fn losses() -> Vec<Case> {
    let mut cases = Vec::new();
    let objectives =
        [("simple", Objective::Simple), ("hybrid", Objective::Hybrid { lambda: 0.02 }), ("vlb", Objective::Vlb)];
    for (prediction_name, prediction) in PREDICTIONS {
        for variance in VARIANCES {
            for (name, objective) in objectives {
                for noise in [LossNoise::Given, LossNoise::Redrawn] {
                    let id = format!("{name}/{prediction_name}/{variance:?}");
                    let none = LossWeighting::None;
                    cases.push(loss(&id, [3, 2, 3, 3], (prediction, variance, objective, none), noise));
                }
            }
        }
    }
    let weighting = LossWeighting::MinSnr { gamma: 5.0 };
    for (name, prediction) in PREDICTIONS {
        let what = (prediction, VarianceType::LearnedRange, Objective::Hybrid { lambda: 0.02 }, weighting);
        for dims in [[1, 4, 4, 1], [1, 5, 7, 3], [3, 3, 3, 8], [1, 17, 19, 3]] {
            cases.push(loss(&format!("min-snr/{name}"), dims, what, LossNoise::Redrawn));
        }
    }
    cases
}

fn loss(
    id: &str,
    dims: [usize; 4],
    (prediction, variance, objective, weighting): (PredictionType, VarianceType, Objective, LossWeighting),
    noise: LossNoise,
) -> Case {
    let schedule = Schedule::new(&BetaConfig::linear(40)).unwrap();
    let t: Vec<f32> = [0.0, 17.0, 39.0][..dims[0]].to_vec();
    let objective = Arc::new(TrainingObjective::new(schedule, prediction, variance, objective, weighting, 256));
    let mut operands = vec![model_output(&dims, variance), pixels(&dims)];
    let from = match noise {
        LossNoise::Given => {
            operands.extend([random(&dims), random(&dims)]);
            "given"
        }
        LossNoise::Redrawn => {
            operands.extend([integers(&[7, 1_000_003, 0][..dims[0]]), key()]);
            "redrawn"
        }
    };
    operands.push(Operand::Values(vec![dims[0]], t));
    let id = format!("diffusion_loss/{id}/{from}/{}", extent(&dims));
    Case::new(id, Op::DiffusionLoss { objective, noise }, operands)
}

/// A sampler step outside a loop: x is not a state, so the step must not work in place.
struct Step {
    scheduler: SchedulerConfig,
    eta: f64,
    guidance: Option<f64>,
    rescale: f64,
    noise: NoiseSource,
    dims: [usize; 4],
    step: u32,
    /// Scale of a classifier's gradient.
    classifier: Option<f64>,
}

impl Step {
    const STEPS: usize = 10;

    fn new(sampler: SamplerKind) -> Self {
        Self {
            scheduler: SchedulerConfig { betas: BetaConfig::linear(50), ..SchedulerConfig::new(sampler) },
            eta: 0.0,
            guidance: None,
            rescale: 0.0,
            noise: NoiseSource::Philox,
            dims: [2, 3, 5, 3],
            step: 4,
            classifier: None,
        }
    }

    fn case(&self, id: &str) -> Case {
        let table = Arc::new(StepTable::build(&self.scheduler, Self::STEPS, self.eta).unwrap());
        let mut model = self.dims;
        model[0] *= if self.guidance.is_some() { 2 } else { 1 };
        let history = table.history();
        let mut operands = vec![
            random(&self.dims),
            model_output(&model, self.scheduler.variance_type),
            random(&self.dims),
            integers(&[self.step]),
            integers(&[7, 1_000_003, 0][..self.dims[0]]),
            key(),
        ];
        if self.noise == NoiseSource::Given {
            operands.push(random(&self.dims));
        }
        operands.extend([history.x0_prev2, history.saved].into_iter().filter(|used| *used).map(|_| random(&self.dims)));
        operands.extend(self.classifier.map(|_| random(&self.dims)));
        // All forms of the step are met.
        let levels = match table.range {
            DataRange::Unit => Levels::Unit,
            DataRange::Signed if self.classifier.is_some() => Levels::Truncated,
            DataRange::Signed => Levels::Rounded,
        };
        let op = Op::SamplerStep(SamplerStep {
            table,
            guidance: self.guidance.map(|scale| Guidance { scale, rescale: self.rescale }),
            noise: self.noise,
            picture: (self.noise == NoiseSource::Philox).then_some(levels),
            classifier_scale: self.classifier,
        });
        Case::new(format!("sampler_step/{id}/{}/step{}", extent(&self.dims), self.step), op, operands)
    }
}

pub(super) fn sampler_steps() -> Vec<Case> {
    let (ddpm, ddim, dpm) = (SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::DpmSolverPp);
    let last = Step::STEPS as u32 - 1;
    let mut cases = Vec::new();
    for sampler in [ddpm, ddim, dpm] {
        for (name, prediction) in PREDICTIONS {
            for step in [0, 4, last] {
                let mut s = Step { step, ..Step::new(sampler) };
                s.scheduler.prediction_type = prediction;
                cases.push(s.case(&format!("{sampler}/{name}")));
            }
        }
    }
    for variance in VARIANCES {
        for (guidance, step) in [(None, 4), (Some(2.5), 4), (Some(0.5), last)] {
            let mut s = Step { guidance, step, ..Step::new(ddpm) };
            s.scheduler.variance_type = variance;
            cases.push(s.case(&format!("DDPM/{variance:?}/guidance-{guidance:?}")));
        }
    }
    for variance in VARIANCES {
        for (dims, noise, step) in [
            ([2, 3, 5, 3], NoiseSource::Philox, 4),
            ([1, 4, 4, 4], NoiseSource::Given, 0),
            ([3, 5, 7, 1], NoiseSource::Philox, last),
        ] {
            let mut s = Step { dims, noise, step, classifier: Some(2.5), ..Step::new(ddpm) };
            s.scheduler.variance_type = variance;
            s.scheduler.compat = Compat::GuidedDiffusion;
            cases.push(s.case(&format!("DDPM/{variance:?}/classifier")));
        }
    }
    for (eta, guidance, compat) in
        [(0.0, None, Compat::GuidedDiffusion), (0.7, Some(3.0), Compat::GuidedDiffusion), (1.0, None, Compat::Paper)]
    {
        let mut s = Step { eta, guidance, classifier: Some(-1.5), ..Step::new(ddim) };
        s.scheduler.compat = compat;
        cases.push(s.case(&format!("DDIM/eta{eta}/classifier")));
    }
    for (sampler, eta) in [(ddpm, 0.0), (ddim, 0.7), (ddim, 1.0)] {
        for noise in [NoiseSource::Philox, NoiseSource::Given] {
            for dims in [[1, 1, 1, 1], [1, 5, 7, 3], [3, 4, 4, 8], [1, 3, 3, 15]] {
                cases.push(
                    Step { eta, noise, dims, ..Step::new(sampler) }.case(&format!("{sampler}/eta{eta}/{noise:?}")),
                );
            }
        }
    }
    for (name, clip_sample, thresholding, ratio, max) in [
        ("unclipped", false, false, 0.995, 1.0),
        ("thresholded", false, true, 0.995, 1.0),
        ("median", false, true, 0.5, 3.0),
        ("maximum", false, true, 1.0, 10.0),
    ] {
        for (sampler, guidance) in [(ddpm, None), (ddim, Some(3.0)), (dpm, None)] {
            for dims in [[2, 3, 5, 3], [1, 1, 1, 1], [1, 17, 19, 3]] {
                let mut s = Step { guidance, dims, ..Step::new(sampler) };
                s.scheduler.clip_sample = clip_sample;
                s.scheduler.thresholding = thresholding;
                s.scheduler.dynamic_thresholding_ratio = ratio;
                s.scheduler.sample_max_value = max;
                cases.push(s.case(&format!("{sampler}/{name}")));
            }
        }
    }
    let mut heun = Step::new(dpm);
    heun.scheduler.dpm_solver.solver_type = SolverType::Heun;
    cases.push(heun.case("DPM-Solver++/heun"));
    for (sampler, order) in [
        (dpm, 3),
        (SamplerKind::DpmSolverSinglestep, 3),
        (SamplerKind::UniPc, 2),
        (SamplerKind::UniPc, 3),
        (SamplerKind::Heun, 1),
    ] {
        for (dims, noise) in [([2, 3, 5, 3], NoiseSource::Philox), ([1, 5, 7, 1], NoiseSource::Given)] {
            for step in [0, 4, last] {
                let mut s = Step { dims, noise, step, ..Step::new(sampler) };
                s.scheduler.dpm_solver.solver_order = order;
                cases.push(s.case(&format!("{sampler}/order{order}/{noise:?}")));
            }
        }
    }
    for dims in [[2, 3, 5, 3], [1, 17, 19, 3], [1, 1, 1, 1]] {
        for (sampler, rescale, thresholding) in [(ddim, 0.7, false), (ddpm, 1.0, true)] {
            let mut s = Step { dims, guidance: Some(4.0), rescale, ..Step::new(sampler) };
            s.scheduler.thresholding = thresholding;
            s.scheduler.variance_type = VarianceType::LearnedRange;
            cases.push(s.case(&format!("{sampler}/rescaled-{rescale}")));
        }
    }
    // Rows 0 and 18 are correctors, row 19 the last predictor, which adds no noise.
    for (dims, noise, compat) in [
        ([2, 3, 5, 3], NoiseSource::Philox, Compat::Paper),
        ([3, 5, 7, 3], NoiseSource::Given, Compat::Diffusers),
        ([1, 17, 19, 3], NoiseSource::Philox, Compat::Diffusers),
        ([1, 1, 1, 1], NoiseSource::Given, Compat::Paper),
    ] {
        for step in [0, 1, 18, 19] {
            let mut s = Step { dims, noise, step, ..Step::new(SamplerKind::ScoreSde) };
            s.scheduler.compat = compat;
            cases.push(s.case(&format!("VE/{noise:?}/{compat:?}")));
        }
    }
    let mut guided = Step { guidance: Some(3.0), rescale: 0.5, ..Step::new(SamplerKind::ScoreSde) };
    guided.step = 2;
    cases.push(guided.case("VE/guided"));
    let mut sde = Step::new(dpm);
    sde.scheduler.dpm_solver.algorithm = Algorithm::SdeX0;
    cases.push(sde.case("DPM-Solver++/sde"));
    cases.push(Step::new(SamplerKind::EulerAncestral).case("Euler ancestral"));
    // The variance channels of a learned variance stay unread.
    let mut unread = Step::new(ddim);
    unread.scheduler.variance_type = VarianceType::LearnedRange;
    cases.push(unread.case("DDIM/variance-channels-unread"));
    for (n, steps) in [(1, 0), (5, 4), (300, last)] {
        let table = Arc::new(StepTable::build(&Step::new(ddpm).scheduler, Step::STEPS, 0.0).unwrap());
        let op = Op::StepTimestep { table, batch: n };
        cases.push(Case::new(format!("step_timestep/{n}/step{steps}"), op, vec![integers(&[steps])]));
    }
    cases
}
