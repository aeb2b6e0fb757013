//! Looking for a driver and a GPU, without ever failing otherwise than by a message.

use cudarc::driver::{result, sys};

use super::api::{checked, reason};
use crate::backend::gpu::driver::{DeviceLimits, DriverError};
use crate::backend::gpu::kernels;

/// The oldest driver interface that has every function that is called here.
const OLDEST_DRIVER: (u32, u32) = (12, 0);
/// bf16 tensor cores and asynchronous copies begin here.
const OLDEST_GPU: (u32, u32) = (8, 0);

/// What the driver says of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What launches are configured by.
    pub limits: DeviceLimits,
    /// The CUDA version (major, minor) that the driver offers.
    pub driver_version: (u32, u32),
    /// The driver's own version, where the system tells it.
    pub driver_release: Option<String>,
    /// Highest clock of the multiprocessors in kHz.
    pub clock_khz: u32,
    /// Width of the memory bus in bits.
    pub memory_bus_bits: u32,
    /// Bytes of the L2 cache.
    pub l2_bytes: u32,
}

impl DeviceInfo {
    /// Whether the kernels of this build run on it.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`]: what is missing, and what to do.
    pub fn check(&self) -> Result<(), DriverError> {
        let (major, minor) = self.limits.compute_capability;
        if (major, minor) < OLDEST_GPU {
            let (least, _) = OLDEST_GPU;
            return Err(unavailable(format!(
                "the GPU {} has compute capability {major}.{minor}, the kernels need {least}.0 or later; use --device cpu",
                self.limits.name
            )));
        }
        kernels::missing().map_or(Ok(()), |why| Err(unavailable(format!("this build has no CUDA kernels: {why}"))))
    }

    /// What the kernels can use of it.
    pub fn features(&self) -> Vec<&'static str> {
        let (major, minor) = self.limits.compute_capability;
        let mut features = Vec::new();
        if major >= 8 {
            features.extend(["bf16 tensor cores", "asynchronous copies"]);
        }
        if (major, minor) == (9, 0) {
            features.extend(["TMA", "wgmma"]);
        } else if major > 9 {
            features.push("TMA");
        }
        features
    }
}

/// A GPU and its handle.
pub(super) struct Found {
    pub device: sys::CUdevice,
    pub info: DeviceInfo,
}

fn unavailable(why: impl Into<String>) -> DriverError {
    DriverError::Unavailable(why.into())
}

/// The first GPU that the driver lists.
pub(super) fn find() -> Result<Found, DriverError> {
    // Before anything else of cudarc: its functions panic without a library.
    // SAFETY: loading the driver runs its initialisers, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("libcuda.so.1 was not found: install an NVIDIA driver, or use --device cpu"));
    }
    let driver_version = driver_version()?;
    if driver_version < OLDEST_DRIVER {
        let ((a, b), (c, d)) = (driver_version, OLDEST_DRIVER);
        return Err(unavailable(format!(
            "the NVIDIA driver is too old: it offers CUDA {a}.{b}, this build needs {c}.{d} or later; update the driver, \
             or use --device cpu"
        )));
    }
    let none = "the driver found no NVIDIA GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu";
    match result::init() {
        Ok(()) => {}
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(unavailable(none)),
        Err(e) => {
            return Err(unavailable(format!(
                "the NVIDIA driver does not start: {}; check nvidia-smi, or use --device cpu",
                reason(e)
            )));
        }
    }
    if checked("cuDeviceGetCount", result::device::get_count())? == 0 {
        return Err(unavailable(none));
    }
    let device = checked("cuDeviceGet", result::device::get(0))?;
    Ok(Found { device, info: describe(device, driver_version)? })
}

fn driver_version() -> Result<(u32, u32), DriverError> {
    let mut version = 0;
    // SAFETY: the number is written to; the function needs no initialisation.
    checked("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version).result() })?;
    let version = version.max(0) as u32;
    Ok((version / 1000, version % 1000 / 10))
}

/// From a line such as "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 ...".
fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    release_in(&text).map(str::to_string)
}

fn release_in(text: &str) -> Option<&str> {
    let is_release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_release)
}

fn describe(device: sys::CUdevice, driver_version: (u32, u32)) -> Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute as A;
    let attribute = |which| {
        // SAFETY: the device exists.
        let value = checked("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })?;
        Ok::<u32, DriverError>(value.max(0) as u32)
    };
    let limits = DeviceLimits {
        name: checked("cuDeviceGetName", result::device::get_name(device))?,
        compute_capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: the device exists.
        memory_bytes: checked("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })?,
        shifted_operands: false,
    };
    Ok(DeviceInfo {
        limits,
        driver_version,
        driver_release: driver_release(),
        clock_khz: attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_bus_bits: attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(compute_capability: (u32, u32)) -> DeviceInfo {
        DeviceInfo {
            limits: DeviceLimits {
                name: "Tesla T4".into(),
                compute_capability,
                multiprocessors: 40,
                shared_bytes: 64 << 10,
                memory_bytes: 15 << 30,
                shifted_operands: false,
            },
            driver_version: (13, 0),
            driver_release: None,
            clock_khz: 1_590_000,
            memory_bus_bits: 256,
            l2_bytes: 4 << 20,
        }
    }

    #[test]
    fn an_old_gpu_is_refused_by_name() {
        let error = info((7, 5)).check().unwrap_err().to_string();
        assert!(error.contains("Tesla T4") && error.contains("7.5") && error.contains("8.0"), "{error}");
        assert!(info((7, 5)).features().is_empty());
    }

    #[test]
    fn features_follow_the_compute_capability() {
        assert_eq!(info((8, 0)).features(), ["bf16 tensor cores", "asynchronous copies"]);
        assert!(info((9, 0)).features().contains(&"wgmma"));
        // Machine code for sm_90a does not run on later chips.
        assert!(!info((10, 0)).features().contains(&"wgmma") && info((10, 0)).features().contains(&"TMA"));
    }

    #[test]
    fn the_release_is_the_first_dotted_number() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)\nGCC version: 12.2.0";
        assert_eq!(release_in(text), Some("580.65.06"));
        assert_eq!(release_in(""), None);
    }
}
