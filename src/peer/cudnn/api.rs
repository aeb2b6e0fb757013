//! The functions of `cudnn_graph.h` that are called, the names of its attributes, and owners of what they make.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::rc::Rc;

use libloading::Library;

use crate::bench::Pass;
use crate::peer::library::Wanted;
use crate::peer::{PeerError, ResultType};

// Names and values of the header (cuDNN 9).
const CUDNN_STATUS_SUCCESS: c_int = 0;
const CUDNN_DATA_FLOAT: c_int = 0;
const CUDNN_DATA_BFLOAT16: c_int = 9;
const CUDNN_CROSS_CORRELATION: c_int = 1;
const CUDNN_HEUR_MODE_B: c_int = 1;
const CUDNN_HEUR_MODE_FALLBACK: c_int = 2;
const CUDNN_HEUR_MODE_A: c_int = 3;
const CUDNN_TYPE_HANDLE: c_int = 0;
const CUDNN_TYPE_DATA_TYPE: c_int = 1;
const CUDNN_TYPE_INT64: c_int = 3;
const CUDNN_TYPE_FLOAT: c_int = 4;
const CUDNN_TYPE_VOID_PTR: c_int = 6;
const CUDNN_TYPE_CONVOLUTION_MODE: c_int = 7;
const CUDNN_TYPE_HEUR_MODE: c_int = 8;
const CUDNN_TYPE_BACKEND_DESCRIPTOR: c_int = 15;
pub const CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR: c_int = 1;
pub const CUDNN_BACKEND_ENGINE_DESCRIPTOR: c_int = 2;
pub const CUDNN_BACKEND_ENGINECFG_DESCRIPTOR: c_int = 3;
pub const CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: c_int = 4;
pub const CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: c_int = 5;
const CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: c_int = 10;
const CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: c_int = 11;
const CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR: c_int = 12;
pub const CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR: c_int = 15;
pub const CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: c_int = 16;
pub const CUDNN_BACKEND_TENSOR_DESCRIPTOR: c_int = 17;
pub const CUDNN_ATTR_CONVOLUTION_COMP_TYPE: c_int = 100;
const CUDNN_ATTR_CONVOLUTION_CONV_MODE: c_int = 101;
pub const CUDNN_ATTR_CONVOLUTION_DILATIONS: c_int = 102;
pub const CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES: c_int = 103;
pub const CUDNN_ATTR_CONVOLUTION_POST_PADDINGS: c_int = 104;
pub const CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS: c_int = 105;
pub const CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS: c_int = 106;
const CUDNN_ATTR_ENGINEHEUR_MODE: c_int = 200;
pub const CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH: c_int = 201;
pub const CUDNN_ATTR_ENGINEHEUR_RESULTS: c_int = 202;
pub const CUDNN_ATTR_ENGINECFG_ENGINE: c_int = 300;
pub const CUDNN_ATTR_EXECUTION_PLAN_HANDLE: c_int = 400;
pub const CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG: c_int = 401;
pub const CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: c_int = 402;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA: c_int = 700;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA: c_int = 701;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC: c_int = 702;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W: c_int = 703;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X: c_int = 704;
const CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y: c_int = 705;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA: c_int = 706;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA: c_int = 707;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC: c_int = 708;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W: c_int = 709;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX: c_int = 710;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY: c_int = 711;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA: c_int = 712;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA: c_int = 713;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC: c_int = 714;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW: c_int = 715;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X: c_int = 716;
const CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY: c_int = 717;
pub const CUDNN_ATTR_OPERATIONGRAPH_HANDLE: c_int = 800;
pub const CUDNN_ATTR_OPERATIONGRAPH_OPS: c_int = 801;
pub const CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT: c_int = 900;
pub const CUDNN_ATTR_TENSOR_DATA_TYPE: c_int = 901;
pub const CUDNN_ATTR_TENSOR_DIMENSIONS: c_int = 902;
pub const CUDNN_ATTR_TENSOR_STRIDES: c_int = 903;
pub const CUDNN_ATTR_TENSOR_UNIQUE_ID: c_int = 906;
pub const CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS: c_int = 1000;
pub const CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS: c_int = 1001;
pub const CUDNN_ATTR_VARIANT_PACK_WORKSPACE: c_int = 1003;
pub const CUDNN_ATTR_ENGINE_GLOBAL_INDEX: c_int = 1301;

/// Heuristics in the order in which they are asked.
pub const HEURISTICS: [(c_int, &str); 3] =
    [(CUDNN_HEUR_MODE_A, "mode A"), (CUDNN_HEUR_MODE_B, "mode B"), (CUDNN_HEUR_MODE_FALLBACK, "fallback")];

/// Kind and attributes of a convolution's operation node.
pub struct OperationNames {
    pub kind: c_int,
    pub alpha: c_int,
    pub beta: c_int,
    pub conv: c_int,
    pub x: c_int,
    pub w: c_int,
    pub y: c_int,
}

