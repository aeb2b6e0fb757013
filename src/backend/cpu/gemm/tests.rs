//! Products of odd sizes against f64 loops; rows independent of everything else.

use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

fn transpose(a: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| a[i % rows * cols + i / rows]).collect()
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Runs one product in every combination of operand forms; all must agree to the bit.
fn run(g: &Gemm, a: &[f32], b: &[f32], c: &[f32], e: &Epilogue, threads: Threads) -> Vec<f32> {
    let (at, bt) = (transpose(a, g.m, g.k), transpose(b, g.k, g.n));
    let mut storage = vec![f32::NAN; PackedMatrix::len(g.k, g.n)];
    let packed = PackedMatrix::pack(Matrix::row_major(b, g.n), g.k, g.n, &mut storage, threads);
    let mut results = Vec::new();
    for a in [Matrix::row_major(a, g.k), Matrix::transposed(&at, g.m)] {
        for b in [
            Operand::Plain(Matrix::row_major(b, g.n)),
            Operand::Plain(Matrix::transposed(&bt, g.k)),
            Operand::Packed(packed),
        ] {
            let mut c = c.to_vec();
            let need = g.workspace(matches!(b, Operand::Packed(_)), threads.count());
            gemm(g, a, b, &mut c, e, threads, &mut vec![f32::NAN; need]);
            results.push(c);
        }
    }
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(results.iter().all(|r| bits(r) == bits(&results[0])), "{g:?}: operand forms differ");
    results.swap_remove(0)
}

#[test]
fn products_match_f64() {
    let sizes = [
        (1, 1, 1),
        (2, 3, 5),
        (13, 33, 129),
        (15, 64, 24),
        (100, 17, 128),
        (29, 96, 257),
        (197, 40, 513),
        (3, 70, 1024),
    ];
    for (m, n, k) in sizes {
        let (a, b, bias) = (random(1, m * k), random(2, k * n), random(3, n));
        for (alpha, accumulate, ldc) in [(1.0, false, n), (0.5, true, n + 3)] {
            let g = Gemm { alpha, accumulate, ldc, rows_per_image: 4, ..Gemm::new(m, n, k) };
            let start: Vec<f32> = if accumulate { random(4, m * ldc) } else { vec![f32::NAN; m * ldc] };
            let residual = random(5, (m - 1) * ldc + n);
            let per_image = random(6, m.div_ceil(4) * n);
            let e = Epilogue { bias: Some(&bias), per_image: Some(&per_image), residual: Some(&residual), scale: 0.5 };
            let got = run(&g, &a, &b, &start, &e, Threads::Pool);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let dot: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                let old = if accumulate { f64::from(start[i * ldc + j]) } else { 0.0 };
                let added = [bias[j], per_image[i / 4 * n + j], residual[i * ldc + j]];
                let want = 0.5 * (f64::from(alpha) * dot + old + added.iter().map(|&v| f64::from(v)).sum::<f64>());
                let scale = (k as f64).sqrt() * 0.1 + 1.0;
                let error = (f64::from(got[i * ldc + j]) - want).abs();
                assert!(error <= 1e-6 * scale, "{g:?} at ({i}, {j}): {} is not {want}", got[i * ldc + j]);
            }
            for i in 0..m - 1 {
                let (gap, kept) = (&got[i * ldc + n..(i + 1) * ldc], &start[i * ldc + n..(i + 1) * ldc]);
                assert!(gap.iter().zip(kept).all(|(a, b)| a.to_bits() == b.to_bits()), "wrote between rows of C");
            }
        }
    }
}

#[test]
fn rows_depend_on_nothing_but_themselves() {
    let (m, n, k) = (211, 100, 300);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let part = |first: usize, rows: usize, threads: Threads, count: usize| {
        let (a, b) = (&a, &b);
        let work = move || {
            run(
                &Gemm::new(rows, n, k),
                &a[first * k..][..rows * k],
                b,
                &vec![f32::NAN; rows * n],
                &Epilogue::NONE,
                threads,
            )
        };
        in_pool(count, work)
    };
    let whole = part(0, m, Threads::Serial, 1);
    for (first, rows, count) in [(0, m, 2), (0, m, 3), (0, 1, 1), (57, 1, 2), (57, 15, 3), (200, 11, 2), (90, 97, 1)] {
        let got = part(first, rows, Threads::Pool, count);
        let want = &whole[first * n..][..rows * n];
        assert!(
            got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{rows} rows from {first}, {count} threads"
        );
    }
}

#[test]
fn an_empty_depth_gives_the_epilogue_alone() {
    let bias = [1.0, 2.0, 3.0];
    let e = Epilogue { bias: Some(&bias), scale: 2.0, ..Epilogue::NONE };
    let got = run(&Gemm::new(2, 3, 0), &[], &[], &[f32::NAN; 6], &e, Threads::Serial);
    assert_eq!(got, [2.0, 4.0, 6.0, 2.0, 4.0, 6.0]);
}

#[test]
fn depth_blocks_cover_the_depth() {
    for depth in [1, 3, 127, 128, 129, 257, 1152, 4608] {
        let mut next = 0;
        for (begin, len) in depth_blocks(depth) {
            assert!(begin == next && (1..=DEPTH).contains(&len));
            next += len;
        }
        assert_eq!(next, depth);
    }
}
