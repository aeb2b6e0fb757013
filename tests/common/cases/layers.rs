//! Convolutions, linear layers, norms and attention.

use warpdiff::graph::op::{ConvGeometry, Epilogue, GroupNorm, Op};

use super::{Case, Operand, extent, random};

const GEOMETRIES: [(&str, ConvGeometry); 5] = [
    ("3x3", ConvGeometry::SAME_3X3),
    ("1x1", ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) }),
    ("stride2", ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) }),
    ("stride2-right-bottom", ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) }),
    ("valid", ConvGeometry { kernel: (3, 3), stride: 1, padding: (0, 0, 0, 0) }),
];

/// Bias, per-image vector and residual by the bits of a number.
fn epilogue(bits: usize, scale: f64) -> Epilogue {
    Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale }
}

fn epilogue_operands(e: &Epilogue, out: &[usize]) -> Vec<Operand> {
    let k = out[out.len() - 1];
    let mut operands = Vec::new();
    if e.bias {
        operands.push(random(&[k]));
    }
    if e.per_image {
        operands.push(random(&[out[0], k]));
    }
    if e.residual {
        operands.push(random(out));
    }
    operands
}

fn conv(name: &str, g: ConvGeometry, [n, h, w, c]: [usize; 4], k: usize, e: Epilogue) -> Case {
    let (oh, ow) = g.output_size(h, w).unwrap();
    let mut operands = vec![random(&[n, h, w, c]), random(&[k, g.kernel.0, g.kernel.1, c])];
    operands.extend(epilogue_operands(&e, &[n, oh, ow, k]));
    let extra = usize::from(e.bias) + 2 * usize::from(e.per_image) + 4 * usize::from(e.residual);
    let id = format!("conv2d/{name}/{}-{k}/epilogue{extra}x{}", extent(&[n, h, w, c]), e.scale);
    Case::new(id, Op::Conv2d(g, e), operands)
}

fn linear(shape: &[usize], o: usize, e: Epilogue) -> Case {
    let i = shape[shape.len() - 1];
    let out = [&shape[..shape.len() - 1], &[o]].concat();
    let mut operands = vec![random(shape), random(&[o, i])];
    operands.extend(epilogue_operands(&e, &out));
    let extra = usize::from(e.bias) + 2 * usize::from(e.per_image) + 4 * usize::from(e.residual);
    Case::new(format!("linear/{}-{o}/epilogue{extra}x{}", extent(shape), e.scale), Op::Linear(e), operands)
}

fn group_norm(x: Operand, norm: GroupNorm) -> Case {
    let dims = x.dims();
    let (n, c) = (dims[0], dims[3]);
    let form = match (norm.silu, norm.modulated) {
        (false, false) => "plain",
        (true, false) => "silu",
        (false, true) => "modulated",
        (true, true) => "modulated-silu",
    };
    let mean = if matches!(x, Operand::Offset(_)) { "/offset" } else { "" };
    let id = format!("group_norm/{form}/{}/{}-groups{mean}", extent(&dims), norm.groups);
    let mut operands = vec![x, random(&[c]), random(&[c])];
    if norm.modulated {
        operands.push(random(&[n, 2 * c]));
    }
    Case::new(id, Op::GroupNorm(norm), operands)
}

fn attention(heads: usize, width: usize, n: usize, (h, w): (usize, usize)) -> Case {
    let id = format!("attention/{heads}x{width}/{}-tokens-{n}", h * w);
    Case::new(id, Op::Attention { heads }, vec![random(&[n, h, w, 3 * heads * width])])
}

