//! Kernels of this build, loaded on the device when they are asked for.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::api::{checked, reason};
use super::probe::DeviceInfo;
use crate::backend::gpu::driver::{DriverError, KernelId};
use crate::backend::gpu::kernels::{self, KernelImage};

/// Dynamic shared memory that a kernel may take without asking.
const GRANTED: u32 = 48 << 10;

/// A kernel on the device.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    args_bytes: usize,
    /// Dynamic shared memory that it may take.
    shared: u32,
}

/// Modules and kernels that were loaded so far.
pub(super) struct Modules {
    /// For messages.
    device: String,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By source file.
    modules: HashMap<&'static str, sys::CUmodule>,
    /// Index into `functions`.
    names: HashMap<String, u32>,
    functions: Vec<Function>,
}

impl Modules {
    pub fn new(info: &DeviceInfo) -> Self {
        let (major, minor) = info.driver_version;
        let (cc_major, cc_minor) = info.limits.compute_capability;
        let device = format!(
            "{} (compute capability {cc_major}.{cc_minor}, a driver for CUDA {major}.{minor})",
            info.limits.name
        );
        Self { device, loaded: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number and argument length of a kernel; the context is current.
    pub fn load(&self, name: &str) -> Result<(u32, usize), DriverError> {
        let mut loaded = self.lock();
        if let Some(&index) = loaded.names.get(name) {
            return Ok((index, loaded.functions[index as usize].args_bytes));
        }
        let missing = || DriverError::MissingKernel(name.to_string());
        let image = kernels::image_of(name).ok_or_else(missing)?;
        let module = match loaded.modules.get(image.file) {
            Some(module) => *module,
            None => {
                let module = self.load_image(image)?;
                loaded.modules.insert(image.file, module);
                module
            }
        };
        let symbol = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module stays loaded until `unload`.
        let found = unsafe { result::module::get_function(module, symbol) };
        let handle = found.map_err(|e| DriverError::Launch { kernel: name.into(), reason: reason(e) })?;
        let args_bytes = args_bytes(handle, name)?;
        let index = loaded.functions.len() as u32;
        loaded.functions.push(Function { handle, args_bytes, shared: GRANTED });
        loaded.names.insert(name.to_string(), index);
        Ok((index, args_bytes))
    }

    fn load_image(&self, image: &KernelImage) -> Result<sys::CUmodule, DriverError> {
        let mut log = vec![0u8; 4 << 10];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a fatbin or text that ends in a zero, the options have the types that their names ask for,
        // and all of it outlives the call.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                image.bytes.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let Err(error) = code.result() else { return Ok(module) };
        let log = log.split(|&b| b == 0).next().map(String::from_utf8_lossy).unwrap_or_default();
        let log = if log.trim().is_empty() { String::new() } else { format!("; {}", log.trim()) };
        Err(match error.0 {
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | sys::CUresult::CUDA_ERROR_INVALID_IMAGE
            | sys::CUresult::CUDA_ERROR_INVALID_SOURCE
            | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => DriverError::Unavailable(format!(
                "{} takes none of the kernels of this build ({} by {}): {}; update the driver, or build for this GPU",
                self.device,
                image.targets.join(", "),
                kernels::compiler().unwrap_or("nvcc"),
                reason(error)
            )),
            _ => DriverError::Call {
                call: "cuModuleLoadData",
                reason: format!("{}: {}{log}", image.file, reason(error)),
            },
        })
    }

    /// The function of a loaded kernel, with leave to take `shared` bytes of dynamic shared memory; the context is current.
    pub fn function(&self, kernel: KernelId, shared: u32) -> Result<Function, DriverError> {
        let mut loaded = self.lock();
        let Some(function) = loaded.functions.get_mut(kernel.0 as usize) else {
            return Err(DriverError::MissingKernel(format!("number {}", kernel.0)));
        };
        if shared > function.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let set = unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) };
            checked("cuFuncSetAttribute", set)?;
            function.shared = shared;
        }
        Ok(*function)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in std::mem::take(&mut loaded.modules).into_values() {
            // SAFETY: loaded by `load_image`; nobody launches its functions any more.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Length of the only parameter, from the driver if it can tell (CUDA 12.4), else from the build's record.
fn args_bytes(function: sys::CUfunction, name: &str) -> Result<usize, DriverError> {
    // SAFETY: only whether the symbol is there matters; it is not called through this type.
    let known = unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuFuncGetParamInfo\0").is_ok() };
    if known {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is loaded, and both numbers are written to.
        let code = unsafe { sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut bytes) };
        checked("cuFuncGetParamInfo", code.result())?;
        return Ok(bytes);
    }
    let record = kernels::record().iter().find(|r| r.name == name);
    record.map(|r| r.param_bytes as usize).ok_or_else(|| DriverError::Launch {
        kernel: name.into(),
        reason: "neither the driver nor this build knows the length of its arguments".into(),
    })
}
