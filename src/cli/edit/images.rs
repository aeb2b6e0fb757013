//! The images that are to be edited.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::data::{PictureShape, pixel_to_value, read_picture};
use crate::io::FileError;
use crate::io::npz_read::{NpyType, NpzFile};

/// Reads PNG, JPEG and `.npz` files as f32 `[N, H, W, C]` in [-1, 1]; `shape` is what the model takes, (C, H, W).
pub(super) fn read(paths: &[PathBuf], shape: [usize; 3], fit: bool) -> Result<Vec<f32>> {
    let mut images = Vec::new();
    for path in paths {
        images.extend(bytes(path, shape, fit)?.into_iter().map(|byte| pixel_to_value(byte, 256)));
    }
    Ok(images)
}

/// Reads masks as f32 in [0, 1], white 1, in the shape of `count` images; a single mask serves all.
pub(super) fn read_masks(paths: &[PathBuf], [c, h, w]: [usize; 3], count: usize, fit: bool) -> Result<Vec<f32>> {
    let mut masks = Vec::new();
    for path in paths {
        let grey = bytes(path, [1, h, w], fit)?;
        masks.extend(grey.into_iter().flat_map(|level| std::iter::repeat_n(f32::from(level) / 255.0, c)));
    }
    match masks.len() / (c * h * w) {
        1 => Ok(masks.repeat(count)),
        given if given == count => Ok(masks),
        given => bail!("{given} masks for {count} images; give one for all, or one for each"),
    }
}

/// The bytes of all images in a file.
fn bytes(path: &Path, [c, h, w]: [usize; 3], fit: bool) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("npz")) {
        return Ok(read_picture(path, PictureShape { channels: c, height: h, width: w }, fit)?);
    }
    let unusable = |problem: String| FileError::Unusable {
        path: path.to_path_buf(),
        problem,
        remedy: "give bytes of shape (N, H, W, C) that fit the model, as `sample --out x.npz` writes them",
    };
    let mut file = NpzFile::open(path)?;
    let Some(mut array) = file.array("arr_0")? else { return Err(unusable("it has no array arr_0".into()).into()) };
    match array.shape.as_slice() {
        &[n, height, width, channels] if [channels, height, width] == [c, h, w] && array.dtype == NpyType::U8 => {
            let mut bytes = vec![0; n * c * h * w];
            array.read(&mut bytes)?;
            Ok(bytes)
        }
        other => Err(unusable(format!("arr_0 has shape {other:?}; (N, {h}, {w}, {c}) in bytes is needed")).into()),
    }
}
