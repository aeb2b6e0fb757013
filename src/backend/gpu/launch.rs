//! A launch as data: kernel, configuration and arguments, all decided when a plan is compiled.

use bytemuck::Pod;

use super::driver::KernelId;

/// Alignment of argument structures; that of a tensor map, the strictest.
const ALIGN: usize = 64;

/// The bytes of a kernel's only parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

impl Args {
    /// A copy of an argument structure.
    pub fn new<A: Pod>(args: &A) -> Self {
        let bytes = bytemuck::bytes_of(args);
        let mut lines = vec![Line([0; ALIGN]); bytes.len().div_ceil(ALIGN)];
        bytemuck::cast_slice_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Self { lines, len: bytes.len() }
    }

    /// The structure, aligned to 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

/// Grid, block and shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// One launch of a loaded kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name for reports.
    pub name: String,
    /// The kernel.
    pub kernel: KernelId,
    /// How many threads.
    pub config: Config,
    /// Its argument structure.
    pub args: Args,
}
