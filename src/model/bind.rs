//! Named tensors of a weights file and the parameters of a graph.

use std::collections::BTreeSet;

use super::ModelError;
use crate::backend::{Executable, Store};
use crate::graph::{ParamId, ParamPart, ParamSpec};
use crate::io::{TensorView, WeightSource, nearest_name};
use crate::unet::CLASSIFIER_PREFIX;

/// Names of the attention's projections before diffusers 0.15.
const LEGACY: [(&str, &str); 4] =
    [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];

/// How the tensors of a file and the parameters of a network go together.
struct Match {
    /// The name in the file of each part of each parameter; parts that are missing are left out.
    names: Vec<Vec<String>>,
    missing: Vec<ParamPart>,
    unexpected: Vec<String>,
    /// Both shapes of each name.
    misshapen: Vec<String>,
}

fn match_names(params: &[ParamSpec], source: &WeightSource) -> Result<Match, ModelError> {
    let available: BTreeSet<&str> = source.names().collect();
    let mut used = BTreeSet::new();
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    let mut names = Vec::new();
    for spec in params {
        let mut parts = Vec::new();
        for part in &spec.parts {
            let legacy = LEGACY.iter().find(|(new, _)| part.name.contains(new));
            let legacy = legacy.map(|(new, old)| part.name.replace(new, old));
            let candidates = std::iter::once(part.name.clone()).chain(legacy);
            let Some(name) = candidates.into_iter().find(|n| available.contains(n.as_str())) else {
                missing.push(part.clone());
                continue;
            };
            let shape = &source.info(&name)?.shape;
            if !same_shape(shape, &part.file_shape) {
                misshapen.push(format!(
                    "{}: the file has {shape:?}, the configuration {:?}",
                    source.own_name(&name),
                    part.file_shape
                ));
            }
            used.insert(name.clone());
            parts.push(name);
        }
        names.push(parts);
    }
    let unexpected: Vec<String> = available.iter().filter(|n| !used.contains(**n)).map(|n| (*n).to_string()).collect();
    Ok(Match { names, missing, unexpected, misshapen })
}

/// The name in the file of each part of each parameter.
pub(super) fn file_names(params: &[ParamSpec], source: &WeightSource) -> Result<Vec<Vec<String>>, ModelError> {
    let Match { names, missing, unexpected, misshapen } = match_names(params, source)?;
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return Ok(names);
    }
    // A name of the file that nothing asked for, of the same shape, is likely the same tensor.
    let describe = |part: &ParamPart| {
        let same = |name: &&str| source.info(name).is_ok_and(|info| same_shape(&info.shape, &part.file_shape));
        let own = source.own_name(&part.name);
        let alike = nearest_name(own, unexpected.iter().map(String::as_str).filter(same));
        let hint = alike.map_or(String::new(), |name| format!(" (did you mean {name}?)"));
        format!("{own} {:?}{hint}", part.file_shape)
    };
    let shown = |i: usize| i < super::SHOWN;
    let missing = missing.iter().enumerate();
    let missing = missing
        .map(|(i, part)| if shown(i) { describe(part) } else { source.own_name(&part.name).to_string() })
        .collect();
    Err(ModelError::Mismatch { path: source.path().to_path_buf(), missing, unexpected, misshapen })
}

/// Tensors of a file that a network has no use for.
///
/// # Errors
/// [`ModelError::File`].
pub fn unexpected_tensors(params: &[ParamSpec], source: &WeightSource) -> Result<Vec<String>, ModelError> {
    Ok(match_names(params, source)?.unexpected)
}

/// Equal up to trailing dimensions of 1: projections were stored as 1x1 convolutions once.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let trim = |s: &[usize]| s.len() - s.iter().rev().take_while(|&&d| d == 1).count();
    a[..trim(a)] == b[..trim(b)]
}

/// Reads every parameter of a model, in the graph's layout.
///
/// # Errors
/// [`ModelError::Mismatch`] with every difference at once; a tensor that cannot be read or is not finite.
pub fn read_weights(params: &[ParamSpec], source: &WeightSource) -> Result<Vec<Vec<f32>>, ModelError> {
    let names = file_names(params, source)?;
    params
        .iter()
        .zip(&names)
        .map(|(spec, names)| {
            let mut data = vec![0.0; spec.numel()];
            for (i, name) in names.iter().enumerate() {
                let stored = source.info(name)?.shape.clone();
                spec.import(i, &source.get_f32(name, &stored)?, &mut data);
            }
            Ok(data)
        })
        .collect()
}

/// Loads a weights file into an executable: all parameters but those of a classifier that guides.
///
/// # Errors
/// As [`read_weights`].
pub fn bind_weights(exe: &mut dyn Executable, source: &WeightSource) -> Result<(), ModelError> {
    bind(exe, source, |spec| !spec.name.starts_with(CLASSIFIER_PREFIX))
}

/// Loads the weights of a classifier into an executable: its parameters alone.
///
/// # Errors
/// As [`read_weights`].
pub fn bind_classifier(exe: &mut dyn Executable, source: &WeightSource) -> Result<(), ModelError> {
    bind(exe, source, |spec| spec.name.starts_with(CLASSIFIER_PREFIX))
}

fn bind(
    exe: &mut dyn Executable,
    source: &WeightSource,
    belongs: impl Fn(&ParamSpec) -> bool,
) -> Result<(), ModelError> {
    let all = exe.plan().graph().params();
    let (places, params): (Vec<usize>, Vec<ParamSpec>) =
        all.iter().enumerate().filter(|(_, spec)| belongs(spec)).map(|(i, spec)| (i, spec.clone())).unzip();
    for (i, data) in places.into_iter().zip(&read_weights(&params, source)?) {
        exe.write_param(Store::Params, ParamId::new(i), data)?;
    }
    Ok(())
}

/// Writes named parameters (graph layout) as a safetensors file in diffusers' names and layouts.
///
/// # Errors
/// [`ModelError::File`].
pub fn write_weights(path: &std::path::Path, params: &[ParamSpec], data: &[Vec<f32>]) -> Result<(), ModelError> {
    let mut tensors = Vec::new();
    for (spec, data) in params.iter().zip(data) {
        for (i, part) in spec.parts.iter().enumerate() {
            tensors.push((part.name.as_str(), part.file_shape.as_slice(), spec.export(i, data)));
        }
    }
    tensors.sort_by_key(|t| t.0);
    let views: Vec<(&str, TensorView)> =
        tensors.iter().map(|(name, shape, data)| (*name, TensorView::f32(shape, data))).collect();
    Ok(crate::io::safetensors_write::write(path, &views, &[("format", "pt")])?)
}
