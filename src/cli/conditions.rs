//! What `sample` is guided by or conditioned on beside classes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::data::{self, PictureShape, pixel_to_value, read_picture};
use crate::io::npz_read::{NpyType, NpzFile};
use crate::model::{ClassifierModel, ModelFolder, OpenOptions};
use crate::sample::{Conditions, LowRes};

/// A classifier and low-resolution images.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Models of guided-diffusion")]
pub(super) struct ConditionArgs {
    /// Guide by the gradient of a noised classifier: its .pt file.
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Scale of the classifier's gradient; 1, or what its flags say, when nothing is said.
    #[arg(long, value_name = "SCALE", requires = "classifier")]
    classifier_scale: Option<f64>,
    /// The classifier's flags; by default flags.json beside it, else the model's own.
    #[arg(long, value_name = "FILE", requires = "classifier")]
    classifier_flags: Option<PathBuf>,
    /// A released classifier, which says the flags: 256x256_classifier, ...
    #[arg(long, value_name = "NAME", requires = "classifier", conflicts_with = "classifier_flags")]
    classifier_arch: Option<String>,
    /// The images that a super-resolution model enlarges, in turn: .npz (bytes, with classes), a folder, or a picture.
    #[arg(long, value_name = "PATH")]
    low_res: Option<PathBuf>,
}

impl ConditionArgs {
    /// Opens what was named.
    pub fn open(&self, model: &ModelFolder, lenient: bool) -> Result<Conditions> {
        let classifier = match &self.classifier {
            Some(file) => Some(self.open_classifier(file, model, lenient)?),
            None => None,
        };
        let low_res = match &self.low_res {
            Some(path) => Some(open_low_res(path, model)?),
            None => None,
        };
        Ok(Conditions { classifier, low_res })
    }

    fn open_classifier(&self, file: &Path, model: &ModelFolder, lenient: bool) -> Result<(ClassifierModel, f64)> {
        if !file.is_file() {
            bail!("--classifier: there is no file {}", file.display());
        }
        let options = OpenOptions {
            lenient,
            flags: self.classifier_flags.clone(),
            arch: self.classifier_arch.clone(),
            ..OpenOptions::default()
        };
        let classifier = ClassifierModel::open(file, &options, model.flags())?;
        let scale = self.classifier_scale.or(classifier.scale).unwrap_or(1.0);
        Ok((classifier, scale))
    }
}

fn open_low_res(path: &Path, model: &ModelFolder) -> Result<LowRes> {
    let channels = model.config.condition_channels;
    if channels == 0 {
        bail!("the model takes no low-resolution images: leave out --low-res");
    }
    let side = model.flags().map(|flags| flags.small_size()).transpose()?.flatten();
    let read = if path.is_dir() {
        from_folder(path, side)
    } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz")) {
        from_npz(path)
    } else {
        from_picture(path, channels, side)
    };
    let low_res = read.with_context(|| format!("--low-res {}", path.display()))?;
    if let Some(side) = side
        && low_res.size != (side, side)
    {
        let (h, w) = low_res.size;
        bail!("--low-res {}: the images are {h}x{w}, the model enlarges {side}x{side}", path.display());
    }
    Ok(low_res)
}

fn values(bytes: &[u8], levels: u32) -> Vec<f32> {
    bytes.iter().map(|&byte| pixel_to_value(byte, levels)).collect()
}

fn from_npz(path: &Path) -> Result<LowRes> {
    let mut file = NpzFile::open(path)?;
    let Some(mut array) = file.array("arr_0")? else { bail!("it has no array arr_0") };
    let (&[n, h, w, channels], NpyType::U8) = (array.shape.as_slice(), array.dtype) else {
        bail!("arr_0 does not hold bytes of shape (N, H, W, C)");
    };
    let mut bytes = vec![0; n * h * w * channels];
    array.read(&mut bytes)?;
    let labels = match file.array("arr_1")? {
        Some(mut array) if array.dtype == NpyType::I64 && array.shape == [n] => {
            let mut bytes = vec![0; 8 * n];
            array.read(&mut bytes)?;
            let label = |bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(*bytes));
            let labels: Result<Vec<u32>, _> = bytes.as_chunks().0.iter().map(label).collect();
            Some(labels.context("arr_1 holds numbers that are no classes")?)
        }
        Some(_) => bail!("arr_1 does not hold one 64-bit class an image"),
        None => None,
    };
    Ok(LowRes { images: values(&bytes, 256), size: (h, w), channels, labels })
}

fn from_folder(path: &Path, side: Option<usize>) -> Result<LowRes> {
    let size = side.map(|side| (side, side));
    let options = data::OpenOptions { size, ..data::OpenOptions::default() };
    let set = data::open(&path.display().to_string(), &options)?;
    let mut images = Vec::new();
    let mut labels = Vec::new();
    for index in 0..set.len() {
        let mut bytes = vec![0; set.image_len()];
        labels.push(set.pixels(index, &mut bytes)?);
        images.extend(values(&bytes, set.levels()));
    }
    let labels = labels.into_iter().collect::<Option<Vec<u32>>>();
    Ok(LowRes { images, size: (set.height(), set.width()), channels: set.channels(), labels })
}

fn from_picture(path: &Path, channels: usize, side: Option<usize>) -> Result<LowRes> {
    let Some(side) = side else {
        bail!("the model does not say how large such pictures are; put them into an .npz");
    };
    let bytes = read_picture(path, PictureShape { channels, height: side, width: side }, false)?;
    Ok(LowRes { images: values(&bytes, 256), size: (side, side), channels, labels: None })
}
