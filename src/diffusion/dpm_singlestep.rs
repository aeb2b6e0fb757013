//! Step tables of DPM-Solver++ and DPM-Solver singlestep (2211.01095, algorithm 1; 2206.00927, algorithms 1 and 2).
//!
//! Steps come in blocks of up to `solver_order`. Every step of a block starts from the block's first x, which the saved state
//! holds, and reaches further with one order more.

use super::config::{FinalSigmas, SamplerKind, SchedulerConfig, SolverType};
use super::dpm_solver::{Weights, check, prediction};
use super::error::Result;
use super::levels::{NoiseLevel, solver_visits};
use super::step_table::{Keep, StepRow, StepTable};

impl StepTable {
    /// DPM-Solver singlestep over the noise levels of `config`, whatever sampler it names. The clamp on x_0 and learned
    /// variances are not read.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn dpm_solver_singlestep(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::DpmSolverSinglestep);
        check(&config)?;
        let options = config.dpm_solver;
        let visits = solver_visits(&config, num_inference_steps)?;
        let orders = orders(
            visits.times.len(),
            usize::from(options.solver_order),
            options.lower_order_final,
            options.final_sigmas_type == FinalSigmas::Zero,
        );
        let rows = visits.times.iter().zip(&orders).enumerate().map(|(i, (&t, &order))| {
            let first = i + 1 - order;
            let mut row = block_step(&config, &visits.levels[first..i + 2]);
            row.keep = match (order, orders.get(i + 1)) {
                // Only a step of the same block reads it.
                (_, None | Some(1)) => Keep::default(),
                (1, _) => Keep { x: 1.0, ..Keep::default() },
                _ => Keep { saved: 1.0, ..Keep::default() },
            };
            let d = prediction(options.algorithm.on_eps(), config.prediction_type, &visits.levels[i]);
            StepRow { timestep: t as f32, c_x0x: d.first, c_x0m: d.second, ..row }
        });
        Ok(Self { rows: rows.collect(), clip: config.clip(), init_noise_sigma: 1.0, ..Self::default() })
    }
}

/// The order of every step: blocks 1, 2, .. `order`. A last block that has no room, or that ends at a clean image, is cut.
fn orders(steps: usize, order: usize, lower_order_final: bool, clean_end: bool) -> Vec<usize> {
    let mut orders: Vec<usize> = (0..steps).map(|i| i % order + 1).collect();
    // Whole blocks need a lower order in the end only where asked, or where the last level has no lambda.
    if (lower_order_final || clean_end)
        && order > 1
        && steps.is_multiple_of(order)
        && let Some(last) = orders.last_mut()
    {
        *last = 1;
    }
    // A block of order 2 that ends clean, too.
    if clean_end && let Some(last) = orders.last_mut() {
        *last = 1;
    }
    orders
}

/// The step of a block over `levels`: the block's first, those of its inner steps, and where this step ends.
fn block_step(config: &SchedulerConfig, levels: &[NoiseLevel]) -> StepRow {
    let (start, end) = (&levels[0], &levels[levels.len() - 1]);
    let w = Weights::new(config, start, end);
    let h = end.lambda - start.lambda;
    let first = StepRow { s: w.s, noise: w.s > 0.0, ..StepRow::default() };
    let inner: Vec<f64> = levels[1..levels.len() - 1].iter().map(|level| (level.lambda - start.lambda) / h).collect();
    let heun = config.dpm_solver.solver_type == SolverType::Heun;
    match inner[..] {
        // Equal levels leave no room for a derivative.
        _ if inner.iter().any(|r| *r <= 0.0 || r.is_nan()) => StepRow { r: w.a, b: w.w0, ..first },
        // D1 = (D - D_first) / r.
        [r] => StepRow { r: w.a, b: w.w1 / r, p: w.w0 - w.w1 / r, ..first },
        [r1, r0] if heun && r0 > r1 => {
            // u = (D_inner - D_first) / r1, v = (D - D_first) / r0; D1 = (r0 u - r1 v) / (r0 - r1),
            // D2 = 2 (v - u) / (r0 - r1).
            let u = (w.w1_exact * r0 - 2.0 * w.w2) / (r0 - r1);
            let v = (2.0 * w.w2 - w.w1_exact * r1) / (r0 - r1);
            StepRow { r: w.a, b: v / r0, p: u / r1, q: w.w0 - u / r1 - v / r0, ..first }
        }
        // Only the farther one is used: D1 = (D - D_first) / r0.
        [_, r0] => StepRow { r: w.a, b: w.w1_exact / r0, q: w.w0 - w.w1_exact / r0, ..first },
        _ => StepRow { a: w.a, b: w.w0, ..first },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_where_they_must_be() {
        assert_eq!(orders(6, 2, false, false), [1, 2, 1, 2, 1, 2]);
        assert_eq!(orders(6, 2, true, false), [1, 2, 1, 2, 1, 1]);
        assert_eq!(orders(6, 2, false, true), [1, 2, 1, 2, 1, 1]);
        assert_eq!(orders(5, 2, false, true), [1, 2, 1, 2, 1]);
        assert_eq!(orders(9, 3, true, false), [1, 2, 3, 1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(8, 3, true, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(orders(8, 3, true, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(orders(7, 3, false, false), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(orders(3, 1, true, true), [1, 1, 1]);
    }

    #[test]
    fn the_saved_state_lives_as_long_as_its_block() {
        let mut config = SchedulerConfig::new(SamplerKind::DpmSolverSinglestep);
        config.dpm_solver.solver_order = 3;
        let table = StepTable::dpm_solver_singlestep(&config, 7).unwrap();
        let shape: Vec<(bool, bool, bool)> =
            table.rows.iter().map(|row| (row.r != 0.0, row.keep.x != 0.0, row.keep.saved != 0.0)).collect();
        let (open, inner, close) = ((false, true, false), (true, false, true), (true, false, false));
        assert_eq!(shape, [open, inner, close, open, inner, close, (false, false, false)]);
        config.dpm_solver.solver_order = 1;
        let table = StepTable::dpm_solver_singlestep(&config, 7).unwrap();
        assert!(!table.history().any());
        assert_eq!(table.rows, {
            let mut multistep = config.with_sampler(SamplerKind::DpmSolverPp);
            multistep.timestep_spacing = Some(config.spacing());
            StepTable::dpm_solver_pp(&multistep, 7).unwrap().rows
        });
    }
}
