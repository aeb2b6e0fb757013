//! Each primitive against a plain computation, under every schedule.

use crate::e4m3;
use crate::ffi::*;
use half::bf16;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use warpdiff::rng::{Sequence, Stream};

const ONE_BLOCK: Shape = Shape { grid: 1, block: 256, shared: 0 };

pub fn random_bf16(len: usize, seed: u64) -> Vec<u16> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-1.0f32..1.0)).to_bits()).collect()
}

pub fn value(bits: u16) -> f64 {
    bf16::from_bits(bits).to_f64()
}

#[test]
fn philox_known_answers() {
    // Random123's kat_vectors: counter, key, result.
    const VECTORS: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    let sim = linked();
    for (counter, key, expected) in VECTORS {
        let input = sim.upload(&[counter.as_slice(), &key].concat());
        let output = sim.poisoned::<u32>(4);
        let args = ArrayArgs { x: input.at(), y: output.at(), count: 0 };
        sim.run("test_philox", Shape { block: 32, ..ONE_BLOCK }, &args, Config::new(FIFO, EAGER, 0)).unwrap();
        assert_eq!(output.values(), expected);
    }
}

#[test]
fn normals_are_those_of_the_crate() {
    let sim = linked();
    let seed = 0x1234_5678_9abc_def0;
    let count = 4 * 1003;
    let mut expected = vec![0.0f32; count];
    Sequence::new(seed, Stream::TrainingNoise, 3, 5).fill_normal(&mut expected);
    let key = sim.upload(&[seed as u32, (seed >> 32) as u32]);
    let output = sim.poisoned::<f32>(count);
    let args = ArrayArgs { x: key.at(), y: output.at(), count: count as u64 };
    sim.run("test_normals", Shape { grid: 8, block: 128, shared: 0 }, &args, Config::new(FIFO, EAGER, 0)).unwrap();
    for (i, (a, b)) in output.values().iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "element {i}: {a} and {b}");
    }
}

#[test]
fn bf16_rounds_to_nearest_even_and_keeps_nan() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut input: Vec<f32> = (0..4096).map(|_| f32::from_bits(rng.random())).collect();
    // Ties, the largest finite value, infinities, zeros, NaN with an empty upper half, subnormals.
    let special =
        [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 0x7f80_0001, 0x0000_8001];
    input[..8].copy_from_slice(&special.map(f32::from_bits));
    let sim = linked();
    let (x, y) = (sim.upload(&input), sim.poisoned::<f32>(input.len()));
    let args = ArrayArgs { x: x.at(), y: y.at(), count: input.len() as u64 };
    sim.run("test_bf16_round_trip", Shape { grid: 2, ..ONE_BLOCK }, &args, Config::new(FIFO, EAGER, 0)).unwrap();
    for (x, y) in input.iter().zip(y.values()) {
        let expected = if x.is_nan() { 0x7fff_0000 } else { bf16::from_f32(*x).to_f32().to_bits() };
        assert_eq!(y.to_bits(), expected, "{:#x}", x.to_bits());
    }
}

#[test]
fn e4m3_rounds_to_nearest_even_and_saturates() {
    let mut rng = StdRng::seed_from_u64(3);
    let values: Vec<f32> = (0..0x7f).map(|bits| e4m3::decode(bits) as f32).collect();
    assert_eq!((values[1], values[8], values[0x7e]), (0.001_953_125, 0.015_625, 448.0));
    // Every value, every tie and its neighbours in f32, and what lies beyond the largest.
    let ties = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
    let mut input: Vec<f32> = ties.flat_map(|t| [t, t.next_up(), t.next_down()]).chain(values.clone()).collect();
    input.extend([456.0, 464.0, 480.0, 1e9, f32::INFINITY, f32::MIN_POSITIVE, 1e-40, f32::NAN]);
    input.extend((0..2000).map(|_| f32::from_bits(rng.random())));
    input.extend((0..2000).map(|_| rng.random_range(-500.0..500.0)));
    let negative: Vec<f32> = input.iter().map(|x| -x).collect();
    input.extend(negative);
    input.resize(input.len().next_multiple_of(8), 0.0);
    let sim = linked();
    for (kernel, vector) in [("test_e4m3", 8), ("test_e4m3_scalar", 1)] {
        let (x, y) = (sim.upload(&input), sim.poisoned::<u8>(input.len()));
        let args = ArrayArgs { x: x.at(), y: y.at(), count: input.len() as u64 };
        let grid = input.len().div_ceil(256 * vector) as u32;
        sim.run(kernel, Shape { grid, ..ONE_BLOCK }, &args, Config::new(FIFO, EAGER, 0)).unwrap();
        for (x, y) in input.iter().zip(y.values()) {
            assert_eq!(*y, e4m3::encode(*x), "{kernel}: {x} ({:#x})", x.to_bits());
        }
    }
}

