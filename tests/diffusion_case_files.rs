//! The diffusion mathematics against the golden cases on disk.
//!
//! `WARPDIFF_CASES` names a folder of the diffusers series (`p01_...`, `p20_schedules`) with more cases than
//! `tests/cases` has; `WARPDIFF_CASES_MORE` that with the broken models (`bad`). What needs the latter is not run without it.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use warpdiff::diffusion::vlb::prior_bpd;
use warpdiff::diffusion::{
    BetaConfig, Compat, DiffusionError, Objective, PredictionType, Respaced, SamplerKind, Schedule, SchedulerConfig,
    StepTable, VarianceType, Vlb, forward, respacing,
};

fn cases() -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    std::env::var_os("WARPDIFF_CASES").map_or_else(ours, PathBuf::from)
}

/// The folder that a variable names; says so where there is none.
fn optional(variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        println!("not run: {variable} is not set");
    }
    folder
}

/// Those of these cases that are in the folder.
fn existing(names: &[&str]) -> Vec<PathBuf> {
    let all = names.iter().map(|name| cases().join(name));
    let (there, missing): (Vec<_>, Vec<_>) = all.partition(|p| p.join("case.json").is_file());
    missing.iter().for_each(|p| println!("not run: {} is not there", p.display()));
    there
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn checks<'a>(case: &'a Value, kind: &str) -> Vec<&'a Value> {
    case["checks"].as_array().unwrap().iter().filter(|c| c["type"] == kind).collect()
}

struct Golden(Vec<u8>);

