//! Every algorithm and pass against naive f64 loops, on odd sizes, with poisoned outputs and workspaces.

use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(super) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| (0..4).map(|_| rng.random::<f32>() - 0.5).sum()).collect()
}

/// Calls `f(output pixel, input pixel, tap)` for every product of one image's geometry.
fn each_product(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..s.n {
        for (p, q) in (0..s.oh).flat_map(|p| (0..s.ow).map(move |q| (p, q))) {
            for (r, t) in (0..s.r).flat_map(|r| (0..s.s).map(move |t| (r, t))) {
                let (y, x) = (p * s.stride + r, q * s.stride + t);
                if (s.pad_top..s.h + s.pad_top).contains(&y) && (s.pad_left..s.w + s.pad_left).contains(&x) {
                    let input = (n * s.h + y - s.pad_top) * s.w + x - s.pad_left;
                    f((n * s.oh + p) * s.ow + q, input, r * s.s + t);
                }
            }
        }
    }
}

fn naive_fprop(s: &ConvShape, x: &[f32], w: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; s.y_len()];
    each_product(s, |out, input, tap| {
        for k in 0..s.k {
            let (x, w) = (&x[input * s.c..][..s.c], &w[(k * s.r * s.s + tap) * s.c..][..s.c]);
            y[out * s.k + k] += x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        }
    });
    y
}

fn naive_dgrad(s: &ConvShape, dy: &[f32], w: &[f32]) -> Vec<f64> {
    let mut dx = vec![0.0; s.x_len()];
    each_product(s, |out, input, tap| {
        for k in 0..s.k {
            let d = f64::from(dy[out * s.k + k]);
            let w = &w[(k * s.r * s.s + tap) * s.c..][..s.c];
            for (dx, &w) in dx[input * s.c..][..s.c].iter_mut().zip(w) {
                *dx += d * f64::from(w);
            }
        }
    });
    dx
}