#[test]
fn block_reductions_give_every_thread_the_same_total() {
    let mut rng = StdRng::seed_from_u64(2);
    let input: Vec<f64> = (0..256).map(|_| rng.random_range(-1.0..1.0)).collect();
    let sum: f64 = input.iter().sum::<f64>() * 2.0 + 256.0;
    let largest = input.iter().fold(f64::MIN, |a, &b| a.max(b)) * 2.0 + 1.0;
    let sim = linked();
    let single: Vec<f32> = input.iter().map(|&v| v as f32).collect();
    let (x64, x32) = (sim.upload(&input), sim.upload(&single));
    for config in configs() {
        let y = sim.poisoned::<f64>(256);
        sim.run("test_block_sum_f64", ONE_BLOCK, &ArrayArgs { x: x64.at(), y: y.at(), count: 0 }, config).unwrap();
        assert!(y.values().iter().all(|v| v.to_bits() == y.values()[0].to_bits() && (v - sum).abs() < 1e-12));
        for (kernel, expected) in [("test_block_sum_f32", sum), ("test_block_max_f32", largest)] {
            let y = sim.poisoned::<f32>(256);
            sim.run(kernel, ONE_BLOCK, &ArrayArgs { x: x32.at(), y: y.at(), count: 0 }, config).unwrap();
            assert!(y.values().iter().all(|v| v.to_bits() == y.values()[0].to_bits()), "{kernel}");
            assert!((f64::from(y.values()[0]) - expected).abs() < 2e-5 * expected.abs().max(1.0), "{kernel}");
        }
    }
}

#[test]
fn shared_memory_starts_as_nan_in_every_block() {
    let sim = linked();
    for config in configs() {
        let y = sim.upload(&[0.0f32; 128]);
        let args = ArrayArgs { x: NULL, y: y.at(), count: 0 };
        // The second block runs where the first wrote ones.
        let config = Config { threads: 1, ..config };
        sim.run("test_poison", Shape { grid: 2, block: 64, shared: 256 }, &args, config).unwrap();
        assert!(y.values().iter().all(|v| v.is_nan()));
    }
}

#[test]
fn shuffles_votes_and_atomics() {
    let sim = linked();
    for config in configs() {
        let y = sim.upload(&[0u32; 36]);
        sim.run(
            "test_warp",
            Shape { grid: 1, block: 64, shared: 0 },
            &ArrayArgs { x: NULL, y: y.at(), count: 0 },
            config,
        )
        .unwrap();
        for lane in 0..32u32 {
            let expected = if lane < 16 { (lane + 1).min(15) } else { lane ^ 1 };
            assert_eq!(y.values()[lane as usize], expected);
        }
        let thirds = (0..32).filter(|lane| lane % 3 == 0).fold(0u32, |mask, lane| mask | 1 << lane);
        assert_eq!(y.values()[32..], [thirds, 1, 13, 128]);
    }
}

#[test]
fn warp_matrix_products() {
    let sim = linked();
    let (a, b) = (random_bf16(64 * 64, 3), random_bf16(64 * 64, 4));
    let (buffer_a, buffer_b) = (sim.upload(&a), sim.upload(&b));
    for kernel in ["test_mma_x4", "test_mma_x2", "test_mma_transposed"] {
        for config in configs() {
            let c = sim.poisoned::<f32>(64 * 64);
            let args = MatrixArgs { a: buffer_a.at(), b: buffer_b.at(), c: c.at() };
            sim.run(kernel, Shape { grid: 1, block: 128, shared: 0 }, &args, config).unwrap();
            for i in 0..64 {
                for j in 0..64 {
                    let other = |k: usize| if kernel == "test_mma_transposed" { b[k * 64 + j] } else { b[j * 64 + k] };
                    let expected: f64 = (0..64).map(|k| value(a[i * 64 + k]) * value(other(k))).sum();
                    let error = (f64::from(c.values()[i * 64 + j]) - expected).abs();
                    assert!(error < 5e-6, "{kernel} ({i},{j}): error {error}");
                }
            }
        }
    }
}
