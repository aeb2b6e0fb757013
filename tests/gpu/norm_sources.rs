//! Group normalisation of two tensors as one, and from the moments that the producers of its input left: the kernels
//! alone, against the definition in f64.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use warpdiff::backend::Precision;
use warpdiff::backend::gpu::driver::{DevicePtr, Driver};
use warpdiff::backend::gpu::launch::{Args, Config, Launch};

use crate::common::gpu::devices;

const BLOCK: usize = 256;
const EPS: f64 = 1e-5;

/// `struct NormSource` of `kernels/norm/source.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormSource {
    x: DevicePtr,
    moments: DevicePtr,
    channels: u32,
    parts_x: u32,
    parts: u32,
    patch_w: u32,
    patch_h: u32,
    padding: u32,
}

/// `struct NormArgs` of `kernels/norm/group_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormArgs {
    sources: [NormSource; 2],
    gamma: DevicePtr,
    beta: DevicePtr,
    scale_shift: DevicePtr,
    y: DevicePtr,
    statistics: DevicePtr,
    partials: DevicePtr,
    low: DevicePtr,
    inverse_count: f64,
    pixels: u32,
    channels: u32,
    groups: u32,
    slice: u32,
    slices: u32,
    chunk_rows: u32,
    chunks: u32,
    run: u32,
    silu: u32,
    eps: f32,
    images: u32,
    width: u32,
    inverse_scale: f32,
    padding: u32,
}

/// Where the statistics come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Fused,
    Split,
    Given,
    Combined,
}

#[derive(Clone, Copy, Debug)]
struct Problem {
    images: usize,
    /// Width and height.
    size: (usize, usize),
    /// Of the two sources; the second may have none.
    channels: [usize; 2],
    groups: usize,
    /// Width and height of the parts of each source.
    patches: [(usize, usize); 2],
    mean: f32,
    /// Values lie within half of this around the mean.
    spread: f32,
}

/// Device memory that is freed at the end.
struct Memory<'a>(&'a dyn Driver, DevicePtr, usize);

impl<'a> Memory<'a> {
    /// Filled with NaN in either precision.
    fn poisoned(driver: &'a dyn Driver, bytes: usize) -> Self {
        let memory = Self(driver, driver.allocate(bytes).unwrap(), bytes);
        // SAFETY: the range is the allocation.
        unsafe { driver.fill(memory.1, 0xFF, bytes).unwrap() };
        memory
    }

    fn of<T: Pod>(driver: &'a dyn Driver, data: &[T]) -> Self {
        let memory = Self::poisoned(driver, size_of_val(data));
        // SAFETY: the range is the allocation.
        unsafe { driver.upload(memory.1, bytemuck::cast_slice(data)).unwrap() };
        memory
    }

    /// Activations.
    fn act(driver: &'a dyn Driver, precision: Precision, data: &[f32]) -> Self {
        match precision {
            Precision::Bf16 => Self::of(driver, &data.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()),
            _ => Self::of(driver, data),
        }
    }

    fn read<T: Pod>(&self) -> Vec<T> {
        let mut data = vec![T::zeroed(); self.2 / size_of::<T>()];
        // SAFETY: the range is the allocation.
        unsafe { self.0.download(self.1, bytemuck::cast_slice_mut(&mut data)).unwrap() };
        data
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: the allocation of `poisoned`.
        unsafe { self.0.free(self.1, self.2) };
    }
}

