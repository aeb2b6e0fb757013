//! A small safe interface to the C ABI of the simulator (kernels/sim/abi.h): the linked library or an opened variant.

use std::ffi::{CString, c_char, c_void};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    pub threads: i32,
    pub schedule: i32,
    pub async_mode: i32,
    pub seed: u64,
}

pub const FIFO: i32 = 0;
pub const LIFO: i32 = 1;
pub const RANDOM: i32 = 2;
pub const EAGER: i32 = 0;
pub const LATE: i32 = 1;

impl Config {
    pub fn new(schedule: i32, async_mode: i32, seed: u64) -> Self {
        Self { threads: 2, schedule, async_mode, seed }
    }
}

/// Every schedule with every mode of asynchronous work.
pub fn configs() -> Vec<Config> {
    (0..9).map(|i| Config::new(i % 3, i / 3, 11 + i as u64)).collect()
}

type Launch =
    unsafe extern "C" fn(i32, *const u32, *const u32, *const u32, u32, *const c_void, usize, *const Config) -> i32;
type TensorMapTiled = unsafe extern "C" fn(
    *mut c_void,
    i32,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    i32,
    i32,
    i32,
    i32,
) -> i32;
type TensorMapIm2col = unsafe extern "C" fn(
    *mut c_void,
    i32,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const i32,
    *const i32,
    u32,
    u32,
    *const u32,
    i32,
    i32,
    i32,
    i32,
) -> i32;

unsafe extern "C" {
    fn sim_find_kernel(name: *const c_char) -> i32;
    fn sim_launch(
        kernel: i32,
        grid: *const u32,
        block: *const u32,
        cluster: *const u32,
        dynamic_shared: u32,
        args: *const c_void,
        args_bytes: usize,
        config: *const Config,
    ) -> i32;
    fn sim_last_error(out: *mut c_char, len: usize) -> usize;
    fn sim_malloc(bytes: usize) -> *mut c_void;
    fn sim_free(pointer: *mut c_void, bytes: usize);
    fn sim_tensor_map_tiled(
        map: *mut c_void,
        data_type: i32,
        rank: u32,
        address: *mut c_void,
        dimensions: *const u64,
        strides: *const u64,
        box_size: *const u32,
        element_strides: *const u32,
        interleave: i32,
        swizzle: i32,
        l2_promotion: i32,
        oob_fill: i32,
    ) -> i32;
    fn sim_tensor_map_im2col(
        map: *mut c_void,
        data_type: i32,
        rank: u32,
        address: *mut c_void,
        dimensions: *const u64,
        strides: *const u64,
        lower: *const i32,
        upper: *const i32,
        channels: u32,
        pixels: u32,
        element_strides: *const u32,
        interleave: i32,
        swizzle: i32,
        l2_promotion: i32,
        oob_fill: i32,
    ) -> i32;
    fn dlopen(path: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// One copy of the simulator.
#[derive(Clone, Copy)]
pub struct Simulator {
    find_kernel: unsafe extern "C" fn(*const c_char) -> i32,
    launch: Launch,
    last_error: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, usize),
    tensor_map_tiled: TensorMapTiled,
    tensor_map_im2col: TensorMapIm2col,
}

/// The simulator linked into the crate.
pub fn linked() -> Simulator {
    Simulator {
        find_kernel: sim_find_kernel,
        launch: sim_launch,
        last_error: sim_last_error,
        malloc: sim_malloc,
        free: sim_free,
        tensor_map_tiled: sim_tensor_map_tiled,
        tensor_map_im2col: sim_tensor_map_im2col,
    }
}

/// A variant built as a shared object.
pub fn open(path: &str) -> Simulator {
    const RTLD_NOW: i32 = 2;
    let c_path = CString::new(path).unwrap();
    // SAFETY: the library's constructors only register kernels; dlerror's text is read before the next call.
    let handle = unsafe { dlopen(c_path.as_ptr(), RTLD_NOW) };
    if handle.is_null() {
        // SAFETY: as above.
        panic!("{path}: {}", unsafe { std::ffi::CStr::from_ptr(dlerror()) }.to_string_lossy());
    }
    let symbol = |name: &str| {
        let c_name = CString::new(name).unwrap();
        // SAFETY: the handle is open and never closed.
        let found = unsafe { dlsym(handle, c_name.as_ptr()) };
        assert!(!found.is_null(), "{path} lacks {name}");
        found
    };
    // SAFETY: the shared object is built from the same abi.h as the declarations above.
    unsafe {
        use std::mem::transmute;
        Simulator {
            find_kernel: transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> i32>(symbol(
                "sim_find_kernel",
            )),
            launch: transmute::<*mut c_void, Launch>(symbol("sim_launch")),
            last_error: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_char, usize) -> usize>(symbol(
                "sim_last_error",
            )),
            malloc: transmute::<*mut c_void, unsafe extern "C" fn(usize) -> *mut c_void>(symbol("sim_malloc")),
            free: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, usize)>(symbol("sim_free")),
            tensor_map_tiled: transmute::<*mut c_void, TensorMapTiled>(symbol("sim_tensor_map_tiled")),
            tensor_map_im2col: transmute::<*mut c_void, TensorMapIm2col>(symbol("sim_tensor_map_im2col")),
        }
    }
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: u32,
    pub block: u32,
    pub shared: u32,
}

