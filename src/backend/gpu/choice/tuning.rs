//! Measured tables, which may override the model in what changes no bit.
//!
//! ```json
//! { "NVIDIA H200": { "fprop n256h32w32c128k128r3s1p1": "128x128.halo.8x16x1.whole.2+7" } }
//! ```
//! A problem is a pass and a [`Layer`]; linear layers are 1x1 convolutions of images one pixel wide.

use std::collections::HashMap;

use serde::Deserialize;
use thiserror::Error;

use super::image::{self, ImageConfig, ImageProblem};
use super::pixel::{self, PixelConfig, PixelProblem};
use super::product::Product;
use super::shape::{ConvShape, Layer};
use crate::backend::gpu::driver::DeviceLimits;

/// A table that cannot be used.
#[derive(Debug, Error)]
pub enum TuningError {
    /// It is not the JSON that it should be.
    #[error("{file}: {reason}")]
    Json {
        /// Name of the table.
        file: String,
        /// What the parser says.
        reason: String,
    },
    /// One of its entries is wrong.
    #[error("{file}: {device:?}, {key:?}: {reason}")]
    Entry {
        /// Name of the table.
        file: String,
        /// GPU that the entry is for.
        device: String,
        /// The problem.
        key: String,
        /// The rule that it breaks.
        reason: String,
    },
}

/// What was measured to be fastest on one GPU.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    name: String,
    image: HashMap<ImageProblem, ImageConfig>,
    pixel: HashMap<PixelProblem, PixelConfig>,
}

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/tuning.rs"));
}

#[derive(Deserialize)]
struct Document(HashMap<String, HashMap<String, String>>);

impl Tuning {
    /// Reads the entries of `limits.name` from the text of a table. Entries of other GPUs are ignored.
    ///
    /// # Errors
    /// [`TuningError`] for text that is no table, and for an entry that the kernels cannot run or that would change a bit.
    pub fn parse(file: &str, text: &str, limits: &DeviceLimits) -> Result<Self, TuningError> {
        let json = |e: serde_json::Error| TuningError::Json { file: file.into(), reason: e.to_string() };
        let Document(mut devices) = serde_json::from_str(text).map_err(json)?;
        let mut table = Self { name: file.into(), ..Self::default() };
        let mut entries: Vec<_> = devices.remove(&limits.name).unwrap_or_default().into_iter().collect();
        entries.sort();
        for (key, candidate) in entries {
            table.insert(&key, &candidate, limits).map_err(|reason| TuningError::Entry {
                file: file.into(),
                device: limits.name.clone(),
                key,
                reason,
            })?;
        }
        Ok(table)
    }

    /// What the tables in this build say about this GPU, those of `benches/results/tuning` in the order of their names.
    /// What a device of that name cannot run after all is left to the model.
    pub fn embedded(limits: &DeviceLimits) -> Self {
        let mut all = Self::default();
        for (name, text) in embedded::TABLES {
            let Ok(table) = Self::parse(name, text, limits) else { continue };
            all.name = if all.name.is_empty() { table.name } else { format!("{}, {}", all.name, table.name) };
            all.image.extend(table.image);
            all.pixel.extend(table.pixel);
        }
        all
    }

    /// One candidate for one product, to measure it.
    ///
    /// # Errors
    /// The rule that the candidate breaks.
    pub fn of(product: &Product, candidate: &str, limits: &DeviceLimits) -> Result<Self, String> {
        let mut table = Self { name: "forced".into(), ..Self::default() };
        table.add(product.clone(), candidate, limits)?;
        Ok(table)
    }

    /// The key of a pass of a convolution.
    pub fn key(pass: &str, shape: &ConvShape) -> String {
        format!("{pass} {shape}")
    }

    fn insert(&mut self, key: &str, candidate: &str, limits: &DeviceLimits) -> Result<(), String> {
        let (pass, layer) = key.split_once(' ').ok_or("a key reads \"fprop n256h32w32c128k128r3s1p1\"")?;
        let layer: Layer = layer.parse().map_err(|e| format!("{e}"))?;
        let product = match pass {
            "fprop" => Product::Image(layer.fprop()),
            "dgrad" => Product::Image(layer.dgrad()),
            "wgrad" => Product::Pixel(layer.wgrad()),
            other => return Err(format!("{other:?} is none of fprop, dgrad, wgrad")),
        };
        self.add(product, candidate, limits)
    }

    fn add(&mut self, product: Product, candidate: &str, limits: &DeviceLimits) -> Result<(), String> {
        match product {
            Product::Image(problem) => {
                let config = candidate.parse().map_err(|e| format!("{e}"))?;
                image::takes_image(&problem, limits)?;
                image::check(&problem, limits, &config).map_err(|e| e.to_string())?;
                self.image.insert(plain(&problem), config);
            }
            Product::Pixel(problem) => {
                let config = candidate.parse().map_err(|e| format!("{e}"))?;
                pixel::takes_pixel(&problem, limits)?;
                pixel::override_with(&problem, limits, &config).map_err(|e| e.to_string())?;
                self.pixel.insert(problem, config);
            }
        }
        Ok(())
    }

    /// Entries of the table.
    pub fn len(&self) -> usize {
        self.image.len() + self.pixel.len()
    }

