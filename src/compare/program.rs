//! The program whose operations are compared: one forward pass, or one training step, on random data.

use std::sync::Arc;

use super::{Integers, keep_everything};
use crate::backend::{Backend, BackendError, Executable, Store};
use crate::diffusion::TrainingObjective;
use crate::graph::{AdamW, DType, ParamId, ValueId};
use crate::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use crate::rng::{Sequence, Stream};
use crate::unet::{ConfigError, UNetConfig};

/// What to run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Batch size and image size.
    pub batch: Batch,
    /// Of the random data.
    pub seed: u64,
    /// A training step for this objective instead of a forward pass.
    pub objective: Option<Arc<TrainingObjective>>,
}

/// A program that was run, with every value readable.
pub struct Recorded {
    /// The program with its values.
    pub exe: Box<dyn Executable>,
    /// Its integer operands.
    pub integers: Integers,
}

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The configuration makes no network for this batch.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Runs the workload with `weights`, in the order of the network's parameters, and keeps every value.
///
/// # Errors
/// If the network does not take this batch, or the device fails.
pub fn record(
    config: &UNetConfig,
    weights: &[Vec<f32>],
    workload: &Workload,
    backend: &dyn Backend,
) -> Result<Recorded, RecordError> {
    let (plan, class) = match &workload.objective {
        None => {
            let program = ForwardProgram::new(config, workload.batch, false)?;
            (program.plan, program.class)
        }
        Some(objective) => {
            let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
            let options = TrainingOptions {
                objective: Arc::clone(objective),
                optimizer: Some(optimizer),
                inputs: TrainingInputs::Drawn,
            };
            let program = TrainingProgram::new(config, workload.batch, &options)?;
            (program.plan, program.class)
        }
    };
    let mut exe = backend.compile(keep_everything(&plan))?;
    for (i, data) in weights.iter().enumerate() {
        exe.write_param(Store::Params, ParamId::new(i), data)?;
    }
    let integers = write_inputs(exe.as_mut(), class, config.classes().unwrap_or(1), workload.seed)?;
    exe.run()?;
    exe.finish()?;
    Ok(Recorded { exe, integers })
}

/// Fills every input of the program by its name.
fn write_inputs(
    exe: &mut dyn Executable,
    class: Option<ValueId>,
    classes: usize,
    seed: u64,
) -> Result<Integers, BackendError> {
    let inputs = ["x_t", "x0", "t", "hyper", "example_index", "key"].map(|name| (name, exe.plan().graph().find(name)));
    let named = inputs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let all: Vec<(&str, ValueId)> = named.chain(class.map(|v| ("class", v))).collect();
    let mut integers = Integers::new();
    for (tag, (name, value)) in all.into_iter().enumerate() {
        let numel = exe.plan().graph().shape(value).numel();
        let random = Sequence::new(seed, Stream::BoundNoise, tag as u32, 0);
        if exe.plan().graph().value(value).dtype == DType::I32 {
            let data: Vec<u32> = match name {
                "class" => (0..numel).map(|i| random.below(i, classes as u32)).collect(),
                "key" => vec![seed as u32, (seed >> 32) as u32],
                _ => (0..numel as u32).collect(),
            };
            exe.write_u32(value, &data)?;
            integers.push((value, data));
            continue;
        }
        let mut data = vec![0.0; numel];
        match name {
            "t" => data.iter_mut().enumerate().for_each(|(i, t)| *t = random.below(i, 1000) as f32),
            "hyper" => data.copy_from_slice(&[1e-4, 0.1, 0.001, 0.99]),
            _ => random.fill_normal(&mut data),
        }
        if name == "x0" {
            data.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
        }
        exe.write_f32(value, &data)?;
    }
    Ok(integers)
}
