//! Compiles the kernels: `nvcc` for the GPU.

#[path = "build/nvcc/mod.rs"]
mod nvcc;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    nvcc::build();
}
