//! A tiny model, its options and a data set made by formula.

use std::path::Path;
use std::sync::Arc;

use warpdiff::backend::cpu::Cpu;
use warpdiff::backend::{Backend, Store};
use warpdiff::data::{DataError, Dataset, Digits};
use warpdiff::diffusion::{BetaConfig, SamplerKind, SchedulerConfig};
use warpdiff::train::{Existing, NewRun, StepReport, TrainError, TrainOptions, Trainer};
use warpdiff::unet::{DownBlock, SampleSize, UNetConfig, UpBlock};

pub fn config() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(8)),
        in_channels: 1,
        out_channels: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Plain],
        up_block_types: vec![UpBlock::Plain, UpBlock::Plain],
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_num_groups: Some(4),
        attention_head_dim: Some(8),
        dropout: 0.1,
        ..UNetConfig::default()
    }
}

/// Ten classes and a null class.
pub fn conditional() -> UNetConfig {
    UNetConfig { num_class_embeds: Some(11), null_class: Some(10), ..config() }
}

pub fn scheduler() -> SchedulerConfig {
    SchedulerConfig { betas: BetaConfig::linear(100), ..SchedulerConfig::new(SamplerKind::Ddpm) }
}

pub fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch_size: 4, learning_rate: 2e-3, warmup_steps: 3, seed: 5, ..TrainOptions::default() }
}

pub fn digits() -> Arc<dyn Dataset> {
    Arc::new(Digits::load().unwrap())
}

pub fn cpu(threads: usize) -> Cpu {
    Cpu::new(Some(threads)).unwrap()
}

pub fn start(backend: &dyn Backend, options: TrainOptions, folder: &Path) -> Result<Trainer, TrainError> {
    start_with(backend, conditional(), scheduler(), digits(), options, folder)
}

pub fn start_with(
    backend: &dyn Backend,
    config: UNetConfig,
    scheduler: SchedulerConfig,
    dataset: Arc<dyn Dataset>,
    options: TrainOptions,
    folder: &Path,
) -> Result<Trainer, TrainError> {
    let folder = folder.to_path_buf();
    Trainer::new(NewRun { backend, config, scheduler, dataset, options, folder, existing: Existing::Refuse })
}

/// Bits of weights, moments and moving average.
pub fn bits(trainer: &Trainer) -> Vec<u32> {
    let arrays = Store::ALL.into_iter().flat_map(|store| trainer.arrays(store).unwrap());
    arrays.flatten().map(f32::to_bits).collect()
}

pub fn finish(trainer: &mut Trainer) -> Vec<StepReport> {
    let mut reports = Vec::new();
    trainer.run(&|| false, &mut |r| reports.push(*r)).unwrap();
    reports
}

/// The error of a trainer that should not have come to be.
pub fn refusal(result: Result<Trainer, TrainError>) -> TrainError {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(error) => error,
    }
}

/// Pixel (y, x, c) of image i is (7 i + 3 y + 5 x + c) mod levels; its label is i mod classes.
#[derive(Clone, Debug)]
pub struct Formula {
    pub len: usize,
    pub size: (usize, usize),
    pub channels: usize,
    pub classes: Option<usize>,
    pub levels: u32,
    /// Added to every label, against the contract of `num_classes`.
    pub label_offset: u32,
    /// This image cannot be read.
    pub broken: Option<usize>,
    /// This image has no label.
    pub unlabelled: Option<usize>,
}

impl Default for Formula {
    fn default() -> Self {
        Self {
            len: 37,
            size: (8, 8),
            channels: 1,
            classes: Some(10),
            levels: 17,
            label_offset: 0,
            broken: None,
            unlabelled: None,
        }
    }
}

impl Formula {
    pub fn pixel(&self, index: usize, y: usize, x: usize, c: usize) -> u8 {
        ((7 * index + 3 * y + 5 * x + c) % self.levels as usize) as u8
    }
}

impl Dataset for Formula {
    fn name(&self) -> &str {
        "formula"
    }
    fn len(&self) -> usize {
        self.len
    }
    fn channels(&self) -> usize {
        self.channels
    }
    fn height(&self) -> usize {
        self.size.0
    }
    fn width(&self) -> usize {
        self.size.1
    }
    fn num_classes(&self) -> Option<usize> {
        self.classes
    }
    fn class_names(&self) -> Vec<String> {
        (0..self.classes.unwrap_or(0)).map(|c| format!("class {c}")).collect()
    }
    fn levels(&self) -> u32 {
        self.levels
    }
    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        if self.broken == Some(index) {
            return Err(DataError::Picture { path: format!("{index}.png").into(), problem: "broken".into() });
        }
        let mut at = 0;
        for y in 0..self.size.0 {
            for x in 0..self.size.1 {
                for c in 0..self.channels {
                    out[at] = self.pixel(index, y, x, c);
                    at += 1;
                }
            }
        }
        let label = self.classes.map(|n| (index % n) as u32 + self.label_offset);
        Ok(label.filter(|_| self.unlabelled != Some(index)))
    }
}
