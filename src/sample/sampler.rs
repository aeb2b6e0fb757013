//! A model that is ready to sample.

use std::ops::Range;
use std::sync::Arc;

use super::{Conditions, Drawn, LabelChoice, SampleError, finite};
use crate::backend::snapshot::Snapshot;
use crate::backend::{Backend, BackendError, Executable};
use crate::diffusion::{Compat, DataRange, Guidance, NormScope, SchedulerConfig, StepTable};
use crate::graph::{NoiseSource, Plan};
use crate::layout::nhwc_to_nchw;
use crate::levels::Levels;
use crate::model::{ModelFolder, bind_classifier, bind_weights};
use crate::program::{Batch, Guide, SamplingOptions, SamplingProgram};
use crate::rng::{Sequence, Stream, split_seed};
use crate::unet::UNetConfig;

/// How to sample.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// The sampler and its schedule.
    pub scheduler: SchedulerConfig,
    /// Network evaluations per image.
    pub steps: usize,
    /// DDIM's eta.
    pub eta: f64,
    /// The seed; image i of a seed does not depend on anything below.
    pub seed: u64,
    /// Classes.
    pub labels: LabelChoice,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f64,
    /// How far guided predictions are brought back to the deviation of the conditional ones, from 0 (not at all) to 1.
    pub guidance_rescale: f64,
    /// Samples that are computed at once.
    pub batch: usize,
}

/// Called after each step with its number and a function that fetches the pictures so far, bytes `[N, H, W, C]`;
/// returns whether to go on.
pub type OnStep<'a> = dyn FnMut(usize, &dyn Fn() -> Result<Vec<u8>, SampleError>) -> bool + 'a;

/// What the network is given in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Visited {
    /// t, of every sample.
    pub timestep: f32,
    /// x_t, `[N, H, W, C]`.
    pub x: Vec<f32>,
}

/// A compiled sampling loop for batches of one size.
pub struct Sampler {
    config: UNetConfig,
    options: SampleOptions,
    conditions: Conditions,
    program: SamplingProgram,
    exe: Box<dyn Executable>,
    batch: Batch,
    table: Arc<StepTable>,
}

impl Sampler {
    /// Loads a model and prepares its loop.
    ///
    /// # Errors
    /// [`SampleError`]: a model that cannot be loaded, a sampler or a guidance that does not fit it.
    pub fn new(model: &ModelFolder, options: SampleOptions, backend: &dyn Backend) -> Result<Self, SampleError> {
        Self::with_conditions(model, options, Conditions::default(), backend)
    }

    /// As [`Sampler::new`], with a classifier that guides or images that are enlarged.
    ///
    /// # Errors
    /// As [`Sampler::new`]; conditions that the model needs and that are missing, or that do not fit it.
    pub fn with_conditions(
        model: &ModelFolder,
        options: SampleOptions,
        conditions: Conditions,
        backend: &dyn Backend,
    ) -> Result<Self, SampleError> {
        Self::with_plan(model, options, conditions, backend, Ok)
    }

    /// As [`Sampler::with_conditions`], but the batch of the options is the most that it may be: where a device's memory does not
    /// hold it, the batch is as large as fits.
    ///
    /// # Errors
    /// As [`Sampler::with_conditions`].
    pub fn fitting(
        model: &ModelFolder,
        mut options: SampleOptions,
        conditions: Conditions,
        backend: &dyn Backend,
    ) -> Result<Self, SampleError> {
        loop {
            match Self::with_conditions(model, options.clone(), conditions.clone(), backend) {
                Err(SampleError::Backend(BackendError::DeviceMemory { batch: Some(fits), .. }))
                    if fits < options.batch =>
                {
                    options.batch = fits;
                }
                sampler => return sampler,
            }
        }
    }

