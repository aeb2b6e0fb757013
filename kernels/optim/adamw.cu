// AdamW (1711.05101) after clipping by the global norm, the moving average of the parameters and their bf16 copy, in
// one pass:
//     g = grad min(1, max_grad_norm / (norm + 1e-6))
//     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//     p = p (1 - lr decay) - lr / correction1 * m / (sqrt(v / correction2) + eps)
//     average = ema_decay average + (1 - ema_decay) p
//
// Shapes: a run of `count` parameters that all have gradients; norm [1], hyper [4] = (lr, correction1, correction2,
// ema_decay).
// Layout: dense f32, all arrays at the same offsets; the copy is bf16 or null. Shared memory: none.
// Limit: bytes. Floor: 36 bytes a parameter (38 with the copy) and about 40 instructions.

#include "device/device.cuh"

struct AdamWArgs {
    float* params;
    const float* grads;
    float* moment1;
    float* moment2;
    float* average;
    bf16* copy;
    const float* norm;
    const float* hyper;
    uint64_t count;
    float max_grad_norm;
    float beta1;
    float one_minus_beta1;  // rounded once from f64: 1 - 0.999f is off by 3e-5
    float beta2;
    float one_minus_beta2;
    float eps;
    float weight_decay;
    uint32_t unused;
};

namespace {

// Parameters begin at multiples of 256 bytes and gaps belong to the run, so it consists of whole vectors.
constexpr int WIDTH = 4;

}  // namespace

KERNEL(adamw, AdamWArgs, 256) {
    const uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
    if (i >= args.count) return;
    const float clip = fminf(args.max_grad_norm / (*args.norm + 1e-6f), 1.0f);
    const float lr = args.hyper[0];
    const float step_size = lr / args.hyper[1];
    const float inverse_root_correction2 = 1.0f / sqrtf(args.hyper[2]);
    const float ema_decay = args.hyper[3];
    const float decay = 1.0f - lr * args.weight_decay;
    float p[WIDTH], g[WIDTH], m[WIDTH], v[WIDTH], average[WIDTH];
    load_floats<WIDTH>(args.params + i, p);
    load_floats<WIDTH>(args.grads + i, g);
    load_floats<WIDTH>(args.moment1 + i, m);
    load_floats<WIDTH>(args.moment2 + i, v);
    load_floats<WIDTH>(args.average + i, average);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float clipped = g[k] * clip;
        m[k] = args.beta1 * m[k] + args.one_minus_beta1 * clipped;
        v[k] = args.beta2 * v[k] + args.one_minus_beta2 * clipped * clipped;
        p[k] = p[k] * decay - step_size * m[k] / (sqrtf(v[k]) * inverse_root_correction2 + args.eps);
        average[k] = ema_decay * average[k] + (1.0f - ema_decay) * p[k];
    }
    store_floats<WIDTH>(args.params + i, p);
    store_floats<WIDTH>(args.moment1 + i, m);
    store_floats<WIDTH>(args.moment2 + i, v);
    store_floats<WIDTH>(args.average + i, average);
    if (args.copy) store_floats<WIDTH>(args.copy + i, p);
}
