//! TMA and wgmma against plain computations.

use crate::e4m3;
use crate::ffi::*;
use crate::primitives::{random_bf16, value};

const SWIZZLE_NONE: i32 = 0;
const SWIZZLE_128: i32 = 3;

/// Where a copy with `swizzle` (CUtensorMapSwizzle) puts 16-bit element `i` of its box.
fn swizzled(i: usize, swizzle: i32) -> usize {
    let chunks = (1usize << swizzle) - 1;
    let byte = i * 2;
    (byte ^ (((byte >> 7) & chunks) << 4)) / 2
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LoadArgs {
    map: TensorMap,
    y: Pointer,
    coordinates: [i32; 5],
    tap: [i32; 2],
    bytes: u32,
}

/// Runs a load under every asynchronous mode and compares the box with `expected(index in the box)`.
fn check_load(kernel: &str, map: TensorMap, c: &[i32], tap: [i32; 2], swizzle: i32, expected: &[u16]) {
    let sim = linked();
    let mut coordinates = [0; 5];
    coordinates[..c.len()].copy_from_slice(c);
    for config in configs() {
        let y = sim.poisoned::<u16>(expected.len());
        let args = LoadArgs { map, y: y.at(), coordinates, tap, bytes: expected.len() as u32 * 2 };
        let shape = Shape { grid: 1, block: 32, shared: args.bytes + 16 };
        sim.run(kernel, shape, &args, config).unwrap();
        for (i, want) in expected.iter().enumerate() {
            assert_eq!(y.values()[swizzled(i, swizzle)], *want, "{kernel} at {c:?}, element {i}");
        }
    }
}

/// The element at signed coordinates (innermost first) of a dense tensor, 0 outside.
fn at(data: &[u16], dimensions: &[u64], c: &[i64]) -> u16 {
    let mut index = 0;
    for (d, &size) in dimensions.iter().enumerate().rev() {
        if c[d] < 0 || c[d] >= size as i64 {
            return 0;
        }
        index = index * size as usize + c[d] as usize;
    }
    data[index]
}

#[test]
fn tiled_loads_of_every_rank_with_halo_and_strides() {
    // Dimensions, box, element strides, coordinates, swizzle.
    type Case<'a> = (&'a [u64], &'a [u32], &'a [u32], &'a [i32], i32);
    let cases: [Case; 8] = [
        (&[104], &[64], &[1], &[72], SWIZZLE_NONE),
        (&[72, 9], &[64, 16], &[1, 1], &[16, -3], SWIZZLE_128),
        (&[72, 9], &[32, 8], &[1, 1], &[-8, 5], 2),
        (&[24, 9], &[16, 8], &[1, 1], &[16, 4], 1),
        (&[16, 5, 7], &[16, 4, 3], &[1, 1, 1], &[0, -1, 6], SWIZZLE_NONE),
        (&[64, 9, 7, 3], &[64, 4, 4, 2], &[1, 1, 1, 1], &[0, -1, -1, 2], SWIZZLE_128),
        (&[64, 9, 8, 3], &[64, 8, 8, 1], &[1, 2, 2, 1], &[0, -1, 3, 1], SWIZZLE_128),
        (&[8, 5, 4, 3, 2], &[8, 3, 2, 2, 2], &[1, 2, 1, 1, 1], &[0, 3, -1, 2, 1], SWIZZLE_NONE),
    ];
    for (dimensions, box_size, element_strides, c, swizzle) in cases {
        let sim = linked();
        let data = random_bf16(dimensions.iter().product::<u64>() as usize, 7);
        let tensor = sim.upload(&data);
        let map = sim.tiled(tensor.at(), &Tiled { dimensions, box_size, element_strides, swizzle }).unwrap();
        let copied: Vec<usize> = box_size.iter().zip(element_strides).map(|(b, s)| b.div_ceil(*s) as usize).collect();
        let expected: Vec<u16> = (0..copied.iter().product())
            .map(|mut i| {
                let position: Vec<i64> = (0..copied.len())
                    .map(|d| {
                        let step = i % copied[d];
                        i /= copied[d];
                        i64::from(c[d]) + step as i64 * i64::from(element_strides[d])
                    })
                    .collect();
                at(&data, dimensions, &position)
            })
            .collect();
        check_load(&format!("test_tma_load_{}d", c.len()), map, c, [0; 2], swizzle, &expected);
    }
}

#[test]
fn im2col_loads_are_the_rows_of_an_unfolded_convolution() {
    // A 3x3 convolution of an NHWC image with padding 1; stride 1 and 2.
    let (n, h, w, c) = (2u64, 5u64, 7u64, 64u64);
    let data = random_bf16((n * h * w * c) as usize, 8);
    let sim = linked();
    let tensor = sim.upload(&data);
    for stride in [1u32, 2] {
        let (out_h, out_w) = ((h as u32).div_ceil(stride), (w as u32).div_ceil(stride));
        let map = sim
            .im2col(
                tensor.at(),
                &Im2col {
                    dimensions: &[c, w, h, n],
                    lower: &[-1, -1],
                    upper: &[-1, -1],
                    channels: c as u32,
                    pixels: 24,
                    element_strides: &[1, stride, stride, 1],
                    swizzle: SWIZZLE_128,
                },
            )
            .unwrap();
        for (tap_w, tap_h) in [(0, 0), (2, 1), (1, 2)] {
            // Output pixels from number 5 on; those past the last image read zeros.
            for first in [5u32, n as u32 * out_h * out_w - 6] {
                let pixel = |p: u32| (p % out_w, p / out_w % out_h, p / out_w / out_h);
                let expected: Vec<u16> = (first..first + 24)
                    .flat_map(|p| (0..c as i64).map(move |channel| (p, channel)))
                    .map(|(p, channel)| {
                        let (x, y, image) = pixel(p);
                        let base = |o: u32| i64::from(o * stride) - 1;
                        at(&data, &[c, w, h, n], &[channel, base(x) + tap_w, base(y) + tap_h, i64::from(image)])
                    })
                    .collect();
                let (x, y, image) = pixel(first);
                let base = |o: u32| (o * stride) as i32 - 1;
                let coordinates = [0, base(x), base(y), image as i32];
                let tap = [tap_w as i32, tap_h as i32];
                check_load("test_tma_load_im2col_4d", map, &coordinates, tap, SWIZZLE_128, &expected);
            }
        }
    }
    // One spatial dimension, taps 0 to 2 without padding: base pixels 0 to w - 3.
    let map = sim
        .im2col(
            tensor.at(),
            &Im2col {
                dimensions: &[c, w, n],
                lower: &[0],
                upper: &[-2],
                channels: 16,
                pixels: 7,
                element_strides: &[1, 1, 1],
                swizzle: SWIZZLE_NONE,
            },
        )
        .unwrap();
    let expected: Vec<u16> = (3..10i64)
        .flat_map(|p| (16..32).map(move |channel| (p, channel)))
        .map(|(p, channel)| at(&data, &[c, w, n], &[channel, p % 5 + 2, p / 5]))
        .collect();
    check_load("test_tma_load_im2col_3d", map, &[16, 3, 0], [2, 0], SWIZZLE_NONE, &expected);
}

#[test]
fn tensor_maps_that_the_driver_refuses_are_refused() {
    let sim = linked();
    let tensor = sim.upload(&[0u16; 1024]);
    let tiled = |dimensions: &[u64], box_size: &[u32], swizzle| {
        let element_strides = vec![1; dimensions.len()];
        sim.tiled(tensor.at(), &Tiled { dimensions, box_size, element_strides: &element_strides, swizzle })
    };
    assert!(tiled(&[64, 8], &[64, 8], SWIZZLE_128).is_ok());
    for (result, message) in [
        (tiled(&[60, 8], &[64, 8], SWIZZLE_128), "multiple of 16 bytes"),
        (tiled(&[64, 8], &[12, 8], SWIZZLE_NONE), "multiple of 16 bytes"),
        (tiled(&[128, 8], &[128, 8], SWIZZLE_128), "wider than the swizzle"),
        (tiled(&[64, 8], &[64, 300], SWIZZLE_NONE), "1 to 256"),
        (tiled(&[64, 0], &[64, 8], SWIZZLE_NONE), "a dimension is 0"),
    ] {
        assert!(result.err().is_some_and(|e| e.contains(message)), "{message}");
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WgmmaArgs {
    a: TensorMap,
    b: TensorMap,
    c: Pointer,
}

#[test]
fn warpgroup_products_in_every_operand_layout() {
    let sim = linked();
    for (kernel, n, mn_major_a, mn_major_b) in [
        ("test_wgmma_ss_n8", 8, false, false),
        ("test_wgmma_ss_n96", 96, false, false),
        ("test_wgmma_rs_n136", 136, false, false),
        ("test_wgmma_ss_n256", 256, false, false),
        ("test_wgmma_ss_n64_mn_major", 64, true, true),
        ("test_wgmma_rs_n128_mn_major", 128, false, true),
    ] {
        let (a, b) = (random_bf16(64 * 64, 9), random_bf16(n * 64, 10));
        let (buffer_a, buffer_b) = (sim.upload(&a), sim.upload(&b));
        let ones: &[u32] = &[1, 1];
        let matrix = |base, rows: u64, columns: u64, box_rows: u32| {
            let t = Tiled {
                dimensions: &[columns, rows],
                box_size: &[64, box_rows],
                element_strides: ones,
                swizzle: SWIZZLE_128,
            };
            sim.tiled(base, &t).unwrap()
        };
        let map_b = if mn_major_b {
            matrix(buffer_b.at(), 64, n as u64, 64)
        } else {
            matrix(buffer_b.at(), n as u64, 64, n as u32)
        };
        for config in configs() {
            let c = sim.poisoned::<f32>(64 * n);
            let args = WgmmaArgs { a: matrix(buffer_a.at(), 64, 64, 64), b: map_b, c: c.at() };
            let shape = Shape { grid: 1, block: 128, shared: 8192 + n as u32 * 128 + 8 };
            sim.run(kernel, shape, &args, config).unwrap();
            for i in 0..64 {
                for j in 0..n {
                    let left = |k: usize| if mn_major_a { a[k * 64 + i] } else { a[i * 64 + k] };
                    let right = |k: usize| if mn_major_b { b[k * n + j] } else { b[j * 64 + k] };
                    let expected: f64 = (0..64).map(|k| value(left(k)) * value(right(k))).sum();
                    let error = (f64::from(c.values()[i * n + j]) - expected).abs();
                    assert!(error < 5e-6, "{kernel} ({i},{j}): error {error}");
                }
            }
        }
    }
}

#[test]
fn warpgroup_products_of_e4m3() {
    let sim = linked();
    for (kernel, n) in [("test_wgmma_e4m3_n8", 8), ("test_wgmma_e4m3_n64", 64), ("test_wgmma_e4m3_n128", 128)] {
        let random = |len, seed| -> Vec<u8> {
            random_bf16(len, seed).iter().map(|&x| e4m3::encode(value(x) as f32 * 100.0)).collect()
        };
        let (a, b) = (random(64 * 128, 9), random(n * 128, 10));
        let (buffer_a, buffer_b) = (sim.upload(&a), sim.upload(&b));
        // Rows of 128 bytes, seen as 64 numbers of 16 bits.
        let matrix = |base, rows: u64| {
            let t = Tiled {
                dimensions: &[64, rows],
                box_size: &[64, rows as u32],
                element_strides: &[1, 1],
                swizzle: SWIZZLE_128,
            };
            sim.tiled(base, &t).unwrap()
        };
        for config in configs() {
            let c = sim.poisoned::<f32>(64 * n);
            let args = WgmmaArgs { a: matrix(buffer_a.at(), 64), b: matrix(buffer_b.at(), n as u64), c: c.at() };
            let shape = Shape { grid: 1, block: 128, shared: 8192 + n as u32 * 128 + 8 };
            sim.run(kernel, shape, &args, config).unwrap();
            for (i, j) in (0..64).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let product = |k: usize| e4m3::decode(a[i * 128 + k]) * e4m3::decode(b[j * 128 + k]);
                let (exact, size) = (0..128).map(product).fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                let error = (f64::from(c.values()[i * n + j]) - exact).abs();
                assert!(error <= 1e-6 * size, "{kernel} ({i},{j}): error {error} of {size}");
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct StoreArgs {
    pub map: TensorMap,
    pub column: i32,
    pub row: i32,
}

/// The arguments of the store kernels into a tensor of 70 rows and 72 columns.
pub fn store_args(sim: &Simulator, target: Pointer) -> StoreArgs {
    let tiled = Tiled { dimensions: &[72, 70], box_size: &[64, 64], element_strides: &[1, 1], swizzle: SWIZZLE_128 };
    StoreArgs { map: sim.tiled(target, &tiled).unwrap(), column: 16, row: -5 }
}

#[test]
fn stores_skip_what_lies_outside() {
    let sim = linked();
    for config in configs() {
        let target = sim.upload(&vec![7u16; 72 * 70]);
        let args = store_args(&sim, target.at());
        sim.run("test_tma_store", Shape { grid: 1, block: 128, shared: 8192 }, &args, config).unwrap();
        for row in 0..70i32 {
            for column in 0..72i32 {
                let (r, c) = (row + 5, column - 16);
                let inside = (0..64).contains(&r) && (0..64).contains(&c);
                let expected = if inside { half::bf16::from_f32((r + c) as f32).to_bits() } else { 7 };
                assert_eq!(target.values()[(row * 72 + column) as usize], expected, "({row},{column})");
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PipelineArgs {
    a: TensorMap,
    b: TensorMap,
    c: Pointer,
    k: i32,
    padding: i32,
}

/// The operands of the pipelined product, and its result.
pub struct Pipeline {
    a: Vec<u16>,
    b: Vec<u16>,
    buffer_a: Buffer<u16>,
    buffer_b: Buffer<u16>,
    c: Buffer<f32>,
}

impl Pipeline {
    const K: usize = 424;
    const SHARED: u32 = 3 * (128 + 64) * 64 * 2 + 6 * 8;

    pub fn new(sim: &Simulator) -> Self {
        let (a, b) = (random_bf16(128 * Self::K, 11), random_bf16(64 * Self::K, 12));
        let (buffer_a, buffer_b) = (sim.upload(&a), sim.upload(&b));
        Self { a, b, buffer_a, buffer_b, c: sim.poisoned(128 * 64) }
    }

    pub fn run(&self, sim: &Simulator, kernel: &str, config: Config) -> Result<(), String> {
        let matrix = |base, rows: u32| {
            let tiled = Tiled {
                dimensions: &[Self::K as u64, u64::from(rows)],
                box_size: &[64, rows],
                element_strides: &[1, 1],
                swizzle: SWIZZLE_128,
            };
            sim.tiled(base, &tiled).unwrap()
        };
        let args = PipelineArgs {
            a: matrix(self.buffer_a.at(), 128),
            b: matrix(self.buffer_b.at(), 64),
            c: self.c.at(),
            k: Self::K as i32,
            padding: 0,
        };
        sim.run(kernel, Shape { grid: 1, block: 384, shared: Self::SHARED }, &args, config)
    }

    /// The largest error of the result.
    pub fn error(&self) -> f64 {
        let product = |i: usize, j: usize| -> f64 {
            (0..Self::K).map(|k| value(self.a[i * Self::K + k]) * value(self.b[j * Self::K + k])).sum()
        };
        (0..128 * 64)
            .map(|at| {
                let error = (f64::from(self.c.values()[at]) - product(at / 64, at % 64)).abs();
                if error.is_nan() { f64::INFINITY } else { error }
            })
            .fold(0.0, f64::max)
    }
}

#[test]
fn a_warp_specialised_pipeline_multiplies() {
    let sim = linked();
    for config in configs() {
        let pipeline = Pipeline::new(&sim);
        pipeline.run(&sim, "test_pipeline", config).unwrap();
        assert!(pipeline.error() < 5e-5);
    }
}

#[test]
fn wgmma_without_its_fence_is_reported() {
    let sim = linked();
    let (a, b) = (sim.upload(&random_bf16(64 * 64, 9)), sim.upload(&random_bf16(8 * 64, 10)));
    let c = sim.poisoned::<f32>(64 * 8);
    let map = |base, rows: u64| {
        let tiled = Tiled {
            dimensions: &[64, rows],
            box_size: &[64, rows as u32],
            element_strides: &[1, 1],
            swizzle: SWIZZLE_128,
        };
        sim.tiled(base, &tiled).unwrap()
    };
    let args = WgmmaArgs { a: map(a.at(), 64), b: map(b.at(), 8), c: c.at() };
    let shape = Shape { grid: 1, block: 128, shared: 8192 + 8 * 128 + 8 };
    let report = sim.run("bug_wgmma_without_fence", shape, &args, Config::new(FIFO, EAGER, 0)).unwrap_err();
    assert!(report.contains("wgmma without wgmma_fence") && report.contains("hopper.cu:"), "{report}");
}
