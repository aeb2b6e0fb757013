//! Where edited images go.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::Job;
use crate::io::ImageBatch;
use crate::io::grid::{GridStyle, draw_grid};
use crate::io::partial::Existing;
use crate::io::provenance::Provenance;
use crate::io::sink::{OutputKind, SampleSet, open_sink};
use crate::layout::nhwc_to_nchw;
use crate::levels::to_byte;

/// Refuses early what cannot be written.
pub(super) fn check(out: &Path) -> Result<()> {
    match OutputKind::of(out)? {
        OutputKind::Animation => bail!("an edit has no animation; name a .png, .npz, .safetensors or a folder"),
        _ => Ok(()),
    }
}

/// What an edit made. Images are f32 `[N, H, W, C]` in [-1, 1].
pub(super) struct Edited {
    /// The results: all that formats without a layout hold.
    pub results: Vec<f32>,
    /// What a picture shows, row by row.
    pub sheet: Vec<f32>,
    /// Images in a row of the sheet.
    pub columns: usize,
    /// What decided the results beside the options of every edit.
    pub settings: Value,
}

/// Puts lists of images side by side: row i has the next `parts[k].1` images of every list k.
pub(super) fn side_by_side(parts: &[(&[f32], usize)], image_len: usize) -> Vec<f32> {
    let rows = parts.first().map_or(0, |(images, each)| images.len() / image_len / each);
    let row =
        |at: usize| parts.iter().flat_map(move |(images, each)| &images[at * each * image_len..][..each * image_len]);
    (0..rows).flat_map(row).copied().collect()
}

pub(super) fn write(job: &Job, edited: &Edited) -> Result<()> {
    let out = &job.options.out;
    let [c, h, w] = job.image_shape()?;
    let count = edited.results.len() / (c * h * w);
    let provenance = Provenance { settings: settings(job, &edited.settings)?, range: 0..count };
    let bytes = |images: &[f32]| -> Vec<u8> { images.iter().map(|&v| to_byte(v)).collect() };
    let kind = OutputKind::of(out)?;
    if kind == OutputKind::Grid {
        let style = GridStyle { columns: Some(edited.columns), ..GridStyle::default() };
        let sheet = bytes(&edited.sheet);
        let picture = draw_grid(out, ImageBatch::from_bytes(&sheet, c, h, w), None, style)?;
        picture.write_png_with(out, Some(&provenance.to_json()))?;
    } else {
        let set = SampleSet { channels: c, height: h, width: w, labels: None, provenance };
        let Some(mut sink) = open_sink(out, set, Existing::Discard)? else { return Ok(()) };
        if kind == OutputKind::Tensors {
            sink.push(ImageBatch::new(&nhwc_to_nchw(&edited.results, [count, c, h, w]), c, h, w))?;
        } else {
            sink.push(ImageBatch::from_bytes(&bytes(&edited.results), c, h, w))?;
        }
        sink.finish()?;
    }
    if !job.quiet {
        eprintln!("{count} images -> {}", out.display());
    }
    Ok(())
}

fn settings(job: &Job, of_edit: &Value) -> Result<Map<String, Value>> {
    let options = job.options;
    let scheduler: Value = serde_json::from_str(&job.scheduler.to_json())?;
    let all = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": job.model.fingerprint()?,
        "scheduler": scheduler,
        "steps": options.steps,
        "seed": options.seed,
        "label": options.label,
        "guidance": options.guidance,
        "device": job.backend.name(),
        "precision": options.device.precision.name(),
        "edit": of_edit,
    });
    match all {
        Value::Object(all) => Ok(all),
        _ => Ok(Map::new()),
    }
}
