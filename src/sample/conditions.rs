//! What a sampler is guided by or conditioned on beside classes.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::bilinear;
use crate::model::ClassifierModel;

/// What a sampler is guided by or conditioned on beside classes.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// A classifier, and the scale of its gradient (2105.05233, section 4).
    pub classifier: Option<(ClassifierModel, f64)>,
    /// The images that a super-resolution model enlarges.
    pub low_res: Option<LowRes>,
}

impl Conditions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.classifier.is_none() && self.low_res.is_none()
    }
}

/// Images that are to be enlarged: sample i is an enlargement of image i modulo their number.
#[derive(Clone, Debug)]
pub struct LowRes {
    /// In [-1, 1], `[N, H, W, C]`.
    pub images: Vec<f32>,
    /// H and W.
    pub size: (usize, usize),
    /// C.
    pub channels: usize,
    /// The class of each, if it is known.
    pub labels: Option<Vec<u32>>,
}

impl LowRes {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.images.len() / (self.size.0 * self.size.1 * self.channels)
    }

    /// The condition of the samples `indices`: their images in the size `to`, by bilinear interpolation.
    pub(super) fn condition(&self, indices: &[u32], to: (usize, usize)) -> Vec<f32> {
        let length = self.size.0 * self.size.1 * self.channels;
        let image = |&index: &u32| &self.images[index as usize % self.count() * length..][..length];
        let images: Vec<f32> = indices.iter().flat_map(image).copied().collect();
        bilinear::resize(&images, self.channels, self.size, to)
    }

    /// The classes of the samples `indices`, if they are known.
    pub(super) fn labels(&self, indices: Range<usize>) -> Option<Vec<u32>> {
        let labels = self.labels.as_ref()?;
        Some(indices.map(|i| labels[i % self.count()]).collect())
    }

    /// SHA-256 of images and classes, which says whether two runs enlarge the same.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        self.images.iter().for_each(|v| hash.update(v.to_le_bytes()));
        self.labels.iter().flatten().for_each(|label| hash.update(label.to_le_bytes()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
