//! cuDNN: convolutions of NHWC bf16 images with f32 sums, through its graph (backend) interface.

mod api;

use std::ffi::c_void;
use std::path::Path;
use std::rc::Rc;

use super::search::address;
use super::{Algorithm, Algorithms, Call, PeerError, ResultType};
use crate::bench::{ConvShape, Pass, Product};
use api::{Api, Descriptor, Handle};

pub(super) use api::find;

/// How many engine configurations to try.
const MOST: usize = 24;

/// The library with a handle.
pub(super) struct Cudnn {
    handle: Rc<Handle>,
}

impl Cudnn {
    /// Loads it and makes a handle in the current context.
    pub fn open(folder: Option<&Path>) -> Result<Self, PeerError> {
        Ok(Self { handle: Rc::new(Handle::new(Rc::new(Api::load(folder)?))?) })
    }
}

/// The tensors of a convolution, under the names by which a run binds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Input or its gradient.
    X = 1,
    /// Filter or its gradient.
    W = 2,
    /// Output or its gradient.
    Y = 3,
}

/// A tensor as the library sees it: dimensions in the order N, C, H, W, with strides for channels-last memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tensor {
    dims: [i64; 4],
    strides: [i64; 4],
}

impl Tensor {
    /// A dense `[n, h, w, c]` tensor; a filter is one of `[k, r, s, c]`.
    fn channels_last([n, h, w, c]: [usize; 4]) -> Self {
        let [n, h, w, c] = [n, h, w, c].map(|d| d as i64);
        Self { dims: [n, c, h, w], strides: [h * w * c, 1, w * c, c] }
    }
}

/// Which tensors are the operands of a pass, and which the result, in the order of [`crate::graph::Op`].
fn roles(pass: Pass) -> [Role; 3] {
    match pass {
        Pass::Fprop => [Role::X, Role::W, Role::Y],
        Pass::Dgrad => [Role::Y, Role::W, Role::X],
        Pass::Wgrad => [Role::Y, Role::X, Role::W],
    }
}

/// Padding before and after each axis, and the stride.
fn geometry(shape: &ConvShape) -> [[i64; 2]; 3] {
    let (top, left, bottom, right) = shape.geometry.padding;
    let stride = shape.geometry.stride;
    [[top, left], [bottom, right], [stride, stride]].map(|pair| pair.map(|v| v as i64))
}

/// The convolution as an operation node, with the descriptors that it is made of. Needs no device.
struct Operation {
    /// Dropped before what it refers to.
    node: Descriptor,
    _parts: Vec<Descriptor>,
}

impl Operation {
    fn new(api: &Rc<Api>, shape: &ConvShape, pass: Pass, result: ResultType) -> Result<Self, PeerError> {
        Self::of([shape.x(), shape.filter(), shape.y()], geometry(shape), api, pass, result)
    }

    /// From the dimensions of x, filter and y, padding and stride; the library checks that they fit each other.
    fn of(
        [x, w, y]: [[usize; 4]; 3],
        [before, after, strides]: [[i64; 2]; 3],
        api: &Rc<Api>,
        pass: Pass,
        result: ResultType,
    ) -> Result<Self, PeerError> {
        let written = roles(pass)[2];
        let tensor = |role: Role, dims: [usize; 4]| {
            let of = if role == written { result } else { ResultType::Bf16 };
            let Tensor { dims, strides } = Tensor::channels_last(dims);
            let d = Descriptor::new(api, api::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
            d.set_i64(api::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[role as i64])?;
            d.set_data_type(api::CUDNN_ATTR_TENSOR_DATA_TYPE, of)?;
            d.set_i64(api::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16])?;
            d.set_i64(api::CUDNN_ATTR_TENSOR_DIMENSIONS, &dims)?;
            d.set_i64(api::CUDNN_ATTR_TENSOR_STRIDES, &strides)?;
            d.finalize()
        };
        let (x, w, y) = (tensor(Role::X, x)?, tensor(Role::W, w)?, tensor(Role::Y, y)?);
        let conv = Descriptor::new(api, api::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        conv.set_data_type(api::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, ResultType::F32)?;
        conv.set_cross_correlation()?;
        conv.set_i64(api::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2])?;
        conv.set_i64(api::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1, 1])?;
        conv.set_i64(api::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &strides)?;
        conv.set_i64(api::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &before)?;
        conv.set_i64(api::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &after)?;
        let conv = conv.finalize()?;
        let names = api::operation(pass);
        let node = Descriptor::new(api, names.kind)?;
        node.set_f32(names.alpha, 1.0)?;
        node.set_f32(names.beta, 0.0)?;
        node.set_descriptor(names.conv, &conv)?;
        node.set_descriptor(names.x, &x)?;
        node.set_descriptor(names.w, &w)?;
        node.set_descriptor(names.y, &y)?;
        Ok(Self { node: node.finalize()?, _parts: vec![x, w, y, conv] })
    }
}