pub(super) fn small(scale: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (name, g)) in GEOMETRIES.into_iter().enumerate() {
        for (n, h, w, c, k) in [(2, 4, 6, 3, 2), (1, 5, 3, 1, 3 * scale), (3, 8, 8, 8 * scale, 5 * scale)] {
            cases.push(conv(name, g, [n, h, w, c], k, epilogue(i + n, if n == 2 { 0.7 } else { 1.0 })));
        }
    }
    for bits in 0..8 {
        cases.push(linear(&[3, 2, 3, 5 * scale], 7, epilogue(bits, if bits > 4 { 0.5 } else { 1.0 })));
    }
    for (groups, c, silu, modulated) in
        [(1, 3, false, false), (3, 6, true, false), (5, 5, false, true), (2, 8 * scale, true, true)]
    {
        cases.push(group_norm(random(&[2, 3, 4 * scale, c]), GroupNorm { groups, eps: 1e-3, silu, modulated }));
    }
    for (heads, width, size) in [(1, 3, (2, 3)), (2, 2, (3, 3)), (3, 7, (1, 5)), (1, 8 * scale, (4, 4 * scale))] {
        cases.push(attention(heads, width, 2, size));
    }
    cases
}

pub(super) fn sweep() -> Vec<Case> {
    let mut cases = Vec::new();
    let layers = [
        ([1, 8, 8, 1], 3),
        ([1, 7, 5, 3], 8),
        ([2, 6, 6, 8], 15),
        ([1, 9, 4, 15], 24),
        ([1, 5, 7, 24], 1),
        ([2, 3, 3, 128], 3),
        ([1, 4, 4, 24], 128),
        ([1, 8, 8, 128], 128),
        ([1, 2, 2, 8], 8),
        ([1, 1, 1, 8], 24),
        ([1, 17, 19, 3], 24),
    ];
    for (g, (name, geometry)) in GEOMETRIES[..4].iter().enumerate() {
        for (i, (x, k)) in layers.into_iter().enumerate() {
            if geometry.output_size(x[1], x[2]).is_some() {
                cases.push(conv(name, *geometry, x, k, epilogue((i + 3 * g + 5) % 8, 1.0)));
            }
        }
    }
    for (i, (shape, o)) in [
        (vec![1, 1], 3),
        (vec![1, 3], 1),
        (vec![1, 128], 512),
        (vec![3, 512], 128),
        (vec![5, 15], 24),
        (vec![1, 5, 7, 24], 15),
        (vec![2, 3, 3, 8], 24),
        (vec![1, 4, 4, 128], 384),
        (vec![2, 9, 17, 24], 8),
        (vec![1, 1, 1, 8], 8),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(linear(&shape, o, epilogue((3 * i + 1) % 8, 1.0)));
    }
    for (i, (dims, groups)) in [
        ([1, 5, 7, 1], 1),
        ([1, 4, 4, 3], 3),
        ([3, 3, 5, 8], 2),
        ([1, 7, 3, 15], 5),
        ([2, 5, 5, 24], 8),
        ([1, 8, 8, 128], 32),
        ([2, 1, 1, 24], 3),
        ([2, 19, 33, 64], 8),
    ]
    .into_iter()
    .enumerate()
    {
        for form in [i, i + 1, i + 3] {
            let norm = GroupNorm { groups, eps: 1e-6, silu: form & 1 != 0, modulated: form & 2 != 0 };
            cases.push(group_norm(random(&dims), norm));
        }
        let norm = GroupNorm { groups, eps: 1e-5, silu: i & 1 == 0, modulated: i & 2 == 0 };
        cases.push(group_norm(Operand::Offset(dims.to_vec()), norm));
    }
    for (heads, width, n, size) in [
        (1, 1, 1, (2, 3)),
        (1, 8, 1, (1, 1)),
        (3, 8, 1, (5, 3)),
        (2, 21, 2, (3, 3)),
        (1, 15, 1, (7, 9)),
        (1, 24, 3, (4, 4)),
        (1, 64, 1, (4, 5)),
        (2, 64, 1, (9, 7)),
        (4, 32, 1, (8, 8)),
        (1, 128, 1, (4, 4)),
        (2, 48, 1, (13, 10)),
        (1, 64, 1, (17, 19)),
    ] {
        cases.push(attention(heads, width, n, size));
    }
    cases
}
