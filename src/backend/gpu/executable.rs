//! A plan on a device: its memory, its launches, and their recording.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use half::bf16;

use super::driver::{self, Driver, DriverError, LaunchTimes, LoadedKernel, Recording};
use super::launch::{Config, Launch};
use super::lower::{self, Decisions, Planned};
use super::memory::DeviceBuffer;
use super::plan_memory::Memory;
use super::{Replay, backend_error};
use crate::backend::snapshot::{Arriving, Snapshot, Stored};
use crate::backend::trace::{KernelLaunch, Step, Trace};
use crate::backend::{BackendError, Executable, Precision, Store, check_bytes, check_floats, check_length, check_part};
use crate::graph::{DType, ParamId, Plan, ValueId};

/// A plan that is ready to run on a device.
pub(super) struct GpuExecutable {
    /// Dropped before the memory that it uses.
    recording: Box<dyn Recording>,
    /// Several runs as one, and how many.
    long: Option<(usize, Box<dyn Recording>)>,
    /// What derives weights from parameters.
    prepared: Vec<Launch>,
    /// What is recorded, to be traced launch by launch.
    launches: Vec<Launch>,
    /// The nodes that each launch belongs to.
    nodes: Vec<Range<usize>>,
    /// Whether parameters were written after `prepared` last ran.
    stale: bool,
    plan: Plan,
    driver: Arc<dyn Driver>,
    memory: Memory,
}

impl GpuExecutable {
    pub fn new(
        driver: &Arc<dyn Driver>,
        plan: Plan,
        decisions: &Decisions,
        replay: Replay,
    ) -> Result<Self, BackendError> {
        let fail = |e| backend_error(driver.name(), e);
        let measured = lower::measure(&plan, decisions, driver.limits())?;
        let memory = Memory::new(driver, &plan, &measured)?;
        let lowered = lower::lower(&plan, decisions, driver.as_ref(), memory.addresses())?;
        debug_assert_eq!(
            (lowered.scratch_bytes, lowered.counter_bytes, lowered.derived_bytes),
            (measured.scratch_bytes, measured.counter_bytes, measured.derived_bytes),
            "lowering depends on addresses"
        );
        let prepared = load(driver.as_ref(), lowered.prepared).map_err(fail)?;
        let launches = load(driver.as_ref(), lowered.launches).map_err(fail)?;
        let record = |runs: usize| {
            let all = (0..runs).flat_map(|_| launches.iter().cloned()).collect();
            // SAFETY: the launchers address values, workspaces and constants of this plan, whose memory lives as long as the
            // recording; argument lengths were checked against the kernels.
            unsafe { driver.record(all, replay.overlap) }.map_err(fail)
        };
        Ok(Self {
            recording: record(1)?,
            long: if replay.runs > 1 { Some((replay.runs, record(replay.runs)?)) } else { None },
            prepared,
            launches,
            nodes: lowered.nodes,
            stale: true,
            driver: Arc::clone(driver),
            memory,
            plan,
        })
    }

    /// Enqueues `times` runs, as many as possible by the long recording.
    fn replay(&self, times: usize) -> Result<(), DriverError> {
        let mut left = times;
        if let Some((runs, long)) = &self.long {
            (0..times / runs).try_for_each(|_| long.replay())?;
            left = times % runs;
        }
        (0..left).try_for_each(|_| self.recording.replay())
    }

    /// Derives weights again from parameters that were written.
    fn prepare(&mut self) -> Result<(), BackendError> {
        if self.stale {
            for launch in &self.prepared {
                // SAFETY: as for the recording: the launchers address memory of this plan only.
                unsafe { self.driver.launch(launch) }.map_err(|e| self.device_error(e))?;
            }
            self.stale = false;
        }
        Ok(())
    }

    fn device_error(&self, error: DriverError) -> BackendError {
        backend_error(self.driver.name(), error)
    }

    /// Where a value of `len` elements lies: its buffer, byte offset and stored type.
    fn locate(&self, value: ValueId, len: usize) -> Result<(&DeviceBuffer, usize, Stored), BackendError> {
        let v = self.plan.graph().value(value);
        check_floats(v, len)?;
        let (buffer, offset) = self.place(value)?;
        Ok((buffer, offset, self.stored(v.dtype)))
    }

