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
    nvcc::build();
    tuning::build();
    if std::env::var_os("CARGO_FEATURE_SIM").is_some() {
        sim::build();
    }
}
