//! Attention and group norms by name: `n16t1024c512h8`, `n16h32w32c128g32.silu`.

use super::{Operation, ShapeError};
use crate::backend::gpu::choice::shape::{Fields, check_sizes};
use crate::graph::GroupNorm;

const ATTENTION: &str = "n16t1024c512h8 (images, tokens, channels, heads)";
const NORM: &str = "n16h32w32c128g32.silu (images, height, width, channels, groups; .silu and .modulated may follow)";

/// Attention of a shape, forward and backward.
///
/// # Errors
/// [`ShapeError`] if the text is no such name.
pub fn attention(text: &str) -> Result<Vec<Operation>, ShapeError> {
    let fail = |reason: String| ShapeError::new(text, reason, ATTENTION);
    let fields = Fields::new(text, "ntch").map_err(fail)?;
    let one = |letter| fields.one(letter, None).map_err(fail);
    let [n, t, c, h] = [one('n')?, one('t')?, one('c')?, one('h')?];
    if c % h != 0 {
        return Err(fail(format!("{c} channels are not those of {h} heads")));
    }
    check_sizes(&[("projection", [n, t, 3, c])]).map_err(fail)?;
    Ok(Operation::attention([n, t, c, h]).into())
}

/// A group norm of a shape, forward and backward.
///
/// # Errors
/// [`ShapeError`] if the text is no such name.
pub fn norm(text: &str) -> Result<Vec<Operation>, ShapeError> {
    let fail = |reason: String| ShapeError::new(text, reason, NORM);
    let mut parts = text.split('.');
    let fields = Fields::new(parts.next().unwrap_or_default(), "nhwcg").map_err(fail)?;
    let one = |letter| fields.one(letter, None).map_err(fail);
    let ([n, h, w, c], groups) = ([one('n')?, one('h')?, one('w')?, one('c')?], one('g')?);
    let mut norm = GroupNorm { groups, eps: 1e-6, silu: false, modulated: false };
    for part in parts {
        match part {
            "silu" => norm.silu = true,
            "modulated" => norm.modulated = true,
            other => return Err(fail(format!(".{other} is neither .silu nor .modulated"))),
        }
    }
    if c % groups != 0 {
        return Err(fail(format!("{c} channels do not divide into {groups} groups")));
    }
    check_sizes(&[("image", [n, h, w, c])]).map_err(fail)?;
    Ok(Operation::norm([n, h, w, c], norm).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for name in ["n2t9c24h3", "n1t4096c512h1"] {
            let both = attention(name).unwrap();
            assert_eq!(
                both.iter().map(|o| (o.name.as_str(), o.pass)).collect::<Vec<_>>(),
                [(name, "forward"), (name, "backward")]
            );
        }
        for name in ["n2h5w7c24g3", "n2h5w7c24g3.silu", "n2h5w7c24g3.silu.modulated"] {
            let both = norm(name).unwrap();
            assert_eq!(
                both.iter().map(|o| (o.name.as_str(), o.pass)).collect::<Vec<_>>(),
                [(name, "forward"), (name, "backward")]
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_an_example() {
        for (text, reason) in [
            ("n2t9c24", "h is missing"),
            ("n2t9c24h5", "24 channels are not those of 5 heads"),
            ("n2t9c24h0", "h is 0"),
            ("n2t9k24h3", "'k' is none of the letters"),
            ("n999999999t999999999c8h1", "2^40"),
        ] {
            let error = attention(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("n16t1024c512h8"), "{error}");
        }
        for (text, reason) in [
            ("n2h5w7c24", "g is missing"),
            ("n2h5w7c24g5", "do not divide into 5 groups"),
            ("n2h5w7c24g3.gelu", ".gelu is neither"),
            ("", "n is missing"),
        ] {
            let error = norm(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("n16h32w32c128g32"), "{error}");
        }
    }
}