/// The names of a pass.
pub fn operation(pass: Pass) -> OperationNames {
    match pass {
        Pass::Fprop => OperationNames {
            kind: CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
            conv: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
        },
        Pass::Dgrad => OperationNames {
            kind: CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
            conv: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
        },
        Pass::Wgrad => OperationNames {
            kind: CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
            conv: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
        },
    }
}

const WANTED: Wanted = Wanted { files: &["libcudnn.so.9"], package: "nvidia-cudnn-cu13" };

/// Checks that the library and its functions are there.
pub fn find(folder: Option<&Path>) -> Result<(), PeerError> {
    Api::load(folder).map(drop)
}

type Status = c_int;

/// The loaded functions.
pub struct Api {
    create: unsafe extern "C" fn(*mut *mut c_void) -> Status,
    destroy: unsafe extern "C" fn(*mut c_void) -> Status,
    set_stream: unsafe extern "C" fn(*mut c_void, *mut c_void) -> Status,
    version: unsafe extern "C" fn() -> usize,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    descriptor_create: unsafe extern "C" fn(c_int, *mut *mut c_void) -> Status,
    descriptor_destroy: unsafe extern "C" fn(*mut c_void) -> Status,
    descriptor_finalize: unsafe extern "C" fn(*mut c_void) -> Status,
    descriptor_set: unsafe extern "C" fn(*mut c_void, c_int, c_int, i64, *const c_void) -> Status,
    descriptor_get: unsafe extern "C" fn(*mut c_void, c_int, c_int, i64, *mut i64, *mut c_void) -> Status,
    execute: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> Status,
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
                create: WANTED.function(l, "cudnnCreate")?,
                destroy: WANTED.function(l, "cudnnDestroy")?,
                set_stream: WANTED.function(l, "cudnnSetStream")?,
                version: WANTED.function(l, "cudnnGetVersion")?,
                error_string: WANTED.function(l, "cudnnGetErrorString")?,
                last_error: WANTED.function(l, "cudnnGetLastErrorString")?,
                descriptor_create: WANTED.function(l, "cudnnBackendCreateDescriptor")?,
                descriptor_destroy: WANTED.function(l, "cudnnBackendDestroyDescriptor")?,
                descriptor_finalize: WANTED.function(l, "cudnnBackendFinalize")?,
                descriptor_set: WANTED.function(l, "cudnnBackendSetAttribute")?,
                descriptor_get: WANTED.function(l, "cudnnBackendGetAttribute")?,
                execute: WANTED.function(l, "cudnnBackendExecute")?,
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

    fn check(&self, call: impl Fn() -> String, status: Status) -> Result<(), PeerError> {
        if status == CUDNN_STATUS_SUCCESS {
            return Ok(());
        }
        let mut more = [0 as c_char; 512];
        // SAFETY: any status may be asked for, and its text stays; the message is cut to the buffer's length and ends in 0.
        let (name, more) = unsafe {
            (self.last_error)(more.as_mut_ptr(), more.len());
            more[more.len() - 1] = 0;
            (
                CStr::from_ptr((self.error_string)(status)).to_string_lossy(),
                CStr::from_ptr(more.as_ptr()).to_string_lossy(),
            )
        };
        let reason = if more.trim().is_empty() { name.into_owned() } else { format!("{name}: {}", more.trim()) };
        Err(PeerError::Call { call: call(), reason })
    }
}

/// A handle, which belongs to the context that was current when it was made.
pub struct Handle {
    api: Rc<Api>,
    raw: *mut c_void,
}

impl Handle {
    /// Makes one in the current context.
    pub fn new(api: Rc<Api>) -> Result<Self, PeerError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the handle is written to.
        api.check(|| "cudnnCreate".into(), unsafe { (api.create)(&raw mut raw) })?;
        Ok(Self { api, raw })
    }

    /// The functions.
    pub fn api(&self) -> &Rc<Api> {
        &self.api
    }

    /// Enqueues a run of a plan.
    ///
    /// # Safety
    /// The pack holds the addresses of tensors as the plan describes them and of its workspace, which stay until the run is
    /// done; the stream belongs to the handle's context.
    pub unsafe fn execute(&self, plan: &Descriptor, pack: &Descriptor, stream: *mut c_void) -> Result<(), PeerError> {
        // SAFETY: the caller's.
        self.api.check(|| "cudnnSetStream".into(), unsafe { (self.api.set_stream)(self.raw, stream) })?;
        // SAFETY: the caller's.
        let status = unsafe { (self.api.execute)(self.raw, plan.raw, pack.raw) };
        self.api.check(|| "cudnnBackendExecute".into(), status)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nothing that uses it is left.
        let _ = unsafe { (self.api.destroy)(self.raw) };
    }
}

/// A backend descriptor.
pub struct Descriptor {
    api: Rc<Api>,
    raw: *mut c_void,
    kind: c_int,
}

