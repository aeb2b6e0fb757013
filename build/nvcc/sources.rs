//! The kernel files, and all that each includes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Every `.cu` below `kernels`, sorted; `sim/` is the simulator's. None where the folder is not there.
pub fn find(kernels: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![kernels.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if path != kernels.join("sim") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "cu") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `source` and every file below `kernels` that it includes, directly or not, sorted. Includes are taken whatever `#if` they
/// stand in, so the list holds for every architecture; headers of nvcc belong to its version and are left out.
pub fn closure(source: &Path, kernels: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![source.to_path_buf()];
    while let Some(file) = open.pop() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let text = fs::read_to_string(&file)?;
        for name in includes(&text) {
            let beside = file.parent().unwrap_or(kernels).join(name);
            let path = if beside.is_file() { beside } else { kernels.join(name) };
            if path.is_file() {
                open.push(path.canonicalize()?);
            }
        }
    }
    Ok(seen)
}

/// Names in `#include "..."` and `#include <...>`.
pub fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
        let close = match rest.chars().next()? {
            '"' => '"',
            '<' => '>',
            _ => return None,
        };
        rest[1..].split(close).next()
    })
}
