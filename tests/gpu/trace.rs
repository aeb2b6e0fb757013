//! Traced runs compute what runs compute, and their steps are those of the plan.

use warpdiff::backend::Store;
use warpdiff::graph::ParamId;
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::unet::{initial_weights, presets};

use super::graphs::{everywhere, normals};

#[test]
fn a_traced_run_has_the_bits_of_a_run_and_a_time_for_each_step() {
    let config = presets::digits_small();
    let program = ForwardProgram::new(&config, Batch { n: 1, h: 8, w: 8 }, false).unwrap();
    let x = normals(64, 3);
    everywhere(|backend| {
        let run = |traced: bool| {
            let mut exe = backend.compile(program.plan.clone()).unwrap();
            let params = exe.plan().graph().params().to_vec();
            for i in 0..params.len() {
                exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1)).unwrap();
            }
            exe.write_f32(program.x, &x).unwrap();
            exe.write_f32(program.t, &[500.0]).unwrap();
            if traced {
                let trace = exe.trace(2).unwrap();
                let nodes: Vec<usize> = trace.steps.iter().map(|step| step.nodes.start).collect();
                assert!(nodes.is_sorted() && nodes.last().unwrap() < &exe.plan().graph().nodes().len());
                assert_eq!(trace.runs.len(), 2);
                assert!(trace.runs.iter().all(|run| run.len() == nodes.len()));
                assert!(trace.medians_us().iter().sum::<f64>() > 0.0);
                let launched = trace.steps.iter().filter(|step| step.kernel.is_some()).count();
                assert!(launched == 0 || launched == nodes.len());
            } else {
                exe.run().unwrap();
            }
            exe.read_f64(program.out).unwrap().into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false), "{}", backend.name());
    });
}