fn naive_wgrad(s: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f64> {
    let mut dw = vec![0.0; s.weight_len()];
    each_product(s, |out, input, tap| {
        for k in 0..s.k {
            let d = f64::from(dy[out * s.k + k]);
            let x = &x[input * s.c..][..s.c];
            for (dw, &x) in dw[(k * s.r * s.s + tap) * s.c..][..s.c].iter_mut().zip(x) {
                *dw += d * f64::from(x);
            }
        }
    });
    dw
}

/// Norm-wise relative error, and the worst element's error relative to the largest magnitude.
fn errors(got: &[f32], want: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let difference = |(&g, &w): (&f32, &f64)| (f64::from(g) - w).abs();
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let largest = want.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(difference).fold(0.0, |m: f64, e| if e.is_nan() { e } else { m.max(e) });
    let relative = norm(&mut got.iter().zip(want).map(difference)) / norm(&mut want.iter().copied()).max(1e-30);
    (relative, worst / largest)
}

fn assert_close(what: &str, got: &[f32], want: &[f64]) {
    if want.is_empty() {
        return;
    }
    let (norm, worst) = errors(got, want);
    assert!(norm <= 2e-6 && worst <= 1e-5, "{what}: norm-wise error {norm:.2e}, worst element {worst:.2e}");
}

fn poisoned(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

struct Results {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    db: Vec<f32>,
}

fn run_all(a: Algorithm, s: &ConvShape, x: &[f32], w: &[f32], dy: &[f32], e: &Epilogue) -> Results {
    let threads = rayon::current_num_threads();
    let one = |pass, input: &[f32], len, e: &Epilogue| {
        let mut storage = poisoned(LINE + packed_len(s, pass, a));
        let packed = PackedConv::pack_for(a, s, pass, w, &mut storage);
        let mut out = poisoned(len);
        let workspace = &mut poisoned(pass_workspace(a, s, pass, threads));
        let job = Job { shape: s, pass, input, epilogue: e, output: &mut out, workspace };
        run_pass(job, &packed);
        out
    };
    let (mut dw, mut db) = (poisoned(w.len()), poisoned(s.k));
    let mut workspace = poisoned(wgrad_workspace_for(a, s, threads));
    wgrad_with(a, s, x, dy, &mut dw, Some(&mut db), &mut workspace);
    let y = one(Pass::Fprop, x, s.y_len(), e);
    Results { y, dx: one(Pass::Dgrad, dy, s.x_len(), &Epilogue::NONE), dw, db }
}

/// The algorithms that can compute `s`.
fn candidates(s: &ConvShape) -> Vec<Algorithm> {
    let mut all = vec![Algorithm::Direct];
    if (s.r, s.s, s.stride) == (3, 3, 1) && s.pad_top <= 2 && s.pad_left <= 2 {
        all.extend([Algorithm::Winograd2, Algorithm::Winograd4]);
    }
    if algorithm(s) == Algorithm::Gemm {
        all.push(Algorithm::Gemm);
    }
    all
}

fn check(s: &ConvShape) {
    let (x, w, dy) = (random(1, s.x_len()), random(2, s.weight_len()), random(3, s.y_len()));
    let (bias, per_image, residual) = (random(4, s.k), random(5, s.n * s.k), random(6, s.y_len()));
    let e = Epilogue { bias: Some(&bias), per_image: Some(&per_image), residual: Some(&residual), scale: 0.75 };
    let mut y = naive_fprop(s, &x, &w);
    for (i, y) in y.iter_mut().enumerate() {
        let image = i / (s.oh * s.ow * s.k);
        let added = [bias[i % s.k], per_image[image * s.k + i % s.k], residual[i]];
        *y = (*y + added.iter().map(|&v| f64::from(v)).sum::<f64>()) * 0.75;
    }
    let (dx, dw) = (naive_dgrad(s, &dy, &w), naive_wgrad(s, &x, &dy));
    let column = |k: usize| dy.iter().skip(k).step_by(s.k).map(|&v| f64::from(v));
    for a in candidates(s) {
        let got = run_all(a, s, &x, &w, &dy, &e);
        assert_close(&format!("{a:?} fprop {s:?}"), &got.y, &y);
        assert_close(&format!("{a:?} dgrad {s:?}"), &got.dx, &dx);
        assert_close(&format!("{a:?} wgrad {s:?}"), &got.dw, &dw);
        for (k, &db) in got.db.iter().enumerate() {
            let (sum, size): (f64, f64) = (column(k).sum(), column(k).map(f64::abs).sum());
            assert!((f64::from(db) - sum).abs() <= 1e-6 * size, "{a:?} bias gradient {k} of {s:?}: {db}, not {sum}");
        }
    }
}

#[test]
fn three_by_three_at_odd_sizes() {
    for (h, w) in [(1, 1), (2, 3), (3, 2), (5, 5), (8, 8), (12, 20), (33, 7)] {
        for (c, k) in [(1, 1), (3, 8), (8, 3), (15, 24), (24, 15), (128, 33), (21, 128)] {
            check(&ConvShape::same(2, h, w, c, k, 3));
        }
    }
}

#[test]
fn asymmetric_padding() {
    for (pad_top, pad_left, oh, ow) in
        [(0, 0, 9, 11), (0, 0, 7, 9), (2, 2, 9, 11), (0, 2, 9, 10), (2, 0, 8, 9), (1, 0, 9, 9)]
    {
        check(&ConvShape { pad_top, pad_left, oh, ow, ..ConvShape::same(2, 9, 11, 17, 19, 3) });
    }
}

#[test]
fn stride_two() {
    for pad in [0, 1] {
        for (h, w) in [(2, 2), (3, 5), (8, 8), (12, 20), (33, 6)] {
            for (c, k) in [(1, 3), (15, 24), (128, 40)] {
                check(&ConvShape::downsample(3, h, w, c, k, pad));
            }
        }
    }
}

#[test]
fn other_filters() {
    for (h, w) in [(1, 1), (5, 3), (12, 20)] {
        for (c, k) in [(1, 1), (15, 24), (130, 70)] {
            check(&ConvShape::same(3, h, w, c, k, 1));
            check(&ConvShape::same(1, h, w, c, k, 5));
            check(&ConvShape { stride: 2, oh: h.div_ceil(2), ow: w.div_ceil(2), ..ConvShape::same(2, h, w, c, k, 1) });
            check(&ConvShape { r: 2, s: 4, pad_top: 1, pad_left: 2, ..ConvShape::same(2, h, w, c, k, 3) });
        }
    }
}

#[test]
fn empty_batches_give_empty_outputs_and_zero_gradients() {
    let s = ConvShape::same(0, 8, 8, 16, 16, 3);
    for a in candidates(&s) {
        let got = run_all(a, &s, &[], &random(1, s.weight_len()), &[], &Epilogue::NONE);
        assert!(got.y.is_empty() && got.dx.is_empty());
        assert!(got.dw.iter().chain(&got.db).all(|&v| v == 0.0));
    }
}

#[test]
fn dgrad_adds_to_what_is_there() {
    for s in [
        ConvShape::same(2, 12, 12, 24, 40, 3),
        ConvShape::same(2, 8, 8, 24, 40, 3),
        ConvShape::same(2, 3, 3, 7, 5, 3),
        ConvShape::same(2, 3, 3, 7, 5, 1),
        ConvShape::downsample(2, 8, 8, 7, 5, 0),
    ] {
        let (w, dy, start) = (random(2, s.weight_len()), random(3, s.y_len()), random(4, s.x_len()));
        let mut want = naive_dgrad(&s, &dy, &w);
        want.iter_mut().zip(&start).for_each(|(w, &v)| *w += f64::from(v));
        let mut storage = poisoned(PackedConv::len(&s, Pass::Dgrad));
        PackedConv::pack(&s, Pass::Dgrad, &w, &mut storage);
        let packed = PackedConv::from_packed(&s, Pass::Dgrad, &storage);
        let mut dx = poisoned(s.x_len());
        let mut workspace = poisoned(dgrad_workspace(&s, rayon::current_num_threads()));
        dgrad(&s, &dy, &packed, Some(&start), &mut dx, &mut workspace);
        assert_close(&format!("{s:?}"), &dx, &want);
    }
}

/// The rounding error where sums are longest: 512 channels, the deepest layer of the CIFAR U-Net's decoder.
#[test]
fn accuracy_at_512_channels() {
    let s = ConvShape::same(1, 16, 16, 512, 48, 3);
    let (x, w, dy) = (random(1, s.x_len()), random(2, s.weight_len()), random(3, s.y_len()));
    let y = naive_fprop(&s, &x, &w);
    let dw = naive_wgrad(&s, &x, &dy);
    let t = ConvShape { c: 48, k: 512, ..s };
    let (w2, dy2) = (random(4, t.weight_len()), random(5, t.y_len()));
    let dx = naive_dgrad(&t, &dy2, &w2);
    let x2 = random(6, t.x_len());
    for a in candidates(&s) {
        let got = run_all(a, &s, &x, &w, &dy, &Epilogue::NONE);
        let got2 = run_all(a, &t, &x2, &w2, &dy2, &Epilogue::NONE);
        for (pass, got, want) in [("fprop", &got.y, &y), ("dgrad", &got2.dx, &dx), ("wgrad", &got.dw, &dw)] {
            let (norm, worst) = errors(got, want);
            println!("{a:?} {pass}: norm-wise {norm:.2e}, worst element {worst:.2e}");
            assert_close(&format!("{a:?} {pass}"), got, want);
        }
    }
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// An image alone, in batches, and with any number of threads: the same bits.
#[test]
fn bits_depend_on_the_image_alone() {
    let shapes = [
        ConvShape::same(16, 12, 12, 24, 70, 3),
        ConvShape::same(16, 8, 8, 130, 40, 3),
        ConvShape::same(16, 4, 4, 40, 70, 3),
        ConvShape::same(16, 5, 5, 130, 33, 1),
        ConvShape::same(16, 9, 9, 3, 16, 3),
        ConvShape::downsample(16, 8, 8, 24, 40, 0),
        ConvShape::downsample(16, 7, 7, 24, 40, 1),
    ];
    for s in shapes {
        let a = algorithm(&s);
        let (x, w, dy) = (random(1, s.x_len()), random(2, s.weight_len()), random(3, s.y_len()));
        let (bias, per_image) = (random(4, s.k), random(5, s.n * s.k));
        let run = |first: usize, n: usize, threads: usize| {
            let part = ConvShape { n, ..s };
            let cut = |v: &'_ [f32]| v[first * v.len() / s.n..(first + n) * v.len() / s.n].to_vec();
            let (x, dy, per_image) = (cut(&x), cut(&dy), cut(&per_image));
            let (w, bias) = (&w, &bias);
            in_pool(threads, move || {
                let e = Epilogue { bias: Some(bias), per_image: Some(&per_image), ..Epilogue::NONE };
                run_all(a, &part, &x, w, &dy, &e)
            })
        };
        let whole = run(0, 16, 2);
        for threads in [1, 3] {
            let other = run(0, 16, threads);
            assert!(same_bits(&other.y, &whole.y) && same_bits(&other.dx, &whole.dx), "{s:?}, {threads} threads");
            assert!(same_bits(&other.dw, &whole.dw) && same_bits(&other.db, &whole.db), "{s:?}, {threads} threads");
        }
        for (first, n, threads) in [(0, 1, 1), (5, 1, 2), (5, 3, 2), (15, 1, 3), (13, 3, 1)] {
            let part = run(first, n, threads);
            let (ylen, xlen) = (whole.y.len() / 16, whole.dx.len() / 16);
            assert!(same_bits(&part.y, &whole.y[first * ylen..][..n * ylen]), "fprop {s:?}: {n} images from {first}");
            assert!(same_bits(&part.dx, &whole.dx[first * xlen..][..n * xlen]), "dgrad {s:?}: {n} images from {first}");
        }
    }
}