    /// How the elements of a type lie in memory.
    fn stored(&self, dtype: DType) -> Stored {
        match (dtype, self.plan.precision()) {
            (DType::U8, _) => Stored::Byte,
            (DType::Act, Precision::Bf16) => Stored::Bf16,
            _ => Stored::Word,
        }
    }

    /// The buffer of a value and its byte offset.
    fn place(&self, value: ValueId) -> Result<(&DeviceBuffer, usize), BackendError> {
        let place = self.plan.place(value).ok_or_else(|| BackendError::Device {
            device: self.driver.name().into(),
            reason: format!("the value {:?} was fused away and cannot be read", self.plan.graph().value(value).name),
        })?;
        Ok((self.memory.region(place.region), place.offset))
    }

    /// Byte offset of a parameter in a store.
    fn locate_param(&self, store: Store, param: ParamId, len: usize) -> Result<usize, BackendError> {
        let spec = &self.plan.graph().params()[param.index()];
        let there = self.memory.stores[store as usize].len() > 0;
        check_length(&spec.name, if there { spec.numel() } else { 0 }, len)?;
        Ok(self.plan.param_places()[param.index()].offset)
    }
}

/// A driver's snapshot with the name of the device, for errors.
struct OnItsWay {
    source: Box<dyn driver::Snapshot>,
    device: &'static str,
}

impl Arriving for OnItsWay {
    fn wait(&mut self) -> Result<&[u8], BackendError> {
        self.source.wait().map_err(|e| backend_error(self.device, e))
    }

    fn arrived(&self) -> bool {
        self.source.arrived()
    }
}

