//! Every operation of the CUDA kernels against the f64 reference, in the simulator.

mod common;
mod gpu {
    mod diffusion;
    mod elementwise;
    mod graphs;
    mod optim;
    mod sampling;
}
