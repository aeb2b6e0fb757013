//! Operations that move, add or map elements.

use warpdiff::graph::op::{Op, TimeEmbedding};
use warpdiff::graph::{Activation, Fir};

use super::{Case, Operand, extent, random};

const FIR: [f64; 4] = [1.0, 3.0, 3.0, 1.0];
/// Tells a filter from its mirror image.
const LOPSIDED: [f64; 4] = [1.0, 2.0, 4.0, -1.5];

fn key() -> Operand {
    Operand::Integers(vec![11, 12])
}

/// Every operation on an image with an even height and width; `id` follows the family's name.
fn of_image(id: &str, dims: &[usize; 4], cases: &mut Vec<Case>) {
    let [n, h, w, c] = *dims;
    let x = || random(dims);
    let examples = || Operand::Integers((0..n as u32).map(|i| 7 + 1_000_003 * i).collect());
    let mut push = |name: &str, op: Op, operands: Vec<Operand>| {
        let family = op.name();
        cases.push(Case::new(format!("{family}/{name}{id}"), op, operands));
    };
    push("", Op::Upsample2x, vec![x()]);
    push("", Op::Fir(Fir::up(FIR)), vec![x()]);
    push("lopsided-", Op::Fir(Fir::up(LOPSIDED)), vec![x()]);
    if h > 1 && w > 1 {
        push("mirrored-", Op::Fir(Fir::up(LOPSIDED).mirrored()), vec![x()]);
    }
    if h % 2 == 0 && w % 2 == 0 {
        push("", Op::AvgPool2x, vec![x()]);
        push("", Op::Fir(Fir::down(FIR)), vec![x()]);
        push("lopsided-", Op::Fir(Fir::down(LOPSIDED)), vec![x()]);
        push("mirrored-", Op::Fir(Fir::down(LOPSIDED).mirrored()), vec![x()]);
    }
    for f in Activation::ALL {
        push("", Op::Activation(f), vec![x()]);
    }
    push("", Op::Add, vec![x(), x()]);
    push("", Op::AddPerImage, vec![x(), random(&[n, c])]);
    push("", Op::Affine { mul: -1.5, add: 0.25 }, vec![x()]);
    push("", Op::ToAct, vec![x()]);
    push("", Op::DivideByTime, vec![x(), Operand::Positive(vec![n])]);
    push("", Op::Dropout { p: 0.3, layer: 2 }, vec![x(), examples(), key()]);
}

fn concat(dims: [usize; 4], other: usize) -> Case {
    let second = [dims[0], dims[1], dims[2], other];
    Case::new(format!("concat/{}+{other}", extent(&dims)), Op::Concat, vec![random(&dims), random(&second)])
}

fn embedding(rows: usize, width: usize, indices: Vec<u32>) -> Case {
    let id = format!("embedding/{rows}x{width}/{}", indices.len());
    Case::new(id, Op::Embedding, vec![random(&[rows, width]), Operand::Integers(indices)])
}

pub(super) fn small(scale: usize) -> Vec<Case> {
    let mut cases = vec![embedding(5, 3 * scale, vec![4, 0, 4]), concat([2, 3, 2, 5], scale)];
    let dims = [2, 4, 6, 3 * scale];
    of_image(&extent(&dims), &dims, &mut cases);
    cases
}

pub(super) fn sweep() -> Vec<Case> {
    let mut cases = Vec::new();
    for dims in [[1, 2, 2, 1], [1, 6, 10, 3], [3, 2, 4, 8], [1, 5, 3, 15], [1, 4, 2, 24], [1, 8, 8, 128], [1, 1, 1, 8]]
    {
        of_image(&extent(&dims), &dims, &mut cases);
    }
    for (a, b) in [(1, 3), (8, 8), (15, 24), (128, 1), (24, 128), (128, 128)] {
        cases.push(concat([1, 3, 5, a], b));
    }
    cases.push(embedding(1, 1, vec![0]));
    cases.push(embedding(1001, 128, vec![1000, 3, 3, 0, 3]));
    cases.push(embedding(10, 15, vec![9]));
    cases
}

pub(super) fn forward_only() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dim, flip_sin_to_cos, freq_shift, scale, n) in [
        (8, true, 0.0, 1.0, 3),
        (7, false, 1.0, 1.0, 3),
        (15, true, 1.0, 1.0, 1),
        (128, false, 0.0, 1.0, 5),
        (24, true, 0.0, 0.25, 2),
    ] {
        let e = TimeEmbedding { dim, flip_sin_to_cos, freq_shift, scale };
        let t = [0.0, 999.0, 3.5, 417.0, 1.0][..n].to_vec();
        let order = if flip_sin_to_cos { "cos-sin" } else { "sin-cos" };
        let id = format!("time_embedding/{n}x{dim}/{order}-{freq_shift}");
        cases.push(Case::new(id, Op::TimeEmbedding(e), vec![Operand::Values(vec![n], t)]));
    }
    for (n, width) in [(3, 7), (1, 1), (2, 64)] {
        let id = format!("fourier_embedding/{n}x{width}");
        cases.push(Case::new(id, Op::FourierEmbedding, vec![Operand::Positive(vec![n]), random(&[width])]));
    }
    for (dims, start, len) in [
        ([2, 3, 2, 7], 2, 3),
        ([1, 3, 5, 128], 0, 15),
        ([1, 3, 5, 128], 15, 113),
        ([1, 2, 2, 24], 8, 8),
        ([1, 1, 1, 3], 2, 1),
    ] {
        let id = format!("slice/{}/{start}+{len}", extent(&dims));
        cases.push(Case::new(id, Op::Slice { start, len }, vec![random(&dims)]));
    }
    for dims in [[2, 5, 3, 7], [1, 1, 1, 1], [1, 8, 8, 128], [3, 7, 3, 15], [1, 3, 3, 24], [1, 19, 33, 8]] {
        cases.push(Case::new(format!("sum_pixels/{}", extent(&dims)), Op::SumPixels, vec![random(&dims)]));
        cases.push(Case::new(format!("abs_max/{}", extent(&dims)), Op::AbsMax, vec![random(&dims)]));
    }
    // Far from 0, where exponentials overflow.
    for f in Activation::ALL {
        let x = vec![-200.0, -90.0, -20.5, -3.0, -0.0, 0.0, 1e-4, 2.5, 19.0, 21.0, 95.0, 3e4];
        cases.push(Case::new(
            format!("{}/far", f.name()),
            Op::Activation(f),
            vec![Operand::Values(vec![1, 2, 2, 3], x)],
        ));
    }
    for len in [1, 7, 300] {
        cases.push(Case::new(format!("constant/{len}"), Op::Constant { len, value: -1.25 }, Vec::new()));
    }
    for dims in [[3, 2, 2, 5], [1, 1, 1, 1], [1, 4, 4, 3], [2, 3, 3, 8]] {
        cases.push(Case::new(format!("repeat_batch/{}", extent(&dims)), Op::RepeatBatch, vec![random(&dims)]));
    }
    for (p, dims) in [(0.0, [1, 2, 2, 3]), (0.9, [2, 3, 3, 5])] {
        let examples = Operand::Integers(vec![u32::MAX; dims[0]]);
        let id = format!("dropout/p{p}-{}", extent(&dims));
        cases.push(Case::new(id, Op::Dropout { p, layer: 0 }, vec![random(&dims), examples, key()]));
    }
    cases
}
