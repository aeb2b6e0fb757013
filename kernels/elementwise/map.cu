// Operations that map elements one by one: y = f(a) and y = a * f'(b) for each activation function f, y = a + b,
// y = mul * a + add, y = a rounded to T, the same written twice in a row (the batch of classifier-free guidance), and
// y = add, which reads nothing.
//
// Shapes: any, `count` elements. Layout: dense. Shared memory: none.
// Limit: bytes. Floor: sizeof(T) per operand and result (6 bytes an element for add in bf16), up to 10 FLOP.

#include "device/device.cuh"

struct MapArgs {
    const void* a;
    const void* b;
    void* y;
    uint64_t count;
    float mul;
    float add;
};

namespace {

// An activation function, and its gradient from dy and x.
template <float (*FUNCTION)(float)> struct Activation {
    static constexpr bool BINARY = false;
    __device__ static float apply(const MapArgs&, float a, float) { return FUNCTION(a); }
};

template <float (*SLOPE)(float)> struct Gradient {
    static constexpr bool BINARY = true;
    __device__ static float apply(const MapArgs&, float dy, float x) { return dy * SLOPE(x); }
};

struct Add {
    static constexpr bool BINARY = true;
    __device__ static float apply(const MapArgs&, float a, float b) { return a + b; }
};

struct Scale {
    static constexpr bool BINARY = false;
    __device__ static float apply(const MapArgs& args, float a, float) { return fmaf(args.mul, a, args.add); }
};

struct Round {
    static constexpr bool BINARY = false;
    __device__ static float apply(const MapArgs&, float a, float) { return a; }
};

// Operands are values of a plan and begin at multiples of 256 bytes, so whole vectors are aligned. With COPIES = 2 the
// second copy begins wherever the first one ends, and is written element by element where that is not a whole vector.
template <class Op, class In, class Out, int COPIES = 1> __device__ void map(const MapArgs& args) {
    constexpr int V = 16 / sizeof(Out);
    const In* __restrict__ a = static_cast<const In*>(args.a);
    const In* __restrict__ b = static_cast<const In*>(args.b);
    Out* __restrict__ y = static_cast<Out*>(args.y);
    const uint64_t vectors = args.count / V;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t i = first; i < vectors; i += stride) {
        float u[V], v[V] = {};
        load_floats<V>(a + i * V, u);
        if constexpr (Op::BINARY) {
            load_floats<V>(b + i * V, v);
        }
#pragma unroll
        for (int k = 0; k < V; ++k) {
            u[k] = Op::apply(args, u[k], v[k]);
        }
        store_floats<V>(y + i * V, u);
        if constexpr (COPIES == 2) {
            if (args.count % V == 0) {
                store_floats<V>(y + args.count + i * V, u);
            } else {
#pragma unroll
                for (int k = 0; k < V; ++k) {
                    y[args.count + i * V + k] = from_float<Out>(u[k]);
                }
            }
        }
    }
    const uint64_t tail = vectors * V + first;
    if (tail < args.count) {
        const float v = Op::BINARY ? to_float(b[tail]) : 0.0f;
        const Out result = from_float<Out>(Op::apply(args, to_float(a[tail]), v));
        y[tail] = result;
        if constexpr (COPIES == 2) {
            y[args.count + tail] = result;
        }
    }
}

} // namespace

KERNEL(silu_f32, MapArgs, 256) { map<Activation<silu>, float, float>(args); }
KERNEL(silu_bf16, MapArgs, 256) { map<Activation<silu>, bf16, bf16>(args); }
KERNEL(silu_grad_f32, MapArgs, 256) { map<Gradient<silu_slope>, float, float>(args); }
KERNEL(silu_grad_bf16, MapArgs, 256) { map<Gradient<silu_slope>, bf16, bf16>(args); }
KERNEL(mish_f32, MapArgs, 256) { map<Activation<mish>, float, float>(args); }
KERNEL(mish_bf16, MapArgs, 256) { map<Activation<mish>, bf16, bf16>(args); }
KERNEL(mish_grad_f32, MapArgs, 256) { map<Gradient<mish_slope>, float, float>(args); }
KERNEL(mish_grad_bf16, MapArgs, 256) { map<Gradient<mish_slope>, bf16, bf16>(args); }
KERNEL(gelu_f32, MapArgs, 256) { map<Activation<gelu>, float, float>(args); }
KERNEL(gelu_bf16, MapArgs, 256) { map<Activation<gelu>, bf16, bf16>(args); }
KERNEL(gelu_grad_f32, MapArgs, 256) { map<Gradient<gelu_slope>, float, float>(args); }
KERNEL(gelu_grad_bf16, MapArgs, 256) { map<Gradient<gelu_slope>, bf16, bf16>(args); }
KERNEL(relu_f32, MapArgs, 256) { map<Activation<relu>, float, float>(args); }
KERNEL(relu_bf16, MapArgs, 256) { map<Activation<relu>, bf16, bf16>(args); }
KERNEL(relu_grad_f32, MapArgs, 256) { map<Gradient<relu_slope>, float, float>(args); }
KERNEL(relu_grad_bf16, MapArgs, 256) { map<Gradient<relu_slope>, bf16, bf16>(args); }
KERNEL(add_f32, MapArgs, 256) { map<Add, float, float>(args); }
KERNEL(add_bf16, MapArgs, 256) { map<Add, bf16, bf16>(args); }
KERNEL(affine_f32, MapArgs, 256) { map<Scale, float, float>(args); }
KERNEL(affine_bf16, MapArgs, 256) { map<Scale, bf16, bf16>(args); }
KERNEL(to_act_f32, MapArgs, 256) { map<Round, float, float>(args); }
KERNEL(to_act_bf16, MapArgs, 256) { map<Round, float, bf16>(args); }
KERNEL(repeat_batch_f32, MapArgs, 256) { map<Round, float, float, 2>(args); }
KERNEL(repeat_batch_bf16, MapArgs, 256) { map<Round, float, bf16, 2>(args); }
KERNEL(constant_f32, MapArgs, 256) {
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count; i += stride) {
        static_cast<float*>(args.y)[i] = args.add;
    }
}
