//! How long each part of a plan takes: what [`Executable::trace`](super::Executable::trace) returns.

use std::ops::Range;
use std::time::Duration;

/// A launch of a kernel, or a whole operation where there are no kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The nodes of the plan's graph that it computes.
    pub nodes: Range<usize>,
    /// The kernel and how it is launched; none on a CPU.
    pub kernel: Option<KernelLaunch>,
}

/// How a kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLaunch {
    /// Its name.
    pub name: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// Some runs of a plan, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// In the order of execution.
    pub steps: Vec<Step>,
    /// Of each run, the time from the end of the step before to the end of each step.
    pub runs: Vec<Vec<Duration>>,
    /// What a step without work would show: the cost of taking the time.
    pub overhead: Duration,
}

impl Trace {
    /// Median time of each step over the runs, in microseconds; zeros without a run.
    pub fn medians_us(&self) -> Vec<f64> {
        let median = |step: usize| {
            let mut times: Vec<f64> = self.runs.iter().map(|run| run[step].as_secs_f64() * 1e6).collect();
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        (0..self.steps.len()).map(median).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_step() {
        let us = |times: [u64; 2]| times.map(Duration::from_micros).to_vec();
        let steps = (0..2).map(|node| Step { nodes: node..node + 1, kernel: None }).collect();
        let trace = Trace { steps, runs: vec![us([5, 1]), us([1, 9]), us([3, 2])], overhead: Duration::ZERO };
        assert_eq!(trace.medians_us(), [3.0, 2.0]);
        assert_eq!(Trace { runs: vec![], ..trace }.medians_us(), [0.0, 0.0]);
    }
}
