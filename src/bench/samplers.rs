//! The updates of the common samplers, on the images of a network.

use std::sync::Arc;

use super::{Family, Operation};
use crate::diffusion::{Result, SamplerKind, SchedulerConfig, StepTable, VarianceType};
use crate::graph::op::SamplerStep;
use crate::graph::{NoiseSource, Op, Shape};
use crate::levels::Levels;
use crate::program::Batch;

/// A sampler as it is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Name in reports.
    pub name: &'static str,
    /// The method.
    pub kind: SamplerKind,
    /// Steps of its table.
    pub steps: usize,
    /// Whether the step is guided, with a scale of 3: the network then evaluates each image twice.
    pub guided: bool,
    /// Whether the variance comes from the network.
    pub learned: bool,
    /// Whether x_0 is limited by dynamic thresholding.
    pub thresholding: bool,
}

const PLAIN: Variant =
    Variant { name: "ddim", kind: SamplerKind::Ddim, steps: 50, guided: false, learned: false, thresholding: false };

/// What differs in a kernel: noise, history, guidance, a learned variance, thresholding.
pub const VARIANTS: [Variant; 7] = [
    Variant { name: "ddpm", kind: SamplerKind::Ddpm, steps: 1000, ..PLAIN },
    PLAIN,
    Variant { name: "dpm++", kind: SamplerKind::DpmSolverPp, steps: 20, ..PLAIN },
    Variant { name: "unipc", kind: SamplerKind::UniPc, steps: 20, ..PLAIN },
    Variant { name: "ddim.guided", guided: true, ..PLAIN },
    Variant { name: "ddpm.learned", kind: SamplerKind::Ddpm, steps: 1000, learned: true, ..PLAIN },
    Variant { name: "ddim.thresholded", thresholding: true, ..PLAIN },
];

impl Variant {
    /// The rows of its steps.
    ///
    /// # Errors
    /// None for the [`VARIANTS`].
    pub fn table(&self) -> Result<StepTable> {
        let mut config = SchedulerConfig::new(self.kind);
        config.thresholding = self.thresholding;
        if self.learned {
            config.variance_type = VarianceType::LearnedRange;
        }
        StepTable::build(&config, self.steps, 0.0)
    }

    /// Its update of a batch of images with so many channels.
    ///
    /// # Errors
    /// As [`Variant::table`].
    pub fn operation(&self, batch: Batch, channels: usize) -> Result<Operation> {
        let table = Arc::new(self.table()?);
        let history = table.history();
        let x = Shape::new(&[batch.n, batch.h, batch.w, channels]);
        let evaluations = if self.guided { 2 * batch.n } else { batch.n };
        let model = x.with_batch(evaluations).with_channels(if self.learned { 2 * channels } else { channels });
        let mut shapes = vec![x, model, x, Shape::new(&[1]), Shape::new(&[batch.n]), Shape::new(&[2])];
        shapes.extend([history.x0_prev2, history.saved].into_iter().filter(|used| *used).map(|_| x));
        let step = SamplerStep {
            table,
            guidance: self.guided.then(|| 3.0.into()),
            noise: NoiseSource::Philox,
            picture: Some(Levels::Rounded),
            classifier_scale: None,
        };
        let name = format!("{}.n{}h{}w{}c{channels}", self.name, batch.n, batch.h, batch.w);
        Ok(Operation {
            family: Family::SamplerStep,
            name,
            pass: "step",
            op: Op::SamplerStep(step),
            shapes,
            behind_product: false,
        })
    }
}
