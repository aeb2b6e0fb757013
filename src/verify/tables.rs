//! Checks that need no network: noise schedules, timesteps, the variational bound.

use super::case::{Case, Check};
use super::training::betas;
use super::{Measured, VerifyError, relative_error};
use crate::diffusion::respacing::space_timesteps;
use crate::diffusion::timesteps::{ddpm_timesteps, dpm_solver_timesteps};
use crate::diffusion::vlb::prior_bpd;
use crate::diffusion::{BetaConfig, PredictionType, Respaced, Schedule, TimestepSpacing, VarianceType, Vlb};

pub(super) fn schedule(case: &Case, check: Check) -> Result<Measured, VerifyError> {
    let tolerance = check.get("tol_rel_fp32")?;
    let schedule = Schedule::new(&betas(check, "config")?)?;
    let golden = |name: &str| Ok::<_, VerifyError>(case.tensor(&format!("{}.{name}", check.id()))?.1);
    let (x0, noise, t) = (golden("x0")?, golden("noise")?, golden("t")?);
    let image = x0.len() / t.len();
    let combine = |f: &dyn Fn(f64, f64, f64, f64) -> f64| -> Vec<f64> {
        (0..x0.len())
            .map(|i| {
                let a = schedule.alpha_bars[t[i / image] as usize];
                f(a.sqrt(), (1.0 - a).sqrt(), x0[i], noise[i])
            })
            .collect()
    };
    let mut worst = Measured::new(0.0, tolerance, "");
    for (name, actual) in [
        ("betas", schedule.betas.clone()),
        ("alphas_cumprod", schedule.alpha_bars.clone()),
        ("x_t", combine(&|signal, sigma, x, e| signal * x + sigma * e)),
        ("velocity", combine(&|signal, sigma, x, e| signal * e - sigma * x)),
    ] {
        worst = worst.worse(Measured::new(relative_error(&actual, &golden(name)?), tolerance, name));
    }
    for (spec, expected) in check.value("timesteps").as_object().into_iter().flatten() {
        let actual = timesteps(check, &schedule, spec)?;
        let expected: Vec<usize> =
            expected.as_array().into_iter().flatten().filter_map(|v| v.as_u64()).map(|v| v as usize).collect();
        if actual != expected {
            return Err(check.error(format!("{spec}: {actual:?} instead of {expected:?}")));
        }
    }
    Ok(worst)
}

/// The tables of a schedule that guided-diffusion respaced.
pub(super) fn respaced(check: Check) -> Result<Measured, VerifyError> {
    let diffusion = check.value("diffusion");
    let unknown = |key: &str| check.error(format!("diffusion.{key} is not understood"));
    let steps = diffusion["diffusion_steps"].as_u64().ok_or_else(|| unknown("diffusion_steps"))? as usize;
    let betas = match diffusion["noise_schedule"].as_str() {
        Some("linear") => BetaConfig::adm_linear(steps),
        Some("cosine") => BetaConfig::cosine(steps),
        _ => return Err(unknown("noise_schedule")),
    };
    let spec = diffusion["timestep_respacing"].as_str().ok_or_else(|| unknown("timestep_respacing"))?;
    let chain = Respaced::new(&Schedule::new(&betas)?, spec)?;
    let expected: Vec<usize> = check.get("timestep_map")?;
    if chain.timestep_map != expected {
        return Err(check.error(format!("timesteps {:?} instead of {expected:?}", chain.timestep_map)));
    }
    let tolerance = check.get("tol_rel_fp32")?;
    let s = &chain.schedule;
    let mut worst = Measured::new(0.0, tolerance, "");
    for name in check.value("outputs").as_object().into_iter().flatten().map(|(name, _)| name) {
        let table = match name.as_str() {
            "betas" => s.betas.clone(),
            "alphas_cumprod" => s.alpha_bars.clone(),
            "posterior_variance" => s.posterior_variance.clone(),
            "posterior_log_variance_clipped" => s.posterior_log_variance_clipped.clone(),
            "posterior_mean_coef1" => s.posterior_mean_coef1.clone(),
            "posterior_mean_coef2" => s.posterior_mean_coef2.clone(),
            "log_betas" => s.log_betas.clone(),
            "fixed_large_variance" => s.fixed_large_log_variance.iter().map(|v| v.exp()).collect(),
            other => return Err(check.error(format!("there is no table {other:?}"))),
        };
        let golden = check.output(name)?;
        // Element by element: the tables span many orders of magnitude.
        let share = table.iter().zip(&golden).map(|(a, g)| (a - g).abs() / g.abs().max(1e-30));
        let error = share.fold(0.0, |m: f64, s| if s.is_nan() { f64::INFINITY } else { m.max(s) });
        let error = if table.len() == golden.len() { error } else { f64::INFINITY };
        worst = worst.worse(Measured::new(error, tolerance, name.clone()));
    }
    Ok(worst)
}

/// Section strings that guided-diffusion refuses or takes; the error is the number of those that end otherwise here.
pub(super) fn respace_errors(check: Check) -> Result<Measured, VerifyError> {
    let mut differing = Vec::new();
    for (request, outcome) in check.value("cases").as_object().into_iter().flatten() {
        let unreadable = || check.error(format!("the request {request:?} cannot be read"));
        let (steps, spec) = request.split_once('/').ok_or_else(unreadable)?;
        let taken = space_timesteps(steps.parse().map_err(|_| unreadable())?, spec).is_ok();
        if taken != (outcome.as_str() == Some("ok")) {
            differing.push(request.as_str());
        }
    }
    Ok(Measured::new(differing.len() as f64, 0.5, differing.join(", ")))
}

