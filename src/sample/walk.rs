//! A sampling loop that starts from any state, at any step, and whose state can be changed on the way.

use std::ops::Range;
use std::sync::Arc;

use super::{SampleError, finite};
use crate::backend::{Backend, Executable};
use crate::diffusion::{Guidance, StepTable};
use crate::graph::NoiseSource;
use crate::model::{ModelFolder, bind_weights};
use crate::program::{Batch, SamplingOptions, SamplingProgram};
use crate::rng::split_seed;

/// What the network is told beside x and t.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guide {
    /// The class of all images; `None` for a model without classes, or for its null class.
    pub label: Option<u32>,
    /// Classifier-free guidance scale; `None` is none.
    pub scale: Option<f64>,
}

impl Guide {
    /// The labels of `count` images as a model takes them: with guidance the null class follows, once an image.
    fn labels(self, model: &ModelFolder, count: usize) -> Result<Vec<u32>, SampleError> {
        let config = &model.config;
        let condition = |text: &str| Err(SampleError::Condition(text.into()));
        if config.class_embed_type.is_some() {
            return condition(
                "the model is conditioned on numbers or vectors, not on classes; edit through the library",
            );
        }
        let null = config.null_class.map(|class| class as u32);
        let (classes, label) = match (config.classes(), self.label) {
            (None, None) if self.scale.is_none() => return Ok(Vec::new()),
            (None, None) => return condition("guidance needs a model with classes"),
            (None, Some(_)) => return condition("the model is not class-conditional; leave out the label"),
            (Some(classes), Some(label)) => (classes, label),
            (Some(_), None) if self.scale.is_some() => return condition("guidance needs a label"),
            (Some(_), None) => match null {
                Some(null) => return Ok(vec![null; count]),
                None => return condition("the model is class-conditional; give a label"),
            },
        };
        if label as usize >= classes {
            return Err(SampleError::Label { label, classes });
        }
        let mut labels = vec![label; count];
        match (self.scale, null) {
            (None, _) => {}
            (Some(_), Some(null)) => labels.extend(std::iter::repeat_n(null, count)),
            (Some(_), None) => {
                return condition("guidance needs a model with a null class (null_class in config.json)");
            }
        }
        Ok(labels)
    }
}

/// A compiled loop over a step table, for batches of one size.
pub(super) struct Walk {
    program: SamplingProgram,
    exe: Box<dyn Executable>,
    table: Arc<StepTable>,
    batch: Batch,
    channels: usize,
    /// Of the samples that are being walked.
    indices: Range<usize>,
}

impl Walk {
    /// Loads a model and prepares the loop.
    pub fn new(
        model: &ModelFolder,
        table: StepTable,
        guide: Guide,
        seed: u64,
        batch: usize,
        backend: &dyn Backend,
    ) -> Result<Self, SampleError> {
        let (h, w) = model.config.height_width().ok_or(SampleError::NoSize)?;
        if model.config.condition_channels > 0 {
            let text = "the model is conditioned on low-resolution images; `sample --low-res` is what it is for";
            return Err(SampleError::Condition(text.into()));
        }
        let batch = Batch { n: batch, h, w };
        let labels = guide.labels(model, batch.n)?;
        let table = Arc::new(table);
        let options = SamplingOptions {
            guidance: guide.scale.map(Guidance::from),
            ..SamplingOptions::new(Arc::clone(&table), NoiseSource::Philox)
        };
        let program = SamplingProgram::new(&model.config, batch, &options)?;
        let mut exe = backend.compile(program.plan.clone())?;
        bind_weights(exe.as_mut(), &model.weights()?)?;
        exe.write_u32(program.key, &split_seed(seed))?;
        if let Some(class) = program.class {
            exe.write_u32(class, &labels)?;
        }
        Ok(Self { program, exe, table, batch, channels: model.config.image_channels(), indices: 0..0 })
    }

    /// Elements of an image.
    pub fn image_len(&self) -> usize {
        self.batch.h * self.batch.w * self.channels
    }

    /// Starts the samples `indices` from `x`, NHWC, at row `row` of the table.
    pub fn start(&mut self, indices: Range<usize>, row: usize, x: &[f32]) -> Result<(), SampleError> {
        if indices.len() > self.batch.n || indices.end > u32::MAX as usize {
            return Err(SampleError::Count(format!("samples {indices:?} do not fit a batch of {}", self.batch.n)));
        }
        self.indices = indices;
        let numbers: Vec<u32> = (self.indices.start..).take(self.batch.n).map(|i| i as u32).collect();
        self.exe.write_u32(self.program.sample_index, &numbers)?;
        self.exe.write_f32(self.program.x0, &vec![0.0; self.batch.numel(self.channels)])?;
        self.exe.write_u32(self.program.step, &[row as u32])?;
        self.replace(x)
    }

    /// Takes the next step.
    pub fn step(&mut self) -> Result<(), SampleError> {
        Ok(self.exe.run()?)
    }

    /// x of the samples, NHWC.
    pub fn x(&self) -> Result<Vec<f32>, SampleError> {
        let mut x = vec![0.0; self.batch.numel(self.channels)];
        self.exe.read_f32(self.program.x, &mut x)?;
        x.truncate(self.indices.len() * self.image_len());
        finite(x, self.indices.start, self.image_len(), self.table.rows.len())
    }

    /// Replaces x of the samples; the rest of the batch becomes 0.
    pub fn replace(&mut self, x: &[f32]) -> Result<(), SampleError> {
        let mut all = x.to_vec();
        all.resize(self.batch.numel(self.channels), 0.0);
        Ok(self.exe.write_f32(self.program.x, &all)?)
    }
}
