//! Dynamic scheduling of numbered tasks on the current rayon pool, one scratch slice per worker.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `body(task, scratch)` once for every task in `0..tasks`, on at most `workers` threads of the current pool.
///
/// Each worker owns `per_worker` floats of `scratch` and takes the next task number when it is free, so which thread
/// runs a task is not fixed: a body must write only what belongs to its task. Nothing is allocated (`rayon::join`
/// keeps its jobs on the stack).
pub(crate) fn for_each_task(
    workers: usize,
    tasks: usize,
    scratch: &mut [f32],
    per_worker: usize,
    body: &(impl Fn(usize, &mut [f32]) + Sync),
) {
    let workers = workers.min(tasks).max(1);
    assert!(
        scratch.len() >= workers * per_worker,
        "scratch: {} floats for {workers} workers of {per_worker}",
        scratch.len()
    );
    let next = AtomicUsize::new(0);
    fan_out(workers, &mut scratch[..workers * per_worker], per_worker, &|scratch: &mut [f32]| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            body(task, scratch);
        }
    });
}

fn fan_out(workers: usize, scratch: &mut [f32], per_worker: usize, work: &(impl Fn(&mut [f32]) + Sync)) {
    if workers == 1 {
        return work(scratch);
    }
    let left = workers / 2;
    let (a, b) = scratch.split_at_mut(left * per_worker);
    rayon::join(|| fan_out(left, a, per_worker, work), || fan_out(workers - left, b, per_worker, work));
}

/// A pointer to an output that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: the pointer is only dereferenced in tasks that write disjoint elements while the `&mut` borrow it was made
// from is held by the function that fans the tasks out.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn ptr(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_scratch_is_private() {
        for (workers, tasks) in [(1, 5), (2, 1), (3, 17), (4, 0)] {
            let mut hits = vec![0.0f32; tasks.max(1)];
            let out = SharedMut::new(&mut hits);
            let mut scratch = vec![0.0; 4 * 7];
            for_each_task(workers, tasks, &mut scratch, 7, &|task, mine| {
                assert_eq!(mine.len(), 7);
                mine.fill(task as f32);
                // SAFETY: each task writes its own element.
                unsafe { *out.ptr().add(task) += 1.0 };
                assert!(mine.iter().all(|&v| v == task as f32));
            });
            assert!(hits[..tasks].iter().all(|&h| h == 1.0));
        }
    }
}
