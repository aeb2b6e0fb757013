//! Every operation of the CUDA kernels against the f64 reference, in the simulator or on a GPU.

mod common;
mod gpu {
    mod attention;
    mod candidates;
    mod checked;
    mod classifier;
    mod conv;
    mod diffusion;
    mod elementwise;
    mod embedding;
    mod fusions;
    mod graphs;
    mod hopper;
    mod hopper_wgrad;
    mod layers;
    mod linear;
    mod norm;
    mod norm_sources;
    mod optim;
    mod sampling;
    mod trace;
}