impl Algorithms for Cudnn {
    fn name(&self) -> &'static str {
        "cudnn"
    }

    fn version(&self) -> String {
        self.handle.api().version()
    }

    fn propose(&self, product: &Product, pass: Pass, result: ResultType) -> Result<Vec<Box<dyn Algorithm>>, PeerError> {
        let Product::Conv(shape) = product else {
            return Err(PeerError::Unsupported { library: "cudnn", what: format!("the matrix product {product}") });
        };
        let api = self.handle.api();
        let operation = Operation::new(api, shape, pass, result)?;
        let graph = Descriptor::new(api, api::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set_handle(api::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &self.handle)?;
        graph.set_descriptor(api::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operation.node)?;
        let graph = Rc::new(Graph { graph: graph.finalize()?, _operation: operation });
        let mut configurations: Vec<Box<dyn Algorithm>> = Vec::new();
        let mut refused = None;
        for (mode, name) in api::HEURISTICS {
            match Heuristics::ask(&self.handle, &graph, mode) {
                Ok((heuristics, found)) => {
                    let heuristics = Rc::new(heuristics);
                    for (rank, config) in found.into_iter().enumerate() {
                        let name = format!("engine {} ({name} {rank})", engine_index(api, &config).unwrap_or(-1));
                        configurations.push(Box::new(Configuration {
                            plan: None,
                            config,
                            _heuristics: Rc::clone(&heuristics),
                            handle: Rc::clone(&self.handle),
                            roles: roles(pass),
                            name,
                        }));
                    }
                }
                // A mode may know nothing of a convolution that another one knows.
                Err(error) => refused = Some(error),
            }
        }
        configurations.truncate(MOST);
        match refused {
            Some(error) if configurations.is_empty() => Err(error),
            _ => Ok(configurations),
        }
    }
}

/// An operation graph of one node.
struct Graph {
    /// Dropped before what it refers to.
    graph: Descriptor,
    _operation: Operation,
}

/// A query, which its results refer to.
struct Heuristics {
    _query: Descriptor,
    _graph: Rc<Graph>,
}

