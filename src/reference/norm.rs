//! Group normalisation (Wu & He 2018) and its gradient, by their definitions.

use super::Tensor;
use crate::graph::GroupNorm;

/// Mean and 1/std of each (sample, group).
fn statistics(n: &GroupNorm, x: Tensor) -> Vec<f64> {
    let [batch, h, w, c] = x.dims4();
    let per_group = c / n.groups;
    let mut out = Vec::with_capacity(batch * n.groups * 2);
    for sample in 0..batch {
        for group in 0..n.groups {
            let members: Vec<f64> = (0..h * w)
                .flat_map(|p| (0..per_group).map(move |k| (p, group * per_group + k)))
                .map(|(p, k)| x.at(sample, p / w, p % w, k))
                .collect();
            let mean = members.iter().sum::<f64>() / members.len() as f64;
            let variance = members.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / members.len() as f64;
            out.extend([mean, 1.0 / (variance + n.eps).sqrt()]);
        }
    }
    out
}

pub(super) fn group_norm(n: &GroupNorm, x: &[Tensor]) -> Vec<Vec<f64>> {
    let stats = statistics(n, x[0]);
    let y = (0..x[0].data.len())
        .map(|i| {
            let e = Element::new(n, x[0], &x[1..], &stats, i);
            let z = e.gain * e.normalised + e.offset;
            if n.silu { z * sigmoid(z) } else { z }
        })
        .collect();
    vec![y, stats]
}

/// One element: its normalised value and the affine map that follows.
struct Element {
    sample: usize,
    group: usize,
    channel: usize,
    normalised: f64,
    inv_std: f64,
    modulation: f64,
    gain: f64,
    offset: f64,
}

impl Element {
    /// `affine` holds gamma, beta and, where modulated, (scale, shift).
    fn new(n: &GroupNorm, x: Tensor, affine: &[Tensor], stats: &[f64], index: usize) -> Self {
        let c = x.shape.channels();
        let channel = index % c;
        let sample = index / (c * x.shape.pixels());
        let group = channel / (c / n.groups);
        let (mean, inv_std) = (stats[(sample * n.groups + group) * 2], stats[(sample * n.groups + group) * 2 + 1]);
        let (scale, shift) = if n.modulated {
            let row = &affine[2].data[sample * 2 * c..];
            (row[channel], row[c + channel])
        } else {
            (0.0, 0.0)
        };
        let (gamma, beta) = (affine[0].data[channel], affine[1].data[channel]);
        Self {
            sample,
            group,
            channel,
            normalised: (x.data[index] - mean) * inv_std,
            inv_std,
            modulation: 1.0 + scale,
            gain: gamma * (1.0 + scale),
            offset: beta * (1.0 + scale) + shift,
        }
    }
}

pub(super) fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// Derivative of `z * sigmoid(z)`.
pub(super) fn silu_slope(z: f64) -> f64 {
    let s = sigmoid(z);
    s * (1.0 + z * (1.0 - s))
}

/// Inputs: dy, x, gamma, beta, (scale_shift), statistics.
pub(super) fn group_norm_grad(n: &GroupNorm, t: &[Tensor]) -> Vec<Vec<f64>> {
    let (dy, x) = (t[0], t[1]);
    let affine = &t[2..t.len() - 1];
    // Recomputed in f64 rather than taken from the operand, which a backend may have rounded.
    let stats = statistics(n, x);
    let [batch, h, w, c] = x.dims4();
    let members = (h * w * (c / n.groups)) as f64;
    let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
    let mut dmodulation = vec![0.0; batch * 2 * c];
    let mut sums = vec![[0.0; 2]; batch * n.groups];
    let mut dnormalised = vec![0.0; x.data.len()];
    for (i, dn) in dnormalised.iter_mut().enumerate() {
        let e = Element::new(n, x, affine, &stats, i);
        let z = e.gain * e.normalised + e.offset;
        let dz = if n.silu { dy.data[i] * silu_slope(z) } else { dy.data[i] };
        dgamma[e.channel] += dz * e.modulation * e.normalised;
        dbeta[e.channel] += dz * e.modulation;
        if n.modulated {
            let (gamma, beta) = (affine[0].data[e.channel], affine[1].data[e.channel]);
            dmodulation[e.sample * 2 * c + e.channel] += dz * (gamma * e.normalised + beta);
            dmodulation[e.sample * 2 * c + c + e.channel] += dz;
        }
        *dn = dz * e.gain;
        let sum = &mut sums[e.sample * n.groups + e.group];
        sum[0] += *dn;
        sum[1] += *dn * e.normalised;
    }
    let dx = dnormalised
        .iter()
        .enumerate()
        .map(|(i, d)| {
            let e = Element::new(n, x, affine, &stats, i);
            let [s0, s1] = sums[e.sample * n.groups + e.group];
            e.inv_std * (d - s0 / members - e.normalised * s1 / members)
        })
        .collect();
    let mut out = vec![dx, dgamma, dbeta];
    if n.modulated {
        out.push(dmodulation);
    }
    out
}
