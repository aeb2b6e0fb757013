//! The tensors of guided-diffusion and improved-diffusion: what the parameters of a network are called there, and which rows
//! of `qkv` are whose.

use crate::graph::{ParamPart, ParamSpec};
use crate::io::{Alias, RowBlocks};
use crate::unet::{CLASSIFIER_PREFIX, UNetConfig, UpBlock};

/// Which rows of `qkv` belong to a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QkvOrder {
    /// Head by head its q, k and v: all of improved-diffusion, and guided-diffusion by default.
    #[default]
    PerHead,
    /// All of q, all of k, all of v: guided-diffusion with `use_new_attention_order`.
    PerProjection,
}

/// What the layers inside of a residual block, an attention block and an embedding are called.
const LEAVES: [(&str, &str); 11] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
    ("group_norm", "norm"),
    ("to_q", "qkv"),
    ("to_k", "qkv"),
    ("to_v", "qkv"),
    ("to_out.0", "proj_out"),
];

/// Layers that stand by themselves.
const SINGLE: [(&str, &str); 6] = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("class_embedding", "label_emb"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// The tensor of a file for every part of `params`, which are those of a network of this configuration, or of a classifier
/// with this encoder.
pub fn aliases(config: &UNetConfig, order: QkvOrder, params: &[ParamSpec]) -> Vec<Alias> {
    let parts = params.iter().flat_map(|spec| &spec.parts);
    parts
        .map(|part| Alias {
            name: part.name.clone(),
            file_name: own_name(config, &part.name),
            rows: projection(&part.name).map(|which| rows(config, order, part, which)),
        })
        .collect()
}

/// Name and shape of every tensor that a file of this network holds, in its order.
pub fn file_tensors(config: &UNetConfig, params: &[ParamSpec]) -> Vec<(String, Vec<usize>)> {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for part in params.iter().flat_map(|spec| &spec.parts) {
        let name = own_name(config, &part.name);
        match tensors.iter_mut().find(|(known, _)| *known == name) {
            // The second and third projection of an attention layer.
            Some((_, shape)) => shape[0] += part.file_shape[0],
            None => {
                let mut shape = part.file_shape.clone();
                // Projections are one-dimensional convolutions there.
                if (name.contains(".qkv.") || name.contains(".proj_out.")) && shape.len() == 2 {
                    shape.push(1);
                }
                tensors.push((name, shape));
            }
        }
    }
    tensors
}

/// 0, 1 or 2 for q, k and v.
fn projection(name: &str) -> Option<usize> {
    [".to_q.", ".to_k.", ".to_v."].iter().position(|projection| name.contains(projection))
}

fn rows(config: &UNetConfig, order: QkvOrder, part: &ParamPart, which: usize) -> RowBlocks {
    let channels = part.file_shape[0];
    let heads = match order {
        QkvOrder::PerProjection => 1,
        QkvOrder::PerHead => {
            let decoder = part.name.starts_with("up_blocks.");
            let given = config.decoder_attention_heads.filter(|_| decoder).or(config.attention_heads);
            given.unwrap_or(channels / config.attention_head_dim.unwrap_or(channels).max(1)).max(1)
        }
    };
    let len = channels / heads;
    RowBlocks { first: which * len, len, stride: 3 * len }
}

/// The name in a file of a tensor that is called `name` here; names that are the same in both stay.
fn own_name(config: &UNetConfig, name: &str) -> String {
    let name = name.strip_prefix(CLASSIFIER_PREFIX).unwrap_or(name);
    if let Some((ours, theirs)) = SINGLE.iter().find(|(ours, _)| name.strip_prefix(ours).is_some_and(is_leaf)) {
        return name.replacen(ours, theirs, 1);
    }
    let Some((block, rest)) = block(config, name) else { return name.to_string() };
    let leaf = LEAVES.iter().find(|(ours, _)| rest.strip_prefix(ours).is_some_and(is_leaf));
    let rest = leaf.map_or(rest.to_string(), |(ours, theirs)| rest.replacen(ours, theirs, 1));
    format!("{block}.{rest}")
}

fn is_leaf(rest: &str) -> bool {
    matches!(rest, ".weight" | ".bias")
}

/// The module of a layer in the other numbering, and what is left of its name.
///
/// Every residual block with its attention and every downsampler is one of `input_blocks`, after the first convolution; an
/// upsampler is the last part of its level's last of `output_blocks`.
fn block<'a>(config: &UNetConfig, name: &'a str) -> Option<(String, &'a str)> {
    let per_level = config.layers_per_block + 1;
    let mut fields = name.splitn(5, '.');
    let side = fields.next()?;
    if side == "mid_block" {
        let (kind, index) = (fields.next()?, fields.next()?.parse::<usize>().ok()?);
        let position = if kind == "attentions" { 1 } else { 2 * index };
        return Some((format!("middle_block.{position}"), after(name, 3)));
    }
    let level: usize = fields.next()?.parse().ok()?;
    let (kind, index) = (fields.next()?, fields.next()?.parse::<usize>().ok()?);
    let rest = after(name, 4);
    let first = level * per_level;
    match (side, kind) {
        ("down_blocks", "resnets") => Some((format!("input_blocks.{}.0", 1 + first + index), rest)),
        ("down_blocks", "attentions") => Some((format!("input_blocks.{}.1", 1 + first + index), rest)),
        ("down_blocks", _) => {
            let block = format!("input_blocks.{}.0", first + per_level);
            match rest.strip_prefix("conv.") {
                Some(rest) => Some((format!("{block}.op"), rest)),
                None => Some((block, rest)),
            }
        }
        ("up_blocks", "resnets") => Some((format!("output_blocks.{}.0", first + index), rest)),
        ("up_blocks", "attentions") => Some((format!("output_blocks.{}.1", first + index), rest)),
        ("up_blocks", _) => {
            let attends = config.up_block_types.get(level) == Some(&UpBlock::Attention);
            Some((format!("output_blocks.{}.{}", first + per_level - 1, 1 + usize::from(attends)), rest))
        }
        _ => None,
    }
}

/// What follows the first `fields` fields of a name.
fn after(name: &str, fields: usize) -> &str {
    name.splitn(fields + 1, '.').nth(fields).unwrap_or_default()
}
