//! The loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::checkpoint::{Arrays, Checkpoint, Contents, Existing, check_destination, write};
use super::loader::{Batches, Loader};
use super::state::{DatasetDescription, FORMAT, TrainingState};
use super::{StepReport, TrainError, TrainOptions};
use crate::backend::snapshot::Snapshot;
use crate::backend::{Backend, Executable, Store};
use crate::data::Dataset;
use crate::diffusion::{Objective, Schedule, SchedulerConfig, TrainingObjective, Vlb};
use crate::graph::{ParamId, ParamSpec, ValueId};
use crate::io::atomic_folder::recover;
use crate::program::{Batch, TrainingInputs, TrainingOptions, TrainingProgram};
use crate::rng::split_seed;
use crate::unet::{SampleSize, TimeEmbeddingType, UNetConfig, initial_weights};

/// What a run from fresh weights needs.
pub struct NewRun<'a> {
    /// Where it is computed.
    pub backend: &'a dyn Backend,
    /// The network; without a `sample_size` it takes that of the images.
    pub config: UNetConfig,
    /// The noise schedule, what the network predicts, and the sampler that the checkpoint will name.
    pub scheduler: SchedulerConfig,
    /// What it is trained on.
    pub dataset: Arc<dyn Dataset>,
    /// How.
    pub options: TrainOptions,
    /// Where checkpoints go.
    pub folder: PathBuf,
    /// Whether an earlier run there may be replaced.
    pub existing: Existing,
}

/// How [`Trainer::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// All steps are done.
    Finished {
        /// Updates done.
        step: u64,
    },
    /// It was asked to stop; the checkpoint holds everything up to here.
    Interrupted {
        /// Updates done.
        step: u64,
    },
}

/// A training run: weights, optimiser state and moving average on a device, and how far it is.
pub struct Trainer {
    config: UNetConfig,
    scheduler: SchedulerConfig,
    options: TrainOptions,
    description: DatasetDescription,
    folder: PathBuf,
    batches: Batches,
    loader: Option<Loader>,
    exe: Box<dyn Executable>,
    values: Values,
    step: u64,
    saved: Option<u64>,
    seconds: f64,
    log: Vec<StepReport>,
    /// The step that diverged, with its loss and gradient norm. The weights are useless from then on.
    diverged: Option<(u64, f64, f64)>,
}

/// A step that the device has been given, with its results on their way.
struct InFlight {
    /// Its number.
    step: u64,
    /// (loss, L_simple, bound) of each example.
    losses: Snapshot,
    grad_norm: Snapshot,
}

/// Inputs and results of the step.
struct Values {
    x0: ValueId,
    index: ValueId,
    hyper: ValueId,
    class: Option<ValueId>,
    losses: ValueId,
    grad_norm: ValueId,
}

impl Trainer {
    /// A run from fresh weights; the moving average starts equal to them.
    ///
    /// # Errors
    /// A [`TrainError`] for options, a model, a data set or a folder that will not do.
    pub fn new(run: NewRun<'_>) -> Result<Self, TrainError> {
        let NewRun { backend, mut config, scheduler, dataset, options, folder, existing } = run;
        options.validate()?;
        config.sample_size = config.sample_size.or(Some(SampleSize::HeightWidth([dataset.height(), dataset.width()])));
        let mut trainer = Self::assemble(backend, config, scheduler, dataset, options, folder)?;
        check_destination(&trainer.folder, existing)?;
        let params = trainer.params().to_vec();
        for i in 0..params.len() {
            let weights = initial_weights(&params, i, trainer.options.seed);
            trainer.exe.write_param(Store::Params, ParamId::new(i), &weights)?;
            trainer.exe.write_param(Store::Ema, ParamId::new(i), &weights)?;
        }
        Ok(trainer)
    }