impl Golden {
    fn of(case: &Path) -> Self {
        Self(std::fs::read(case.join("golden.safetensors")).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = view.data();
        match view.dtype() {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn integers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn config(class: &str, options: &Value, extra: &[(&str, Value)]) -> SchedulerConfig {
    let mut object: Map<String, Value> = options.as_object().unwrap().clone();
    object.insert("_class_name".into(), class.into());
    object.extend(extra.iter().map(|(key, value)| (key.to_string(), value.clone())));
    SchedulerConfig::from_value(&Value::Object(object)).unwrap()
}

#[track_caller]
fn assert_close(ours: &[f64], golden: &[f64], relative: f64, absolute: f64, what: &str) {
    assert_eq!(ours.len(), golden.len(), "{what}");
    for (i, (x, y)) in ours.iter().zip(golden).enumerate() {
        assert!((x - y).abs() <= relative * y.abs() + absolute, "{what}[{i}]: {x} vs {y}");
    }
}

#[test]
fn schedules_and_all_timestep_lists() {
    let folder = cases().join("p20_schedules");
    let (case, golden) = (json(&folder.join("case.json")), Golden::of(&folder));
    let mut lists = 0;
    for check in checks(&case, "schedule") {
        let id = check["id"].as_str().unwrap();
        let schedule = Schedule::new(&config("DDPMScheduler", &check["config"], &[]).betas).unwrap();
        let golden = |name: &str| golden.values(&format!("{id}.{name}"));
        // The goldens are f64 values rounded to f32; 1e-12 covers a last alpha_bar of 0.
        assert_close(&schedule.betas, &golden("betas"), 1e-7, 1e-12, id);
        assert_close(&schedule.alpha_bars, &golden("alphas_cumprod"), 1e-7, 1e-12, id);

        let (x0, noise) = (golden("x0"), golden("noise"));
        let (x_t, velocity) = (golden("x_t"), golden("velocity"));
        let per_image = x0.len() / golden("t").len();
        for (n, t) in golden("t").into_iter().enumerate() {
            let q = forward::q_xt_given_x0(&schedule, t as usize).unwrap();
            let v = PredictionType::VPrediction.target(schedule.alpha_bars[t as usize]);
            for i in n * per_image..(n + 1) * per_image {
                assert!((q.sample(x0[i], noise[i]) - x_t[i]).abs() < 1e-6);
                assert!((v.apply(x0[i], noise[i]) - velocity[i]).abs() < 1e-6);
            }
        }

        for (name, expected) in check["timesteps"].as_object().unwrap() {
            let [class, spacing, steps, offset] = name.split('/').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let offset: u64 = offset.strip_prefix("offset").unwrap().parse().unwrap();
            let extra = [("timestep_spacing", spacing.into()), ("steps_offset", offset.into())];
            // The sampler that visits them is built too, except where eps prediction has no x_0.
            let mut config = config(class, &check["config"], &extra);
            config.prediction_type = PredictionType::VPrediction;
            let steps = steps.strip_prefix("steps").unwrap().parse().unwrap();
            let table = StepTable::build(&config, steps, 0.0).unwrap_or_else(|e| panic!("{id} {name}: {e}"));
            let visited: Vec<usize> = table.rows.iter().map(|row| row.timestep as usize).collect();
            assert_eq!(visited, integers(expected), "{id} {name}");
            lists += 1;
        }
    }
    println!("{lists} timestep lists");
    assert!(lists >= 400, "only {lists} lists found");
}

#[test]
fn timesteps_of_every_sampling_check() {
    let mut seen = 0;
    for entry in std::fs::read_dir(cases()).unwrap() {
        let case = json(&entry.unwrap().path().join("case.json"));
        for check in checks(&case, "sample") {
            let config = SchedulerConfig::from_value(&check["scheduler"]).unwrap();
            let config = SchedulerConfig { compat: Compat::Diffusers, ..config };
            let steps = check["num_inference_steps"].as_u64().unwrap() as usize;
            // The cases of the second series leave eta out where it is 0.
            let table = StepTable::build(&config, steps, check["eta"].as_f64().unwrap_or(0.0)).unwrap();
            let expected = check["timesteps"].as_array().unwrap();
            assert_eq!(table.rows.len(), expected.len(), "{} {}", case["name"], check["id"]);
            for (row, t) in table.rows.iter().zip(expected) {
                let t = t.as_f64().unwrap();
                let error = (f64::from(row.timestep) - t).abs();
                assert!(
                    error <= 1e-6 * t.max(1.0),
                    "{} {}: {} instead of {t}",
                    case["name"],
                    check["id"],
                    row.timestep
                );
            }
            assert!(table.packed().iter().all(|v| v.is_finite()), "{} {}", case["name"], check["id"]);
            // The published start, in the scale of the network: the first sigma divides by its own alpha.
            let published = check["init_noise_sigma"].as_f64().unwrap_or(1.0);
            let first = check["sigmas"][0].as_f64().filter(|_| !table.published_scale.is_empty());
            let scale = first.map_or(1.0, |sigma| sigma.hypot(1.0));
            assert!((table.init_noise_sigma * scale / published - 1.0).abs() < 1e-9, "{}", check["id"]);
            seen += 1;
        }
    }
    assert!(seen >= 19, "only {seen} sampling checks found");
}

#[test]
fn scheduler_files_of_every_case_are_read() {
    let mut seen = 0;
    for entry in std::fs::read_dir(cases()).unwrap() {
        let model = entry.unwrap().path().join("model");
        for file in [model.join("scheduler_config.json"), model.join("scheduler/scheduler_config.json")] {
            if let Ok(text) = std::fs::read_to_string(&file) {
                let config = SchedulerConfig::from_json(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                let written = SchedulerConfig::from_json(&config.to_json()).unwrap();
                // What is not in the file is written out, where the class has the key.
                let spacing = Some(config.spacing()).filter(|_| config.sampler != SamplerKind::ScoreSde);
                assert_eq!(written, SchedulerConfig { timestep_spacing: spacing, ..config });
                seen += 1;
            }
        }
    }
    assert!(seen >= 9, "only {seen} scheduler files found");
}

#[test]
fn variational_bound() {
    let mut seen = 0;
    for folder in existing(&["p01_plain_1x8x8", "p04_scaleshift_learned"]) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let (case, golden) = (json(&folder.join("case.json")), Golden::of(&folder));
        for check in checks(&case, "vlb") {
            let golden = |key: &str| golden.values(&format!("{}.{key}", check["id"].as_str().unwrap()));
            let settings = &check["schedule"];
            let mut options = settings.clone();
            options.as_object_mut().unwrap().retain(|key, _| key != "clip" && key != "blend");
            let config = config("DDPMScheduler", &options, &[]);
            let schedule = Schedule::new(&config.betas).unwrap();
            let clip = settings["clip"].as_bool().unwrap();
            let vlb = Vlb::new(&schedule, config.prediction_type, config.variance_type, clip, 256).unwrap();

            let (x0, noise, output) = (golden("x0"), golden("noise"), golden("model_output"));
            let prior = golden("prior_bpd");
            let images = prior.len();
            let pixels = x0.len() / images;
            let channels = output.len() / noise.len();
            let mut totals = vec![(0.0, 0.0); images];
            for t in 0..schedule.num_timesteps() {
                let q = forward::q_xt_given_x0(&schedule, t).unwrap();
                for n in 0..images {
                    let x0 = &x0[n * pixels..(n + 1) * pixels];
                    let noise = &noise[(t * images + n) * pixels..][..pixels];
                    let x_t: Vec<f64> = x0.iter().zip(noise).map(|(&x, &z)| q.sample(x, z)).collect();
                    let output = &output[(t * images + n) * pixels * channels..][..pixels * channels];
                    let (model, v) = output.split_at(pixels);
                    let term = vlb.term(t, x0, &x_t, model, v).unwrap();
                    let at = t * images + n;
                    let context = format!("{name} {} t {t} image {n}", check["id"]);
                    for (ours, key) in [
                        (term.vb_tanh, "vb_tanh"),
                        (term.vb_exact, "vb_exact"),
                        (term.x0_mse, "x0_mse"),
                        (term.eps_mse, "pred_mse"),
                    ] {
                        assert_close(&[ours], &golden(key)[at..=at], 1e-4, 1e-5, &format!("{context} {key}"));
                    }
                    totals[n].0 += term.vb_tanh;
                    totals[n].1 += term.vb_exact;
                    seen += 1;
                }
            }
            for n in 0..images {
                let ours = prior_bpd(&schedule, &x0[n * pixels..(n + 1) * pixels]);
                let golden_totals = [prior[n], golden("total_bpd_tanh")[n], golden("total_bpd_exact")[n]];
                assert_close(&[ours, totals[n].0 + ours, totals[n].1 + ours], &golden_totals, 1e-4, 1e-5, name);
            }
        }
    }
    assert!(seen >= 200, "only {seen} terms found");
}

#[test]
fn hybrid_loss() {
    let folder = cases().join("p04_scaleshift_learned");
    let (case, golden) = (json(&folder.join("case.json")), Golden::of(&folder));
    let check = checks(&case, "grad")[0];
    let schedule = Schedule::new(&config("DDPMScheduler", &check["schedule"], &[]).betas).unwrap();
    let vlb = Vlb::new(&schedule, PredictionType::Epsilon, VarianceType::LearnedRange, false, 256).unwrap();
    let objective = Objective::Hybrid { lambda: 1e-3 };
    let (x0, noise, timesteps) = (golden.values("grad.x0"), golden.values("grad.noise"), golden.values("grad.t"));
    let output = golden.values("grad.out");
    let pixels = x0.len() / timesteps.len();
    let mut loss = 0.0;
    for (n, &t) in timesteps.iter().enumerate() {
        let q = forward::q_xt_given_x0(&schedule, t as usize).unwrap();
        let step = vlb.at(t as usize).unwrap();
        let (model, v) = output[2 * n * pixels..2 * (n + 1) * pixels].split_at(pixels);
        for i in 0..pixels {
            let (x0, noise) = (x0[n * pixels + i], noise[n * pixels + i]);
            let vb = step.grad(x0, q.sample(x0, noise), model[i], v[i]).nats / std::f64::consts::LN_2;
            loss += objective.mse_weight() * (model[i] - noise).powi(2) + objective.vb_weight(40) * vb;
        }
    }
    assert_close(&[loss / x0.len() as f64], &golden.values("grad.loss"), 1e-6, 0.0, "loss");
}

#[test]
fn respaced_tables_of_guided_diffusion() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases_adm/a20_tables");
    let (case, golden) = (json(&folder.join("case.json")), Golden::of(&folder));
    let all = checks(&case, "schedule");
    for check in &all {
        let diffusion = &check["diffusion"];
        let steps = diffusion["diffusion_steps"].as_u64().unwrap() as usize;
        let betas = match diffusion["noise_schedule"].as_str().unwrap() {
            "linear" => BetaConfig::adm_linear(steps),
            _ => BetaConfig::cosine(steps),
        };
        let base = Schedule::new(&betas).unwrap();
        let chain = Respaced::new(&base, diffusion["timestep_respacing"].as_str().unwrap()).unwrap();
        assert_eq!(chain.timestep_map, integers(&check["timestep_map"]), "{}", check["id"]);
        let s = &chain.schedule;
        for (name, tensor) in check["outputs"].as_object().unwrap() {
            let table = match name.as_str() {
                "betas" => s.betas.clone(),
                "alphas_cumprod" => s.alpha_bars.clone(),
                "posterior_variance" => s.posterior_variance.clone(),
                "posterior_log_variance_clipped" => s.posterior_log_variance_clipped.clone(),
                "posterior_mean_coef1" => s.posterior_mean_coef1.clone(),
                "posterior_mean_coef2" => s.posterior_mean_coef2.clone(),
                "log_betas" => s.log_betas.clone(),
                "fixed_large_variance" => s.fixed_large_log_variance.iter().map(|v| v.exp()).collect(),
                other => panic!("{other}"),
            };
            let what = format!("{} {name}", check["id"]);
            assert_close(&table, &golden.values(tensor.as_str().unwrap()), 2e-7, 0.0, &what);
        }
        let table = StepTable::respaced_ancestral(
            &chain,
            PredictionType::Epsilon,
            VarianceType::LearnedRange,
            Default::default(),
            true,
        )
        .unwrap();
        let first = chain.timestep_map[0] as f64 * 1000.0 / steps as f64;
        assert_eq!(table.rows.last().unwrap().timestep, first as f32);
    }
    assert!(all.len() >= 10);
    for (request, outcome) in checks(&case, "respace_errors")[0]["cases"].as_object().unwrap() {
        let (steps, spec) = request.split_once('/').unwrap();
        let result = respacing::space_timesteps(steps.parse().unwrap(), spec);
        assert_eq!(matches!(result, Err(DiffusionError::Respacing { .. })), outcome == "ValueError", "{request}");
    }
}

#[test]
fn broken_scheduler_files_are_refused() {
    let Some(more) = optional("WARPDIFF_CASES_MORE").map(|f| f.join("bad")) else { return };
    for name in ["betas_above_one", "scheduler_T_zero", "unknown_prediction_type"] {
        let folder = more.join(name);
        let model = folder.join("model");
        let candidates = [model.join("scheduler_config.json"), model.join("scheduler/scheduler_config.json")];
        let text = candidates.iter().find_map(|file| std::fs::read_to_string(file).ok()).expect(name);
        let message = SchedulerConfig::from_json(&text).unwrap_err().to_string();
        let expected = json(&folder.join("bad.json"))["message_should_mention_one_of"].clone();
        let mentioned = expected.as_array().unwrap().iter().any(|word| message.contains(word.as_str().unwrap()));
        assert!(mentioned, "{name}: {message}");
    }
    assert_eq!(SamplerKind::Ddpm.to_string(), "DDPM");
}
