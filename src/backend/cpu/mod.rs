//! The fast f32 CPU backend: hand-written matrix products, convolutions and attention on NHWC tensors.
//!
//! Every kernel gives the same bits for the same image whatever the batch size and the thread count: the order in which
//! the terms of one output element are added depends only on the geometry of one image.

mod activation;
mod attention;
mod classifier;
pub mod conv;
mod executor;
mod fir;
pub mod gemm;
mod layers;
mod lines;
mod math;
mod memory;
mod norm;
mod optimizer;
mod parallel;
mod pointwise;
mod sampling;
mod simd;
mod training;

use std::sync::Arc;

pub use simd::{Isa, isa, limit_isa};

use super::{Backend, BackendError, Executable};
use crate::graph::Plan;

/// The backend of `--device cpu`.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
}

impl Cpu {
    /// A backend with its own threads; as many as there are cores, unless `threads` says otherwise.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the system refuses to start threads.
    pub fn new(threads: Option<usize>) -> Result<Self, BackendError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("warpdiff-{i}"))
            .build()
            .map_err(|e| BackendError::Unavailable {
                device: "cpu".into(),
                reason: format!("{e}; try fewer threads"),
            })?;
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>, BackendError> {
        let plan = plan.relaid(self.precision());
        Ok(Box::new(executor::CpuExecutable::new(plan, Arc::clone(&self.pool))?))
    }
}