    /// Goes on with the run of a checkpoint, and writes its checkpoints there.
    ///
    /// Options must be those of the checkpoint, except `steps` and `checkpoint_every`. The result has the bits of a run without
    /// a break, on backends that compute in f32 (the f64 reference keeps more than a checkpoint holds). With a cosine decay the learning rate depends
    /// on `steps`, so a run that is extended differs from one that was that long from the start.
    ///
    /// # Errors
    /// A [`TrainError`]: what [`Checkpoint::open`] finds, [`TrainError::OptionsChanged`], [`TrainError::DatasetChanged`],
    /// [`TrainError::AlreadyPast`], and what [`Trainer::new`] can find.
    pub fn resume(
        backend: &dyn Backend,
        folder: &Path,
        dataset: Arc<dyn Dataset>,
        options: TrainOptions,
    ) -> Result<Self, TrainError> {
        options.validate()?;
        // A replacement that was cut off leaves the checkpoint under another name, which the first save would remove.
        recover(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let (state, model) = (&checkpoint.state, &checkpoint.model);
        let mut differences = state.options.differences(&options);
        if state.precision != backend.precision() {
            differences.push(format!("precision: {} -> {}", state.precision, backend.precision()));
        }
        if !differences.is_empty() {
            return Err(TrainError::OptionsChanged { folder: folder.to_path_buf(), differences });
        }
        if state.step > options.steps {
            let folder = folder.to_path_buf();
            return Err(TrainError::AlreadyPast { folder, step: state.step, asked: options.steps });
        }
        let differences = state.dataset.differences(&DatasetDescription::of(dataset.as_ref())?);
        if !differences.is_empty() {
            return Err(TrainError::DatasetChanged { folder: folder.to_path_buf(), differences });
        }
        let (config, scheduler) = (model.config.clone(), model.scheduler.clone());
        let mut trainer = Self::assemble(backend, config, scheduler, dataset, options, folder.to_path_buf())?;
        check_destination(folder, Existing::Overwrite)?;
        for store in Store::ALL {
            for (i, data) in checkpoint.arrays(store, trainer.params())?.iter().enumerate() {
                trainer.exe.write_param(store, ParamId::new(i), data)?;
            }
        }
        trainer.step = checkpoint.state.step;
        trainer.saved = Some(trainer.step);
        trainer.seconds = checkpoint.state.seconds;
        trainer.log = checkpoint.log;
        Ok(trainer)
    }

    /// Everything but the weights.
    fn assemble(
        backend: &dyn Backend,
        config: UNetConfig,
        scheduler: SchedulerConfig,
        dataset: Arc<dyn Dataset>,
        options: TrainOptions,
        folder: PathBuf,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let batches = Batches::new(Arc::clone(&dataset), &options, &config)?;
        let objective = objective(&config, &scheduler, &options, dataset.levels())?;
        let batch = Batch { n: options.batch_size, h: dataset.height(), w: dataset.width() };
        let how = TrainingOptions { objective, optimizer: Some(options.optimizer()), inputs: TrainingInputs::Drawn };
        let program = TrainingProgram::new(&config, batch, &how)?;
        let mut exe = backend.compile(program.plan)?;
        exe.write_u32(program.key, &split_seed(options.seed))?;
        Ok(Self {
            description: DatasetDescription::of(dataset.as_ref())?,
            values: Values {
                x0: program.x0,
                index: program.example_index,
                hyper: program.hyper,
                class: program.class,
                losses: program.losses,
                grad_norm: program.grad_norm,
            },
            loader: None,
            step: 0,
            saved: None,
            seconds: 0.0,
            log: Vec::new(),
            diverged: None,
            config,
            scheduler,
            options,
            folder,
            batches,
            exe,
        })
    }

    /// Trains on the next batch.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if the loss or the gradient is not finite: the weights are lost then, and every later step and
    /// checkpoint is refused. [`TrainError::Data`] leaves the trainer as it was: the step can be tried again.
    /// [`TrainError::Complete`]; [`TrainError::Backend`].
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let begin = Instant::now();
        let given = self.begin(self.step + 1)?;
        let report = self.end(given)?;
        self.seconds += begin.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Trains to the end, with a checkpoint every `checkpoint_every` steps and at the end. When `should_stop` turns true it writes
    /// a checkpoint and returns.
    ///
    /// A device that computes beside the host has its next step before the results of the last are read, so that it never
    /// waits for the host; what is computed is the same.
    ///
    /// # Errors
    /// As [`Trainer::step`] and [`Trainer::save`]. If the data set fails, a checkpoint of the steps before it is written first.
    pub fn run(
        &mut self,
        should_stop: &dyn Fn() -> bool,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Result<RunEnd, TrainError> {
        let mut ahead = None;
        while self.step < self.options.steps {
            let begin = Instant::now();
            let given = match ahead.take() {
                Some(given) => given,
                None if should_stop() => {
                    self.save_if_new()?;
                    return Ok(RunEnd::Interrupted { step: self.step });
                }
                None => match self.begin(self.step + 1) {
                    Err(error) if self.step > 0 && !matches!(error, TrainError::Backend(_)) => {
                        self.save_if_new()?;
                        return Err(error);
                    }
                    begun => begun?,
                },
            };
            if self.may_go_beyond(&given) && !should_stop() {
                ahead = match self.begin(given.step + 1) {
                    Ok(given) => Some(given),
                    Err(error @ TrainError::Backend(_)) => return Err(error),
                    // What is wrong with the data shows again when it is that step's turn.
                    Err(_) => None,
                };
            }
            on_step(&self.end(given)?);
            self.seconds += begin.elapsed().as_secs_f64();
            if self.step.is_multiple_of(self.options.checkpoint_every) {
                self.save()?;
            }
        }
        self.save_if_new()?;
        Ok(RunEnd::Finished { step: self.step })
    }

    /// Writes a checkpoint to the run's folder.
    ///
    /// # Errors
    /// As [`Trainer::save_to`].
    pub fn save(&mut self) -> Result<(), TrainError> {
        let folder = self.folder.clone();
        self.save_to(&folder)?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// Writes a checkpoint elsewhere, for one to keep or because the run's own folder failed.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] and [`TrainError::NotFinite`]: a useless state is never written. [`TrainError::ForeignFolder`],
    /// [`TrainError::File`]. Whatever was in the folder is still there then.
    pub fn save_to(&self, folder: &Path) -> Result<(), TrainError> {
        self.check_alive()?;
        let contents = Contents {
            config: &self.config,
            scheduler: &self.scheduler,
            params: self.params(),
            state: &self.state(),
            log: &self.log,
        };
        write(folder, &contents, |store| self.arrays(store))
    }

    fn save_if_new(&mut self) -> Result<(), TrainError> {
        if self.saved == Some(self.step) { Ok(()) } else { self.save() }
    }

    /// Hands the batch of step `k`, the next one, to the device. A loader that failed is replaced at the next try.
    fn load(&mut self, k: u64) -> Result<(), TrainError> {
        let mut loader = match self.loader.take() {
            Some(loader) => loader,
            None => Loader::new(self.batches.clone(), k - 1..self.options.steps)?,
        };
        let examples = loader.next_step()?;
        self.exe.write_f32(self.values.x0, &examples.x0)?;
        self.exe.write_u32(self.values.index, &examples.index)?;
        if let Some(class) = self.values.class {
            self.exe.write_u32(class, &examples.labels)?;
        }
        self.loader = Some(loader);
        Ok(())
    }

    /// Gives step `k` to the device.
    fn begin(&mut self, k: u64) -> Result<InFlight, TrainError> {
        self.check_alive()?;
        let steps = self.options.steps;
        if k > steps {
            return Err(TrainError::Complete { steps });
        }
        self.load(k)?;
        self.exe.write_f32(self.values.hyper, &self.options.hyper(k))?;
        self.exe.run()?;
        let losses = self.exe.snapshot(self.values.losses)?;
        Ok(InFlight { step: k, losses, grad_norm: self.exe.snapshot(self.values.grad_norm)? })
    }

    /// Whether the next step may begin before a step is done. Not where a checkpoint holds the state between them, and not
    /// where nothing would be gained.
    fn may_go_beyond(&self, given: &InFlight) -> bool {
        let last = given.step == self.options.steps || given.step.is_multiple_of(self.options.checkpoint_every);
        !last && !given.losses.arrived()
    }

    /// Waits for the results of a step, which is done then.
    fn end(&mut self, mut given: InFlight) -> Result<StepReport, TrainError> {
        let (k, losses, grad_norm) = (given.step, given.losses.floats()?, given.grad_norm.floats()?);
        let mean = |column: usize| {
            let sum: f64 = losses.iter().skip(column).step_by(3).map(|&x| f64::from(x)).sum();
            sum / self.options.batch_size as f64
        };
        let report = StepReport {
            step: k,
            loss: mean(0),
            simple: mean(1),
            vb: mean(2),
            grad_norm: f64::from(grad_norm[0]),
            lr: self.options.learning_rate_at(k),
            ema_decay: self.options.ema.decay_at(k),
        };
        if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
            self.diverged = Some((k, report.loss, report.grad_norm));
            return self.check_alive().map(|()| report);
        }
        self.step = k;
        self.log.push(report);
        Ok(report)
    }

    fn check_alive(&self) -> Result<(), TrainError> {
        match self.diverged {
            Some((step, loss, grad_norm)) => Err(TrainError::Diverged { step, loss, grad_norm }),
            None => Ok(()),
        }
    }

    /// Reads the weights, a moment or the moving average: one vector for each of [`Trainer::params`].
    ///
    /// # Errors
    /// [`TrainError::Backend`].
    pub fn arrays(&self, store: Store) -> Result<Arrays, TrainError> {
        let read = |(i, spec): (usize, &ParamSpec)| {
            let mut data = vec![0.0; spec.numel()];
            self.exe.read_param(store, ParamId::new(i), &mut data)?;
            Ok(data)
        };
        self.params().iter().enumerate().map(read).collect()
    }

    /// The state as a checkpoint of now would have it.
    pub fn state(&self) -> TrainingState {
        TrainingState {
            format: FORMAT,
            warpdiff: env!("CARGO_PKG_VERSION").to_string(),
            step: self.step,
            seconds: self.seconds,
            precision: self.exe.plan().precision(),
            options: self.options.clone(),
            dataset: self.description.clone(),
        }
    }

    /// The network's parameters.
    pub fn params(&self) -> &[ParamSpec] {
        self.exe.plan().graph().params()
    }

    /// The compiled step.
    pub fn executable(&self) -> &dyn Executable {
        self.exe.as_ref()
    }

    /// The network.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The noise schedule.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// The options.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Where checkpoints go.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Updates done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The reports of all steps, those before a resume included.
    pub fn log(&self) -> &[StepReport] {
        &self.log
    }
}

/// The loss of this model on these data.
fn objective(
    config: &UNetConfig,
    scheduler: &SchedulerConfig,
    options: &TrainOptions,
    levels: u32,
) -> Result<Arc<TrainingObjective>, TrainError> {
    let untrainable =
        |key, problem: &str, remedy| Err(TrainError::Untrainable { key, problem: problem.into(), remedy });
    if config.time_embedding_type == TimeEmbeddingType::Fourier {
        let problem = "a fourier embedding takes ln t, which does not exist at t = 0";
        return untrainable("time_embedding_type", problem, "take positional");
    }
    let (prediction, variance) = (scheduler.prediction_type, scheduler.variance_type);
    if variance.is_learned() && options.objective == Objective::Simple {
        let problem = "the variance is learned, but the simple objective has no gradient for it";
        return untrainable("variance_type", problem, "train with the hybrid objective, or take a fixed variance");
    }
    let schedule = Schedule::new(&scheduler.betas)?;
    if options.objective.vb_weight(schedule.num_timesteps()) != 0.0 {
        let bound = Vlb::new(&schedule, prediction, variance, false, levels)?;
        for t in 0..schedule.num_timesteps() {
            bound.at(t)?;
        }
    }
    let (objective, weighting) = (options.objective, options.weighting);
    Ok(Arc::new(TrainingObjective::new(schedule, prediction, variance, objective, weighting, levels)))
}
