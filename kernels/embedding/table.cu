// Rows of a table: y[n] = table[index[n]], and the gradient dtable[v] = sum of dy[n] over the n with index[n] = v. Where the
// table is one of timesteps, index[n] is the row nearest to t[n], half to even.
//
// Shapes: table, dtable [V, E] f32; index [N] below V; y, dy [N, E]. Shared memory: none.
// The gradient takes one block per row and 256 columns, which looks through the indices a warp at a time and adds in
// order of n: deterministic, and rows that nobody names get their zeros. Limit: latency; V * E floats are written.

#include "device/device.cuh"

struct TableArgs {
    const void* rows; // table or dy
    const uint32_t* index;
    void* y; // y or dtable
    uint32_t count; // N
    uint32_t width; // E
};

struct IndexArgs {
    const float* t;
    uint32_t* index;
    uint32_t count; // N
    uint32_t rows; // V
};

namespace {

// Grid: x over the columns, y strides over n.
template <class T> __device__ void embedding(const TableArgs& args) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= args.width) {
        return;
    }
    for (uint32_t n = blockIdx.y; n < args.count; n += gridDim.y) {
        const float value = static_cast<const float*>(args.rows)[uint64_t(args.index[n]) * args.width + column];
        static_cast<T*>(args.y)[uint64_t(n) * args.width + column] = from_float<T>(value);
    }
}

// Grid: x over the rows of the table, y over the columns.
template <class T> __device__ void embedding_grad(const TableArgs& args) {
    const uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
    float sum = 0.0f;
    for (uint32_t base = 0; base < args.count; base += 32) {
        const uint32_t n = base + threadIdx.x % 32;
        uint32_t hits = __ballot_sync(0xffffffffu, n < args.count && args.index[n] == blockIdx.x);
        for (; hits != 0; hits &= hits - 1) {
            const uint64_t row = base + uint32_t(__ffs(int(hits))) - 1;
            if (column < args.width) {
                sum += to_float(static_cast<const T*>(args.rows)[row * args.width + column]);
            }
        }
    }
    if (column < args.width) {
        static_cast<float*>(args.y)[uint64_t(blockIdx.x) * args.width + column] = sum;
    }
}

} // namespace

KERNEL(timestep_index, IndexArgs, 256) {
    const uint32_t n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n < args.count) {
        args.index[n] = uint32_t(rintf(fminf(fmaxf(args.t[n], 0.0f), float(args.rows - 1))));
    }
}
KERNEL(embedding_f32, TableArgs, 256) { embedding<float>(args); }
KERNEL(embedding_bf16, TableArgs, 256) { embedding<bf16>(args); }
KERNEL(embedding_grad_f32, TableArgs, 256) { embedding_grad<float>(args); }
KERNEL(embedding_grad_bf16, TableArgs, 256) { embedding_grad<bf16>(args); }
