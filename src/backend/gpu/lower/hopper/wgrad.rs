//! Weight gradients by `kernels/conv/wgrad_sm90.cuh`: tensor maps, taps and the layout of a slot.

use bytemuck::{Pod, Zeroable};

use super::image::{Line, image_view};
use super::views::{View, Views, views};
use crate::backend::BackendError;
use crate::backend::gpu::choice::pixel::{DEPTH, is_line};
use crate::backend::gpu::choice::{
    BARRIER_BYTES, LINE_BYTES, Pass, Patch, PixelChoice, PixelProblem, SLAB, THREADS, choose_pixel, takes_pixel,
};
use crate::backend::gpu::driver::{DevicePtr, TensorMap};
use crate::backend::gpu::lower::Lowering;
use crate::backend::gpu::lower::conv::{Images, blocks, int};
use crate::graph::ConvGeometry;

/// Pixels that lie 128 bytes apart in an operand; the next ones may lie anywhere.
const GROUP: usize = 8;
/// The tile of ones, behind the slots.
const ONES_BYTES: usize = 256;
/// Views of x: one, or four where the stride is 2.
const MOST_VIEWS: usize = 4;
/// Taps of a filter.
const MOST_TAPS: usize = 9;

/// `struct WgradTap` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TapArgs {
    view: i32,
    x: i32,
    y: i32,
}

/// `struct HopperWgradArgs` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HopperWgradArgs {
    dy: TensorMap,
    x: [TensorMap; MOST_VIEWS],
    dw: DevicePtr,
    db: DevicePtr,
    split_elements: i64,
    rows: i32,
    channels: i32,
    kernel_taps: i32,
    tap_groups: i32,
    column_tiles: i32,
    tiles: i32,
    items: i32,
    patch_w: i32,
    patch_h: i32,
    patch_n: i32,
    patches_x: i32,
    patches_y: i32,
    patches: i32,
    split_patches: i32,
    dy_box_bytes: u32,
    x_box_bytes: u32,
    x_boxes: u32,
    tap_bytes: u32,
    chunk_bytes: u32,
    group_bytes: u32,
    slots: u32,
    slot_bytes: u32,
    ragged: u32,
    taps: [TapArgs; MOST_TAPS],
    padding: [u32; 8],
}

/// Where the sums go: those of split `i` begin `i * split_elements` floats on.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::gpu::lower) struct Sums {
    pub dw: DevicePtr,
    /// Null if nobody asks for it.
    pub db: DevicePtr,
    pub split_elements: usize,
}

/// One weight gradient that these kernels compute, and how.
#[derive(Clone, Debug)]
pub(in crate::backend::gpu::lower) struct Wgrad {
    geometry: ConvGeometry,
    dy: Images,
    x: Images,
    /// What the taps read of x, as in the forward pass.
    views: Views,
    choice: PixelChoice,
    layout: Layout,
}

/// How the pixels of x lie in a slot, behind those of dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Pixels of a copy of 64 channels.
    copied: Patch,
    /// Copies of 64 channels.
    boxes: usize,
    tap_bytes: usize,
    chunk_bytes: usize,
    group_bytes: usize,
}

impl Layout {
    /// A copy a tap.
    fn taps(patch: Patch, taps: usize, chunks: usize) -> Self {
        Self {
            copied: patch,
            boxes: taps,
            tap_bytes: chunks * DEPTH * LINE_BYTES,
            chunk_bytes: DEPTH * LINE_BYTES,
            group_bytes: GROUP * LINE_BYTES,
        }
    }

    /// One copy, wider by what the taps reach: a group of eight pixels is a line of the patch, and lies in a line of the
    /// copy.
    fn halo(patch: Patch, taps: usize) -> Self {
        let width = GROUP + taps - 1;
        Self {
            copied: Patch { w: width, ..patch },
            boxes: 1,
            tap_bytes: LINE_BYTES,
            chunk_bytes: DEPTH / GROUP * width * LINE_BYTES,
            group_bytes: width * LINE_BYTES,
        }
    }

