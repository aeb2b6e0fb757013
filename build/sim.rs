//! Builds the simulator: every kernel source and the runtime, compiled for the CPU and linked into the crate.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Compiles `kernels/` for the CPU (feature `sim`).
pub fn build() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = root.join("kernels");
    let checks = env::var_os("CARGO_FEATURE_SIM_CHECKS").is_some();

    let mut files = BTreeSet::new();
    collect(&kernels, &mut files);
    println!("cargo:rerun-if-changed={}", kernels.display());
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let tests = kernels.join("sim/tests");
    let has_extension = |path: &Path, extension: &str| path.extension() == Some(OsStr::new(extension));
    let wrappers: Vec<PathBuf> = files
        .iter()
        .filter(|path| has_extension(path, "cu") && (checks || !path.starts_with(&tests)))
        .map(|path| write_wrapper(path, &kernels, &out))
        .collect();
    let runtime: Vec<PathBuf> = files.iter().filter(|path| has_extension(path, "cpp")).cloned().collect();

    let mut library = compiler(&kernels);
    library.flag("-ftls-model=initial-exec");
    library.files(wrappers).files(runtime);
    // Kernels register themselves from objects that nothing refers to.
    library.link_lib_modifier("+whole-archive");
    library.compile("warpdiff_sim");
}

fn compiler(kernels: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).warnings(true).extra_warnings(true).include(kernels);
    for flag in [
        // Kernels view the same bytes as several types.
        "-fno-strict-aliasing",
        // Shared memory is thread-local and needs no initialisation: no hidden calls on each access.
        "-fno-extern-tls-init",
        "-fno-gnu-unique",
        "-fvisibility=hidden",
        "-ffp-contract=fast",
        // Line tables for reports.
        "-g1",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
        "-Wno-unused-parameter",
    ] {
        build.flag(flag);
    }
    // Without hardware fma, fmaf is a slow call, and products are not contracted as on a GPU.
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        build.flag("-march=x86-64-v3");
    }
    build
}

/// Every file below `directory`.
fn collect(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.insert(path);
        }
    }
}

/// A C++ file that includes the kernel source in a namespace of its own: two sources may use the same names.
fn write_wrapper(source: &Path, kernels: &Path, out: &Path) -> PathBuf {
    let relative = source.strip_prefix(kernels).expect("sources are below kernels/");
    let name: String =
        relative.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let text =
        format!("#include \"device/device.cuh\"\nnamespace kernel::{name} {{\n#include \"{}\"\n}}\n", source.display());
    let wrapper = out.join(format!("{name}.cpp"));
    // Unchanged wrappers keep their time stamps.
    if fs::read_to_string(&wrapper).ok().as_ref() != Some(&text) {
        fs::write(&wrapper, text).unwrap_or_else(|e| panic!("{}: {e}", wrapper.display()));
    }
    wrapper
}
