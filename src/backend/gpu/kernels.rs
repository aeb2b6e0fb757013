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
    /// How long nvcc took, in seconds, with as many others at the same time as cargo had jobs.
    pub nvcc_seconds: f64,
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
    /// What the machine code is made of; `None` where the build found no nvdisasm.
    pub code: Option<MachineCode>,
}

/// Instructions of one kernel on one architecture, counted in what nvdisasm shows; no-operations do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MachineCode {
    /// All of them.
    pub instructions: u32,
    /// Matrix products of a warpgroup (HGMMA, and its kin of other types).
    pub wgmma: u32,
    /// How many loops lie around the innermost of them; 0 where they run once.
    pub wgmma_loops: u32,
    /// Matrix products of a warp (HMMA, and its kin of other types).
    pub mma: u32,
    /// How many loops lie around the innermost of them.
    pub mma_loops: u32,
    /// Loads and stores of local memory (LDL, STL).
    pub local: u32,
    /// Loads through tensor maps (UTMALDG).
    pub tma_loads: u32,
    /// Stores and reductions through tensor maps (UTMASTG, UTMAREDG).
    pub tma_stores: u32,
}

mod embedded {
    #[allow(unused_imports)] // No record, or no machine code in it.
    use super::{KernelImage, KernelRecord, MachineCode};
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

/// Seconds that nvcc took for all images, added up.
pub fn nvcc_seconds() -> f64 {
    images().iter().map(|image| image.nvcc_seconds).sum()
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
