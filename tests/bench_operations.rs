//! `warpdiff bench norm`, `attention` and the like from end to end, on devices that need no GPU.
#![cfg(feature = "sim")]

mod common;

use std::fs;
use std::sync::Arc;

use common::process::{Place, Run, warpdiff};
use serde_json::Value;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Executable, Precision, gpu::Gpu};
use warpdiff::bench::operation::operations;
use warpdiff::bench::program::{Noise, Program};
use warpdiff::bench::samplers::VARIANTS;
use warpdiff::bench::{Family, Operation};
use warpdiff::compare::rule::Errors;
use warpdiff::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use warpdiff::graph::{AdamW, ParamSpec};
use warpdiff::program::{Batch, TrainingInputs, TrainingOptions, TrainingProgram, parameters};
use warpdiff::reference::Reference;
use warpdiff::unet::presets;

fn bench(family: &str, arguments: &[&str]) -> Run {
    warpdiff(&[&["bench", family, "--preset", "digits-small", "--seconds", "0.001"], arguments].concat())
}

fn rows(path: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!((&report["schema"], &report["finished"]), (&2.into(), &true.into()));
    report["results"].as_array().unwrap().clone()
}

/// The number behind a letter of a name, as in `n2h8w8c32g32`.
fn number(name: &str, letter: char) -> u64 {
    let after = name
        .split('.')
        .flat_map(|part| part.split(letter).skip(1))
        .find(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let digits: String = after.unwrap().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Operations, bytes and normals of a line, worked out from its name. `act` bytes are those of an activation.
fn expected(family: &str, name: &str, pass: &str, act: u64) -> [u64; 3] {
    let of = |letter| number(name, letter);
    let images = || of('n') * of('h') * of('w') * of('c');
    match (family, pass) {
        // x and y; gamma, beta; mean and deviation of each group.
        ("norm", "forward") => [0, 2 * images() * act + 4 * (2 * of('c') + 2 * of('n') * of('g')), 0],
        ("norm", "backward") => [0, 3 * images() * act + 4 * (4 * of('c') + 2 * of('n') * of('g')), 0],
        ("attention", pass) => {
            let (tensor, sums) = (of('n') * of('t') * of('c'), 4 * of('n') * of('h') * of('t'));
            let (products, tensors) = if pass == "forward" { (2, 4) } else { (5, 8) };
            [products * 2 * of('t') * tensor, tensors * tensor * act + sums, 0]
        }
        ("noise", "noising") => [0, images() * (4 + act) + 4 * (of('n') + 2 + of('n')), images()],
        ("noise", "loss") => [0, images() * (4 + 2 * act) + 4 * (of('n') + 2 + of('n') + 3 * of('n')), images()],
        ("sampler-step", "step") => {
            let sampler = name.split(".n").next().unwrap();
            let doubled = matches!(sampler, "ddim.guided" | "ddpm.learned");
            // The previous x_0; UniPC's saved state is read and written, too.
            let history = match sampler {
                "dpm++" => 4,
                "unipc" => 4 + 8,
                _ => 0,
            };
            let normals = if sampler.starts_with("ddpm") { images() } else { 0 };
            let model = if doubled { 2 * act } else { act };
            [0, images() * (4 + 4 + 4 + 1 + model + history) + 4 * (1 + of('n') + 2), normals]
        }
        ("optim", "norm") => [0, 4 * of('p') + 4, 0],
        ("optim", "adamw") => [0, of('p') * (36 + if act == 2 { 2 } else { 0 }), 0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_line_has_its_operations_bytes_and_floor() {
    let place = Place::new();
    let out = place.arg("report.json");
    let roofs = ["--roof-tflops", "0.001", "--roof-gbs", "100", "--roof-gnormals", "0.01", "--json", &out];
    for (device, precision) in [("cpu", "f32"), ("ref", "bf16"), ("sim", "f32"), ("sim", "bf16")] {
        let act = if precision == "bf16" { 2 } else { 4 };
        let mut limits: Vec<String> = Vec::new();
        for family in ["norm", "attention", "noise", "sampler-step", "optim"] {
            let on = ["--device", device, "--precision", precision, "--batch", "2,3"];
            bench(family, &[&on[..], &roofs].concat()).expect_success();
            for row in rows(&out) {
                let [name, pass] = ["name", "pass"].map(|key| row[key].as_str().unwrap());
                let work = ["flops", "bytes", "normals"].map(|key| row[key].as_u64().unwrap());
                assert_eq!(work, expected(family, name, pass, act), "{family} {name} {pass}");
                assert_eq!((&row["family"], &row["network"]), (&family.into(), &"digits-small".into()));
                let [us, floor] = [&row["us"]["median"], &row["floor"]["us"]].map(|v| v.as_f64().unwrap());
                let [flops, bytes, normals] = work.map(|w| w as f64);
                let bounds = [("flops", flops / 1e3), ("bytes", bytes / 1e5), ("normals", normals / 1e1)];
                let (limit, bound) = bounds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
                assert!((floor / bound - 1.0).abs() < 1e-9 && row["floor"]["limit"] == limit, "{row}");
                assert!((row["gbs"].as_f64().unwrap() / (bytes / us / 1e3) - 1.0).abs() < 1e-9, "{row}");
                assert!((row["roof_percent"].as_f64().unwrap() / (100.0 * floor / us) - 1.0).abs() < 1e-9, "{row}");
                limits.push(limit.into());
            }
        }
        for limit in ["flops", "bytes", "normals"] {
            assert!(limits.iter().any(|l| l == limit), "{limit}");
        }
    }
}

/// The digits network has 8 residual blocks with two norms, 4 attention layers with one, and one behind all of them.
#[test]
fn lines_are_counted_as_often_as_the_network_computes_them() {
    let place = Place::new();
    let out = place.arg("report.json");
    let lines = |family: &str| {
        bench(family, &["--batch", "1,2", "--json", &out]).expect_success();
        rows(&out)
    };
    let count = |rows: &[Value], batch: u64, pass: &str| -> u64 {
        let of = |r: &&Value| r["batch"] == batch && r["pass"] == pass;
        rows.iter().filter(of).map(|r| r["count"].as_u64().unwrap()).sum()
    };
    let norms = lines("norm");
    let attention = lines("attention");
    for batch in [1, 2] {
        for pass in ["forward", "backward"] {
            assert_eq!((count(&norms, batch, pass), count(&attention, batch, pass)), (21, 4), "{batch} {pass}");
        }
    }
    let names: Vec<&Value> = attention.iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["n1t16c64h8", "n1t16c64h8", "n2t16c64h8", "n2t16c64h8"]);
    // The optimiser does not depend on the batch: two lines, not four.
    let parameters: usize = parameters(&presets::digits_small()).unwrap().iter().map(ParamSpec::numel).sum();
    let optim: Vec<String> = lines("optim").iter().map(|r| format!("{} {}", r["name"], r["pass"])).collect();
    assert_eq!(optim, ["norm", "adamw"].map(|pass| format!("\"p{parameters}\" \"{pass}\"")));
    assert_eq!(lines("sampler-step").len(), 2 * VARIANTS.len());
    for family in ["elementwise", "embedding"] {
        assert!(lines(family).iter().all(|r| r["bytes"].as_u64().unwrap() > 0 && r["error"].is_null()));
    }
}

/// Every operation of a training step of the digits network, and every sampler's.
fn all_operations(n: usize) -> Vec<Operation> {
    let objective = TrainingObjective::new(
        Schedule::new(&BetaConfig::linear(1000)).unwrap(),
        PredictionType::Epsilon,
        VarianceType::FixedLarge,
        Objective::Simple,
        LossWeighting::None,
        256,
    );
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
    let options =
        TrainingOptions { objective: Arc::new(objective), optimizer: Some(optimizer), inputs: TrainingInputs::Drawn };
    let batch = Batch { n, h: 8, w: 8 };
    let training = TrainingProgram::new(&presets::digits_small(), batch, &options).unwrap();
    let of = |family| operations(training.plan.graph(), family).into_iter().map(|(operation, _)| operation);
    let samplers = VARIANTS.iter().map(|variant| variant.operation(batch, 3).unwrap());
    Family::ALL.into_iter().flat_map(of).chain(samplers).collect()
}

/// What is measured is the operation, on operands that a network could have: every result of every copy is finite, that
/// of the reference, and another one than that of the first copy. Statistics and sums that a forward pass would have left
/// for a gradient are near those of its other operands and not theirs, so gradients are only finite here.
#[test]
fn every_copy_computes_the_operation() {
    let sim = Gpu::new(Arc::new(Sim::new(Options { threads: 2, ..Options::default() })), Precision::F32);
    let noise = Noise::new(1);
    for operation in all_operations(3) {
        let program = Program::of(&operation, 2).unwrap();
        assert_eq!(program.copies(), if operation.is_optimizer() { 1 } else { 2 });
        let run = |backend: &dyn Backend| -> Box<dyn Executable> {
            let mut exe = backend.compile(program.plan.clone()).unwrap();
            program.fill(exe.as_mut(), &noise).unwrap();
            exe.run().unwrap();
            exe.finish().unwrap();
            exe
        };
        let (ours, exact) = (run(&sim), run(&Reference::default()));
        let what = format!("{:?} {} {}", operation.family, operation.name, operation.pass);
        let graph = program.plan.graph();
        for copy in 0..program.copies() {
            for &result in program.results(copy) {
                if graph.value(result).dtype == warpdiff::graph::DType::U8 {
                    continue;
                }
                let [a, b] = [&ours, &exact].map(|exe| exe.read_f64(result).unwrap());
                assert!(a.iter().all(|v| v.is_finite()), "{what}");
                let errors = Errors::between(&a, &b);
                assert!(errors.worst < 1e-4 || operation.pass == "backward", "{what}: {errors:?}");
            }
        }
        let rotated = program.copies() > 1 && operation.family != Family::Embedding;
        if rotated {
            let [first, second] = [0, 1].map(|copy| exact.read_f64(program.results(copy)[0]).unwrap());
            assert!(Errors::between(&first, &second).norm > 0.1, "{what}");
        }
    }
}
