//! Embeds the measured tables of `benches/results/tuning`.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

/// Writes `tuning.rs`: name and text of every table, sorted.
pub fn build() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let folder = root.join("benches/results/tuning");
    // A path that is not there would run this script on every build.
    if let Some(watched) = folder.ancestors().find(|f| f.is_dir()) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut tables: Vec<PathBuf> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    tables.sort();
    let mut text = String::from("pub(super) const TABLES: &[(&str, &str)] = &[\n");
    for path in tables {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "    ({name:?}, include_str!({:?})),", path.display().to_string());
    }
    text += "];\n";
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("tuning.rs");
    if let Err(error) = fs::write(&out, text) {
        panic!("cannot write {}: {error}", out.display());
    }
}
