//! The kernels that `build.rs` compiled with nvcc and embedded, and what each takes of the hardware.

/// One file of `kernels/`, compiled.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage {
    /// Source, below `kernels/`.
    pub file: &'static str,
    /// What `cuModuleLoadData` takes: a fatbin, or PTX that ends with NUL (`WARPDIFF_KERNELS=ptx`). Aligned to 16 bytes.
    pub bytes: &'static [u8],
    /// What it runs on: machine code (`sm_80`) or PTX for that and newer chips (`compute_90`).
    pub targets: &'static [&'static str],
    /// Its kernels, sorted.
    pub kernels: &'static [&'static str],
}

/// What one kernel takes on one architecture, as ptxas reported it when the crate was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KernelRecord {
    /// Name of the kernel.
    pub name: &'static str,
    /// Architecture, as in `sm_90a`.
    pub arch: &'static str,
    /// 32-bit registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block in bytes. For a kernel that also takes dynamic shared memory: where that begins.
    pub shared_bytes: u32,
    /// Local memory of a thread in bytes: arrays that did not fit into registers, and what was spilled.
    pub stack_bytes: u32,
    /// Bytes a thread writes to local memory because registers ran out.
    pub spill_stores: u32,
    /// Bytes a thread reads back.
    pub spill_loads: u32,
    /// Bytes of the parameters.
    pub param_bytes: u32,
}

mod embedded {
    use super::{KernelImage, KernelRecord};
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// The images in this build, one a kernel file; empty when it was built without nvcc (see [`missing`]).
pub fn images() -> &'static [KernelImage] {
    embedded::IMAGES
}

/// Every kernel on every architecture it was compiled for, by file, then name, then architecture.
pub fn record() -> &'static [KernelRecord] {
    embedded::RECORD
}

/// The image that holds a kernel.
pub fn image_of(kernel: &str) -> Option<&'static KernelImage> {
    images().iter().find(|image| image.kernels.contains(&kernel))
}

/// Version of the nvcc that compiled the images, and where it was found.
pub fn compiler() -> Option<&'static str> {
    embedded::COMPILER
}

/// Why this build has no images, and what to do about it; `None` when it has them.
pub fn missing() -> Option<&'static str> {
    embedded::MISSING
}

/// What the images run on, sorted: machine code (`sm_80`) and PTX (`compute_90`).
pub fn targets() -> Vec<&'static str> {
    let mut targets: Vec<_> = images().iter().flat_map(|image| image.targets).copied().collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}
