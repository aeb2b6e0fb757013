//! Compiles the CUDA kernels for the backends that the features ask for.

#[path = "build/sim.rs"]
mod sim;

fn main() {
    println!("cargo:rerun-if-changed=build");
    if std::env::var_os("CARGO_FEATURE_SIM").is_some() {
        sim::build();
    }
}
