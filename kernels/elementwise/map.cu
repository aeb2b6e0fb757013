// Operations that map elements one by one: y = silu(a), y = a * silu'(b), y = a + b, and y = a rounded to T.
//
// Shapes: any, `count` elements. Layout: dense. Shared memory: none.
// Limit: bytes. Floor: sizeof(T) per operand and result (6 bytes an element for add in bf16), about 4 FLOP.

#include "device/device.cuh"

struct MapArgs {
    const void* a;
    const void* b;
    void* y;
    uint64_t count;
};

namespace {

// 16 bytes of f32, the widest type that an operation touches.
constexpr int WIDTH = 4;

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Silu {
    static constexpr bool BINARY = false;
    __device__ static float apply(float a, float) { return a * sigmoid(a); }
};

struct SiluGrad {
    static constexpr bool BINARY = true;
    __device__ static float apply(float dy, float x) {
        const float s = sigmoid(x);
        return dy * s * (1.0f + x * (1.0f - s));
    }
};

struct Add {
    static constexpr bool BINARY = true;
    __device__ static float apply(float a, float b) { return a + b; }
};

struct Round {
    static constexpr bool BINARY = false;
    __device__ static float apply(float a, float) { return a; }
};

// Operands are values of a plan and begin at multiples of 256 bytes, so whole vectors are aligned.
template <class Op, class In, class Out>
__device__ void map(const MapArgs& args) {
    const In* a = static_cast<const In*>(args.a);
    const In* b = static_cast<const In*>(args.b);
    Out* y = static_cast<Out*>(args.y);
    const uint64_t vectors = args.count / WIDTH;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t i = first; i < vectors; i += stride) {
        float u[WIDTH], v[WIDTH] = {}, r[WIDTH];
        load_floats<WIDTH>(a + i * WIDTH, u);
        if constexpr (Op::BINARY) load_floats<WIDTH>(b + i * WIDTH, v);
        for (int k = 0; k < WIDTH; k++) r[k] = Op::apply(u[k], v[k]);
        store_floats<WIDTH>(y + i * WIDTH, r);
    }
    const uint64_t tail = vectors * WIDTH + first;
    if (tail < args.count) {
        const float v = Op::BINARY ? to_float(b[tail]) : 0.0f;
        y[tail] = from_float<Out>(Op::apply(to_float(a[tail]), v));
    }
}

}  // namespace

KERNEL(silu_f32, MapArgs, 256) { map<Silu, float, float>(args); }
KERNEL(silu_bf16, MapArgs, 256) { map<Silu, bf16, bf16>(args); }
KERNEL(silu_grad_f32, MapArgs, 256) { map<SiluGrad, float, float>(args); }
KERNEL(silu_grad_bf16, MapArgs, 256) { map<SiluGrad, bf16, bf16>(args); }
KERNEL(add_f32, MapArgs, 256) { map<Add, float, float>(args); }
KERNEL(add_bf16, MapArgs, 256) { map<Add, bf16, bf16>(args); }
KERNEL(to_act_f32, MapArgs, 256) { map<Round, float, float>(args); }
KERNEL(to_act_bf16, MapArgs, 256) { map<Round, float, bf16>(args); }
