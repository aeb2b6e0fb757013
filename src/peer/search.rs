//! Trying a library's algorithms and keeping the fastest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;

use super::{Algorithm, Call, Peer, PeerError, ResultType, WORKSPACE};
use crate::backend::gpu::driver::cuda::Cuda;
use crate::backend::gpu::driver::{DevicePtr, Driver, DriverError, Recording};
use crate::backend::gpu::memory::DeviceBuffer;
use crate::bench::program::Noise;
use crate::bench::{Pass, Product};

/// Bytes of memory that nothing wrote yet: NaN in every floating-point type.
const POISON: u8 = 0xFF;
/// Alignment of each operand.
const ALIGN: usize = 256;
/// An algorithm is tried for so long, several times.
const TRIAL: Duration = Duration::from_millis(1);

/// A product as the peer computes it fastest, on rotated copies of the operands.
pub struct PeerProduct {
    /// Dropped before what it uses.
    fastest: Trial,
    memory: Memory,
    cuda: Arc<Cuda>,
    /// Algorithms that were tried and ran.
    pub tried: usize,
    /// Algorithms that the library proposed.
    pub proposed: usize,
    /// Element type of the result.
    pub result: ResultType,
}

/// An algorithm with its recording.
struct Trial {
    recording: Box<dyn Recording>,
    algorithm: Box<dyn Algorithm>,
    workspace: DeviceBuffer,
    time: Duration,
}

/// Operands and results of all copies.
struct Memory {
    buffers: [DeviceBuffer; 3],
    strides: [usize; 3],
    copies: usize,
}

impl Memory {
    fn call(&self, copy: usize, workspace: &DeviceBuffer) -> Call {
        let at = |i: usize| self.buffers[i].ptr().offset(copy * self.strides[i]);
        let workspace_bytes = workspace.len();
        Call { operands: [at(0), at(1)], result: at(2), workspace: workspace.ptr(), workspace_bytes }
    }
}

impl Peer {
    /// Prepares a pass of a product on `copies` copies of bf16 operands, the numbers of `noise`.
    ///
    /// Algorithms are tried in the order in which the library proposes them until `search` is over; at least one is. The
    /// result is of the wanted type, or bf16 where the library has no other.
    ///
    /// # Errors
    /// If no algorithm runs, or the device fails.
    pub fn prepare(
        &self,
        product: &Product,
        pass: Pass,
        copies: usize,
        noise: &Noise,
        wanted: ResultType,
        search: Duration,
    ) -> Result<PeerProduct, PeerError> {
        match self.prepare_as(product, pass, copies, noise, wanted, search) {
            Err(PeerError::NoAlgorithm { .. } | PeerError::Call { .. }) if wanted == ResultType::F32 => {
                self.prepare_as(product, pass, copies, noise, ResultType::Bf16, search)
            }
            other => other,
        }
    }

    fn prepare_as(
        &self,
        product: &Product,
        pass: Pass,
        copies: usize,
        noise: &Noise,
        result: ResultType,
        search: Duration,
    ) -> Result<PeerProduct, PeerError> {
        let begin = Instant::now();
        let algorithms = self.cuda.call(|_| self.library.propose(product, pass, result))??;
        let proposed = algorithms.len();
        let memory = self.operands(product, pass, copies, noise, result)?;
        let (mut fastest, mut tried, mut reason) = (None::<Trial>, 0, String::from("it proposes none"));
        for algorithm in algorithms {
            if tried > 0 && begin.elapsed() > search {
                break;
            }
            match self.attempt(algorithm, &memory) {
                Ok(trial) => {
                    tried += 1;
                    if fastest.as_ref().is_none_or(|f| trial.time < f.time) {
                        fastest = Some(trial);
                    }
                }
                Err(error) => {
                    // Work that failed on the device leaves it unusable, which the next call would be blamed for.
                    self.cuda.synchronize()?;
                    reason = error.to_string();
                }
            }
        }
        let Some(fastest) = fastest else {
            let what = format!("{} of {product}", pass.name());
            return Err(PeerError::NoAlgorithm { library: self.library.name(), what, proposed, reason });
        };
        Ok(PeerProduct { fastest, memory, cuda: Arc::clone(&self.cuda), tried, proposed, result })
    }