impl Descriptor {
    /// An empty one.
    pub fn new(api: &Rc<Api>, kind: c_int) -> Result<Self, PeerError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the descriptor is written to.
        let status = unsafe { (api.descriptor_create)(kind, &raw mut raw) };
        api.check(|| format!("cudnnBackendCreateDescriptor({kind})"), status)?;
        Ok(Self { api: Rc::clone(api), raw, kind })
    }

    /// Ends the setting of attributes; the library checks them.
    pub fn finalize(self) -> Result<Self, PeerError> {
        // SAFETY: the descriptor is alive.
        let status = unsafe { (self.api.descriptor_finalize)(self.raw) };
        self.api.check(|| format!("cudnnBackendFinalize of descriptor {}", self.kind), status)?;
        Ok(self)
    }

    fn set<T>(&self, attribute: c_int, of: c_int, values: &[T]) -> Result<(), PeerError> {
        // SAFETY: `of` stands for the type T, and the elements are copied.
        let status =
            unsafe { (self.api.descriptor_set)(self.raw, attribute, of, values.len() as i64, values.as_ptr().cast()) };
        self.api.check(|| format!("cudnnBackendSetAttribute {attribute} of descriptor {}", self.kind), status)
    }

    /// Numbers.
    pub fn set_i64(&self, attribute: c_int, values: &[i64]) -> Result<(), PeerError> {
        self.set(attribute, CUDNN_TYPE_INT64, values)
    }

    /// A factor.
    pub fn set_f32(&self, attribute: c_int, value: f32) -> Result<(), PeerError> {
        self.set(attribute, CUDNN_TYPE_FLOAT, &[value])
    }

    /// An element type.
    pub fn set_data_type(&self, attribute: c_int, of: ResultType) -> Result<(), PeerError> {
        let value = match of {
            ResultType::Bf16 => CUDNN_DATA_BFLOAT16,
            ResultType::F32 => CUDNN_DATA_FLOAT,
        };
        self.set(attribute, CUDNN_TYPE_DATA_TYPE, &[value])
    }

    /// The filter is not mirrored.
    pub fn set_cross_correlation(&self) -> Result<(), PeerError> {
        self.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, &[CUDNN_CROSS_CORRELATION])
    }

    /// Which heuristics to ask.
    pub fn set_mode(&self, mode: c_int) -> Result<(), PeerError> {
        self.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &[mode])
    }

    /// Addresses.
    pub fn set_pointers(&self, attribute: c_int, values: &[*mut c_void]) -> Result<(), PeerError> {
        self.set(attribute, CUDNN_TYPE_VOID_PTR, values)
    }

    /// Another descriptor, which must live as long as this one.
    pub fn set_descriptor(&self, attribute: c_int, other: &Self) -> Result<(), PeerError> {
        self.set(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, &[other.raw])
    }

    /// A handle, which must live as long as this descriptor.
    pub fn set_handle(&self, attribute: c_int, handle: &Handle) -> Result<(), PeerError> {
        self.set(attribute, CUDNN_TYPE_HANDLE, &[handle.raw])
    }

    /// # Safety
    /// `of` stands for the type at `into`, which has room for `len` of them.
    unsafe fn get(&self, attribute: c_int, of: c_int, len: i64, into: *mut c_void) -> Result<i64, PeerError> {
        let mut count = 0;
        // SAFETY: the caller's.
        let status = unsafe { (self.api.descriptor_get)(self.raw, attribute, of, len, &raw mut count, into) };
        self.api.check(|| format!("cudnnBackendGetAttribute {attribute} of descriptor {}", self.kind), status)?;
        Ok(count)
    }

    /// One number.
    pub fn get_i64(&self, attribute: c_int) -> Result<i64, PeerError> {
        let mut value = 0i64;
        // SAFETY: room for one number.
        unsafe { self.get(attribute, CUDNN_TYPE_INT64, 1, (&raw mut value).cast())? };
        Ok(value)
    }

    /// How many descriptors an attribute holds.
    pub fn count(&self, attribute: c_int) -> Result<usize, PeerError> {
        // SAFETY: nothing but the count is asked for.
        let count = unsafe { self.get(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, ptr::null_mut())? };
        Ok(count.max(0) as usize)
    }

    /// Fills descriptors of the right kind with what an attribute holds; returns how many were filled.
    pub fn get_descriptors(&self, attribute: c_int, into: &[Self]) -> Result<usize, PeerError> {
        let mut raw: Vec<*mut c_void> = into.iter().map(|d| d.raw).collect();
        // SAFETY: room for as many descriptors; the library fills those that the pointers name.
        let count =
            unsafe { self.get(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw.len() as i64, raw.as_mut_ptr().cast())? };
        Ok((count.max(0) as usize).min(into.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { (self.api.descriptor_destroy)(self.raw) };
    }
}