    fn of(choice: &PixelChoice, stride: usize, shifted_operands: bool) -> Self {
        let (patch, taps) = (choice.patch, choice.taps_a_tile);
        if shifted_operands && stride == 1 && taps > 1 && patch.w == GROUP {
            Self::halo(patch, taps)
        } else {
            Self::taps(patch, taps, choice.columns / SLAB)
        }
    }

    /// Bytes of a slot with `chunks` times 64 channels of x.
    fn slot_bytes(&self, chunks: usize) -> usize {
        2 * DEPTH * LINE_BYTES + self.boxes * chunks * self.chunk_bytes
    }
}

impl Wgrad {
    /// None where the kernels do not take the layer.
    pub fn new(ctx: &Lowering, geometry: &ConvGeometry, dy: Images, x: Images) -> Option<Self> {
        let problem =
            PixelProblem::new(geometry, dy.count, (x.height, x.width), (dy.height, dy.width), x.channels, dy.channels)
                .with_precision(ctx.precision());
        if takes_pixel(&problem, ctx.limits()).is_err() || !takes_geometry(geometry) {
            return None;
        }
        let (dy, x) = if is_line(geometry) { (dy.as_line(), x.as_line()) } else { (dy, x) };
        let views = views(Pass::Fprop, geometry, (x.height, x.width), (dy.height, dy.width)).ok()?;
        let choice = choose_pixel(&problem, ctx.limits(), Some(ctx.tuning()));
        let layout = Layout::of(&choice, geometry.stride, ctx.limits().shifted_operands);
        Some(Self { geometry: *geometry, dy, x, views, choice, layout })
    }

    /// Parts of the depth, each with sums of its own.
    pub fn splits(&self) -> usize {
        self.choice.splits
    }

    /// Slots of the ring in the shared memory of the choice.
    fn slots(&self) -> (usize, usize) {
        let slot_bytes = self.layout.slot_bytes(self.choice.columns / SLAB);
        ((self.choice.shared_bytes - ONES_BYTES - BARRIER_BYTES) / slot_bytes, slot_bytes)
    }
}

/// One or three taps in a filter row, and at most four views.
fn takes_geometry(geometry: &ConvGeometry) -> bool {
    [(1, 1), (3, 3)].contains(&geometry.kernel) && geometry.stride <= 2
}