/// The timesteps of a specification `Class/spacing/stepsN/offsetK`.
fn timesteps(check: Check, schedule: &Schedule, spec: &str) -> Result<Vec<usize>, VerifyError> {
    let unreadable = || check.error(format!("timesteps {spec:?} cannot be read"));
    let parts: Vec<&str> = spec.split('/').collect();
    let &[class, spacing, steps, offset] = parts.as_slice() else { return Err(unreadable()) };
    let number = |text: &str, prefix: &str| text.strip_prefix(prefix)?.parse::<usize>().ok();
    let steps = number(steps, "steps").ok_or_else(unreadable)?;
    let offset = number(offset, "offset").ok_or_else(unreadable)?;
    let spacing: TimestepSpacing = serde_json::from_value(spacing.into()).map_err(|_| unreadable())?;
    Ok(match class {
        "DDPMScheduler" | "DDIMScheduler" => ddpm_timesteps(spacing, schedule.num_timesteps(), steps, offset)?,
        "DPMSolverMultistepScheduler" => {
            // diffusers keeps the last alpha_bar positive where the schedule ends in pure noise.
            let mut alpha_bars = schedule.alpha_bars.clone();
            if let Some(last) = alpha_bars.last_mut().filter(|a| **a == 0.0) {
                *last = 2f64.powi(-24);
            }
            dpm_solver_timesteps(spacing, &alpha_bars, steps, offset, f64::NEG_INFINITY)?
        }
        _ => return Err(unreadable()),
    })
}

pub(super) fn bound(check: Check) -> Result<Measured, VerifyError> {
    let tolerance: f64 = check.get("tol_rel_fp32")?;
    let schedule = Schedule::new(&betas(check, "schedule")?)?;
    let field = |key: &str| check.value("schedule")[key].clone();
    let parse = |key: &str| check.error(format!("schedule.{key} is not understood"));
    let prediction: PredictionType =
        serde_json::from_value(field("prediction_type")).map_err(|_| parse("prediction_type"))?;
    let variance: VarianceType = serde_json::from_value(field("variance_type")).map_err(|_| parse("variance_type"))?;
    let clip = field("clip").as_bool().ok_or_else(|| parse("clip"))?;
    let vlb = Vlb::new(&schedule, prediction, variance, clip, 256)?;

    let (shape, x0) = check.input("x0")?;
    let (_, noise) = check.input("noise")?;
    let (_, output) = check.input("model_output")?;
    let (batch, image) = (shape[0], x0.len() / shape[0]);
    let channels = output.len() / noise.len();
    let mut terms: [Vec<f64>; 4] = Default::default();
    for t in 0..schedule.num_timesteps() {
        let a = schedule.alpha_bars[t];
        for b in 0..batch {
            let x0 = &x0[b * image..][..image];
            let eps = &noise[(t * batch + b) * image..][..image];
            let x_t: Vec<f64> = x0.iter().zip(eps).map(|(x, e)| a.sqrt() * x + (1.0 - a).sqrt() * e).collect();
            let out = &output[(t * batch + b) * image * channels..][..image * channels];
            let (model, v) = out.split_at(image);
            let term = vlb.term(t, x0, &x_t, model, v)?;
            let target = prediction.target(a);
            let error = |i: usize| (model[i] - target.apply(x0[i], eps[i])).powi(2);
            let prediction_mse = (0..image).map(error).sum::<f64>() / image as f64;
            let values = [term.vb_tanh, term.vb_exact, term.x0_mse, prediction_mse];
            terms.iter_mut().zip(values).for_each(|(all, v)| all.push(v));
        }
    }
    let prior: Vec<f64> = (0..batch).map(|b| prior_bpd(&schedule, &x0[b * image..][..image])).collect();
    let total = |terms: &[f64]| -> Vec<f64> {
        (0..batch).map(|b| terms.iter().skip(b).step_by(batch).sum::<f64>() + prior[b]).collect()
    };
    let (total_tanh, total_exact) = (total(&terms[0]), total(&terms[1]));
    let [tanh, exact, x0_mse, pred_mse] = &terms;
    let mut worst = Measured::new(0.0, tolerance, "");
    for (key, actual) in [
        ("vb_tanh", tanh),
        ("vb_exact", exact),
        ("x0_mse", x0_mse),
        ("pred_mse", pred_mse),
        ("prior_bpd", &prior),
        ("total_bpd_tanh", &total_tanh),
        ("total_bpd_exact", &total_exact),
    ] {
        let golden = check.output(key)?;
        // Each value within the tolerance of itself plus 1e-5, expressed as a share of the tolerance.
        let share = actual.iter().zip(&golden).map(|(a, g)| (a - g).abs() / (tolerance * g.abs() + 1e-5));
        let share = share.fold(0.0, |m: f64, s| if s.is_nan() { f64::INFINITY } else { m.max(s) });
        let complete = actual.len() == golden.len();
        worst = worst.worse(Measured::new(if complete { share * tolerance } else { f64::INFINITY }, tolerance, key));
    }
    Ok(worst)
}
