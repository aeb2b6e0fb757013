//! The CPU as a device that computes beside the host: snapshots arrive only when somebody waits for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warpdiff::backend::snapshot::{Arriving, Snapshot, Stored};
use warpdiff::backend::trace::Trace;
use warpdiff::backend::{Backend, BackendError, Executable, Store, cpu::Cpu};
use warpdiff::graph::{ParamId, Plan, ValueId};

/// A CPU whose snapshots are late.
pub struct Late {
    cpu: Cpu,
    /// Runs that were begun.
    pub runs: Arc<AtomicUsize>,
    /// For each snapshot that was read: the runs begun when it was taken, and when it was read.
    pub read: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Late {
    pub fn new() -> Self {
        Self { cpu: Cpu::new(Some(2)).unwrap(), runs: Arc::default(), read: Arc::default() }
    }
}

impl Backend for Late {
    fn name(&self) -> &'static str {
        "late"
    }

    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>, BackendError> {
        let exe = self.cpu.compile(plan)?;
        Ok(Box::new(LateExecutable { exe, runs: Arc::clone(&self.runs), read: Arc::clone(&self.read) }))
    }
}

struct LateExecutable {
    exe: Box<dyn Executable>,
    runs: Arc<AtomicUsize>,
    read: Arc<Mutex<Vec<(usize, usize)>>>,
}

struct LateBytes {
    bytes: Vec<u8>,
    taken: usize,
    runs: Arc<AtomicUsize>,
    read: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Arriving for LateBytes {
    fn wait(&mut self) -> Result<&[u8], BackendError> {
        self.read.lock().unwrap().push((self.taken, self.runs.load(Ordering::Relaxed)));
        Ok(&self.bytes)
    }

    fn arrived(&self) -> bool {
        false
    }
}

impl Executable for LateExecutable {
    fn plan(&self) -> &Plan {
        self.exe.plan()
    }

    fn write_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError> {
        self.exe.write_f32(value, data)
    }

    fn write_u32(&mut self, value: ValueId, data: &[u32]) -> Result<(), BackendError> {
        self.exe.write_u32(value, data)
    }

    fn read_f32(&self, value: ValueId, data: &mut [f32]) -> Result<(), BackendError> {
        self.exe.read_f32(value, data)
    }

    fn read_u8(&self, value: ValueId, data: &mut [u8]) -> Result<(), BackendError> {
        self.exe.read_u8(value, data)
    }

    fn snapshot(&mut self, value: ValueId) -> Result<Snapshot, BackendError> {
        let mut now = self.exe.snapshot(value)?;
        let bytes = now.bytes()?.to_vec();
        let stored = if bytes.len() == self.plan().graph().shape(value).numel() { Stored::Byte } else { Stored::Word };
        let taken = self.runs.load(Ordering::Relaxed);
        let late = LateBytes { bytes, taken, runs: Arc::clone(&self.runs), read: Arc::clone(&self.read) };
        Ok(Snapshot::new(Box::new(late), stored))
    }

    fn write_param(&mut self, store: Store, param: ParamId, data: &[f32]) -> Result<(), BackendError> {
        self.exe.write_param(store, param, data)
    }

    fn read_param(&self, store: Store, param: ParamId, data: &mut [f32]) -> Result<(), BackendError> {
        self.exe.read_param(store, param, data)
    }

    fn run(&mut self) -> Result<(), BackendError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.exe.run()
    }

    fn run_timed(&mut self, times: usize) -> Result<Duration, BackendError> {
        self.exe.run_timed(times)
    }

    fn trace(&mut self, times: usize) -> Result<Trace, BackendError> {
        self.exe.trace(times)
    }

    fn memory_bytes(&self) -> usize {
        self.exe.memory_bytes()
    }
}
