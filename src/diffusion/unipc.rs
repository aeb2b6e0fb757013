//! Step tables of UniPC, order 1 to 3 (2302.04867): a predictor of order p and a corrector of order p + 1 that uses the
//! evaluation which the next predictor needs anyway.
//!
//! The state holds the predicted x, which is what the network must see. What the corrector needs of the past is linear in
//! what the step before knew, so one saved state holds it: corrected x = saved + c D.

use super::config::{FinalSigmas, SamplerKind, SchedulerConfig, UniPcType};
use super::dpm_solver::prediction;
use super::error::{DiffusionError, Result};
use super::levels::{NoiseLevel, solver_visits};
use super::step_table::{Keep, StepRow, StepTable};

/// The largest order.
const MAX_ORDER: usize = 3;

impl StepTable {
    /// UniPC over the noise levels of `config`, whatever sampler it names. The clamp on x_0 and learned variances are not
    /// read.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn unipc(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::UniPc);
        check(&config)?;
        let visits = solver_visits(&config, num_inference_steps)?;
        let (steps, levels) = (visits.times.len(), &visits.levels);
        let solver_order = usize::from(config.dpm_solver.solver_order);
        let order_of = |i: usize| {
            let left = steps - i;
            let most = if config.dpm_solver.lower_order_final { solver_order.min(left) } else { solver_order };
            // A clean end has no lambda to extrapolate to.
            let clean = left == 1 && config.dpm_solver.final_sigmas_type == FinalSigmas::Zero;
            if clean { 1 } else { most.min(i + 1) }
        };
        let corrected = |i: usize| i > 0 && i < steps && !config.unipc.disable_corrector.contains(&(i - 1));
        // Over the step before, and over this one.
        let step = |i: usize, corrector: bool| {
            let before: Vec<&NoiseLevel> = (1..order_of(i)).map(|k| &levels[i - k]).collect();
            Update::new(&config, &before, &levels[i], &levels[i + 1], corrector)
        };
        let rows = visits.times.iter().enumerate().map(|(i, &t)| {
            // x as it leaves the corrector: x, or saved + c D.
            let (from_x, from_d, from_saved) = match corrected(i) {
                true => (0.0, step(i - 1, true).next, 1.0),
                false => (1.0, 0.0, 0.0),
            };
            let p = step(i, false);
            let keep = if corrected(i + 1) {
                let c = step(i, true);
                Keep {
                    x: c.a * from_x,
                    x0: c.a * from_d + c.d[0],
                    x0_prev: c.d[1],
                    x0_prev2: c.d[2],
                    saved: c.a * from_saved,
                }
            } else {
                Keep::default()
            };
            let d = prediction(!config.unipc.predict_x0, config.prediction_type, &levels[i]);
            StepRow {
                timestep: t as f32,
                c_x0x: d.first,
                c_x0m: d.second,
                a: p.a * from_x,
                b: p.a * from_d + p.d[0],
                p: p.d[1],
                q: p.d[2],
                r: p.a * from_saved,
                keep,
                ..StepRow::default()
            }
        });
        let rows: Vec<StepRow> = rows.collect();
        Ok(Self { rows, clip: config.clip(), init_noise_sigma: 1.0, ..Self::default() })
    }
}

fn check(config: &SchedulerConfig) -> Result<()> {
    let refuse = |text: &str| Err(DiffusionError::Options(text.to_owned()));
    if !(1..=MAX_ORDER).contains(&usize::from(config.dpm_solver.solver_order)) {
        return refuse("solver_order must be 1, 2 or 3");
    }
    if !config.unipc.predict_x0 && config.dpm_solver.final_sigmas_type == FinalSigmas::Zero {
        return refuse(
            "predict_x0 = false extrapolates eps and cannot end at sigma = 0: set final_sigmas_type to sigma_min, or \
             predict_x0 to true",
        );
    }
    if !config.unipc.predict_x0 && config.thresholding {
        return refuse("thresholding limits x_0, and with predict_x0 = false there is none: set it to true");
    }
    Ok(())
}

/// x at the end of a step: a x + d . (D, D_prev, D_prev2) + next D_next, the last of the corrector only.
struct Update {
    a: f64,
    d: [f64; MAX_ORDER],
    next: f64,
}

impl Update {
    /// From level `now` to `end`; `before` are the levels of the earlier evaluations, latest first.
    fn new(
        config: &SchedulerConfig,
        before: &[&NoiseLevel],
        now: &NoiseLevel,
        end: &NoiseLevel,
        corrector: bool,
    ) -> Self {
        let h = end.lambda - now.lambda;
        let (a, scale, hh) = if config.unipc.predict_x0 {
            (end.sigma / now.sigma, end.alpha, -h)
        } else {
            (end.alpha / now.alpha, end.sigma, h)
        };
        let growth = hh.exp_m1();
        let mut update = Self { a, d: [-scale * growth, 0.0, 0.0], next: 0.0 };
        let mut nodes: Vec<f64> = before.iter().map(|level| (level.lambda - now.lambda) / h).collect();
        // Equal levels: x stays, or the step is of first order.
        if h <= 0.0 || nodes.iter().any(|r| *r >= 0.0 || r.is_nan()) {
            return update;
        }
        let step = match config.unipc.solver_type {
            UniPcType::Bh1 => hh,
            UniPcType::Bh2 => growth,
        };
        if corrector {
            nodes.push(1.0);
        }
        let rho = match (nodes.len(), corrector) {
            (0, _) => return update,
            // The paper's own choice for the lowest orders, independent of B(h).
            (1, _) => vec![0.5],
            _ => solve(&nodes, hh, growth, step),
        };
        for (k, (rho, node)) in rho.iter().zip(&nodes).enumerate() {
            let weight = -scale * step * rho / node;
            update.d[0] -= weight;
            match update.d.get_mut(k + 1) {
                Some(d) if k < before.len() => *d += weight,
                _ => update.next += weight,
            }
        }
        update
    }
}