impl Simulator {
    /// Runs a kernel; its error report otherwise.
    pub fn run<A: Copy>(&self, kernel: &str, shape: Shape, args: &A, config: Config) -> Result<(), String> {
        let name = CString::new(kernel).unwrap();
        // SAFETY: a zero-terminated string.
        let number = unsafe { (self.find_kernel)(name.as_ptr()) };
        assert!(number >= 0, "no kernel {kernel}");
        let (grid, block, cluster) = ([shape.grid, 1, 1], [shape.block, 1, 1], [1; 3]);
        // SAFETY: all pointers live through the call, and the simulator checks the size of the arguments.
        let status = unsafe {
            (self.launch)(
                number,
                grid.as_ptr(),
                block.as_ptr(),
                cluster.as_ptr(),
                shape.shared,
                std::ptr::from_ref(args).cast(),
                size_of::<A>(),
                &config,
            )
        };
        if status == 0 { Ok(()) } else { Err(self.last_error()) }
    }

    fn last_error(&self) -> String {
        let mut text = vec![0u8; 65536];
        // SAFETY: the buffer has the length given.
        let length = unsafe { (self.last_error)(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(length);
        String::from_utf8(text).unwrap()
    }

    /// Device memory with a copy of `data`.
    pub fn upload<T: Copy>(&self, data: &[T]) -> Buffer<T> {
        let mut buffer = self.poisoned(data.len());
        buffer.values_mut().copy_from_slice(data);
        buffer
    }

    /// Device memory as allocated: every byte 0xff.
    pub fn poisoned<T: Copy>(&self, len: usize) -> Buffer<T> {
        // SAFETY: freed once, with the same size, by Drop.
        let pointer = unsafe { (self.malloc)(len * size_of::<T>()) };
        assert!(!pointer.is_null());
        Buffer { pointer: pointer.cast(), len, free: self.free }
    }

    /// As cuTensorMapEncodeTiled, for bf16 with unit element strides where none are given.
    pub fn tiled(&self, base: Pointer, t: &Tiled) -> Result<TensorMap, String> {
        let mut map = TensorMap([0; 16]);
        let strides = byte_strides(t.dimensions);
        // SAFETY: the arrays have the rank's length.
        let status = unsafe {
            (self.tensor_map_tiled)(
                std::ptr::from_mut(&mut map).cast(),
                BF16,
                t.dimensions.len() as u32,
                base.0 as *mut c_void,
                t.dimensions.as_ptr(),
                strides.as_ptr(),
                t.box_size.as_ptr(),
                t.element_strides.as_ptr(),
                0,
                t.swizzle,
                0,
                0,
            )
        };
        if status == 0 { Ok(map) } else { Err(self.last_error()) }
    }

    /// As cuTensorMapEncodeIm2col, for bf16.
    pub fn im2col(&self, base: Pointer, t: &Im2col) -> Result<TensorMap, String> {
        let mut map = TensorMap([0; 16]);
        let strides = byte_strides(t.dimensions);
        // SAFETY: the arrays have the rank's length, the corners two less.
        let status = unsafe {
            (self.tensor_map_im2col)(
                std::ptr::from_mut(&mut map).cast(),
                BF16,
                t.dimensions.len() as u32,
                base.0 as *mut c_void,
                t.dimensions.as_ptr(),
                strides.as_ptr(),
                t.lower.as_ptr(),
                t.upper.as_ptr(),
                t.channels,
                t.pixels,
                t.element_strides.as_ptr(),
                0,
                t.swizzle,
                0,
                0,
            )
        };
        if status == 0 { Ok(map) } else { Err(self.last_error()) }
    }
}

const BF16: i32 = 9;

/// Strides of a dense bf16 tensor, innermost dimension first and left out.
fn byte_strides(dimensions: &[u64]) -> Vec<u64> {
    dimensions[..dimensions.len() - 1]
        .iter()
        .scan(2, |stride, d| {
            *stride *= d;
            Some(*stride)
        })
        .collect()
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

pub struct Tiled<'a> {
    pub dimensions: &'a [u64],
    pub box_size: &'a [u32],
    pub element_strides: &'a [u32],
    pub swizzle: i32,
}

pub struct Im2col<'a> {
    pub dimensions: &'a [u64],
    pub lower: &'a [i32],
    pub upper: &'a [i32],
    pub channels: u32,
    pub pixels: u32,
    pub element_strides: &'a [u32],
    pub swizzle: i32,
}

/// A device address inside kernel arguments.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Pointer(pub u64);

pub const NULL: Pointer = Pointer(0);

pub struct Buffer<T> {
    pointer: *mut T,
    len: usize,
    free: unsafe extern "C" fn(*mut c_void, usize),
}

impl<T: Copy> Buffer<T> {
    pub fn at(&self) -> Pointer {
        Pointer(self.pointer as u64)
    }

    pub fn values(&self) -> &[T] {
        // SAFETY: `len` initialised values (allocations are filled), and no kernel runs while the borrow lives.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `values`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by the same simulator with this size.
        unsafe { (self.free)(self.pointer.cast(), self.len * size_of::<T>()) }
    }
}

/// The plain arguments of most test kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArrayArgs {
    pub x: Pointer,
    pub y: Pointer,
    pub count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct MatrixArgs {
    pub a: Pointer,
    pub b: Pointer,
    pub c: Pointer,
}