impl Heuristics {
    /// Engine configurations, the most promising first.
    fn ask(handle: &Rc<Handle>, graph: &Rc<Graph>, mode: i32) -> Result<(Self, Vec<Descriptor>), PeerError> {
        let api = handle.api();
        let query = Descriptor::new(api, api::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        query.set_descriptor(api::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &graph.graph)?;
        query.set_mode(mode)?;
        let query = query.finalize()?;
        let count = query.count(api::CUDNN_ATTR_ENGINEHEUR_RESULTS)?;
        let mut found = (0..count)
            .map(|_| Descriptor::new(api, api::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
            .collect::<Result<Vec<_>, _>>()?;
        let there = query.get_descriptors(api::CUDNN_ATTR_ENGINEHEUR_RESULTS, &found)?;
        found.truncate(there);
        Ok((Self { _query: query, _graph: Rc::clone(graph) }, found))
    }
}

fn engine_index(api: &Rc<Api>, config: &Descriptor) -> Result<i64, PeerError> {
    let engine = [Descriptor::new(api, api::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?];
    config.get_descriptors(api::CUDNN_ATTR_ENGINECFG_ENGINE, &engine)?;
    engine[0].get_i64(api::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)
}

/// An engine with its choices.
struct Configuration {
    /// Dropped before what it refers to.
    plan: Option<Descriptor>,
    config: Descriptor,
    _heuristics: Rc<Heuristics>,
    handle: Rc<Handle>,
    roles: [Role; 3],
    name: String,
}

impl Algorithm for Configuration {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self) -> Result<usize, PeerError> {
        let plan = Descriptor::new(self.handle.api(), api::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set_handle(api::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &self.handle)?;
        plan.set_descriptor(api::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &self.config)?;
        let plan = plan.finalize()?;
        let bytes = plan.get_i64(api::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        self.plan = Some(plan);
        Ok(bytes.max(0) as usize)
    }

    unsafe fn enqueue(&mut self, call: &Call, stream: *mut c_void) -> Result<(), PeerError> {
        let Some(plan) = &self.plan else {
            let (call, reason) = ("cudnnBackendExecute".into(), "the plan was not prepared".into());
            return Err(PeerError::Call { call, reason });
        };
        let pack = Descriptor::new(self.handle.api(), api::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        let [a, b] = call.operands.map(address);
        pack.set_i64(api::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &self.roles.map(|role| role as i64))?;
        pack.set_pointers(api::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &[a, b, address(call.result)])?;
        pack.set_pointers(api::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[address(call.workspace)])?;
        let pack = pack.finalize()?;
        // SAFETY: the caller's; the tensors of the plan say what lies at the addresses.
        unsafe { self.handle.execute(plan, &pack, stream) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_those_of_dense_channels_last_memory() {
        for dims in [[2, 3, 5, 7], [1, 1, 1, 1], [128, 3, 3, 256]] {
            let tensor = Tensor::channels_last(dims);
            let [n, h, w, c] = dims;
            let elements = (0..n.min(2))
                .flat_map(|i| (0..h).flat_map(move |y| (0..w).flat_map(move |x| (0..c).map(move |ch| (i, y, x, ch)))));
            for ((i, y, x, ch), expected) in elements.zip(0i64..) {
                let position = [i, ch, y, x].iter().zip(tensor.strides).map(|(&p, s)| p as i64 * s).sum::<i64>();
                assert_eq!(position, expected, "{dims:?}");
            }
            assert_eq!(tensor.dims, [n, c, h, w].map(|d| d as i64));
        }
    }

    #[test]
    fn the_result_of_a_pass_is_what_the_graph_says() {
        let shape: ConvShape = "n2h9w8c3k5r3s2p0.0.1.1".parse().unwrap();
        for pass in Pass::ALL {
            let elements = roles(pass).map(|role| {
                let dims = match role {
                    Role::X => shape.x(),
                    Role::W => shape.filter(),
                    Role::Y => shape.y(),
                };
                dims.iter().product::<usize>()
            });
            assert_eq!(elements, Product::Conv(shape).operands(pass), "{pass:?}");
        }
        // Top and left before, bottom and right after.
        let uneven: ConvShape = "n1h9w9c8k8r3s2p0.1.2.3".parse().unwrap();
        assert_eq!(geometry(&uneven), [[0, 1], [2, 3], [2, 2]]);
    }

    /// With the library at hand, its own checks accept the operations, and refuse a wrong one. No GPU is needed, but a
    /// libcuda.so.1 that has cuDNN's symbols.
    #[test]
    fn the_library_takes_the_operations() {
        let Some(folder) = std::env::var_os("WARPDIFF_PEER_PATH") else {
            eprintln!("skipped: WARPDIFF_PEER_PATH names no folder with libcudnn");
            return;
        };
        // SAFETY: loading runs the library's initialisers, which is what it is for.
        if unsafe { libloading::Library::new("libcuda.so.1") }.is_err() {
            eprintln!("skipped: no libcuda.so.1, which cuDNN's parts are linked to");
            return;
        }
        let api = Rc::new(Api::load(Some(Path::new(&folder))).unwrap());
        let names = [
            "n256h32w32c128k128r3s1p1",
            "n1h32w32c128k128r3s2p0.0.1.1",
            "n16h32w32c3k128r3s1p1",
            "n1h4w4c128k3r3s1p1",
            "n2h9w7c24k15r1x3s1p0.1.0.1",
        ];
        for (name, pass) in names.iter().flat_map(|name| Pass::ALL.map(|pass| (name, pass))) {
            for result in [ResultType::Bf16, ResultType::F32] {
                Operation::new(&api, &name.parse().unwrap(), pass, result).unwrap();
            }
        }
        let shape: ConvShape = "n2h9w8c24k16r3s1p1".parse().unwrap();
        for pass in Pass::ALL {
            let of = |y| Operation::of([shape.x(), shape.filter(), y], geometry(&shape), &api, pass, ResultType::Bf16);
            of([2, 9, 8, 16]).unwrap();
            for wrong in [[2, 8, 8, 16], [2, 9, 7, 16], [2, 9, 8, 24], [1, 9, 8, 16]] {
                let error = of(wrong).err().unwrap_or_else(|| panic!("{pass:?} {wrong:?} was accepted")).to_string();
                assert!(error.contains("CUDNN_STATUS_BAD_PARAM"), "{error}");
            }
        }
    }
}