/// Launches `dw = transpose(dy) * x` and `db` for every split; the operands lie at `dy` and `x`.
pub(in crate::backend::gpu::lower) fn launch(
    ctx: &mut Lowering,
    wgrad: &Wgrad,
    (dy, x): (DevicePtr, DevicePtr),
    sums: Sums,
) -> Result<(), BackendError> {
    let Wgrad { geometry, views, choice, layout, .. } = wgrad;
    let (patch, (kernel_h, kernel_w)) = (choice.patch, geometry.kernel);
    let map = |at, images: &Images, view: &View, copied: Patch| {
        let (count, size) = (images.count, (images.height, images.width));
        ctx.tensor_map(&image_view(at, Line::BF16, images.channels, count, size, view, [copied.w, copied.h, copied.n]))
    };
    let mut sources = [TensorMap([0; 16]); MOST_VIEWS];
    for (source, view) in sources.iter_mut().zip(&views.sources) {
        *source = map(x, &wgrad.x, view, layout.copied)?;
    }
    let phase = &views.phases[0];
    let mut taps = [TapArgs { view: 0, x: 0, y: 0 }; MOST_TAPS];
    for (args, tap) in taps.iter_mut().zip(&phase.taps) {
        *args = TapArgs { view: tap.view as i32, x: tap.x as i32, y: tap.y as i32 };
    }
    let (slots, slot_bytes) = wgrad.slots();
    let args = HopperWgradArgs {
        dy: map(dy, &wgrad.dy, &phase.out, patch)?,
        x: sources,
        dw: sums.dw,
        db: sums.db,
        split_elements: sums.split_elements as i64,
        rows: int(wgrad.dy.channels)?,
        channels: int(wgrad.x.channels)?,
        kernel_taps: int(kernel_h * kernel_w)?,
        tap_groups: int(kernel_h * choice.tap_tiles)?,
        column_tiles: int(choice.channel_tiles)?,
        tiles: int(choice.tiles())?,
        items: int(choice.items)?,
        patch_w: int(patch.w)?,
        patch_h: int(patch.h)?,
        patch_n: int(patch.n)?,
        patches_x: int(choice.patches.0)?,
        patches_y: int(choice.patches.1)?,
        patches: int(choice.patches.0 * choice.patches.1 * choice.patches.2)?,
        split_patches: int(choice.patches_a_split)?,
        dy_box_bytes: (patch.pixels() * LINE_BYTES) as u32,
        x_box_bytes: (layout.copied.pixels() * LINE_BYTES) as u32,
        x_boxes: layout.boxes as u32,
        tap_bytes: layout.tap_bytes as u32,
        chunk_bytes: layout.chunk_bytes as u32,
        group_bytes: layout.group_bytes as u32,
        slots: slots as u32,
        slot_bytes: slot_bytes as u32,
        ragged: u32::from(patch.pixels() < DEPTH),
        taps,
        padding: [0; 8],
    };
    let grid = choice.items.min(ctx.limits().multiprocessors as usize);
    ctx.launch(&choice.kernel(), [blocks(grid)?, 1, 1], THREADS, choice.shared_bytes as u32, &args);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Precision;
    use crate::backend::gpu::driver::DeviceLimits;
    use crate::backend::gpu::lower::{Decisions, Planned, measure};
    use crate::graph::{DType, Graph, Op, Plan};

    const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
    const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };

    fn device(capability: (u32, u32), shifted_operands: bool) -> DeviceLimits {
        DeviceLimits {
            name: "test".into(),
            compute_capability: capability,
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            memory_bytes: 1 << 40,
            shifted_operands,
        }
    }

    /// The launches of one weight gradient.
    fn launches(
        geometry: ConvGeometry,
        [n, h, w, c]: [usize; 4],
        k: usize,
        precision: Precision,
        limits: &DeviceLimits,
    ) -> Vec<Planned> {
        let (oh, ow) = geometry.output_size(h, w).unwrap();
        let mut graph = Graph::new();
        let dy = graph.input("dy", [n, oh, ow, k].as_slice(), DType::Act);
        let x = graph.input("x", [n, h, w, c].as_slice(), DType::Act);
        let outputs = graph.push(Op::ConvWgrad { geometry, bias: true }, &[dy, x]).unwrap();
        outputs.iter().for_each(|&v| graph.keep(v));
        measure(&Plan::new(graph).relaid(precision), &Decisions::default(), limits).unwrap().launches
    }

    fn args(launch: &Planned) -> HopperWgradArgs {
        *bytemuck::from_bytes(launch.args.bytes())
    }

    #[test]
    fn layers_take_the_kernel_that_can() {
        let name = |geometry, c, k, precision, capability| {
            launches(geometry, [2, 16, 16, c], k, precision, &device(capability, true))[0].kernel.clone()
        };
        let bf16 = Precision::Bf16;
        // As many taps as a filter row has; 64 channels under each, or 128 if there are more.
        assert_eq!(name(ConvGeometry::SAME_3X3, 64, 128, bf16, (9, 0)), "conv_hopper_wgrad_3x64_bf16");
        assert_eq!(name(HALVING, 40, 128, bf16, (9, 0)), "conv_hopper_wgrad_3x64_bf16");
        assert_eq!(name(POINTWISE, 32, 128, bf16, (9, 0)), "conv_hopper_wgrad_1x64_bf16");
        assert!(name(ConvGeometry::SAME_3X3, 128, 128, bf16, (9, 0)).starts_with("conv_hopper_wgrad_3x"));
        let many = launches(ConvGeometry::SAME_3X3, [256, 32, 32, 256], 256, bf16, &device((9, 0), true));
        assert_eq!(many[0].kernel, "conv_hopper_wgrad_3x128_bf16");
        let wide = ConvGeometry { kernel: (5, 5), stride: 1, padding: (2, 2, 2, 2) };
        for (geometry, c, k, precision, capability) in [
            (ConvGeometry::SAME_3X3, 128, 128, bf16, (8, 0)),
            (ConvGeometry::SAME_3X3, 128, 128, Precision::F32, (9, 0)),
            (ConvGeometry::SAME_3X3, 24, 128, bf16, (9, 0)),
            (ConvGeometry::SAME_3X3, 128, 3, bf16, (9, 0)),
            (ConvGeometry::SAME_3X3, 100, 128, bf16, (9, 0)),
            (wide, 128, 128, bf16, (9, 0)),
        ] {
            let name = name(geometry, c, k, precision, capability);
            assert!(!name.contains("hopper"), "{name}: {geometry:?}, {c} -> {k}");
        }
    }

    #[test]
    fn one_copy_serves_three_taps_where_operands_may_be_shifted() {
        let layer = |geometry, size, shifted| {
            let all = launches(geometry, size, 128, Precision::Bf16, &device((9, 0), shifted));
            let (a, columns) = (args(&all[0]), if all[0].kernel.contains("128") { 128 } else { 64 });
            (a.x_boxes, a.x_box_bytes, a.tap_bytes * 64 / columns, a.chunk_bytes, a.group_bytes)
        };
        let taps = (3, 8192, 8192, 8192, 1024);
        let halo = layer(ConvGeometry::SAME_3X3, [9, 32, 32, 64], true);
        assert_eq!(halo, (1, 10240, 128, 10240, 1280));
        assert_eq!(layer(ConvGeometry::SAME_3X3, [9, 32, 32, 128], false), taps);
        // No group of eight pixels is a line of a patch, or neighbouring taps read two views.
        assert_eq!(layer(ConvGeometry::SAME_3X3, [16, 4, 4, 128], true), taps);
        assert_eq!(layer(HALVING, [9, 32, 32, 128], true), taps);
    }

    #[test]
    fn slots_fit_the_block_and_the_swizzle() {
        for geometry in [ConvGeometry::SAME_3X3, POINTWISE, HALVING] {
            for (h, w) in [(2, 2), (4, 4), (7, 7), (8, 8), (9, 17), (32, 32)] {
                for (c, k) in [(32, 32), (128, 256), (136, 72)] {
                    for shifted in [true, false] {
                        let limits = device((9, 0), shifted);
                        let all = launches(geometry, [3, h, w, c], k, Precision::Bf16, &limits);
                        let (a, shared) = (args(&all[0]), all[0].config.shared);
                        let place = format!("{geometry:?} {h}x{w} {c}->{k}");
                        assert!(a.slots >= 2 && a.slot_bytes % 1024 == 0, "{place}");
                        let needed = a.slots * a.slot_bytes + ONES_BYTES as u32 + a.slots * 16;
                        assert!(needed <= shared && shared <= limits.shared_bytes, "{place}: {needed}, {shared}");
                        let x_bytes = a.slot_bytes - 2 * (DEPTH * LINE_BYTES) as u32;
                        assert!(a.x_box_bytes <= a.chunk_bytes && a.chunk_bytes <= x_bytes, "{place}");
                        assert_eq!(a.ragged == 1, a.patch_w * a.patch_h * a.patch_n < 64, "{place}");
                        let splits = a.items / a.tiles;
                        assert!((splits - 1) * a.split_patches < a.patches && splits * a.split_patches >= a.patches);
                        assert_eq!(all.len(), if splits > 1 { 2 } else { 1 }, "{place}");
                    }
                }
            }
        }
    }
}
