//! The head of a classifier: tokens of a pool, and the log-probability of a class.

use warpdiff::graph::op::Op;

use super::{Case, Operand, extent, random};

pub(super) fn heads() -> Vec<Case> {
    let mut cases = Vec::new();
    for [n, h, w, c] in [[1, 1, 1, 1], [2, 3, 5, 8], [3, 4, 4, 3], [1, 8, 8, 130], [5, 2, 1, 67]] {
        let tokens = h * w + 1;
        let id = extent(&[n, h, w, c]);
        cases.push(Case::new(
            format!("pool_tokens/{id}"),
            Op::PoolTokens,
            vec![random(&[n, h, w, c]), random(&[c, tokens])],
        ));
        let row = [n, 1, tokens, c];
        cases.push(Case::new(
            format!("pool_tokens_grad/{id}"),
            Op::PoolTokensGrad { size: (h, w) },
            vec![random(&row)],
        ));
        cases.push(Case::new(format!("spread_pixels/{id}"), Op::SpreadPixels { size: (h, w) }, vec![random(&[n, c])]));
        cases.push(Case::new(format!("first_token/{id}"), Op::FirstToken, vec![random(&row)]));
        cases.push(Case::new(format!("first_token_grad/{id}"), Op::FirstTokenGrad { tokens }, vec![random(&[n, c])]));
    }
    for (n, classes) in [(1, 1), (3, 2), (2, 33), (5, 60), (1, 1000)] {
        let labels = (0..n as u32).map(|i| (i * 7 + classes as u32 - 1) % classes as u32).collect();
        cases.push(Case::new(
            format!("log_probability/{n}x{classes}"),
            Op::LogProbability,
            vec![random(&[n, classes]), Operand::Integers(labels)],
        ));
    }
    cases
}
