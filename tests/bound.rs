//! The bound on data, timestep by timestep: against its formulas, and the same on every backend.

mod common;

use std::f64::consts::LN_2;
use std::sync::Arc;

use common::models::{oblong, save, unconditional};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Precision, cpu::Cpu};
use warpdiff::data::{DataError, Dataset, Digits};
use warpdiff::diffusion::Schedule;
use warpdiff::evaluate::{EvaluateOptions, Evaluation, evaluate};
use warpdiff::model::{ModelFolder, bind_weights};
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::reference::Reference;
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::UNetConfig;

const TIMESTEPS: usize = 8;

fn open(config: &UNetConfig) -> (tempfile::TempDir, ModelFolder) {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), config, TIMESTEPS);
    let model = ModelFolder::open(folder.path()).unwrap();
    (folder, model)
}

fn run(
    model: &ModelFolder,
    data: &dyn Dataset,
    images: usize,
    strata: Option<usize>,
    backend: &dyn Backend,
) -> Evaluation {
    let options = EvaluateOptions { images, strata, batch: 3, seed: 11 };
    evaluate(model, data, &options, backend, &mut |_, _| {}).unwrap()
}

/// Random pictures of any shape, two classes.
#[derive(Debug)]
struct Noise([usize; 3]);

impl Dataset for Noise {
    fn name(&self) -> &str {
        "noise"
    }
    fn len(&self) -> usize {
        5
    }
    fn channels(&self) -> usize {
        self.0[0]
    }
    fn height(&self) -> usize {
        self.0[1]
    }
    fn width(&self) -> usize {
        self.0[2]
    }
    fn num_classes(&self) -> Option<usize> {
        Some(2)
    }
    fn class_names(&self) -> Vec<String> {
        vec!["a".into(), "b".into()]
    }
    fn levels(&self) -> u32 {
        256
    }
    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        let random = Sequence::new(99, Stream::Flip, index as u32, 0);
        out.iter_mut().enumerate().for_each(|(i, p)| *p = random.below(i, 256) as u8);
        Ok(Some(index as u32 % 2))
    }
}

#[test]
fn every_backend_finds_the_same_terms() {
    let ((_f, plain), (_g, learned)) = (open(&unconditional()), open(&oblong()));
    let digits = Digits::load().unwrap();
    let cases: [(&ModelFolder, &dyn Dataset); 2] = [(&plain, &digits), (&learned, &Noise([2, 12, 20]))];
    for (model, data) in cases {
        let golden = run(model, data, 4, None, &Reference::default());
        assert_eq!(golden.timesteps.len(), TIMESTEPS);
        let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32);
        for backend in [&Cpu::new(Some(2)).unwrap() as &dyn Backend, &sim] {
            let actual = run(model, data, 4, None, backend);
            for (a, g) in actual.timesteps.iter().zip(&golden.timesteps) {
                assert_eq!((a.t, a.images), (g.t, g.images));
                for (a, g) in [
                    (a.bits_per_dim, g.bits_per_dim),
                    (a.bits_per_dim_tanh, g.bits_per_dim_tanh),
                    (a.x0_mse, g.x0_mse),
                    (a.implied_eps_mse, g.implied_eps_mse),
                    (a.eps_mse, g.eps_mse),
                ] {
                    assert!(
                        (a - g).abs() <= 1e-4 * g.abs(),
                        "{} t {}: {a} and {g}",
                        backend.name(),
                        golden.timesteps[0].t
                    );
                }
            }
            for (a, g) in actual.images.iter().zip(&golden.images) {
                assert!((a.total() - g.total()).abs() <= 1e-4 * g.total(), "{}: {a:?} and {g:?}", backend.name());
            }
        }
    }
}

#[test]
fn the_terms_of_all_timesteps_add_up_to_the_bound() {
    let (_folder, model) = open(&oblong());
    let evaluation = run(&model, &Noise([2, 12, 20]), 5, None, &Cpu::new(Some(2)).unwrap());
    let mean = |f: fn(&warpdiff::evaluate::ImageBound) -> f64| evaluation.images.iter().map(f).sum::<f64>() / 5.0;
    let sum = |terms: &[warpdiff::evaluate::TimestepTerms]| terms.iter().map(|t| t.bits_per_dim).sum::<f64>();
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12 * b.abs(), "{a} and {b}");
    close(sum(&evaluation.timesteps[..1]), mean(|i| i.decoder));
    close(sum(&evaluation.timesteps[1..]), mean(|i| i.diffusion));
    close(evaluation.timesteps.iter().map(|t| t.x0_mse).sum::<f64>() / TIMESTEPS as f64, mean(|i| i.x0_mse));
    close(evaluation.timesteps.iter().map(|t| t.eps_mse).sum::<f64>() / TIMESTEPS as f64, mean(|i| i.eps_mse));
}