/// Solves sum_k rho_k node_k^(i-1) = i! phi_(i+1)(hh) hh / B(h) for i = 1, 2, .. (2302.04867, eq. 9).
fn solve(nodes: &[f64], hh: f64, growth: f64, step: f64) -> Vec<f64> {
    let n = nodes.len();
    let (mut phi, mut factorial) = (growth / hh - 1.0, 1.0);
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    for i in 0..n {
        let right = phi * factorial / step;
        rows.push(nodes.iter().map(|node| node.powi(i as i32)).chain([right]).collect());
        factorial *= (i + 2) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    // Gauss without pivoting: the rows are those of a Vandermonde matrix with distinct nodes.
    for pivot in 0..n {
        let (done, below) = rows.split_at_mut(pivot + 1);
        let row = &done[pivot];
        for other in below {
            let factor = other[pivot] / row[pivot];
            for (v, p) in other.iter_mut().zip(row).skip(pivot) {
                *v -= factor * p;
            }
        }
    }
    let mut rho = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| rows[i][k] * rho[k]).sum();
        rho[i] = (rows[i][n] - known) / rows[i][i];
    }
    rho
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{SigmaOptions, SigmaSpacing};

    fn config(order: u8, solver_type: UniPcType, predict_x0: bool) -> SchedulerConfig {
        let mut config = SchedulerConfig::new(SamplerKind::UniPc);
        config.dpm_solver.solver_order = order;
        config.unipc.solver_type = solver_type;
        config.unipc.predict_x0 = predict_x0;
        if !predict_x0 {
            config.dpm_solver.final_sigmas_type = FinalSigmas::SigmaMin;
        }
        config
    }

    /// alpha' times the integral of e^(lambda - lambda') D(lambda), or sigma' times that of -e^(lambda' - lambda) D.
    fn exact(predict_x0: bool, from: &NoiseLevel, to: &NoiseLevel, d: impl Fn(f64) -> f64) -> f64 {
        let n = 4000;
        let f = |i: usize| {
            let lambda = from.lambda + (to.lambda - from.lambda) * i as f64 / n as f64;
            let kernel = if predict_x0 { (lambda - to.lambda).exp() } else { -(to.lambda - lambda).exp() };
            kernel * d(lambda)
        };
        let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        let scale = if predict_x0 { to.alpha } else { to.sigma };
        scale * (f(0) + inner + f(n)) * (to.lambda - from.lambda) / n as f64 / 3.0
    }

    #[test]
    fn polynomials_up_to_the_order_are_integrated_exactly() {
        let levels = [0.12, 0.2, 0.35, 0.6].map(NoiseLevel::new);
        for solver_type in [UniPcType::Bh1, UniPcType::Bh2] {
            for predict_x0 in [true, false] {
                // Order 3 of the predictor needs two earlier nodes; its corrector adds the node at the end.
                for (earlier, corrector, degree) in [(0, false, 0), (2, false, 2), (1, true, 2), (2, true, 3)] {
                    let config = config(3, solver_type, predict_x0);
                    let before: Vec<&NoiseLevel> = levels[..2].iter().rev().take(earlier).collect();
                    let (now, end) = (&levels[2], &levels[3]);
                    let update = Update::new(&config, &before, now, end, corrector);
                    for power in 0..=degree {
                        let d = |lambda: f64| (lambda - 0.3).powi(power);
                        let solved = update.d[0] * d(now.lambda)
                            + before.iter().zip(&update.d[1..]).map(|(l, w)| w * d(l.lambda)).sum::<f64>()
                            + update.next * d(end.lambda);
                        let exact = exact(predict_x0, now, end, d);
                        assert!(
                            (solved - exact).abs() < 1e-11,
                            "{solver_type:?}, {predict_x0}, {earlier} {corrector} power {power}: {solved} vs {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn states_are_used_only_where_the_order_needs_them() {
        let history = |order| StepTable::unipc(&config(order, UniPcType::Bh2, true), 10).unwrap().history();
        assert_eq!((history(1).x0_prev2, history(2).x0_prev2, history(3).x0_prev2), (false, false, true));
        assert!(history(1).saved);
        let mut off = config(3, UniPcType::Bh2, true);
        off.unipc.disable_corrector = (0..10).collect();
        let table = StepTable::unipc(&off, 10).unwrap();
        assert!(!table.history().saved && table.history().x0_prev2);
    }

    #[test]
    fn a_step_of_no_length_changes_nothing() {
        let mut config = config(2, UniPcType::Bh2, true);
        config.sigmas = SigmaOptions { spacing: SigmaSpacing::Karras, ..SigmaOptions::default() };
        config.dpm_solver.final_sigmas_type = FinalSigmas::SigmaMin;
        config.dpm_solver.lower_order_final = false;
        let table = StepTable::unipc(&config, 8).unwrap();
        assert!(table.packed().iter().all(|v| v.is_finite()));
        let last = table.rows[7];
        assert!((last.r - 1.0).abs() < 1e-12);
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        let mut eps = config(2, UniPcType::Bh2, false);
        assert!(StepTable::unipc(&eps, 5).is_ok());
        eps.thresholding = true;
        assert!(StepTable::unipc(&eps, 5).unwrap_err().to_string().contains("thresholding"));
        eps.thresholding = false;
        eps.dpm_solver.final_sigmas_type = FinalSigmas::Zero;
        assert!(StepTable::unipc(&eps, 5).unwrap_err().to_string().contains("sigma_min"));
        assert!(StepTable::unipc(&config(4, UniPcType::Bh2, true), 5).is_err());
    }
}
