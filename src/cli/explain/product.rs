//! One convolution or linear layer: its three passes, and every candidate of each.

use anyhow::Result;
use serde_json::{Value, json};

use super::On;
use super::table::table;
use crate::backend::gpu::choice::product::Candidate;
use crate::backend::gpu::choice::shape::Layer;
use crate::backend::gpu::choice::{ImageChoice, Plan, Product};
use crate::backend::gpu::driver::DeviceLimits;
use crate::backend::gpu::kernels;

/// Registers of a kernel in this build.
pub(super) fn registers(kernel: &str, architecture: &str) -> Option<u32> {
    kernels::record().iter().find(|r| r.name == kernel && r.arch == architecture).map(|r| r.registers)
}

/// What the three passes of `layer` run on.
pub(super) fn explain(name: &str, layer: &Layer, on: &On) -> Result<String> {
    let (limits, tuning) = (on.limits(), on.tuning()?);
    let products = [Product::Image(layer.fprop()), Product::Image(layer.dgrad()), Product::Pixel(layer.wgrad())];
    let products = products.map(|p| p.with_precision(on.precision));
    let passes = products.iter().map(|product| (product, product.plan(&limits, Some(&tuning))));
    if on.json {
        let passes: Vec<Value> = passes.map(|(product, plan)| as_json(product, &plan, &limits, on)).collect();
        let value = json!({
            "problem": name, "device": on.architecture(), "shifted_operands": limits.shifted_operands,
            "precision": on.precision, "predicted": true, "passes": passes,
        });
        return Ok(format!("{value:#}\n"));
    }
    let mut text = format!("{name} on {}\n", on.heading());
    for (product, plan) in passes {
        text += &as_text(product, &plan, &limits, on);
    }
    Ok(text)
}

/// All candidates, the best first.
fn candidates(product: &Product, plan: &Plan, limits: &DeviceLimits) -> Vec<Candidate> {
    let (name, predicted, shared_bytes) = (plan.config(), plan.predicted(product), plan.shared_bytes());
    match plan {
        Plan::Mma(..) => vec![Candidate { name, predicted, shared_bytes }],
        _ => product.candidates(limits),
    }
}

fn as_json(product: &Product, plan: &Plan, limits: &DeviceLimits, on: &On) -> Value {
    let kernel = plan.kernel(product);
    let predicted = plan.predicted(product);
    let (cut, why_not) = match plan {
        Plan::Image(c) => (image_json(c), None),
        Plan::Pixel(c) => {
            let cut = json!({
                "origin": c.origin.to_string(), "patch": c.patch.to_string(), "patches": c.patches,
                "taps_a_tile": c.taps_a_tile, "splits": c.splits, "patches_a_split": c.patches_a_split,
                "items": c.items, "stages": c.stages,
            });
            (cut, None)
        }
        Plan::Mma(c, why) => (json!({"variant": c.variant, "splits": c.splits, "steps": c.steps}), Some(why)),
    };
    let candidates =
        candidates(product, plan, limits).into_iter().map(|Candidate { name, predicted, shared_bytes }| {
            json!({
                "candidate": name, "shared_bytes": shared_bytes, "predicted": predicted,
                "percent_of_floor": predicted.percent_of_floor(),
            })
        });
    json!({
        "pass": product.pass(), "flops": product.flops(), "bytes": product.bytes(), "floor_us": predicted.floor_us,
        "kernel": kernel, "candidate": plan.config(), "predicted": predicted,
        "percent_of_floor": predicted.percent_of_floor(), "shared_bytes": plan.shared_bytes(),
        "registers": registers(&kernel, on.architecture()), "cut": cut, "not_hopper": why_not,
        "candidates": candidates.collect::<Vec<_>>(),
    })
}

fn image_json(c: &ImageChoice) -> Value {
    json!({
        "origin": c.origin.to_string(), "patch": c.patch.to_string(), "patches": c.patches, "boxes": c.boxes.name(),
        "column_tiles": c.column_tiles, "segments": {"count": c.segments.count, "steps": c.segments.steps},
        "split": c.split, "items": c.items, "blocks": c.blocks, "source_slots": c.source_slots,
        "source_slot_bytes": c.source_slot_bytes, "filter_slots": c.filter_slots,
        "workspace_bytes": c.partial_bytes(), "tickets": c.tickets(),
    })
}

fn as_text(product: &Product, plan: &Plan, limits: &DeviceLimits, on: &On) -> String {
    let kernel = plan.kernel(product);
    let predicted = plan.predicted(product);
    let (gflop, mb) = (product.flops() / 1e9, product.bytes() / 1e6);
    let mut text = format!("\n{}: {gflop:.1} GFLOP, {mb:.1} MB, floor {:.1} us\n", product.pass(), predicted.floor_us);
    let chosen = plan.config();
    let rows: Vec<_> = candidates(product, plan, limits)
        .into_iter()
        .map(|Candidate { name, predicted: p, shared_bytes }| {
            let mark = if name == chosen { '*' } else { ' ' };
            let cells = [
                name,
                p.limit.to_string(),
                format!("{:.1}", p.us),
                format!("{:.0}", p.percent_of_floor()),
                p.tiles.to_string(),
                p.waves.to_string(),
                format!("{:.1}", p.fetched_bytes / 1e6),
                format!("{:.1}", shared_bytes as f64 / 1024.0),
            ];
            (mark, cells)
        })
        .collect();
    let heading = ["candidate", "limit", "us", "% of floor", "tiles", "waves", "fetched MB", "shared KiB"];
    text += &table(heading, &rows, 2);
    let registers = registers(&kernel, on.architecture());
    let registers = registers.map_or("not in this build".into(), |n| format!("{n} registers a thread"));
    text += &format!("  {kernel} ({registers})\n");
    text += &match plan {
        Plan::Image(c) => {
            let (x, y, n) = c.patches;
            let segments = match (c.segments.count, c.split) {
                (1, _) => format!("one segment of {} steps", c.segments.steps),
                (count, true) => format!("{count} segments of {} steps, each an item", c.segments.steps),
                (count, false) => format!("{count} segments of {} steps in one item", c.segments.steps),
            };
            format!("  {c}\n  {x} x {y} x {n} patches of {}, {} column tiles, {segments}\n", c.patch, c.column_tiles)
        }
        Plan::Pixel(c) => format!("  {c}\n"),
        Plan::Mma(c, why) => format!("  not on Hopper's kernels: {why}\n  {c}\n"),
    };
    text
}