fn to_bf16(data: &[f32]) -> Vec<bf16> {
    data.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Loads each kernel once and checks that launcher and kernel agree on the argument structure.
fn load(driver: &dyn Driver, planned: Vec<Planned>) -> Result<Vec<Launch>, DriverError> {
    let mut loaded: HashMap<String, LoadedKernel> = HashMap::new();
    planned
        .into_iter()
        .map(|Planned { kernel: name, config, args }| {
            let kernel = match loaded.get(&name) {
                Some(kernel) => *kernel,
                None => *loaded.entry(name.clone()).or_insert(driver.load(&name)?),
            };
            if kernel.args_bytes != args.bytes().len() {
                let reason = format!("takes {} bytes, its launcher gives {}", kernel.args_bytes, args.bytes().len());
                return Err(DriverError::Launch { kernel: name, reason });
            }
            Ok(Launch { name, kernel: kernel.id, config, args })
        })
        .collect()
}

impl Executable for GpuExecutable {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError> {
        let (buffer, offset, stored) = self.locate(value, data.len())?;
        let written = match stored {
            Stored::Word | Stored::Byte => buffer.write(offset, bytemuck::cast_slice(data)),
            Stored::Bf16 => buffer.write(offset, bytemuck::cast_slice(&to_bf16(data))),
        };
        written.map_err(|e| self.device_error(e))
    }

    fn write_repeated(&mut self, value: ValueId, pattern: &[f32]) -> Result<(), BackendError> {
        let len = self.plan.graph().shape(value).numel();
        check_length("a repeated pattern", pattern.len().max(1), pattern.len())?;
        let (buffer, offset, stored) = self.locate(value, len)?;
        let written = match stored {
            Stored::Word | Stored::Byte => buffer.write_repeated(offset, 4 * len, bytemuck::cast_slice(pattern)),
            Stored::Bf16 => buffer.write_repeated(offset, 2 * len, bytemuck::cast_slice(&to_bf16(pattern))),
        };
        written.map_err(|e| self.device_error(e))
    }

    fn write_u32(&mut self, value: ValueId, data: &[u32]) -> Result<(), BackendError> {
        let (buffer, offset, _) = self.locate(value, data.len())?;
        buffer.write(offset, bytemuck::cast_slice(data)).map_err(|e| self.device_error(e))
    }

    fn read_f32(&self, value: ValueId, data: &mut [f32]) -> Result<(), BackendError> {
        check_floats(self.plan.graph().value(value), data.len())?;
        self.read_part(value, 0, data)
    }

    fn read_part(&self, value: ValueId, first: usize, data: &mut [f32]) -> Result<(), BackendError> {
        let of = self.plan.graph().value(value);
        check_part(of, first, data.len())?;
        let (buffer, offset, stored) = self.locate(value, of.shape.numel())?;
        match stored {
            Stored::Word | Stored::Byte => {
                buffer.read(offset + 4 * first, bytemuck::cast_slice_mut(data)).map_err(|e| self.device_error(e))
            }
            Stored::Bf16 => {
                let mut halves = vec![bf16::ZERO; data.len()];
                buffer
                    .read(offset + 2 * first, bytemuck::cast_slice_mut(&mut halves))
                    .map_err(|e| self.device_error(e))?;
                data.iter_mut().zip(halves).for_each(|(x, h)| *x = h.to_f32());
                Ok(())
            }
        }
    }

    fn read_u8(&self, value: ValueId, data: &mut [u8]) -> Result<(), BackendError> {
        check_bytes(self.plan.graph().value(value), data.len())?;
        let (buffer, offset) = self.place(value)?;
        buffer.read(offset, data).map_err(|e| self.device_error(e))
    }

    fn snapshot(&mut self, value: ValueId) -> Result<Snapshot, BackendError> {
        let of = self.plan.graph().value(value);
        let stored = self.stored(of.dtype);
        let bytes = of.shape.numel() * of.dtype.bytes(self.plan.precision());
        let (buffer, offset) = self.place(value)?;
        let source = buffer.snapshot(offset, bytes).map_err(|e| self.device_error(e))?;
        Ok(Snapshot::new(Box::new(OnItsWay { source, device: self.driver.name() }), stored))
    }

    fn write_param(&mut self, store: Store, param: ParamId, data: &[f32]) -> Result<(), BackendError> {
        let offset = self.locate_param(store, param, data.len())?;
        self.stale |= store == Store::Params;
        let write = || {
            self.memory.stores[store as usize].write(offset, bytemuck::cast_slice(data))?;
            if store == Store::Params && self.plan.precision() == Precision::Bf16 {
                self.memory.mirror.write(offset / 2, bytemuck::cast_slice(&to_bf16(data)))?;
            }
            Ok(())
        };
        write().map_err(|e| self.device_error(e))
    }

    fn read_param(&self, store: Store, param: ParamId, data: &mut [f32]) -> Result<(), BackendError> {
        let offset = self.locate_param(store, param, data.len())?;
        let read = self.memory.stores[store as usize].read(offset, bytemuck::cast_slice_mut(data));
        read.map_err(|e| self.device_error(e))
    }

    fn run(&mut self) -> Result<(), BackendError> {
        self.run_many(1)
    }

    fn run_many(&mut self, times: usize) -> Result<(), BackendError> {
        self.prepare()?;
        self.replay(times).map_err(|e| self.device_error(e))
    }

    fn finish(&mut self) -> Result<(), BackendError> {
        self.driver.synchronize().map_err(|e| self.device_error(e))
    }

    fn run_timed(&mut self, times: usize) -> Result<Duration, BackendError> {
        self.prepare()?;
        self.driver.elapsed(&mut || self.replay(times)).map_err(|e| self.device_error(e))
    }

    fn trace(&mut self, times: usize) -> Result<Trace, BackendError> {
        self.prepare()?;
        // SAFETY: as for the recording: the launches address memory of this plan only.
        let traced = unsafe { self.driver.trace(&self.launches, times) };
        let LaunchTimes { runs, overhead } = traced.map_err(|e| self.device_error(e))?;
        let step = |(launch, nodes): (&Launch, &Range<usize>)| {
            let Config { grid, block, shared, .. } = launch.config;
            Step {
                nodes: nodes.clone(),
                kernel: Some(KernelLaunch { name: launch.name.clone(), grid, block, shared_bytes: shared }),
            }
        };
        Ok(Trace { steps: self.launches.iter().zip(&self.nodes).map(step).collect(), runs, overhead })
    }

    fn memory_bytes(&self) -> usize {
        self.memory.buffers().map(DeviceBuffer::len).sum()
    }
}

impl Drop for GpuExecutable {
    fn drop(&mut self) {
        // Memory must not be freed under work that still uses it; an error has been reported by the call that met it.
        let _ = self.driver.synchronize();
    }
}
