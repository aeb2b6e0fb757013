//! What is to be measured: every distinct operation of a network.

use anyhow::Result;

use super::options::Network;
use crate::bench::collect;
use crate::bench::operation::operations;
use crate::bench::samplers::VARIANTS;
use crate::bench::{Family, Pass, Product, Work};
use crate::cli::network;
use crate::program::Batch;

/// A line to be measured.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub work: Work,
    /// How often the network computes it.
    pub count: usize,
    /// Images at once; none if nothing depends on it.
    pub batch: Option<usize>,
}

/// The products of a network at one batch size, pass by pass.
pub(super) fn products(of: &Network, n: usize, passes: &[Pass], takes: impl Fn(&Product) -> bool) -> Result<Vec<Line>> {
    let all = collect::products(&of.config, network::batch(&of.config, n))?;
    let mut lines = Vec::new();
    for &pass in passes {
        let of_pass = all.iter().filter(|c| c.pass == pass && takes(&c.product));
        lines.extend(of_pass.map(|c| Line { work: Work::Product(c.product, pass), count: c.count, batch: Some(n) }));
    }
    Ok(lines)
}

/// The operations of a family in a training step at one batch size; of a sampler's steps, those that differ.
pub(super) fn of_family(of: &Network, n: usize, family: Family) -> Result<Vec<Line>> {
    let batch = network::batch(&of.config, n);
    if family == Family::SamplerStep {
        return sampler_steps(of, batch);
    }
    let program = network::training_program(&of.config, batch)?;
    let found = operations(program.plan.graph(), family);
    let batch = (family != Family::Optim).then_some(n);
    Ok(found.into_iter().map(|(operation, count)| Line { work: Work::Operation(operation), count, batch }).collect())
}

fn sampler_steps(of: &Network, batch: Batch) -> Result<Vec<Line>> {
    let line = |variant: &crate::bench::samplers::Variant| {
        let operation = variant.operation(batch, of.config.in_channels)?;
        Ok(Line { work: Work::Operation(operation), count: 1, batch: Some(batch.n) })
    };
    VARIANTS.iter().map(line).collect()
}
