//! Compiles the kernels: `nvcc` for the GPU, and the host's C++ compiler for the simulator where the feature asks for it.

#[path = "build/nvcc/mod.rs"]
mod nvcc;
#[path = "build/sim.rs"]
mod sim;
#[path = "build/tuning.rs"]
mod tuning;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    embed_commit();
    nvcc::build();
    tuning::build();
    if std::env::var_os("CARGO_FEATURE_SIM").is_some() {
        sim::build();
    }
}

/// Reports of measurements name the commit. Only in release builds, so that a commit does not rebuild what is tested.
fn embed_commit() {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
    };
    if !std::path::Path::new(".git").exists() || std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let Some(commit) = git(&["describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]) else { return };
    println!("cargo::rustc-env=WARPDIFF_COMMIT={commit}");
    for log in ["logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", log]).filter(|path| std::path::Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