    /// As [`Sampler::new`], with a plan that computes more than the sampler's own.
    pub(super) fn with_plan(
        model: &ModelFolder,
        options: SampleOptions,
        conditions: Conditions,
        backend: &dyn Backend,
        extend: impl FnOnce(Plan) -> Result<Plan, SampleError>,
    ) -> Result<Self, SampleError> {
        let config = model.config.clone();
        let (h, w) = config.height_width().ok_or(SampleError::NoSize)?;
        if options.batch == 0 {
            return Err(SampleError::Count("the batch size must be at least 1".into()));
        }
        check_conditions(&config, &conditions)?;
        labels(&config, &options, &conditions, 0..1)?;
        let guided = options.guidance != 1.0;
        if !options.guidance.is_finite() {
            return Err(SampleError::Condition(format!("the guidance scale {} is not finite", options.guidance)));
        }
        if !(0.0..=1.0).contains(&options.guidance_rescale) {
            let rescale = options.guidance_rescale;
            return Err(SampleError::Condition(format!("the guidance rescale {rescale} is not in 0..=1")));
        }
        if options.guidance_rescale != 0.0 && !guided {
            return Err(SampleError::Condition(
                "there is no guidance to rescale: give a guidance scale other than 1".into(),
            ));
        }
        if guided && config.null_class.is_none() {
            return Err(SampleError::Condition(
                "guidance needs a model with a null class (null_class in config.json), as warpdiff trains with label \
                 dropout"
                    .into(),
            ));
        }
        let table = Arc::new(StepTable::build(&options.scheduler, options.steps, options.eta)?);
        let batch = Batch { n: options.batch, h, w };
        let sampling = SamplingOptions {
            guidance: guided.then_some(Guidance { scale: options.guidance, rescale: options.guidance_rescale }),
            levels: match options.scheduler.compat {
                Compat::GuidedDiffusion => Levels::Truncated,
                Compat::Paper | Compat::Diffusers => Levels::Rounded,
            },
            classifier: conditions
                .classifier
                .as_ref()
                .map(|(classifier, scale)| Guide { config: classifier.config.clone(), scale: *scale }),
            ..SamplingOptions::new(Arc::clone(&table), NoiseSource::Philox)
        };
        let program = SamplingProgram::new(&config, batch, &sampling)?;
        let mut exe = backend.compile(extend(program.plan.clone())?)?;
        bind_weights(exe.as_mut(), &model.weights()?)?;
        if let Some((classifier, _)) = &conditions.classifier {
            bind_classifier(exe.as_mut(), &classifier.weights()?)?;
        }
        exe.write_u32(program.key, &split_seed(options.seed))?;
        Ok(Self { config, options, conditions, program, exe, batch, table })
    }

    /// Samples per batch.
    pub fn batch(&self) -> usize {
        self.batch.n
    }

    /// Steps of the loop.
    pub fn steps(&self) -> usize {
        self.table.rows.len()
    }

    /// The values that x ends at.
    pub(super) fn range(&self) -> DataRange {
        self.table.range
    }

