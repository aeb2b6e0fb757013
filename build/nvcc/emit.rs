//! Writes `$OUT_DIR/kernels.rs`: the constants `IMAGES`, `RECORD`, `COMPILER` and `MISSING` that
//! `src/backend/gpu/kernels.rs` includes.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::nvcc::compile::Image;
use crate::nvcc::resources::Usage;

/// No kernels, and why.
pub fn missing(generated: &Path, reason: &str) -> Result<(), String> {
    write(generated, &[], None, Some(reason))
}

/// The images that `compiler` made.
pub fn images(generated: &Path, compiler: &str, images: &[Image]) -> Result<(), String> {
    write(generated, images, Some(compiler), None)
}

fn write(generated: &Path, images: &[Image], compiler: Option<&str>, missing: Option<&str>) -> Result<(), String> {
    let text = source(images, compiler, missing).map_err(|e| e.to_string())?;
    fs::write(generated, text).map_err(|e| format!("{}: {e}", generated.display()))
}

fn source(images: &[Image], compiler: Option<&str>, missing: Option<&str>) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    if !images.is_empty() {
        writeln!(out, "/// Keeps an image aligned for the driver, which reads its header as a struct.")?;
        writeln!(out, "#[repr(C, align(16))]\nstruct Aligned<const N: usize>([u8; N]);")?;
    }
    writeln!(out, "pub(super) static COMPILER: Option<&str> = {compiler:?};")?;
    writeln!(out, "pub(super) static MISSING: Option<&str> = {missing:?};")?;
    writeln!(out, "pub(super) static IMAGES: &[KernelImage] = &[")?;
    for Image { file, path, targets, usages, seconds } in images {
        let mut names: Vec<&str> = usages.iter().map(|usage| usage.name.as_str()).collect();
        names.dedup();
        let seconds = (seconds * 100.0).round() / 100.0;
        let bytes = format!("&Aligned(*include_bytes!({:?})).0", path.to_string_lossy());
        writeln!(
            out,
            "    KernelImage {{ file: {file:?}, bytes: {bytes}, targets: &{targets:?}, kernels: &{names:?}, \
             nvcc_seconds: {seconds:?} }},"
        )?;
    }
    writeln!(out, "];\npub(super) static RECORD: &[KernelRecord] = &[")?;
    for usage in images.iter().flat_map(|image| &image.usages) {
        writeln!(
            out,
            "    KernelRecord {{ name: {:?}, arch: {:?}, registers: {}, shared_bytes: {}, stack_bytes: {}, spill_stores: {}, \
             spill_loads: {}, param_bytes: {}, code: {} }},",
            usage.name,
            usage.arch,
            usage.registers,
            usage.shared_bytes,
            usage.stack_bytes,
            usage.spill_stores,
            usage.spill_loads,
            usage.param_bytes,
            code(usage),
        )?;
    }
    writeln!(out, "];")?;
    Ok(out)
}

fn code(usage: &Usage) -> String {
    // The fields of `Code` and of `MachineCode` have the same names.
    usage.code.map_or("None".into(), |code| format!("Some({code:?})").replace("Code {", "MachineCode {"))
}
