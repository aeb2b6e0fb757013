//! Whether wgmma takes operands that begin between two blocks of the swizzle: found out by trying.
//!
//! What the tensor core does then is written nowhere. A kernel multiplies small integers, whose products and sums are
//! exact, and every bit is compared. See `kernels/gemm/shifted_operand_probe_sm90.cu`.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Driver, DriverError, Swizzle, TensorMap, TensorMapSpec};
use crate::backend::gpu::launch::{Args, Config, Launch};

const KERNEL: &str = "gemm_shifted_operand_probe";
/// As in the kernel: rows of the box between groups of eight, rows of the box, and both sides of a product.
const PITCH: usize = 10;
const ROWS: usize = 104;
const SIDE: usize = 64;
/// Every tap of a 3x3 filter on a box that wide, and all between.
const SHIFTS: usize = 2 * PITCH + 3;
const PRODUCT: usize = SIDE * SIDE;
/// Box, tile and barrier.
const SHARED_BYTES: usize = (ROWS + SIDE) * 128 + 16;

/// `struct ShiftedOperandArgs` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProbeArgs {
    boxed: TensorMap,
    tile: TensorMap,
    by_row: DevicePtr,
    by_depth: DevicePtr,
    /// To the alignment of a map.
    padding: [u64; 6],
}

/// Runs the probe.
///
/// # Errors
/// What the device says.
pub(super) fn probe(driver: &dyn Driver) -> Result<bool, DriverError> {
    Ok(agrees(&products(driver)?))
}

/// Small integers without a pattern: -4 to 4.
fn value(row: usize, column: usize) -> i32 {
    let mixed = (row as u32 * 64 + column as u32 + 1).wrapping_mul(0x9E37_79B1);
    (mixed >> 16) as i32 % 9 - 4
}

fn box_value(row: usize, column: usize) -> i32 {
    value(row, column)
}

fn tile_value(row: usize, column: usize) -> i32 {
    value(ROWS + row, column)
}

fn row_of(i: usize) -> usize {
    i / 8 * PITCH + i % 8
}

/// What the kernel computes: all products by row, then all by depth.
fn expected(index: usize) -> f32 {
    let (by_depth, shift) = (index / (SHIFTS * PRODUCT) == 1, index / PRODUCT % SHIFTS);
    let (m, n) = (index / SIDE % SIDE, index % SIDE);
    let term = |k: usize| match by_depth {
        true => tile_value(m, k) * box_value(row_of(k) + shift, n),
        false => box_value(row_of(m) + shift, k) * tile_value(n, k),
    };
    (0..SIDE).map(term).sum::<i32>() as f32
}

fn agrees(products: &[f32]) -> bool {
    products.len() == 2 * SHIFTS * PRODUCT && products.iter().enumerate().all(|(i, &p)| p == expected(i))
}

/// What the device computes.
fn products(driver: &dyn Driver) -> Result<Vec<f32>, DriverError> {
    // bf16 has the upper half of f32's bits.
    let half = |v: i32| ((v as f32).to_bits() >> 16) as u16;
    let boxed: Vec<u16> = (0..ROWS * SIDE).map(|i| half(box_value(i / SIDE, i % SIDE))).collect();
    let tile: Vec<u16> = (0..SIDE * SIDE).map(|i| half(tile_value(i / SIDE, i % SIDE))).collect();
    let mut products = vec![f32::NAN; 2 * SHIFTS * PRODUCT];
    let (box_bytes, tile_bytes, out_bytes) = (size_of_val(&*boxed), size_of_val(&*tile), size_of_val(&*products));
    let total = box_bytes + tile_bytes + out_bytes;
    let at = driver.allocate(total)?;
    let (at_tile, out) = (at.offset(box_bytes), at.offset(box_bytes + tile_bytes));
    let run = |products: &mut [f32]| {
        let map = |base, rows: usize| {
            driver.tensor_map(&TensorMapSpec {
                base,
                element_bytes: 2,
                dims: vec![SIDE as u64, rows as u64],
                strides: vec![2 * SIDE as u64],
                box_dims: vec![SIDE as u32, rows as u32],
                swizzle: Swizzle::Bytes128,
            })
        };
        let args = ProbeArgs {
            boxed: map(at, ROWS)?,
            tile: map(at_tile, SIDE)?,
            by_row: out,
            by_depth: out.offset(out_bytes / 2),
            padding: [0; 6],
        };
        let kernel = driver.load(KERNEL)?;
        let given = size_of_val(&args);
        if kernel.args_bytes != given {
            let reason = format!("takes {} bytes, the probe gives {given}", kernel.args_bytes);
            return Err(DriverError::Launch { kernel: KERNEL.into(), reason });
        }
        let config = Config { grid: [SHIFTS as u32, 1, 1], block: 128, cluster: 1, shared: SHARED_BYTES as u32 };
        let launch = Launch { name: KERNEL.into(), kernel: kernel.id, config, args: Args::new(&args) };
        // SAFETY: all ranges lie in the allocation, which lives until the download has waited for the kernel.
        unsafe {
            driver.upload(at, bytemuck::cast_slice(&boxed))?;
            driver.upload(at_tile, bytemuck::cast_slice(&tile))?;
            driver.fill(out, 0xFF, out_bytes)?;
            driver.launch(&launch)?;
            driver.download(out, bytemuck::cast_slice_mut(products))
        }
    };
    let ran = run(&mut products);
    // SAFETY: allocated above, and nothing runs on it any more.
    unsafe { driver.free(at, total) };
    ran.map(|()| products)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::backend::gpu::driver::sim::{Async, Options, Schedule, Sim};

    #[test]
    fn the_simulator_swizzles_by_address() {
        for asynchronous in [Async::Eager, Async::Late] {
            let sim = Sim::new(Options { asynchronous, schedule: Schedule::Lifo, ..Options::default() });
            assert!(probe(&sim).unwrap());
            assert!(sim.limits().shifted_operands);
        }
        let older = Sim::new(Options { capability: (8, 0), ..Options::default() });
        assert!(!older.limits().shifted_operands);
    }

    /// Any wrong element fails: first, last, and one of every product.
    #[test]
    fn one_wrong_element_is_seen() {
        let right: Vec<f32> = (0..2 * SHIFTS * PRODUCT).map(expected).collect();
        assert!(agrees(&right));
        for product in 0..2 * SHIFTS {
            for wrong in [f32::NAN, right[product * PRODUCT + 77 * product % PRODUCT] + 1.0] {
                let mut products = right.clone();
                products[product * PRODUCT + 77 * product % PRODUCT] = wrong;
                assert!(!agrees(&products), "product {product}, {wrong}");
            }
        }
        assert!(!agrees(&right[1..]) && !agrees(&[]));
    }

    /// Were the swizzle taken from the position in the operand, every shift but multiples of a block would show it: 16-byte
    /// pieces of a row would be exchanged otherwise.
    #[test]
    fn the_other_way_to_swizzle_gives_other_products() {
        let swizzled =
            |row: usize, position: usize, k: usize| box_value(row, ((k / 8) ^ (row % 8) ^ (position % 8)) * 8 + k % 8);
        for shift in (0..SHIFTS).filter(|shift| shift % 8 != 0) {
            let other = |m: usize, n: usize| {
                let term = |k| swizzled(row_of(m) + shift, m, k) * tile_value(n, k);
                (0..SIDE).map(term).sum::<i32>() as f32
            };
            let differs = |i: &usize| other(i / SIDE, i % SIDE) != expected(shift * PRODUCT + i);
            assert!((0..PRODUCT).filter(differs).count() > PRODUCT / 2, "shift {shift}");
        }
    }
}
