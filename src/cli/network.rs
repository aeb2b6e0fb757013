//! Networks to measure: by preset or folder, with weights that no time depends on.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;

use super::presets::Preset;
use crate::backend::{Backend, BackendError, Executable, Store};
use crate::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use crate::graph::{AdamW, ParamId, Plan};
use crate::model::ModelFolder;
use crate::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use crate::unet::{UNetConfig, initial_weights};

/// Name and configuration of a network: of a folder if there is one, of the preset otherwise.
pub(super) fn named(model: Option<&Path>, preset: Preset) -> Result<(String, UNetConfig)> {
    if let Some(path) = model {
        return Ok((path.display().to_string(), ModelFolder::open(path)?.config));
    }
    Ok((preset.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string()), preset.config()))
}

/// A batch of the network's own size.
pub(super) fn batch(config: &UNetConfig, n: usize) -> Batch {
    let (h, w) = config.height_width().unwrap_or((32, 32));
    Batch { n, h, w }
}

/// A training step with everything: drawn noise, forward, backward, clipping, AdamW and the average.
pub(super) fn training_program(config: &UNetConfig, batch: Batch) -> Result<TrainingProgram> {
    let learned = config.out_channels == 2 * config.image_channels();
    let objective = TrainingObjective::new(
        Schedule::new(&BetaConfig::linear(1000))?,
        PredictionType::Epsilon,
        if learned { VarianceType::LearnedRange } else { VarianceType::FixedLarge },
        if learned { Objective::Hybrid { lambda: 0.001 } } else { Objective::Simple },
        LossWeighting::None,
        256,
    );
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
    let options =
        TrainingOptions { objective: Arc::new(objective), optimizer: Some(optimizer), inputs: TrainingInputs::Drawn };
    Ok(TrainingProgram::new(config, batch, &options)?)
}

/// One evaluation, ready to run.
pub(super) fn inference(
    config: &UNetConfig,
    batch: Batch,
    compile: impl FnOnce(Plan) -> Result<Box<dyn Executable>, BackendError>,
) -> Result<Box<dyn Executable>> {
    let program = ForwardProgram::new(config, batch, false)?;
    let mut exe = compile(program.plan)?;
    write_weights(exe.as_mut())?;
    exe.write_f32(program.x, &noise(batch.numel(config.in_channels)))?;
    exe.write_f32(program.t, &vec![500.0; batch.n])?;
    Ok(exe)
}

/// One training step, ready to run.
pub(super) fn training(config: &UNetConfig, batch: Batch, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
    let program = training_program(config, batch)?;
    let mut exe = backend.compile(program.plan)?;
    write_weights(exe.as_mut())?;
    let x0: Vec<f32> = noise(batch.numel(config.image_channels())).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    exe.write_f32(program.x0, &x0)?;
    exe.write_u32(program.example_index, &(0..batch.n as u32).collect::<Vec<_>>())?;
    exe.write_u32(program.key, &[1, 0])?;
    exe.write_f32(program.hyper, &[2e-4, 0.1, 0.001, 0.9999])?;
    Ok(exe)
}

/// Writes weights as a training run begins with.
pub(super) fn write_weights(exe: &mut dyn Executable) -> Result<()> {
    let params = exe.plan().graph().params().to_vec();
    for i in 0..params.len() {
        exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1))?;
    }
    Ok(())
}

/// Numbers that look like noise, so that no kernel runs on zeros.
pub(super) fn noise(len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::rng::Sequence::new(3, crate::rng::Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}