    fn operands(
        &self,
        product: &Product,
        pass: Pass,
        copies: usize,
        noise: &Noise,
        result: ResultType,
    ) -> Result<Memory, PeerError> {
        let driver: Arc<dyn Driver> = Arc::clone(&self.cuda) as _;
        let elements = product.operands(pass);
        let bytes = [2 * elements[0], 2 * elements[1], result.bytes() * elements[2]];
        let strides = bytes.map(|b| b.next_multiple_of(ALIGN));
        let buffer = |i: usize| DeviceBuffer::filled(&driver, strides[i] * copies, POISON);
        let buffers = [buffer(0)?, buffer(1)?, buffer(2)?];
        for copy in 0..copies {
            for operand in 0..2 {
                let pattern = noise.pattern(copy, operand, elements[operand]);
                let halves: Vec<bf16> = pattern.iter().map(|&x| bf16::from_f32(x)).collect();
                let to = copy * strides[operand];
                buffers[operand].write_repeated(to, bytes[operand], bytemuck::cast_slice(&halves))?;
            }
        }
        Ok(Memory { buffers, strides, copies })
    }

    /// Runs an algorithm once by itself, so that whatever it loads is loaded, then records and times it.
    fn attempt(&self, mut algorithm: Box<dyn Algorithm>, memory: &Memory) -> Result<Trial, PeerError> {
        let bytes = self.cuda.call(|_| algorithm.prepare())??;
        if bytes > WORKSPACE {
            let what = format!("in {} MiB of workspace: {} needs {}", WORKSPACE >> 20, algorithm.name(), bytes >> 20);
            return Err(PeerError::Unsupported { library: self.library.name(), what });
        }
        let driver: Arc<dyn Driver> = Arc::clone(&self.cuda) as _;
        let workspace = DeviceBuffer::filled(&driver, bytes, 0)?;
        // SAFETY: prepared above; the memory has the lengths of the product, and outlives the work, which is waited for.
        self.cuda.call(|stream| unsafe { algorithm.enqueue(&memory.call(0, &workspace), stream) })??;
        self.cuda.synchronize()?;
        // SAFETY: `Trial` keeps the algorithm and its workspace, `PeerProduct` the operands, longer than the recording.
        let recording = unsafe {
            self.cuda.record_calls(|stream| {
                (0..memory.copies).try_for_each(|copy| algorithm.enqueue(&memory.call(copy, &workspace), stream))
            })?
        };
        recording.replay()?;
        let once = elapsed(&self.cuda, recording.as_ref(), 1)?;
        let replays = (TRIAL.as_secs_f64() / once.as_secs_f64().max(1e-7)).ceil().min(1000.0) as usize;
        let mut time = once;
        for _ in 0..3 {
            time = time.min(elapsed(&self.cuda, recording.as_ref(), replays)? / replays as u32);
        }
        Ok(Trial { recording, algorithm, workspace, time })
    }
}

fn elapsed(cuda: &Cuda, recording: &dyn Recording, replays: usize) -> Result<Duration, DriverError> {
    cuda.elapsed(&mut || (0..replays).try_for_each(|_| recording.replay()))
}

impl PeerProduct {
    /// Time of some replays; each has a launch for every copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn timed(&mut self, replays: usize) -> Result<Duration, PeerError> {
        Ok(elapsed(&self.cuda, self.fastest.recording.as_ref(), replays)?)
    }

    /// What the library calls the algorithm.
    pub fn algorithm(&self) -> String {
        self.fastest.algorithm.name()
    }

    /// Bytes of its workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.fastest.workspace.len()
    }

    /// Poisons all results and computes them again, so that [`PeerProduct::read_part`] sees what the recording makes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn compute(&mut self) -> Result<(), PeerError> {
        let results = &self.memory.buffers[2];
        // SAFETY: the range is the whole allocation.
        unsafe { self.cuda.fill(results.ptr(), POISON, results.len())? };
        self.fastest.recording.replay()?;
        Ok(self.cuda.synchronize()?)
    }

    /// Reads a part of the result of a copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read_part(&self, copy: usize, first: usize, data: &mut [f32]) -> Result<(), PeerError> {
        let at = copy * self.memory.strides[2] + first * self.result.bytes();
        match self.result {
            ResultType::F32 => self.memory.buffers[2].read(at, bytemuck::cast_slice_mut(data))?,
            ResultType::Bf16 => {
                let mut halves = vec![bf16::ZERO; data.len()];
                self.memory.buffers[2].read(at, bytemuck::cast_slice_mut(&mut halves))?;
                data.iter_mut().zip(halves).for_each(|(x, h)| *x = h.to_f32());
            }
        }
        Ok(())
    }
}

impl Drop for PeerProduct {
    fn drop(&mut self) {
        // Memory must not be freed under work that still uses it; an error has been reported by the call that met it.
        let _ = self.cuda.synchronize();
    }
}

/// The address as a library takes it.
pub(super) fn address(at: DevicePtr) -> *mut std::ffi::c_void {
    at.0 as *mut _
}
