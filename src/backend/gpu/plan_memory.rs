//! The device memory of a plan, and the batch that would fit where it does not.

use std::cell::Cell;
use std::sync::Arc;

use super::backend_error;
use super::driver::{Driver, DriverError};
use super::lower::{Addresses, Lowered};
use super::memory::DeviceBuffer;
use crate::backend::{BackendError, Precision, Store};
use crate::graph::{Graph, Op, Plan, Region, Source};

/// Every byte of memory that nothing wrote yet: NaN in every floating-point type.
const POISON: u8 = 0xFF;

/// The device memory of a plan.
pub(super) struct Memory {
    persistent: DeviceBuffer,
    arena: DeviceBuffer,
    grads: DeviceBuffer,
    /// In the order of [`Store::ALL`]; moments and average only with an optimiser.
    pub stores: [DeviceBuffer; 4],
    /// The parameters in bf16, where activations are bf16.
    pub mirror: DeviceBuffer,
    scratch: DeviceBuffer,
    constants: DeviceBuffer,
    /// Tickets, which every launch leaves at zero.
    counters: DeviceBuffer,
    /// What prepared launches make of the parameters.
    derived: DeviceBuffer,
    /// Moments that products store for norms.
    moments: DeviceBuffer,
}

impl Memory {
    /// Allocates everything that a plan needs, with the workspace, constants and tickets of its launches.
    ///
    /// # Errors
    /// [`BackendError::DeviceMemory`] with the batch that would fit, or what the device says.
    pub fn new(driver: &Arc<dyn Driver>, plan: &Plan, measured: &Lowered) -> Result<Self, BackendError> {
        let taken = Cell::new(0);
        let filled = |bytes: usize, value| {
            let buffer = DeviceBuffer::filled(driver, bytes, value)?;
            taken.set(taken.get() + bytes);
            Ok(buffer)
        };
        let allocated = Self::allocate(filled, plan, measured);
        allocated.map_err(|error| match error {
            DriverError::OutOfMemory { asked, free } => {
                let batch = fitting_batch(plan, measured, free + taken.get());
                BackendError::DeviceMemory { asked, free, batch }
            }
            other => backend_error(driver.name(), other),
        })
    }

    fn allocate(
        filled: impl Fn(usize, u8) -> Result<DeviceBuffer, DriverError>,
        plan: &Plan,
        measured: &Lowered,
    ) -> Result<Self, DriverError> {
        let params = plan.region_bytes(Region::Params);
        let moment = if optimises(plan.graph()) { params } else { 0 };
        let zeroed = |bytes| filled(bytes, 0);
        let memory = Self {
            persistent: zeroed(plan.region_bytes(Region::Persistent))?,
            stores: [zeroed(params)?, zeroed(moment)?, zeroed(moment)?, zeroed(moment)?],
            grads: zeroed(plan.region_bytes(Region::Grads))?,
            mirror: zeroed(mirror_bytes(plan))?,
            arena: filled(plan.region_bytes(Region::Arena), POISON)?,
            scratch: filled(measured.scratch_bytes, POISON)?,
            constants: zeroed(measured.constants.len())?,
            counters: zeroed(measured.counter_bytes)?,
            derived: filled(measured.derived_bytes, POISON)?,
            moments: filled(measured.moment_bytes, POISON)?,
        };
        memory.constants.write(0, &measured.constants)?;
        Ok(memory)
    }

    /// Where everything lies, for the launchers.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            persistent: self.persistent.ptr(),
            arena: self.arena.ptr(),
            grads: self.grads.ptr(),
            stores: self.stores.each_ref().map(DeviceBuffer::ptr),
            mirror: self.mirror.ptr(),
            scratch: self.scratch.ptr(),
            constants: self.constants.ptr(),
            counters: self.counters.ptr(),
            derived: self.derived.ptr(),
            moments: self.moments.ptr(),
        }
    }

    /// All buffers.
    pub fn buffers(&self) -> impl Iterator<Item = &DeviceBuffer> {
        let Self { persistent, arena, grads, stores, mirror, scratch, constants, counters, derived, moments } = self;
        let single = [persistent, arena, grads, mirror, scratch, constants, counters, derived, moments];
        single.into_iter().chain(stores)
    }

    /// The buffer of a region.
    pub fn region(&self, region: Region) -> &DeviceBuffer {
        match region {
            Region::Persistent => &self.persistent,
            Region::Params => &self.stores[Store::Params as usize],
            Region::Grads => &self.grads,
            Region::Arena => &self.arena,
        }
    }
}

/// Whether a run changes the parameters.
pub(super) fn optimises(graph: &Graph) -> bool {
    graph.nodes().iter().any(|n| matches!(n.op, Op::AdamW(_)))
}

fn mirror_bytes(plan: &Plan) -> usize {
    if plan.precision() == Precision::Bf16 { plan.region_bytes(Region::Params) / 2 } else { 0 }
}

/// The largest batch whose plan takes no more than `room` bytes: values and workspace grow with it, parameters do not.
fn fitting_batch(plan: &Plan, measured: &Lowered, room: usize) -> Option<usize> {
    let kept = plan.graph().values().iter().filter(|v| matches!(v.source, Source::Input | Source::State));
    let batch = kept.filter(|v| v.shape.rank() == 4).map(|v| v.shape.batch()).max()?;
    let stores = if optimises(plan.graph()) { Store::ALL.len() } else { 1 };
    let weights = plan.region_bytes(Region::Params) * stores + mirror_bytes(plan) + measured.derived_bytes;
    let fixed = weights + plan.region_bytes(Region::Grads);
    let values = plan.region_bytes(Region::Persistent) + plan.region_bytes(Region::Arena);
    let growing = values + measured.scratch_bytes + measured.moment_bytes;
    Some(room.checked_sub(fixed)? / growing.div_ceil(batch).max(1)).filter(|&n| n > 0)
}
