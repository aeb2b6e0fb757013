//! Every operation of the CUDA kernels against the f64 reference, in the simulator.

mod common;
mod gpu {
    mod diffusion;
    mod elementwise;
    mod embedding;
    mod graphs;
    mod norm;
    mod optim;
    mod sampling;
}
