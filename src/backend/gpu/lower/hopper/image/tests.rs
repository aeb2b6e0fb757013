//! Every candidate of a product in the simulator: all have the same bits, and they are those of the definition to
//! rounding.

use super::*;
use crate::backend::Precision;
use crate::backend::gpu::choice::image::candidates;
use crate::backend::gpu::choice::takes_image;
use crate::backend::gpu::driver::DeviceLimits;
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::driver::sim::{Async, Options, Schedule, Sim};
use crate::backend::gpu::launch::{Args, Config, Launch};
use crate::backend::gpu::lower::hopper::views::views;
use crate::graph::ConvGeometry;
use crate::rng::{Sequence, Stream};

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) };
const HALVING_RIGHT_BOTTOM: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };

fn float(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// Normal values, cut to bf16.
fn normals(count: usize, seed: u64) -> Vec<u16> {
    let mut values = vec![0.0f32; count];
    Sequence::new(seed, Stream::InitialNoise, 0, 0).fill_normal(&mut values);
    values.into_iter().map(|v| (v.to_bits() >> 16) as u16).collect()
}

/// A product with its operands, NHWC and KRSC.
struct Problem {
    pass: Pass,
    geometry: ConvGeometry,
    images: usize,
    source: (usize, usize),
    out: (usize, usize),
    channels: Vec<usize>,
    columns: usize,
    sources: Vec<Vec<u16>>,
    filter: Vec<u16>,
    bias: Vec<f32>,
    per_image: Vec<u16>,
    residual: Option<Vec<u16>>,
    scale: f32,
}

impl Problem {
    /// `size`: of the convolution's input, that is of x or dx.
    fn new(
        pass: Pass,
        geometry: ConvGeometry,
        images: usize,
        size: (usize, usize),
        channels: &[usize],
        columns: usize,
    ) -> Self {
        let halved = geometry.output_size(size.0, size.1).unwrap();
        let (source, out) = match pass {
            Pass::Fprop => (size, halved),
            Pass::Dgrad => (halved, size),
        };
        let pixels = |(h, w): (usize, usize)| images * h * w;
        let depth: usize = channels.iter().sum();
        let filter = normals(geometry.kernel.0 * geometry.kernel.1 * depth * columns, 1);
        let bias = normals(columns, 2).into_iter().map(|v| float(v) as f32).collect();
        let sources = channels.iter().zip(3..).map(|(c, seed)| normals(pixels(source) * c, seed)).collect();
        Self {
            pass,
            geometry,
            images,
            source,
            out,
            channels: channels.to_vec(),
            columns,
            sources,
            filter,
            bias,
            per_image: normals(images * columns, 6),
            residual: Some(normals(pixels(out) * columns, 7)),
            scale: 0.75,
        }
    }

    fn product(&self, at: &[DevicePtr]) -> ImageProduct {
        let sources = at.iter().zip(&self.channels).map(|(&at, &channels)| Source { at, channels }).collect();
        ImageProduct {
            pass: self.pass,
            geometry: self.geometry,
            sources,
            source_size: self.source,
            images: self.images,
            out_size: self.out,
            columns: self.columns,
            upsampled: false,
            moments: DevicePtr::NULL,
            e4m3: false,
        }
    }

    fn candidates(&self, limits: &DeviceLimits, moments: bool) -> Vec<ImageChoice> {
        let moments = if moments { DevicePtr(256) } else { DevicePtr::NULL };
        let product = self.product(&[DevicePtr::NULL; 2]).with_moments(moments);
        let problem = product.problem(Precision::Bf16, self.residual.is_some());
        takes_image(&problem, limits).unwrap();
        candidates(&problem, limits)
    }

    /// By the definition, in f64, before the last rounding.
    fn expected(&self) -> Vec<f64> {
        let (kh, kw) = self.geometry.kernel;
        let depth: usize = self.channels.iter().sum();
        let ((p, q), (h, w)) = match self.pass {
            Pass::Fprop => (self.out, self.source),
            Pass::Dgrad => (self.source, self.out),
        };
        let mut sums = vec![0.0; self.images * self.out.0 * self.out.1 * self.columns];
        let every = |n: usize, m: usize| (0..n).flat_map(move |y| (0..m).map(move |x| (y, x)));
        for (n, (y, x), (r, s)) in
            (0..self.images).flat_map(|n| every(p, q).flat_map(move |at| every(kh, kw).map(move |tap| (n, at, tap))))
        {
            let row = (y * self.geometry.stride + r).checked_sub(self.geometry.padding.0).filter(|&row| row < h);
            let column = (x * self.geometry.stride + s).checked_sub(self.geometry.padding.1).filter(|&c| c < w);
            let (Some(row), Some(column)) = (row, column) else { continue };
            let (small, large) = ((n * p + y) * q + x, (n * h + row) * w + column);
            let (from, to) = match self.pass {
                Pass::Fprop => (large, small),
                Pass::Dgrad => (small, large),
            };
            let mut first = 0;
            for (source, &channels) in self.sources.iter().zip(&self.channels) {
                for (c, &value) in source[from * channels..][..channels].iter().enumerate() {
                    for k in 0..self.columns {
                        let tap = r * kw + s;
                        let at = match self.pass {
                            Pass::Fprop => (k * kh * kw + tap) * depth + first + c,
                            Pass::Dgrad => ((first + c) * kh * kw + tap) * self.columns + k,
                        };
                        sums[to * self.columns + k] += float(value) * float(self.filter[at]);
                    }
                }
                first += channels;
            }
        }
        let pixels = self.out.0 * self.out.1;
        for (i, sum) in sums.iter_mut().enumerate() {
            let (pixel, k) = (i / self.columns, i % self.columns);
            *sum += f64::from(self.bias[k]) + float(self.per_image[pixel / pixels * self.columns + k]);
            *sum = (*sum + self.residual.as_ref().map_or(0.0, |r| float(r[i]))) * f64::from(self.scale);
        }
        sums
    }

    /// Output and statistics (mean and M2 by image, part and column).
    fn run(&self, driver: &Sim, choice: &ImageChoice, with_statistics: bool) -> (Vec<u16>, Vec<[f32; 2]>) {
        let upload = |bytes: &[u8]| {
            let at = driver.allocate(bytes.len()).unwrap();
            // SAFETY: the range is the allocation.
            unsafe { driver.upload(at, bytes).unwrap() };
            at
        };
        let elements = self.images * self.out.0 * self.out.1 * self.columns;
        let cells = Cell::of(self.out).map_or(0, |cell| self.out.0 * self.out.1 / cell.pixels());
        let parts = self.images * cells * self.columns;
        let sources: Vec<DevicePtr> = self.sources.iter().map(|s| upload(bytemuck::cast_slice(s))).collect();
        let (out, statistics) = (upload(&vec![0xff; 2 * elements]), upload(&vec![0xff; 8 * parts]));
        let tickets = upload(&vec![0; 4 * choice.tickets().max(1)]);
        let operands = Operands {
            filter: upload(bytemuck::cast_slice(&self.filter)),
            out,
            fused: Fused {
                bias: upload(bytemuck::cast_slice(&self.bias)),
                per_image: upload(bytemuck::cast_slice(&self.per_image)),
                residual: self.residual.as_ref().map_or(DevicePtr::NULL, |r| upload(bytemuck::cast_slice(r))),
                scale: self.scale,
            },
            partial: upload(&vec![0xff; choice.partial_bytes().max(4)]),
            tickets,
            statistics: if with_statistics { statistics } else { DevicePtr::NULL },
            column_scale: DevicePtr::NULL,
        };
        let product = self.product(&sources);
        let views = views(self.pass, &self.geometry, self.source, self.out).unwrap();
        let encode = |spec: &TensorMapSpec| Ok(driver.tensor_map(spec).unwrap());
        let args = arguments(&product, &views, choice, &operands, encode).unwrap();
        let kernel = driver.load(&choice.kernel(self.pass)).unwrap();
        assert_eq!(kernel.args_bytes, size_of::<ImageArgs>());
        let blocks = (args.items as u32).min(choice.blocks as u32);
        let config = Config { grid: [blocks, 1, 1], block: THREADS, cluster: 1, shared: choice.shared_bytes as u32 };
        let launch = Launch { name: choice.config().to_string(), kernel: kernel.id, config, args: Args::new(&args) };
        // SAFETY: the operands are as large as the arguments say.
        unsafe { driver.launch(&launch).unwrap() };
        let download = |at: DevicePtr, count: usize| {
            let mut bytes = vec![0; count];
            // SAFETY: the range is an allocation of above.
            unsafe { driver.download(at, &mut bytes).unwrap() };
            bytes
        };
        let tickets = download(tickets, 4 * choice.tickets());
        assert!(tickets.iter().all(|&t| t == 0), "a ticket was not given back");
        (
            bytemuck::pod_collect_to_vec(&download(out, 2 * elements)),
            bytemuck::pod_collect_to_vec(&download(statistics, 8 * parts)),
        )
    }

    fn assert_close(&self, actual: &[u16], what: &str) {
        let expected = self.expected();
        let norm = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
        for (i, (&a, e)) in actual.iter().zip(&expected).enumerate() {
            // Half a unit of bf16, and the order of f32 sums.
            let most = e.abs() / 256.0 + 1e-5 * norm;
            assert!((float(a) - e).abs() <= most, "{what}: element {i} is {}, not {e}", float(a));
        }
    }
}

/// Few multiprocessors, so that a block has several items, and under every schedule.
fn simulators() -> Vec<(Sim, DeviceLimits)> {
    let schedules =
        [(Schedule::Fifo, Async::Eager), (Schedule::Lifo, Async::Late), (Schedule::RandomPriority, Async::Random)];
    let sim = |(schedule, asynchronous)| {
        let sim = Sim::new(Options { schedule, asynchronous, seed: 5, ..Options::default() });
        let limits = DeviceLimits { multiprocessors: 2, ..sim.limits().clone() };
        (sim, limits)
    };
    schedules.map(sim).into()
}

#[test]
fn all_candidates_have_the_same_bits() {
    let problems = [
        (Problem::new(Pass::Fprop, SAME, 3, (8, 8), &[136], 72), [true, true, true]),
        (Problem::new(Pass::Dgrad, SAME, 3, (8, 8), &[136], 72), [true, true, true]),
        (Problem::new(Pass::Fprop, SAME, 1, (17, 9), &[40], 136), [true, true, false]),
        (Problem::new(Pass::Dgrad, HALVING, 2, (9, 15), &[72], 136), [true, true, false]),
        (Problem::new(Pass::Fprop, HALVING_RIGHT_BOTTOM, 2, (16, 16), &[72], 40), [true, false, true]),
        (Problem::new(Pass::Fprop, SAME, 2, (4, 4), &[128], 3), [true, true, true]),
        (Problem::new(Pass::Fprop, POINTWISE, 5, (4, 4), &[1096], 24), [true, false, true]),
    ];
    let sims = simulators();
    for (number, (problem, [taps, halo, split])) in problems.iter().enumerate() {
        let choices = problem.candidates(&sims[0].1, false);
        assert_eq!(choices.iter().any(|c| c.boxes == Boxes::Taps), *taps, "problem {number}");
        assert_eq!(choices.iter().any(|c| c.boxes == Boxes::Halo), *halo, "problem {number}");
        assert_eq!(choices.iter().any(|c| c.split), *split, "problem {number}");
        let mut first: Option<Vec<u16>> = None;
        for (i, choice) in choices.iter().enumerate() {
            let (driver, _) = &sims[i % sims.len()];
            let (out, _) = problem.run(driver, choice, false);
            match &first {
                Some(first) => assert!(*first == out, "problem {number}: {choice} differs from {}", choices[0]),
                None => {
                    problem.assert_close(&out, &format!("problem {number}: {choice}"));
                    first = Some(out);
                }
            }
        }
    }
}

#[test]
fn a_concatenation_is_read_from_its_parts() {
    let sims = simulators();
    for channels in [[64, 40], [72, 128], [40, 32]] {
        let problem = Problem::new(Pass::Fprop, SAME, 2, (9, 8), &channels, 72);
        for (i, choice) in problem.candidates(&sims[0].1, false).iter().enumerate() {
            let (out, _) = problem.run(&sims[i % 3].0, choice, false);
            problem.assert_close(&out, &format!("{channels:?}: {choice}"));
        }
    }
    // Where source 0 ends with a slab, the steps are those of one tensor, and so are the bits.
    let parts = Problem::new(Pass::Fprop, SAME, 2, (5, 8), &[64, 40], 72);
    let lines = parts.sources[0].chunks(64).zip(parts.sources[1].chunks(40));
    let joined = lines.flat_map(|(a, b)| [a, b].concat()).collect();
    let whole = Problem {
        channels: vec![104],
        sources: vec![joined],
        ..Problem::new(Pass::Fprop, SAME, 2, (5, 8), &[104], 72)
    };
    let residual = parts.residual.clone();
    let whole = Problem { residual, ..whole };
    let run = |p: &Problem| p.run(&sims[0].0, &p.candidates(&sims[0].1, false)[0], false).0;
    assert!(run(&parts) == run(&whole));
}

#[test]
fn statistics_are_those_of_the_stored_values_and_the_same_in_every_variant() {
    let sims = simulators();
    for (residual, size, columns) in [(true, (16, 24), 72), (false, (4, 4), 136), (true, (9, 7), 40)] {
        let mut problem = Problem::new(Pass::Fprop, SAME, 3, size, &[32], columns);
        // A mean that is large against the deviation.
        problem.bias.iter_mut().for_each(|b| *b += 4096.0);
        problem.residual = problem.residual.filter(|_| residual);
        let cell = Cell::of(size).unwrap();
        let ((h, w), parts_x) = (size, size.1 / cell.w);
        let parts = parts_x * (h / cell.h);
        let mut first: Option<Vec<[f32; 2]>> = None;
        for (i, choice) in problem.candidates(&sims[0].1, true).iter().enumerate() {
            let (out, statistics) = problem.run(&sims[i % 3].0, choice, true);
            assert_eq!(statistics.len(), 3 * parts * columns);
            for (at, [mean, m2]) in statistics.iter().enumerate() {
                let (k, part, n) = (at % columns, at / columns % parts, at / columns / parts);
                let (y0, x0) = (part / parts_x * cell.h, part % parts_x * cell.w);
                let values: Vec<f64> = (y0..y0 + cell.h)
                    .flat_map(|y| (x0..x0 + cell.w).map(move |x| ((n * h + y) * w + x) * columns + k))
                    .map(|i| float(out[i]))
                    .collect();
                let exact = values.iter().sum::<f64>() / values.len() as f64;
                let deviations: f64 = values.iter().map(|v| (v - exact) * (v - exact)).sum();
                assert!((f64::from(*mean) - exact).abs() <= 1e-6 * exact.abs(), "{choice}: mean {mean}, not {exact}");
                let error = (f64::from(*m2) - deviations).abs();
                assert!(error <= 1e-4 * deviations + 1e-2, "{choice}: M2 {m2}, not {deviations}");
            }
            let bits = |s: &[[f32; 2]]| bytemuck::cast_slice::<_, u32>(s).to_vec();
            let expected = first.get_or_insert_with(|| statistics.clone());
            assert!(bits(expected) == bits(&statistics), "{choice} has other statistics");
        }
    }
}
