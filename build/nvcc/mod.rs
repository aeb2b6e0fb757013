//! The kernels for the GPU: finds nvcc, compiles each `kernels/**/*.cu` (but `kernels/sim/`) into one image, and writes
//! `$OUT_DIR/kernels.rs`, which `src/backend/gpu/kernels.rs` includes: the images, and what each kernel takes of the
//! hardware. Tests that need kernels are ignored where `cfg(cuda_kernels)` is not set; those that look at the machine code,
//! where `cfg(cuda_machine_code)` is not, because there is no nvdisasm.
//!
//! Environment: `NVCC`, `CUDA_HOME`, `CUDA_PATH` and `PATH` say where nvcc is (see [`find`]); `WARPDIFF_NVCC=off` leaves
//! the kernels out; `WARPDIFF_KERNELS=ptx` embeds PTX for sm_90a instead of machine code; nvcc itself reads
//! `NVCC_PREPEND_FLAGS`, `NVCC_APPEND_FLAGS` and `NVCC_CCBIN`.

pub mod compile;
pub mod emit;
pub mod find;
pub mod flow;
pub mod resources;
pub mod sass;
pub mod sources;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use compile::{Form, Plan};
use find::{Compiler, Missing};

/// What nvcc or its wrappers read from the environment, so that a change of it changes the images.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// Compiles the kernels, or embeds the reason why there are none. Ends the build on any error.
pub fn build() {
    if let Err(message) = run() {
        eprintln!("{message}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set: run cargo")?);
    let out = PathBuf::from(variable("OUT_DIR").ok_or("OUT_DIR is not set: run cargo")?);
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(cuda_kernels, cuda_machine_code)");
    for name in ["WARPDIFF_NVCC", "WARPDIFF_KERNELS", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for name in NVCC_VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let generated = out.join("kernels.rs");
    let sources = sources::find(&root.join("kernels")).map_err(|e| format!("kernels: {e}"))?;
    if sources.is_empty() {
        return emit::missing(&generated, "this source tree has no kernels/**/*.cu");
    }
    match choose(&root)? {
        Err(missing) => {
            // A compiler that arrives on PATH is noticed; scripts/setup-cuda touches build.rs for the same end.
            println!("cargo::rerun-if-env-changed=PATH");
            if missing != Missing::Off {
                println!("cargo::warning=built without CUDA kernels: {missing}");
            }
            emit::missing(&generated, &missing.to_string())
        }
        Ok(compiler) => {
            println!("cargo::rerun-if-changed={}", compiler.path.display());
            if compiler.origin == find::PATH {
                println!("cargo::rerun-if-env-changed=PATH");
            }
            let disassembler = find::beside_or_on_path(&compiler.path, "nvdisasm", &variable, &Path::is_file);
            match &disassembler {
                Some(path) => println!("cargo::rerun-if-changed={}", path.display()),
                None => println!("cargo::rerun-if-env-changed=PATH"),
            }
            let plan = Plan {
                disassembler,
                form: Form::from_variable(variable("WARPDIFF_KERNELS").as_deref())?,
                root,
                cache: out,
                environment: NVCC_VARIABLES.iter().map(|name| format!("{name}={:?}", variable(name))).collect(),
                workers: variable("NUM_JOBS").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(1),
                compiler,
            };
            let images = compile::all(&plan, &sources)?;
            println!("cargo::rustc-cfg=cuda_kernels");
            if plan.disassembler.is_some() {
                println!("cargo::rustc-cfg=cuda_machine_code");
            }
            emit::images(&generated, &plan.compiler.to_string(), &images)
        }
    }
}

/// The outer error ends the build: a setting that cannot be followed.
fn choose(root: &Path) -> Result<Result<Compiler, Missing>, String> {
    if variable("WARPDIFF_NVCC").is_some_and(|value| value == "off") {
        return Ok(Err(Missing::Off));
    }
    let candidates = find::candidates(&variable, &Path::is_file, &entries, root)?;
    Ok(find::choose(candidates, version_text))
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Paths in a folder; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn version_text(nvcc: &Path) -> Option<String> {
    let output = Command::new(nvcc).arg("--version").env("LC_ALL", "C").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
