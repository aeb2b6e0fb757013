//! The functions of `cublasLt.h` that are called, and owners of what they make.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::rc::Rc;

use libloading::Library;

use crate::peer::library::Wanted;
use crate::peer::{PeerError, ResultType};

// Names and values of the headers (library_types.h, cublas_api.h, cublasLt.h).
const CUDA_R_32F: c_int = 0;
const CUDA_R_16BF: c_int = 14;
const CUBLAS_STATUS_SUCCESS: c_int = 0;
const CUBLAS_OP_N: c_int = 0;
const CUBLAS_OP_T: c_int = 1;
const CUBLAS_COMPUTE_32F: c_int = 68;
const CUBLASLT_MATMUL_DESC_TRANSA: c_int = 3;
const CUBLASLT_MATMUL_DESC_TRANSB: c_int = 4;
const CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: c_int = 1;

const WANTED: Wanted = Wanted { files: &["libcublasLt.so.13", "libcublasLt.so.12"], package: "nvidia-cublas" };

/// Checks that the library and its functions are there.
pub fn find(folder: Option<&Path>) -> Result<(), PeerError> {
    Api::load(folder).map(drop)
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HeuristicResult {
    algorithm: [u64; 8],
    /// Workspace that it needs.
    pub workspace_bytes: usize,
    state: c_int,
    /// How many times it fills the device.
    pub waves: f32,
    reserved: [c_int; 4],
}

type Status = c_int;
type Create = unsafe extern "C" fn(*mut *mut c_void) -> Status;
type Destroy = unsafe extern "C" fn(*mut c_void) -> Status;
type SetAttribute = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> Status;

/// The loaded functions.
pub struct Api {
    create: Create,
    destroy: Destroy,
    version: unsafe extern "C" fn() -> usize,
    status_string: unsafe extern "C" fn(Status) -> *const c_char,
    desc_create: unsafe extern "C" fn(*mut *mut c_void, c_int, c_int) -> Status,
    desc_destroy: Destroy,
    desc_set: SetAttribute,
    layout_create: unsafe extern "C" fn(*mut *mut c_void, c_int, u64, u64, i64) -> Status,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_destroy: Destroy,
    preference_set: SetAttribute,
    heuristic: unsafe extern "C" fn(
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        c_int,
        *mut HeuristicResult,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        *mut c_void,
        *mut c_void,
        *const c_void,
        *const c_void,
        *mut c_void,
        *const c_void,
        *mut c_void,
        *const c_void,
        *const c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *const [u64; 8],
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
    /// Dropped last: the functions are in it.
    _library: Library,
}

impl Api {
    /// Loads the library and looks the functions up.
    pub fn load(folder: Option<&Path>) -> Result<Self, PeerError> {
        let library = WANTED.load(folder)?;
        let l = &library;
        // SAFETY: the types are those of the header, compared with it by scripts/check-peer-headers; `_library` outlives them.
        unsafe {
            Ok(Self {
                create: WANTED.function(l, "cublasLtCreate")?,
                destroy: WANTED.function(l, "cublasLtDestroy")?,
                version: WANTED.function(l, "cublasLtGetVersion")?,
                status_string: WANTED.function(l, "cublasLtGetStatusString")?,
                desc_create: WANTED.function(l, "cublasLtMatmulDescCreate")?,
                desc_destroy: WANTED.function(l, "cublasLtMatmulDescDestroy")?,
                desc_set: WANTED.function(l, "cublasLtMatmulDescSetAttribute")?,
                layout_create: WANTED.function(l, "cublasLtMatrixLayoutCreate")?,
                layout_destroy: WANTED.function(l, "cublasLtMatrixLayoutDestroy")?,
                preference_create: WANTED.function(l, "cublasLtMatmulPreferenceCreate")?,
                preference_destroy: WANTED.function(l, "cublasLtMatmulPreferenceDestroy")?,
                preference_set: WANTED.function(l, "cublasLtMatmulPreferenceSetAttribute")?,
                heuristic: WANTED.function(l, "cublasLtMatmulAlgoGetHeuristic")?,
                matmul: WANTED.function(l, "cublasLtMatmul")?,
                _library: library,
            })
        }
    }

    /// Major, minor and patch version.
    pub fn version(&self) -> String {
        // SAFETY: takes nothing.
        let v = unsafe { (self.version)() };
        format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }

    fn check(&self, call: &str, status: Status) -> Result<(), PeerError> {
        if status == CUBLAS_STATUS_SUCCESS {
            return Ok(());
        }
        // SAFETY: any status may be asked for; the text is the library's and stays.
        let text = unsafe {
            let text = (self.status_string)(status);
            if text.is_null() {
                format!("status {status}")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(PeerError::Call { call: call.into(), reason: text })
    }
}

/// A handle, which belongs to the context that was current when it was made.
pub struct Handle {
    api: Api,
    raw: *mut c_void,
}

impl Handle {
    /// Makes one in the current context.
    pub fn new(api: Api) -> Result<Self, PeerError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the handle is written to.
        api.check("cublasLtCreate", unsafe { (api.create)(&raw mut raw) })?;
        Ok(Self { api, raw })
    }

    /// For descriptors alone, which need no device.
    #[cfg(test)]
    pub fn unconnected(api: Api) -> Self {
        Self { api, raw: ptr::null_mut() }
    }

    /// The functions.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Algorithms for a product, the most promising first.
    pub fn heuristics(
        &self,
        operation: &Operation,
        [left, right, out]: &[Layout; 3],
        preference: &Preference,
        most: usize,
    ) -> Result<Vec<HeuristicResult>, PeerError> {
        let blank = HeuristicResult { algorithm: [0; 8], workspace_bytes: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let (mut found, mut count) = (vec![blank; most], 0);
        // SAFETY: all descriptors are alive; at most `most` results are written.
        let status = unsafe {
            (self.api.heuristic)(
                self.raw,
                operation.0.raw,
                left.0.raw,
                right.0.raw,
                out.0.raw,
                out.0.raw,
                preference.0.raw,
                most as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        self.api.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        found.truncate(count.max(0) as usize);
        found.retain(|r| r.state == CUBLAS_STATUS_SUCCESS);
        Ok(found)
    }

    /// Enqueues `out = left right`.
    ///
    /// # Safety
    /// The layouts describe what lies at the addresses, which stays until the product is done; the stream belongs to the
    /// handle's context.
    pub unsafe fn matmul(
        &self,
        operation: &Operation,
        layouts: &[Layout; 3],
        [left, right, out]: [*mut c_void; 3],
        chosen: &HeuristicResult,
        (workspace, workspace_bytes): (*mut c_void, usize),
        stream: *mut c_void,
    ) -> Result<(), PeerError> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the caller's; factors are read from the host during the call.
        let status = unsafe {
            (self.api.matmul)(
                self.raw,
                operation.0.raw,
                (&raw const one).cast(),
                left,
                layouts[0].0.raw,
                right,
                layouts[1].0.raw,
                (&raw const zero).cast(),
                out,
                layouts[2].0.raw,
                out,
                layouts[2].0.raw,
                &raw const chosen.algorithm,
                workspace,
                workspace_bytes,
                stream,
            )
        };
        self.api.check("cublasLtMatmul", status)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `new`; nothing that uses it is left.
            let _ = unsafe { (self.api.destroy)(self.raw) };
        }
    }
}

/// A descriptor of any kind.
struct Descriptor {
    raw: *mut c_void,
    destroy: Destroy,
    /// The function lives in the library.
    _handle: Rc<Handle>,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made with the create function of the same kind.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// What is computed: f32 sums, with either operand transposed or not.
pub struct Operation(Descriptor);

impl Operation {
    /// Describes a product.
    pub fn new(handle: &Rc<Handle>, left_transposed: bool, right_transposed: bool) -> Result<Self, PeerError> {
        let api = handle.api();
        let mut raw = ptr::null_mut();
        // SAFETY: the descriptor is written to.
        let status = unsafe { (api.desc_create)(&raw mut raw, CUBLAS_COMPUTE_32F, CUDA_R_32F) };
        api.check("cublasLtMatmulDescCreate", status)?;
        let operation = Self(Descriptor { raw, destroy: api.desc_destroy, _handle: Rc::clone(handle) });
        for (attribute, transposed) in
            [(CUBLASLT_MATMUL_DESC_TRANSA, left_transposed), (CUBLASLT_MATMUL_DESC_TRANSB, right_transposed)]
        {
            let value = if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
            // SAFETY: the attribute is four bytes long, which are copied.
            let status = unsafe { (api.desc_set)(raw, attribute, (&raw const value).cast(), size_of::<c_int>()) };
            api.check("cublasLtMatmulDescSetAttribute", status)?;
        }
        Ok(operation)
    }
}

/// How a matrix lies in memory, column-major.
pub struct Layout(Descriptor);

impl Layout {
    /// Describes a matrix.
    pub fn new(handle: &Rc<Handle>, of: ResultType, rows: u64, cols: u64, ld: i64) -> Result<Self, PeerError> {
        let api = handle.api();
        let kind = match of {
            ResultType::Bf16 => CUDA_R_16BF,
            ResultType::F32 => CUDA_R_32F,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the descriptor is written to.
        let status = unsafe { (api.layout_create)(&raw mut raw, kind, rows, cols, ld) };
        api.check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Self(Descriptor { raw, destroy: api.layout_destroy, _handle: Rc::clone(handle) }))
    }
}

/// What algorithms are asked for.
pub struct Preference(Descriptor);

impl Preference {
    /// Any that need no more workspace than that.
    pub fn new(handle: &Rc<Handle>, workspace: usize) -> Result<Self, PeerError> {
        let api = handle.api();
        let mut raw = ptr::null_mut();
        // SAFETY: the descriptor is written to.
        let status = unsafe { (api.preference_create)(&raw mut raw) };
        api.check("cublasLtMatmulPreferenceCreate", status)?;
        let preference = Self(Descriptor { raw, destroy: api.preference_destroy, _handle: Rc::clone(handle) });
        let bytes = workspace as u64;
        let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is eight bytes long, which are copied.
        let status = unsafe { (api.preference_set)(raw, attribute, (&raw const bytes).cast(), size_of::<u64>()) };
        api.check("cublasLtMatmulPreferenceSetAttribute", status)?;
        Ok(preference)
    }
}
