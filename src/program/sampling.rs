//! One step of a sampler, network included; replaying it as often as the table has rows is the whole loop.

use std::sync::Arc;

use super::{Batch, check_channels, class_input, class_value, with_condition};
use crate::diffusion::{DataRange, Guidance, StepTable};
use crate::graph::op::SamplerStep;
use crate::graph::{DType, Graph, NoiseSource, Op, Plan, ValueId, fuse::fuse};
use crate::levels::Levels;
use crate::unet::{ClassifierConfig, ConfigError, UNetConfig, UNetInputs, build, build_classifier_gradient};

/// How to sample.
#[derive(Clone, Debug)]
pub struct SamplingOptions {
    /// Coefficients of every step.
    pub table: Arc<StepTable>,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
    /// Where z comes from.
    pub noise: NoiseSource,
    /// How x becomes bytes, where it ends in [-1, 1].
    pub levels: Levels,
    /// A classifier whose gradient guides.
    pub classifier: Option<Guide>,
}

impl SamplingOptions {
    /// A sampler by itself, without guidance of any kind.
    pub fn new(table: Arc<StepTable>, noise: NoiseSource) -> Self {
        Self { table, guidance: None, noise, levels: Levels::Rounded, classifier: None }
    }

    /// How x becomes bytes, whatever range it ends in.
    fn picture_levels(&self) -> Levels {
        match self.table.range {
            DataRange::Signed => self.levels,
            DataRange::Unit => Levels::Unit,
        }
    }
}

/// A classifier whose gradient guides (2105.05233, algorithms 1 and 2).
#[derive(Clone, Debug)]
pub struct Guide {
    /// The classifier.
    pub config: ClassifierConfig,
    /// Factor of its gradient.
    pub scale: f64,
}

/// One sampling step as a program; its states are x, the previous x_0 and the step counter.
#[derive(Clone, Debug)]
pub struct SamplingProgram {
    /// What a backend compiles.
    pub plan: Plan,
    /// State x_t `[N, H, W, C]`: write x_T, read the result.
    pub x: ValueId,
    /// x as bytes `[N, H, W, C]`, the order of a picture: of the last run, to be read before the next.
    pub picture: ValueId,
    /// State: the x_0 estimate of the last step.
    pub x0: ValueId,
    /// State: the next step, `[1]`; write 0 to begin.
    pub step: ValueId,
    /// Global index of each sample `[N]`.
    pub sample_index: ValueId,
    /// The seed `[2]`.
    pub key: ValueId,
    /// Class labels: `[N]`, with guidance `[2N]`, the null class in the second half.
    pub class: Option<ValueId>,
    /// Given noise `[N, H, W, C]`, where the program takes it.
    pub z: Option<ValueId>,
    /// The condition `[N, H, W, condition_channels]`, where the model has one.
    pub condition: Option<ValueId>,
    /// The class that a classifier guides to, `[N]`.
    pub guide_label: Option<ValueId>,
}

impl SamplingProgram {
    /// Builds the program.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no network for this batch, or the sampler needs variance channels that
    /// the network lacks.
    pub fn new(config: &UNetConfig, batch: Batch, options: &SamplingOptions) -> Result<Self, ConfigError> {
        check_channels(config)?;
        config.check_timesteps(options.table.rows.iter().map(|r| f64::from(r.timestep)))?;
        if options.table.learned_variance.is_some() && config.out_channels != 2 * config.image_channels() {
            return Err(ConfigError::Invalid {
                key: "out_channels",
                detail: format!(
                    "a learned variance needs {} channels, the model has {}; choose another variance_type",
                    2 * config.image_channels(),
                    config.out_channels
                ),
            });
        }
        let mut graph = Graph::new();
        let shape = [batch.n, batch.h, batch.w, config.image_channels()];
        let x = graph.state("x", shape, DType::F32);
        let x0 = graph.state("x0_prev", shape, DType::F32);
        let step = graph.state("step", [1], DType::I32);
        let sample_index = graph.input("sample_index", [batch.n], DType::I32);
        let key = graph.input("key", [2], DType::I32);
        let evaluations = if options.guidance.is_some() { 2 * batch.n } else { batch.n };
        let class = class_input(&mut graph, config, evaluations);
        let z = (options.noise == NoiseSource::Given).then(|| graph.input("z", shape, DType::F32));

        let timestep = |batch: usize| Op::StepTimestep { table: Arc::clone(&options.table), batch };
        // First, since its own graph is differentiated as a whole.
        let guide = match &options.classifier {
            Some(guide) => {
                check_guide(guide, options, batch, config.image_channels())?;
                let t = graph.apply(timestep(batch.n), &[step])?;
                let x = graph.apply(Op::ToAct, &[x])?;
                Some(build_classifier_gradient(&mut graph, &guide.config, x, t)?)
            }
            None => None,
        };
        let t = graph.apply(timestep(evaluations), &[step])?;
        let to_act = if options.guidance.is_some() { Op::RepeatBatch } else { Op::ToAct };
        let network_x = graph.apply(to_act.clone(), &[x])?;
        let (network_x, condition) = with_condition(&mut graph, config, batch, network_x, &to_act)?;
        let net = build(&mut graph, config, UNetInputs { x: network_x, t, class, dropout: None })?;
        let sampler = Op::SamplerStep(SamplerStep {
            table: Arc::clone(&options.table),
            guidance: options.guidance,
            noise: options.noise,
            picture: Some(options.picture_levels()),
            classifier_scale: options.classifier.as_ref().map(|guide| guide.scale),
        });
        let history = options.table.history();
        let mut state = |name: &str, used: bool| used.then(|| graph.state(name, shape, DType::F32));
        let states: Vec<ValueId> =
            [state("x0_prev2", history.x0_prev2), state("saved", history.saved)].into_iter().flatten().collect();
        let operands: Vec<ValueId> =
            [x, net.out, x0, step, sample_index, key].into_iter().chain(z).chain(states.iter().copied()).collect();
        let gradient = guide.map(|guide| guide.gradient);
        let operands: Vec<ValueId> = operands.into_iter().chain(gradient).collect();
        let results = graph.push(sampler, &operands)?;
        let next = graph.apply(Op::Advance, &[step])?;
        graph.keep(results[2]);
        graph.bind(results[0], x);
        graph.bind(results[1], x0);
        for (&next, state) in results[3..].iter().zip(states) {
            graph.bind(next, state);
        }
        graph.bind(next, step);
        fuse(&mut graph);
        Ok(Self {
            plan: Plan::new(graph),
            x,
            x0,
            step,
            sample_index,
            key,
            class: class_value(class),
            z,
            condition,
            guide_label: guide.map(|guide| guide.label),
            picture: results[2],
        })
    }
}

/// Whether sampler and images are those that a classifier can guide.
fn check_guide(guide: &Guide, options: &SamplingOptions, batch: Batch, channels: usize) -> Result<(), ConfigError> {
    let refused = |detail: String| Err(ConfigError::Invalid { key: "classifier", detail });
    if !options.table.takes_gradient() {
        return refused("the sampler has no rule for a classifier's gradient; take ddpm or ddim".into());
    }
    let (h, w) = guide.config.size()?;
    let expected = guide.config.encoder.in_channels;
    if (h, w, expected) != (batch.h, batch.w, channels) {
        return refused(format!(
            "it is for {expected}x{h}x{w} images, the model makes {channels}x{}x{}",
            batch.h, batch.w
        ));
    }
    Ok(())
}