#[test]
fn drawn_timesteps_say_how_many_images_they_saw() {
    let (_folder, model) = open(&unconditional());
    let evaluation = run(&model, &Digits::load().unwrap(), 6, Some(2), &Cpu::new(Some(2)).unwrap());
    assert!(evaluation.timesteps.windows(2).all(|w| w[0].t < w[1].t));
    assert_eq!(evaluation.timesteps[0].images, 6);
    assert_eq!(evaluation.timesteps[1..].iter().map(|t| t.images).sum::<usize>(), 12);
}

/// 2006.11239, eq. 5 to 8, written out for one image, the clamped x_0 estimate and the posterior variance.
#[test]
fn terms_follow_the_formulas() {
    let (_folder, model) = open(&unconditional());
    let data = Digits::load().unwrap();
    let evaluation = run(&model, &data, 1, None, &Reference::default());
    let mut pixels = vec![0; 64];
    data.pixels(0, &mut pixels).unwrap();
    let x0: Vec<f64> = pixels.iter().map(|&p| f64::from(p) / (f64::from(data.levels() - 1) / 2.0) - 1.0).collect();
    let schedule = Schedule::new(&model.scheduler.betas).unwrap();

    let program = ForwardProgram::new(&model.config, Batch { n: 1, h: 8, w: 8 }, false).unwrap();
    let mut exe = Reference::default().compile(program.plan.clone()).unwrap();
    bind_weights(exe.as_mut(), &model.weights().unwrap()).unwrap();
    for t in [1, 4, 7] {
        let mut eps = vec![0.0f32; 64];
        Sequence::new(11, Stream::BoundNoise, 0, t as u32).fill_normal(&mut eps);
        let (now, before) = (schedule.alpha_bars[t], schedule.alpha_bars[t - 1]);
        let mix = |(x, e): (&f64, &f32)| now.sqrt() * x + (1.0 - now).sqrt() * f64::from(*e);
        let x_t: Vec<f64> = x0.iter().zip(&eps).map(mix).collect();
        exe.write_f32(program.x, &x_t.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
        exe.write_f32(program.t, &[t as f32]).unwrap();
        exe.run().unwrap();
        let model_eps = exe.read_f64(program.out).unwrap();
        let beta = 1.0 - now / before;
        let variance = beta * (1.0 - before) / (1.0 - now);
        let (mut kl, mut x0_mse, mut implied, mut own) = (0.0, 0.0, 0.0, 0.0);
        for i in 0..64 {
            let estimate = ((x_t[i] - (1.0 - now).sqrt() * model_eps[i]) / now.sqrt()).clamp(-1.0, 1.0);
            // Both means have the same x_t part.
            let difference = before.sqrt() * beta / (1.0 - now) * (x0[i] - estimate);
            kl += difference.powi(2) / (2.0 * variance) / 64.0;
            x0_mse += (x0[i] - estimate).powi(2) / 64.0;
            implied += ((x_t[i] - now.sqrt() * estimate) / (1.0 - now).sqrt() - f64::from(eps[i])).powi(2) / 64.0;
            own += (model_eps[i] - f64::from(eps[i])).powi(2) / 64.0;
        }
        let term = evaluation.timesteps[t];
        for (actual, expected) in [
            (term.bits_per_dim, kl / LN_2),
            (term.x0_mse, x0_mse),
            (term.implied_eps_mse, implied),
            (term.eps_mse, own),
        ] {
            assert!((actual - expected).abs() < 1e-5 * expected, "t {t}: {actual}, expected {expected}");
        }
    }
    let last = schedule.alpha_bars[TIMESTEPS - 1];
    let prior = x0.iter().map(|x| 0.5 * (last * x * x - last - (1.0 - last).ln())).sum::<f64>() / 64.0 / LN_2;
    assert!((evaluation.images[0].prior - prior).abs() < 1e-10 * prior);
}
