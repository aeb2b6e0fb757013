//! Every operation of a network.

use std::collections::HashMap;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;

use super::table::table;
use super::{Args, On};
use crate::backend::Precision;
use crate::backend::gpu::choice::{self, Limit, Product, Tuning, product};
use crate::backend::gpu::driver::DeviceLimits;
use crate::cli::network;
use crate::cli::presets::Preset;
use crate::graph::gather::is_layer_of_vectors;
use crate::graph::{Graph, Node, Op, cost};
use crate::program::{Batch, ForwardProgram};
use crate::unet::UNetConfig;

/// Equal nodes of a network.
#[derive(Clone, Debug, Serialize)]
struct Line {
    operation: String,
    shape: String,
    count: usize,
    /// `None` for operations that no choice is made for.
    kernel: Option<String>,
    candidate: String,
    limit: Option<Limit>,
    tiles: Option<usize>,
    waves: Option<usize>,
    bytes: f64,
    /// Of one node.
    us: f64,
    floor_us: f64,
    /// Of the sum over all nodes.
    percent: f64,
}

/// What the network of `args` runs on.
pub(super) fn explain(args: &Args) -> Result<String> {
    if args.model.is_none() && args.preset.is_none() {
        bail!(
            "nothing to explain; take a model folder, --preset ddpm-cifar10-32, conv n256h32w32c128k128 or gemm \
             m65536n768k256"
        );
    }
    let (name, config) = network::named(args.model.as_deref(), args.preset.unwrap_or(Preset::DdpmCifar10))?;
    let batch = network::batch(&config, args.batch as usize);
    let Batch { h, w, .. } = batch;
    let graph = if args.train {
        network::training_program(&config, batch)?.plan.graph().clone()
    } else {
        inference(&config, batch)?
    };
    let lines = lines(&graph, &args.on.limits(), &args.on.tuning()?, args.on.precision);
    let total: f64 = lines.iter().map(|l| l.us * l.count as f64).sum();
    let floor: f64 = lines.iter().map(|l| l.floor_us * l.count as f64).sum();
    let images_s = batch.n as f64 / total * 1e6;
    let step = if args.train { "training step" } else { "evaluation" };
    if args.on.json {
        let value = json!({
            "network": name, "batch": batch.n, "image": [config.in_channels, h, w], "train": args.train,
            "device": args.on.architecture(), "precision": args.on.precision, "predicted": true,
            "us": total, "floor_us": floor, "images_per_second": images_s, "nodes": lines,
        });
        return Ok(format!("{value:#}\n"));
    }
    Ok(as_text(&format!("{name}, {step} of {} images of {h}x{w}", batch.n), &args.on, &lines, total, floor, images_s))
}

fn as_text(title: &str, on: &On, lines: &[Line], total: f64, floor: f64, images_s: f64) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|l| {
            let number = |n: Option<usize>| n.map_or(String::new(), |n| n.to_string());
            let cells = [
                l.operation.clone(),
                l.shape.clone(),
                l.candidate.clone(),
                l.limit.map_or(String::new(), |l| l.to_string()),
                l.count.to_string(),
                number(l.tiles),
                number(l.waves),
                format!("{:.1}", l.bytes / 1e6),
                format!("{:.1}", l.us),
                format!("{:.1}", l.floor_us),
                format!("{:.1}", l.percent),
            ];
            (' ', cells)
        })
        .collect();
    let heading = [
        "operation",
        "shape",
        "candidate",
        "limit",
        "count",
        "tiles",
        "waves",
        "MB",
        "us each",
        "floor us",
        "% of sum",
    ];
    let mut text = format!("{title} on {}\n\n", on.heading());
    text += &table(heading, &rows, 4);
    text += &format!(
        "\nsum {total:.0} us, floor {floor:.0} us ({:.0} %); {images_s:.0} images/s: predicted, not measured.\n\
         Operations without a candidate count as their floor and a launch.\n",
        100.0 * floor / total
    );
    text
}

/// Equal nodes as one line each, the most expensive first.
fn lines(graph: &Graph, limits: &DeviceLimits, tuning: &Tuning, precision: Precision) -> Vec<Line> {
    let mut order: HashMap<String, usize> = HashMap::new();
    let mut lines: Vec<Line> = Vec::new();
    let mut before = None;
    for node in graph.nodes() {
        let mut line = line(graph, node, limits, tuning, precision);
        // Layers of the same vectors are one launch.
        let vectors = is_layer_of_vectors(graph, node).then(|| node.inputs[0]);
        if vectors.is_some() && vectors == before {
            line.us -= choice::cost::LAUNCH_US;
        }
        before = vectors;
        let key = format!("{} {} {} {}", line.operation, line.shape, line.bytes, line.us);
        let at = *order.entry(key).or_insert(lines.len());
        match lines.get_mut(at) {
            Some(seen) => seen.count += 1,
            None => lines.push(line),
        }
    }
    let total: f64 = lines.iter().map(|l| l.us * l.count as f64).sum();
    lines.iter_mut().for_each(|l| l.percent = 100.0 * l.us * l.count as f64 / total);
    lines.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    lines
}

fn line(graph: &Graph, node: &Node, limits: &DeviceLimits, tuning: &Tuning, precision: Precision) -> Line {
    let operation = node.op.name().to_string();
    if let Some(product) = Product::of(graph, node, precision) {
        let plan = product.plan(limits, Some(tuning));
        let predicted = plan.predicted(&product);
        return Line {
            operation,
            shape: product_shape(graph, node),
            count: 1,
            kernel: Some(plan.kernel(&product)),
            candidate: plan.config(),
            limit: Some(predicted.limit),
            tiles: Some(predicted.tiles),
            waves: Some(predicted.waves),
            bytes: predicted.bytes,
            us: predicted.us,
            floor_us: predicted.floor_us,
            percent: 0.0,
        };
    }
    let bytes = cost::bytes(graph, node, precision) as f64;
    let (us, floor_us) = product::floor_and_launch(cost::flops(graph, node) as f64, bytes);
    Line {
        operation,
        shape: node.outputs.first().map_or(String::new(), |&v| graph.shape(v).to_string()),
        count: 1,
        kernel: None,
        candidate: String::new(),
        limit: None,
        tiles: None,
        waves: None,
        bytes,
        us,
        floor_us,
        percent: 0.0,
    }
}

/// Source and result, and the kernel.
fn product_shape(graph: &Graph, node: &Node) -> String {
    let shape = |v| graph.shape(v).to_string();
    let (first, second, out) = (shape(node.inputs[0]), graph.shape(node.inputs[1]), shape(node.outputs[0]));
    let kernel = |g: &crate::graph::ConvGeometry| {
        let stride = if g.stride > 1 { format!("/{}", g.stride) } else { String::new() };
        format!(" {}x{}{stride}", g.kernel.0, g.kernel.1)
    };
    match &node.op {
        Op::Conv2d(g, _) | Op::ConvDgrad { geometry: g, .. } => format!("{first} -> {out}{}", kernel(g)),
        Op::ConvWgrad { geometry: g, .. } => format!("{first}, {second}{}", kernel(g)),
        Op::LinearWgrad { .. } => format!("{first}, {second}"),
        _ => format!("{first} -> {out}"),
    }
}

fn inference(config: &UNetConfig, batch: Batch) -> Result<Graph> {
    Ok(ForwardProgram::new(config, batch, false)?.plan.graph().clone())
}
