//! The tables of `kernels/conv/image_args.cuh` and `kernels/conv/sum_taps.cu`.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::choice::LINE_BYTES;
use crate::backend::gpu::driver::{DevicePtr, TensorMap};
use crate::backend::gpu::lower::fast_divide::FastDivide;

/// Bytes of a bf16.
pub(super) const BF16: usize = 2;
/// Bytes of a slab of one pixel.
pub(super) const LINE: usize = LINE_BYTES;
/// Lengths of the arrays in the arguments.
pub(super) const VIEWS: usize = 4;
pub(super) const TAPS: usize = 16;
pub(super) const PHASES: usize = 4;

/// `struct ImageTap` of `kernels/conv/image_args.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct TapArgs {
    pub view: i16,
    pub filter: i16,
    pub x: i16,
    pub y: i16,
    pub shift: u32,
}

/// `struct ImagePhase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct PhaseArgs {
    pub first_tap: i32,
    pub taps: i32,
    pub steps: i32,
}

/// `struct ImageArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ImageArgs {
    pub sources: [TensorMap; VIEWS],
    pub filter: TensorMap,
    pub out: [TensorMap; PHASES],
    pub residual: [TensorMap; PHASES],
    pub taps: [TapArgs; TAPS],
    pub phases: [PhaseArgs; PHASES],
    pub direct_out: DevicePtr,
    pub direct_residual: DevicePtr,
    pub bias: DevicePtr,
    pub per_image: DevicePtr,
    pub partial: DevicePtr,
    pub tickets: DevicePtr,
    pub statistics: DevicePtr,
    pub column_scale: DevicePtr,
    pub images: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub columns: i32,
    pub source_slabs: i32,
    pub source_channels: i32,
    pub source_views: i32,
    pub patch: [i32; 3],
    pub patches: [i32; 3],
    pub column_tiles: i32,
    pub items: i32,
    pub split: i32,
    pub segment_steps: i32,
    pub box_each_tap: i32,
    pub source_box_bytes: u32,
    pub source_slot_bytes: u32,
    pub source_slots: u32,
    pub filter_slots: u32,
    pub group_bytes: u32,
    pub block_bytes: u32,
    pub has_residual: i32,
    pub scale: f32,
    pub cell_w: i32,
    pub cell_h: i32,
    pub phase_count: i32,
    pub padding: [u32; 7],
}

/// `struct SumTapsArgs` of `kernels/conv/sum_taps.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SumTapsArgs {
    pub filter: DevicePtr,
    pub out: DevicePtr,
    pub vectors: u32,
    pub columns: FastDivide,
}
