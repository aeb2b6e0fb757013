//! Every operation of the CUDA kernels against the f64 reference, in the simulator.

mod common;
mod gpu {
    mod attention;
    mod conv;
    mod elementwise;
    mod embedding;
    mod linear;
    mod norm;
}
