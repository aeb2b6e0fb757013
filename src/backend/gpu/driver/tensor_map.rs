//! Tensor maps: what the TMA unit copies between a tensor in device memory and a box in shared memory.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, DriverError};

/// How a box lies in shared memory: 16-byte pieces of a row are exchanged by the row's number within a span of that many
/// bytes, so that matrix operands are read without bank conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// As it is.
    #[default]
    None,
    /// Rows of at most 32 bytes.
    Bytes32,
    /// Rows of at most 64 bytes.
    Bytes64,
    /// Rows of at most 128 bytes.
    Bytes128,
}

impl Swizzle {
    /// Bytes that a row of the box may have.
    fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }
}

/// What a tensor map says. Dimensions go from the innermost, which is dense, to the outermost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// The first element; a multiple of 16 bytes.
    pub base: DevicePtr,
    /// 1 (fp8), 2 (bf16) or 4 (f32).
    pub element_bytes: u32,
    /// Elements along each dimension; copies see zeros beyond.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next along each dimension but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements that one copy takes along each dimension, 1 to 256.
    pub box_dims: Vec<u32>,
    /// Layout in shared memory.
    pub swizzle: Swizzle,
}

/// The encoded form, part of a kernel's arguments (`TensorMap` of `kernels/device/tma.cuh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

impl TensorMapSpec {
    /// Bytes of one copy.
    pub fn box_bytes(&self) -> u64 {
        self.box_dims.iter().map(|&n| u64::from(n)).product::<u64>() * u64::from(self.element_bytes)
    }

    /// Whether the TMA unit can do this, by the rules of `cuTensorMapEncodeTiled`: every device refuses the same maps.
    ///
    /// # Errors
    /// [`DriverError::Call`] with the rule that is broken.
    pub fn check(&self) -> Result<(), DriverError> {
        self.broken_rule().map_or(Ok(()), |reason| Err(DriverError::Call { call: "tensor map", reason }))
    }

    fn broken_rule(&self) -> Option<String> {
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return Some(format!("{rank} dimensions, 1 to 5 are possible"));
        }
        if self.strides.len() != rank - 1 || self.box_dims.len() != rank {
            let (strides, extents) = (self.strides.len(), self.box_dims.len());
            return Some(format!("{rank} dimensions with {strides} strides and {extents} extents of the box"));
        }
        if ![1, 2, 4].contains(&self.element_bytes) {
            return Some(format!("elements of {} bytes, 1, 2 or 4 are possible", self.element_bytes));
        }
        if !self.base.0.is_multiple_of(16) {
            return Some(format!("the tensor begins at {:#x}, no multiple of 16 bytes", self.base.0));
        }
        if let Some(dim) = self.dims.iter().find(|&&n| n == 0 || n > 1 << 32) {
            return Some(format!("a dimension of {dim} elements, 1 to 2^32 are possible"));
        }
        if let Some(stride) = self.strides.iter().find(|&&s| s % 16 != 0 || s >= 1 << 40) {
            return Some(format!("a stride of {stride} bytes, no multiple of 16 below 2^40"));
        }
        if let Some(extent) = self.box_dims.iter().find(|&&n| n == 0 || n > 256) {
            return Some(format!("a box of {extent} elements along a dimension, 1 to 256 are possible"));
        }
        let row = u64::from(self.box_dims[0]) * u64::from(self.element_bytes);
        if row % 16 != 0 {
            return Some(format!("rows of {row} bytes in the box, no multiple of 16"));
        }
        let span = self.swizzle.span().filter(|&span| row > span)?;
        Some(format!("rows of {row} bytes in the box, at most {span} with this swizzle"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An NHWC image of 72 channels, 9 wide, 5 high, and a box of 64 channels of 8 x 4 pixels.
    fn image() -> TensorMapSpec {
        TensorMapSpec {
            base: DevicePtr(0x4000),
            element_bytes: 2,
            dims: vec![72, 9, 5, 3],
            strides: vec![144, 1296, 6480],
            box_dims: vec![64, 8, 4, 1],
            swizzle: Swizzle::Bytes128,
        }
    }

    #[test]
    fn maps_within_the_rules_pass() {
        image().check().unwrap();
        assert_eq!(image().box_bytes(), 4096);
        let line = TensorMapSpec { dims: vec![8], strides: vec![], box_dims: vec![8], ..image() };
        line.check().unwrap();
        // Without a swizzle a row has any length.
        let wide = TensorMapSpec { box_dims: vec![72, 8, 4, 1], swizzle: Swizzle::None, ..image() };
        wide.check().unwrap();
        TensorMapSpec { element_bytes: 4, box_dims: vec![32, 256, 1, 1], ..image() }.check().unwrap();
    }

    #[test]
    fn every_broken_rule_is_named() {
        let broken = [
            (TensorMapSpec { dims: vec![], ..image() }, "0 dimensions"),
            (TensorMapSpec { dims: vec![8; 6], ..image() }, "6 dimensions"),
            (TensorMapSpec { strides: vec![144, 1296], ..image() }, "2 strides"),
            (TensorMapSpec { box_dims: vec![64, 8, 4], ..image() }, "3 extents"),
            (TensorMapSpec { element_bytes: 8, ..image() }, "8 bytes, 1, 2 or 4"),
            (TensorMapSpec { base: DevicePtr(0x4008), ..image() }, "0x4008, no multiple of 16"),
            (TensorMapSpec { dims: vec![72, 0, 5, 3], ..image() }, "dimension of 0"),
            (TensorMapSpec { dims: vec![72, 9, 5, (1 << 32) + 1], ..image() }, "dimension of 4294967297"),
            (TensorMapSpec { strides: vec![136, 1296, 6480], ..image() }, "stride of 136"),
            (TensorMapSpec { strides: vec![144, 1296, 1 << 40], ..image() }, "stride of 1099511627776"),
            (TensorMapSpec { box_dims: vec![64, 0, 4, 1], ..image() }, "box of 0"),
            (TensorMapSpec { box_dims: vec![64, 8, 257, 1], ..image() }, "box of 257"),
            (TensorMapSpec { box_dims: vec![60, 8, 4, 1], ..image() }, "120 bytes in the box, no multiple"),
            (TensorMapSpec { box_dims: vec![72, 8, 4, 1], ..image() }, "144 bytes in the box, at most 128"),
            (TensorMapSpec { swizzle: Swizzle::Bytes64, ..image() }, "at most 64"),
            (TensorMapSpec { swizzle: Swizzle::Bytes32, ..image() }, "at most 32"),
        ];
        for (spec, words) in broken {
            let message = spec.check().unwrap_err().to_string();
            assert!(message.starts_with("tensor map: ") && message.contains(words), "{message}: {words}");
        }
    }
}
