//! Tensor maps of the driver API.

use cudarc::driver::sys;

use super::api::checked;
use crate::backend::gpu::driver::{DriverError, Swizzle, TensorMap, TensorMapSpec};

/// Encodes a map that [`TensorMapSpec::check`] let pass; the context is current.
pub(super) fn encode(spec: &TensorMapSpec) -> Result<TensorMap, DriverError> {
    use sys::CUtensorMapDataType as T;
    use sys::CUtensorMapSwizzle as S;
    let data_type = match spec.element_bytes {
        1 => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match spec.swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have as many elements as the rank says, and the address is not followed.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            data_type,
            spec.dims.len() as u32,
            spec.base.0 as *mut _,
            spec.dims.as_ptr(),
            spec.strides.as_ptr(),
            spec.box_dims.as_ptr(),
            [1; 5].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    checked("cuTensorMapEncodeTiled", code.result())?;
    Ok(TensorMap(map.opaque))
}
