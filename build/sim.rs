//! Builds the simulator: every kernel source and the runtime, compiled for the CPU and linked into the crate.
//!
//! Feature `sim-checks` adds the kernels of `kernels/sim/tests` and two shared objects of the same sources, a race
//! detector and an address sanitizer, whose paths are in `WARPDIFF_SIM_RACE` and `WARPDIFF_SIM_ASAN`.

#[path = "sim/objects.rs"]
mod objects;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use objects::Objects;

/// Compiles `kernels/` for the CPU.
pub fn build() {
    let sources = Sources::find();
    let mut objects = Objects::new(&sources.include, sources.out.join("sim-objects"));
    let (kernels, runtime) = (&sources.kernels, &sources.runtime);
    let plain = objects.add(&[&["-O2", "-ftls-model=initial-exec"]], kernels.iter().chain(runtime));
    let variants = if sources.checks { Variant::ALL.as_slice() } else { &[] };
    let checked: Vec<Vec<PathBuf>> = variants
        .iter()
        .map(|v| {
            let mut of_variant = objects.add(&[&["-O1"], v.everywhere, v.kernels], kernels);
            of_variant.extend(objects.add(&[&["-O2"], v.everywhere], runtime));
            of_variant
        })
        .collect();
    objects.compile();

    let mut library = compiler(&sources.include);
    // Kernels register themselves from objects that nothing refers to.
    library.link_lib_modifier("+whole-archive");
    library.objects(plain).compile("warpdiff_sim");
    for (variant, objects) in variants.iter().zip(checked) {
        println!("cargo:rustc-env={}={}", variant.variable, variant.link(&sources, &objects).display());
    }
}

/// What is compiled.
struct Sources {
    include: PathBuf,
    out: PathBuf,
    kernels: Vec<PathBuf>,
    runtime: Vec<PathBuf>,
    checks: bool,
}

impl Sources {
    fn find() -> Self {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let include = root.join("kernels");
        let checks = env::var_os("CARGO_FEATURE_SIM_CHECKS").is_some();
        let mut files = BTreeSet::new();
        collect(&include, &mut files);
        // Directories too, so that new files are seen.
        println!("cargo:rerun-if-changed={}", include.display());
        for file in &files {
            println!("cargo:rerun-if-changed={}", file.display());
        }
        let tests = include.join("sim/tests");
        let has_extension = |path: &Path, extension: &str| path.extension() == Some(OsStr::new(extension));
        let kernels = files
            .iter()
            .filter(|path| has_extension(path, "cu") && (checks || !path.starts_with(&tests)))
            .map(|path| write_wrapper(path, &include, &out))
            .collect();
        let runtime = files.iter().filter(|path| has_extension(path, "cpp")).cloned().collect();
        Self { include, out, kernels, runtime, checks }
    }
}

/// A shared object with checks, to be opened at run time.
struct Variant {
    name: &'static str,
    variable: &'static str,
    everywhere: &'static [&'static str],
    kernels: &'static [&'static str],
    link: &'static [&'static str],
}

impl Variant {
    const ALL: [Variant; 2] = [
        Variant {
            name: "race",
            variable: "WARPDIFF_SIM_RACE",
            everywhere: &["-DSIM_RACE"],
            kernels: &["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
            // The runtime answers the instrumentation's calls itself.
            link: &[],
        },
        Variant {
            name: "asan",
            variable: "WARPDIFF_SIM_ASAN",
            everywhere: &["-fsanitize=address", "-fno-omit-frame-pointer"],
            // Static shared memory is thread-local, which has no red zones: its arrays are checked by their types.
            kernels: &["-fsanitize=bounds-strict", "-fno-sanitize-recover=bounds-strict"],
            link: &["-fsanitize=address,bounds-strict"],
        },
    ];

    fn link(&self, sources: &Sources, objects: &[PathBuf]) -> PathBuf {
        // Nothing but the C interface leaves the library: several copies live in one process.
        let exports = sources.out.join("exports.map");
        write_if_changed(&exports, "{ global: sim_*; local: *; };\n");
        let library = sources.out.join(format!("libwarpdiff_sim_{}.so", self.name));
        let status = compiler(&sources.include)
            .get_compiler()
            .to_command()
            .args(["-shared", "-pthread", "-Wl,-Bsymbolic", "-Wl,--no-undefined"])
            .arg(format!("-Wl,--version-script={}", exports.display()))
            .args(self.link)
            .args(objects)
            .arg("-ldl")
            .arg("-o")
            .arg(&library)
            .status();
        assert!(status.is_ok_and(|s| s.success()), "linking {} failed", library.display());
        library
    }
}

fn compiler(include: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(0).warnings(true).extra_warnings(true).include(include);
    for flag in [
        // Kernels view the same bytes as several types.
        "-fno-strict-aliasing",
        // Shared memory is thread-local and needs no initialisation: no hidden call on each access.
        "-fno-extern-tls-init",
        "-fno-gnu-unique",
        "-fvisibility=hidden",
        // As nvcc does.
        "-ffp-contract=fast",
        // Line tables, and calls that leave a return address: reports name the kernel's line.
        "-g1",
        "-fno-optimize-sibling-calls",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
        "-Wno-unused-parameter",
    ] {
        build.flag(flag);
    }
    // Without hardware fma, fmaf is a slow call, and products are not contracted.
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
fn write_wrapper(source: &Path, include: &Path, out: &Path) -> PathBuf {
    let relative = source.strip_prefix(include).expect("sources are below kernels/");
    let name: String =
        relative.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let text =
        format!("#include \"device/device.cuh\"\nnamespace kernel::{name} {{\n#include \"{}\"\n}}\n", source.display());
    let wrapper = out.join(format!("{name}.cpp"));
    write_if_changed(&wrapper, &text);
    wrapper
}

fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