    /// Channels, height and width of an image.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.config.image_channels(), self.batch.h, self.batch.w]
    }

    /// Whether an image depends on those that it is computed with: correctors by the norms of a whole batch, as diffusers has
    /// them.
    pub fn mixes_images(&self) -> bool {
        self.table.has_correctors() && self.table.norms == NormScope::Batch
    }

    /// Bytes that the loop holds.
    pub fn memory_bytes(&self) -> usize {
        self.exe.memory_bytes()
    }

    /// The label of each sample of `indices`, or `None` for a model without classes.
    ///
    /// # Errors
    /// As [`LabelChoice::labels`].
    pub fn labels(&self, indices: Range<usize>) -> Result<Option<Vec<u32>>, SampleError> {
        labels(&self.config, &self.options, &self.conditions, indices)
    }

    /// Draws the samples `indices`, at most [`Sampler::batch`] of them; returns `[N, C, H, W]` in about [-1, 1].
    ///
    /// `on_step` is called after each step with its number and a function that fetches the pictures so far.
    ///
    /// # Errors
    /// [`SampleError`]; samples that are not finite are an error, and so is being stopped by `on_step`.
    pub fn run(&mut self, indices: Range<usize>, on_step: &mut OnStep<'_>) -> Result<Vec<f32>, SampleError> {
        self.begin(&indices)?;
        let count = indices.len();
        for step in 0..self.steps() {
            self.exe.run()?;
            if !on_step(step, &|| self.pictures(count)) {
                return Err(SampleError::Stopped);
            }
        }
        self.images(indices)
    }

    /// Draws as [`Sampler::run`] does, but in groups of steps, through which the device runs without waiting for the host.
    ///
    /// `go_on` is called a few times a second with the number of steps that are done; it returns whether to go on.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw(
        &mut self,
        indices: Range<usize>,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<f32>, SampleError> {
        let [c, h, w] = self.image_shape();
        let shape = [indices.len(), c, h, w];
        Ok(nhwc_to_nchw(&self.draw_as(indices, go_on, Drawn::images)?, shape))
    }

    /// Draws as [`Sampler::draw`] does, but returns the pictures: bytes `[N, H, W, C]`, those of the images by
    /// [`Levels::byte`], rounded or cut down as [`Compat`] says.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw_pictures(
        &mut self,
        indices: Range<usize>,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<u8>, SampleError> {
        self.draw_as(indices, go_on, Drawn::pictures)
    }

    fn draw_as<T: Default>(
        &mut self,
        indices: Range<usize>,
        go_on: &mut dyn FnMut(usize) -> bool,
        form: fn(Drawn) -> Result<T, SampleError>,
    ) -> Result<T, SampleError> {
        let (mut result, samples) = (T::default(), indices.len().max(1));
        self.stream([indices], &mut |evaluations| go_on(evaluations / samples), &mut |drawn| {
            result = form(drawn)?;
            Ok::<(), SampleError>(())
        })?;
        Ok(result)
    }

    /// The pictures of the first `count` samples after the last step that ran: bytes `[N, H, W, C]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn pictures(&self, count: usize) -> Result<Vec<u8>, SampleError> {
        let [c, h, w] = self.image_shape();
        let mut bytes = vec![0; self.batch.numel(c)];
        self.exe.read_u8(self.program.picture, &mut bytes)?;
        bytes.truncate(count * h * w * c);
        Ok(bytes)
    }

    /// Takes all steps of a batch; `each` sees the device after a step and the state before it.
    ///
    /// # Errors
    /// As [`Sampler::run`], and what `each` says.
    pub fn visit(
        &mut self,
        indices: Range<usize>,
        each: &mut dyn FnMut(&dyn Executable, Visited) -> Result<(), SampleError>,
    ) -> Result<(), SampleError> {
        self.begin(&indices)?;
        for step in 0..self.steps() {
            let mut x = vec![0.0; self.batch.numel(self.config.image_channels())];
            self.exe.read_f32(self.program.x, &mut x)?;
            self.exe.run()?;
            each(self.exe.as_ref(), Visited { timestep: self.table.rows[step].timestep, x })?;
        }
        self.finite(indices).map(|_| ())
    }

    /// Gives the device so many steps; the result arrives when they are done.
    pub(super) fn give(&mut self, steps: usize) -> Result<Snapshot, SampleError> {
        self.exe.run_many(steps)?;
        Ok(self.exe.snapshot(self.program.step)?)
    }

    /// x and its picture after the steps that the device was given.
    pub(super) fn snapshots(&mut self) -> Result<(Snapshot, Snapshot), SampleError> {
        Ok((self.exe.snapshot(self.program.x)?, self.exe.snapshot(self.program.picture)?))
    }

    /// Checks the indices and writes the inputs of their batch.
    pub(super) fn begin(&mut self, indices: &Range<usize>) -> Result<(), SampleError> {
        if indices.len() > self.batch.n || indices.end > u32::MAX as usize {
            return Err(SampleError::Count(format!(
                "samples {indices:?} do not fit a batch of {} with 32-bit indices",
                self.batch.n
            )));
        }
        // A batch that is not full is filled up with the samples that would come next; each is independent of the others.
        let filled: Vec<u32> = (indices.start..indices.start + self.batch.n).map(|i| i as u32).collect();
        self.start(&filled)
    }

    /// The samples `indices` after the last step, NCHW.
    fn images(&self, indices: Range<usize>) -> Result<Vec<f32>, SampleError> {
        let [c, h, w] = self.image_shape();
        let count = indices.len();
        let mut x = self.finite(indices)?;
        self.table.range.to_signed(&mut x);
        Ok(nhwc_to_nchw(&x, [count, c, h, w]))
    }

    /// The samples `indices` after the last step, NHWC. Pictures need them, too: a byte no longer shows what is not
    /// finite.
    fn finite(&self, indices: Range<usize>) -> Result<Vec<f32>, SampleError> {
        let [c, h, w] = self.image_shape();
        let mut x = vec![0.0; self.batch.numel(c)];
        self.exe.read_f32(self.program.x, &mut x)?;
        x.truncate(indices.len() * h * w * c);
        finite(x, indices.start, h * w * c, self.steps())
    }

    /// Writes x_T, the labels and the counters of a batch.
    fn start(&mut self, indices: &[u32]) -> Result<(), SampleError> {
        let mut x = vec![0.0; self.batch.numel(self.config.image_channels())];
        for (image, &index) in x.chunks_mut(self.batch.h * self.batch.w * self.config.image_channels()).zip(indices) {
            Sequence::new(self.options.seed, Stream::InitialNoise, index, 0).fill_normal(image);
        }
        let sigma = self.table.init_noise_sigma as f32;
        x.iter_mut().for_each(|v| *v *= sigma);
        self.exe.write_f32(self.program.x, &x)?;
        x.fill(0.0);
        self.exe.write_f32(self.program.x0, &x)?;
        self.exe.write_u32(self.program.step, &[0])?;
        self.exe.write_u32(self.program.sample_index, indices)?;
        if let (Some(condition), Some(low_res)) = (self.program.condition, &self.conditions.low_res) {
            let condition_values = low_res.condition(indices, (self.batch.h, self.batch.w));
            self.exe.write_f32(condition, &condition_values)?;
        }
        let first = indices[0] as usize;
        let mut labels = self.labels(first..first + indices.len())?.unwrap_or_default();
        if let Some(label) = self.program.guide_label {
            self.exe.write_u32(label, &labels)?;
        }
        if let Some(class) = self.program.class {
            if self.options.guidance != 1.0 {
                let null = self.config.null_class.unwrap_or_default() as u32;
                labels.extend(std::iter::repeat_n(null, indices.len()));
            }
            self.exe.write_u32(class, &labels)?;
        }
        Ok(())
    }
}

