//! Forward noising and the loss, with the randomness drawn from the counters.

use super::Tensor;
use crate::diffusion::{Example, TrainingObjective};
use crate::graph::op::{LossNoise, Noising};
use crate::rng::{Sequence, Stream};

/// The noisy image of one example: `(x_t, eps)`.
fn noised(x0: &[f64], example: u32, key: [u32; 2], (signal, noise): (f64, f64)) -> (Vec<f64>, Vec<f64>) {
    let sequence = Sequence::with_key(key, Stream::TrainingNoise, example, 0);
    let eps: Vec<f64> = (0..x0.len()).map(|i| sequence.normal_f64(i)).collect();
    let x_t = x0.iter().zip(&eps).map(|(x, e)| signal * x + noise * e).collect();
    (x_t, eps)
}

fn key_of(key: Tensor) -> [u32; 2] {
    [key.data[0] as u32, key.data[1] as u32]
}

/// Inputs: x0, example_index, key. Draws t and eps; x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
pub(super) fn noising(n: &Noising, x: &[Tensor]) -> Vec<Vec<f64>> {
    let key = key_of(x[2]);
    let (mut x_t, mut t, mut eps) = (Vec::new(), Vec::new(), Vec::new());
    let sample = x[0].data.len() / x[1].data.len();
    for (image, example) in x[0].data.chunks(sample).zip(x[1].data) {
        let step = Sequence::with_key(key, Stream::Timestep, *example as u32, 0).below(0, n.rows.len() as u32);
        let (noisy, noise) = noised(image, *example as u32, key, n.rows[step as usize]);
        t.push(f64::from(step));
        x_t.extend(noisy);
        eps.extend(noise);
    }
    if n.eps { vec![x_t, t, eps] } else { vec![x_t, t] }
}

/// Inputs: out, x0, (x_t, eps or example_index, key), t.
pub(super) fn loss(o: &TrainingObjective, noise: LossNoise, x: &[Tensor]) -> Vec<Vec<f64>> {
    let batch = x[0].shape.batch();
    let mut dout = vec![0.0; x[0].data.len()];
    let mut losses = Vec::new();
    let per_image = |t: &Tensor| t.data.len() / batch;
    for (n, dout) in dout.chunks_mut(per_image(&x[0])).enumerate() {
        let image = |i: usize| &x[i].data[n * per_image(&x[i])..][..per_image(&x[i])];
        let t = o.timestep(x[4].data[n]);
        let (x_t, eps) = match noise {
            LossNoise::Given => (image(2).to_vec(), image(3).to_vec()),
            LossNoise::Redrawn => {
                // What is no timestep is refused below.
                let alpha_bar = t.map_or(f64::NAN, |t| o.schedule().alpha_bars[t]);
                let row = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
                noised(image(1), x[2].data[n] as u32, key_of(x[3]), row)
            }
        };
        let channels = x[1].shape.channels();
        let example = |t| Example { t, x0: image(1), x_t: &x_t, eps: &eps, out: image(0), channels };
        match t.map(|t| o.example(example(t), 1.0 / batch as f64, dout)) {
            Some(Ok(l)) => losses.extend([l.loss, l.simple, l.vb]),
            _ => losses.extend([f64::NAN; 3]),
        }
    }
    vec![losses, dout]
}