    /// Whether it says nothing about this GPU.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it says about an image product, with or without a residual and moments, and its name. A concatenation whose
    /// slabs are those of one source of as many channels is looked up as that, too.
    pub fn image(&self, p: &ImageProblem) -> Option<(&str, ImageConfig)> {
        let plain = plain(p);
        let joined = ImageProblem { channels: vec![plain.channels.iter().sum()], ..plain.clone() };
        let joined = (joined.slabs() == plain.slabs()).then_some(joined);
        let config = self.image.get(&plain).or_else(|| self.image.get(&joined?));
        config.map(|c| (self.name.as_str(), *c))
    }

    /// What it says about a weight gradient, and its name.
    pub fn pixel(&self, p: &PixelProblem) -> Option<(&str, PixelConfig)> {
        self.pixel.get(p).map(|c| (self.name.as_str(), *c))
    }
}

/// What a table is asked for: fused operands change the time of all candidates alike.
fn plain(p: &ImageProblem) -> ImageProblem {
    ImageProblem { residual: false, cell: None, ..p.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Layer;
    use super::super::{Origin, choose_image, choose_pixel};
    use super::*;

    fn h200() -> DeviceLimits {
        DeviceLimits {
            name: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            memory_bytes: 141 << 30,
            shifted_operands: true,
        }
    }

    fn parse(key: &str, candidate: &str) -> Result<Tuning, TuningError> {
        Tuning::parse("t.json", &format!(r#"{{"NVIDIA H200": {{"{key}": "{candidate}"}}}}"#), &h200())
    }

    #[test]
    fn a_measured_candidate_is_chosen_and_says_so() {
        let table = parse("fprop n256h32w32c128k128", "128x64.taps.16x8x1.whole.4+4").unwrap();
        let shape: Layer = "n256h32w32c128k128".parse().unwrap();
        for residual in [false, true] {
            let choice = choose_image(&shape.fprop().with_residual(residual), &h200(), Some(&table));
            assert_eq!(choice.config().to_string(), "128x64.taps.16x8x1.whole.4+4");
            assert_eq!(choice.origin, Origin::Table("t.json".into()));
            assert!(choice.runner_up.is_some() && choice.to_string().contains("measured (t.json)"), "{choice}");
        }
        // The same channels from two tensors, where no slab holds some of both.
        for (channels, origin) in [("64+64", Origin::Table("t.json".into())), ("32+96", Origin::Model)] {
            let joined: Layer = format!("n256h32w32c{channels}k128").parse().unwrap();
            assert_eq!(choose_image(&joined.fprop(), &h200(), Some(&table)).origin, origin, "{channels}");
        }
        // Another pass, another batch.
        let other: Layer = "n128h32w32c128k128".parse().unwrap();
        for p in [shape.dgrad(), other.fprop()] {
            assert_eq!(choose_image(&p, &h200(), Some(&table)), choose_image(&p, &h200(), None));
        }
    }

    #[test]
    fn a_weight_gradient_keeps_its_splits() {
        let shape: Layer = "n256h32w32c128k128".parse().unwrap();
        let model = choose_pixel(&shape.wgrad(), &h200(), None).config();
        let fewer = PixelConfig { stages: 2, ..model };
        let table = parse("wgrad n256h32w32c128k128", &fewer.to_string()).unwrap();
        let choice = choose_pixel(&shape.wgrad(), &h200(), Some(&table));
        assert_eq!((choice.config(), choice.origin), (fewer, Origin::Table("t.json".into())));
    }

    #[test]
    fn entries_of_other_gpus_are_ignored() {
        let text = r#"{"NVIDIA A100": {"fprop n1h1w1c8k8": "nonsense"}}"#;
        assert!(Tuning::parse("t.json", text, &h200()).unwrap().is_empty());
    }

    #[test]
    fn a_wrong_table_is_refused_with_file_key_and_rule() {
        let refused = |result: Result<Tuning, TuningError>, parts: &[&str]| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("t.json"), "{error}");
            parts.iter().for_each(|part| assert!(error.contains(part), "{error} lacks {part}"));
        };
        refused(Tuning::parse("t.json", "{", &h200()), &["line 1"]);
        refused(Tuning::parse("t.json", "[1]", &h200()), &["expected"]);
        let (key, good) = ("fprop n256h8w8c256k256", "128x64.halo.8x8x2.whole.2+8");
        parse(key, good).unwrap();
        refused(parse("fprop", good), &["\"fprop\"", "a key reads"]);
        refused(parse("forward n256h8w8c256k256", good), &["none of fprop"]);
        refused(parse("fprop n256h8w8c256", good), &["k is missing"]);
        refused(parse("fprop n256h8w8c3k256", good), &["multiples of 8"]);
        refused(parse(key, "128x128.halo.8x8x2.whole.2+5"), &["NVIDIA H200", key, "no totals for 4 segments"]);
        refused(parse(key, "large"), &[key, "five parts"]);
        refused(parse("wgrad n256h8w8c256k256", "128.8x8x1.s3.3"), &["order of sums"]);
        refused(parse("wgrad n256h8w8c256k256", "128"), &["128.8x8x1.s14.3"]);
    }

    #[test]
    fn the_tables_in_this_build_are_right() {
        for (name, text) in embedded::TABLES {
            let devices: HashMap<String, serde_json::Value> = serde_json::from_str(text).unwrap();
            for device in devices.into_keys() {
                let limits = DeviceLimits { name: device, ..h200() };
                assert!(!Tuning::parse(name, text, &limits).unwrap().is_empty(), "{name}");
            }
        }
        let unknown = DeviceLimits { name: "no such GPU".into(), ..h200() };
        assert!(Tuning::embedded(&unknown).is_empty());
    }
}