/// The label of each sample of `indices`: of the model's classes, or of the classifier's where the model has none.
fn labels(
    config: &UNetConfig,
    options: &SampleOptions,
    conditions: &Conditions,
    indices: Range<usize>,
) -> Result<Option<Vec<u32>>, SampleError> {
    let own = config.classes().is_some() || config.class_embed_type.is_some();
    match (&conditions.classifier, &conditions.low_res) {
        (Some((classifier, _)), _) if !own => options.labels.of_classes(Some(classifier.config.classes), indices),
        (_, Some(low_res)) if own && options.labels == LabelChoice::Balanced && low_res.labels.is_some() => {
            let labels = low_res.labels(indices);
            let classes = config.classes().unwrap_or_default();
            match labels.iter().flatten().find(|&&label| label as usize >= classes) {
                Some(&label) => Err(SampleError::Label { label, classes }),
                None => Ok(labels),
            }
        }
        _ => options.labels.labels(config, indices),
    }
}

/// Whether the model takes what it is given, and is given what it needs.
fn check_conditions(config: &UNetConfig, conditions: &Conditions) -> Result<(), SampleError> {
    let refused = |text: String| Err(SampleError::Condition(text));
    if let Some((classifier, scale)) = &conditions.classifier {
        let theirs = classifier.config.classes;
        if !scale.is_finite() {
            return refused(format!("the classifier's scale {scale} is not finite"));
        }
        if let Some(classes) = config.classes().filter(|&classes| classes != theirs) {
            return refused(format!("the classifier knows {theirs} classes, the model {classes}"));
        }
    }
    match (&conditions.low_res, config.condition_channels) {
        (None, 0) => Ok(()),
        (None, _) => refused("the model enlarges images: name them with --low-res".into()),
        (Some(_), 0) => refused("the model takes no low-resolution images: leave out --low-res".into()),
        (Some(low_res), channels) if low_res.channels != channels => {
            refused(format!("the low-resolution images have {} channels, the model takes {channels}", low_res.channels))
        }
        (Some(low_res), _) if low_res.count() == 0 => refused("there is no low-resolution image".into()),
        (Some(_), _) => Ok(()),
    }
}