/// Different numbers at every position, between -1/2 and 1/2, that a bf16 holds where `precision` is that.
fn random(n: usize, salt: usize, precision: Precision, map: impl Fn(f32) -> f32) -> Vec<f32> {
    let bits = |i: usize| ((i + salt * 1_000_003) as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let round = |v: f32| if precision == Precision::Bf16 { bf16::from_f32(v).to_f32() } else { v };
    (0..n).map(|i| round(map(bits(i) as f32 / 16_777_216.0 - 0.5))).collect()
}

impl Problem {
    fn pixels(&self) -> usize {
        self.size.0 * self.size.1
    }

    fn width(&self) -> usize {
        (self.channels[0] + self.channels[1]) / self.groups
    }

    /// Parts side by side, and all parts.
    fn parts(&self, source: usize) -> (usize, usize) {
        let x = self.size.0.div_ceil(self.patches[source].0);
        (x, x * self.size.1.div_ceil(self.patches[source].1))
    }

    /// What a producer leaves: mean and M2 of what lies in each part, in f32.
    fn moments(&self, source: usize, x: &[f32]) -> Vec<f32> {
        let (c, ((parts_x, parts), (w, h))) = (self.channels[source], (self.parts(source), self.patches[source]));
        let mut moments = Vec::new();
        for (image, part, channel) in
            (0..self.images).flat_map(|n| (0..parts).flat_map(move |p| (0..c).map(move |k| (n, p, k))))
        {
            let (left, top) = (part % parts_x * w, part / parts_x * h);
            let values: Vec<f64> = (top..(top + h).min(self.size.1))
                .flat_map(|row| (left..(left + w).min(self.size.0)).map(move |column| row * self.size.0 + column))
                .map(|pixel| f64::from(x[(image * self.pixels() + pixel) * c + channel]))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let m2 = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            moments.extend([mean as f32, m2 as f32]);
        }
        moments
    }

    /// Runs one way on one device, and compares y and the statistics with the definition. Returns the bytes of both.
    fn check(&self, driver: &dyn Driver, precision: Precision, way: Way, cut: (usize, usize)) -> (Vec<u8>, Vec<f32>) {
        let element = if precision == Precision::Bf16 { 2 } else { 4 };
        let (n, pixels, width, groups) = (self.images, self.pixels(), self.width(), self.groups);
        let c = self.channels[0] + self.channels[1];
        let sources =
            [0, 1].map(|s| random(n * pixels * self.channels[s], s, precision, |u| self.mean + self.spread * u));
        let affine = [2, 3].map(|salt| random(c, salt, Precision::F32, |u| 1.0 + u));
        let modulation = random(n * 2 * c, 4, precision, |u| u);

        // The cut: one that lower/norm.rs may choose, or a finer one.
        let widest = 16 / element;
        let vector = if self.channels.iter().all(|k| k.is_multiple_of(widest)) { widest } else { 1 };
        let gcd = |mut a: usize, mut b: usize| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let run = gcd(vector, width);
        let slice = (width * vector / run * cut.0).min(c);
        let chunk_rows = if way == Way::Fused { pixels } else { cut.1.min(pixels) };
        let (slices, chunks) = (c.div_ceil(slice), pixels.div_ceil(chunk_rows));
        let columns = slice / vector;
        let block = (columns * chunk_rows).next_multiple_of(32).min(BLOCK);
        let runs_bytes = (columns.max(block) * vector / run * 12).next_multiple_of(16);
        let statistics_bytes = slice / width * 16;
        let slab = (chunk_rows * slice * element).next_multiple_of(16);

        let x =
            [0, 1].map(|s| Memory::act(driver, precision, if sources[s].is_empty() { &[0.0] } else { &sources[s] }));
        let moments = [0, 1].map(|s| {
            let data = self.moments(s, &sources[s]);
            Memory::of(driver, if data.is_empty() { &[0.0] } else { &data[..] })
        });
        let described = [0, 1].map(|s| {
            let ((parts_x, parts), (w, h)) = (self.parts(s), self.patches[s]);
            let given = matches!(way, Way::Given | Way::Combined);
            let moments = if given { moments[s].1 } else { DevicePtr::NULL };
            let [channels, parts_x, parts, patch_w, patch_h] =
                [self.channels[s], parts_x, parts, w, h].map(|v| v as u32);
            NormSource { x: x[s].1, moments, channels, parts_x, parts, patch_w, patch_h, padding: 0 }
        });
        let [gamma, beta] = [0, 1].map(|i| Memory::of(driver, &affine[i]));
        let scale_shift = Memory::act(driver, precision, &modulation);
        let y = Memory::poisoned(driver, n * pixels * c * element);
        let statistics = Memory::poisoned(driver, n * groups * 8);
        let partials = Memory::poisoned(driver, n * chunks * groups * 16);
        let low = Memory::poisoned(driver, n * groups * 4);
        let args = NormArgs {
            sources: described,
            gamma: gamma.1,
            beta: beta.1,
            scale_shift: scale_shift.1,
            y: y.1,
            statistics: statistics.1,
            partials: partials.1,
            low: low.1,
            inverse_count: 1.0 / (pixels * width) as f64,
            pixels: pixels as u32,
            channels: c as u32,
            groups: groups as u32,
            slice: slice as u32,
            slices: slices as u32,
            chunk_rows: chunk_rows as u32,
            chunks: chunks as u32,
            run: run as u32,
            silu: 1,
            eps: EPS as f32,
            images: n as u32,
            width: self.size.0 as u32,
            inverse_scale: 1.0,
            padding: 0,
        };
        let launch = |kernel: &str, shared: usize| {
            let everyone = kernel == "norm_finish_f32" || kernel == "norm_combine_f32";
            let suffix = format!("{}{}", if vector > 1 { "" } else { "scalar_" }, precision.name());
            let name = if everyone { kernel.to_string() } else { format!("{kernel}_{suffix}") };
            let loaded = driver.load(&name).unwrap();
            assert_eq!(loaded.args_bytes, size_of::<NormArgs>(), "{name}");
            let (grid, block) = if everyone {
                ([(n * groups).div_ceil(BLOCK / 32) as u32, 1, 1], BLOCK)
            } else {
                ([(n * slices) as u32, chunks as u32, 1], block)
            };
            let config = Config { grid, block: block as u32, cluster: 1, shared: shared as u32 };
            let launch = Launch { name, kernel: loaded.id, config, args: Args::new(&args) };
            // SAFETY: every buffer has the size that the kernel's head states, and lives until the results are read.
            unsafe { driver.launch(&launch).unwrap() };
        };
        match way {
            Way::Fused => launch("norm_fused", statistics_bytes + runs_bytes + slab),
            Way::Given => launch("norm_given", statistics_bytes),
            Way::Split => {
                launch("norm_moments", runs_bytes);
                launch("norm_finish_f32", 0);
                launch("norm_apply", 0);
            }
            Way::Combined => {
                launch("norm_combine_f32", 0);
                launch("norm_apply", 0);
            }
        }
        let (found, bytes) = (statistics.read::<f32>(), y.read::<u8>());
        let out: Vec<f64> = match precision {
            Precision::Bf16 => y.read::<bf16>().iter().map(|v| f64::from(v.to_f32())).collect(),
            _ => y.read::<f32>().iter().map(|&v| f64::from(v)).collect(),
        };

        let value = |image: usize, pixel: usize, channel: usize| {
            let second = usize::from(channel >= self.channels[0]);
            let own = channel - second * self.channels[0];
            f64::from(sources[second][(image * pixels + pixel) * self.channels[second] + own])
        };
        let place = format!("{self:?} {precision:?} {way:?} {cut:?}");
        // Of a mean in f32, be it a part's or the group's.
        let rounding = f64::from(self.mean.abs() + self.spread) * 2f64.powi(-24);
        for (image, group) in (0..n).flat_map(|image| (0..groups).map(move |group| (image, group))) {
            let channels = group * width..(group + 1) * width;
            let all = || (0..pixels).flat_map(|p| channels.clone().map(move |k| value(image, p, k)));
            let count = (pixels * width) as f64;
            let mean = all().sum::<f64>() / count;
            let inv_std = 1.0 / (all().map(|v| (v - mean).powi(2)).sum::<f64>() / count + EPS).sqrt();
            let at = 2 * (image * groups + group);
            let [got_mean, got_inv_std] = [found[at], found[at + 1]].map(f64::from);
            assert!((got_mean - mean).abs() <= 2.5 * rounding, "{place}: mean {got_mean}, not {mean}");
            assert!((got_inv_std / inv_std - 1.0).abs() < 1e-5, "{place}: 1/std {got_inv_std}, not {inv_std}");
            for (pixel, k) in (0..pixels).flat_map(|p| channels.clone().map(move |k| (p, k))) {
                let scale = 1.0 + f64::from(modulation[image * 2 * c + k]);
                let shift = f64::from(modulation[image * 2 * c + c + k]);
                let gain = f64::from(affine[0][k]) * scale;
                let z = (value(image, pixel, k) - mean) * inv_std * gain + f64::from(affine[1][k]) * scale + shift;
                let expected = z / (1.0 + (-z).exp());
                let got = out[(image * pixels + pixel) * c + k];
                // SiLU's slope is at most 1.1.
                let from_means =
                    if matches!(way, Way::Given | Way::Combined) { 1.1 * gain * inv_std * rounding } else { 0.0 };
                let stored = if precision == Precision::Bf16 { expected.abs() * 2f64.powi(-8) } else { 0.0 };
                let limit = 1e-5 * (1.0 + z.abs()) + from_means + stored;
                assert!((got - expected).abs() <= limit, "{place}, ({image}, {pixel}, {k}): {got}, not {expected}");
            }
        }
        (bytes, found)
    }

    fn check_all(&self, ways: &[Way], cuts: &[(usize, usize)]) {
        for driver in devices() {
            for precision in [Precision::F32, Precision::Bf16] {
                for &way in ways {
                    for &cut in cuts {
                        self.check(&*driver, precision, way, cut);
                    }
                }
            }
        }
    }
}

const PLAIN: Problem = Problem {
    images: 2,
    size: (9, 7),
    channels: [24, 0],
    groups: 4,
    patches: [(4, 4), (1, 1)],
    mean: 0.3,
    spread: 3.0,
};

/// Patches that the border cuts, of one pixel, of more than the image; one or all groups and rows in a block.
#[test]
fn norms_take_the_moments_of_their_producer() {
    for (channels, groups, patch) in
        [(24, 4, (4, 4)), (24, 24, (8, 16)), (15, 3, (16, 4)), (8, 1, (1, 1)), (1, 1, (2, 5)), (128, 32, (8, 2))]
    {
        let problem = Problem { channels: [channels, 0], groups, patches: [patch, (1, 1)], ..PLAIN };
        problem.check_all(&[Way::Given, Way::Combined], &[(1, 10), (64, 1000)]);
    }
}

/// The seam lies between groups, within a group and within what would be a vector; the sources have parts of their own.
#[test]
fn two_tensors_are_normalised_as_one() {
    for (channels, groups) in [([16, 8], 3), ([24, 16], 5), ([8, 32], 4), ([40, 24], 4), ([9, 6], 3), ([3, 13], 2)] {
        let problem = Problem { channels, groups, patches: [(4, 4), (8, 2)], ..PLAIN };
        problem.check_all(&[Way::Fused, Way::Split, Way::Given, Way::Combined], &[(1, 20)]);
    }
}

/// A mean of 1000: a deviation of 0.14 in f32, of a few units in the last place in bf16.
#[test]
fn given_moments_far_from_zero_cost_no_accuracy() {
    for channels in [[24, 0], [8, 16]] {
        for (precision, spread) in [(Precision::F32, 0.5), (Precision::Bf16, 40.0)] {
            let problem = Problem { channels, mean: 1000.0, spread, ..PLAIN };
            for driver in devices() {
                for way in [Way::Fused, Way::Split, Way::Given, Way::Combined] {
                    problem.check(&*driver, precision, way, (1, 16));
                }
            }
        }
    }
}

/// Every chunk of rows merges the parts itself: all get the same, however the rows and the batch are cut.
#[test]
fn given_moments_make_the_same_bits_in_every_cut() {
    let problem = Problem { channels: [16, 24], ..PLAIN };
    for driver in devices() {
        let whole = problem.check(&*driver, Precision::Bf16, Way::Given, (64, 1000));
        assert!(whole == problem.check(&*driver, Precision::Bf16, Way::Given, (1, 5)));
        assert!(whole == problem.check(&*driver, Precision::Bf16, Way::Combined, (2, 11)));
        // The first image alone has the same values.
        let single = Problem { images: 1, ..problem }.check(&*driver, Precision::F32, Way::Given, (1, 5));
        let both = problem.check(&*driver, Precision::F32, Way::Given, (1, 5));
        assert!(both.0.starts_with(&single.0) && both.1.starts_with(&single.1));
    }
}
