// Second launches: sums of split depths, in ascending order.
//
//   finish:     y[pixel, k] = epilogue(sum over splits of partial[split, pixel, k])
//   sum_splits: out[i] = sum over splits of partial[split, i], dw's elements first, then db's
//
// Limit: bytes, splits * 4 an element read and the output written.
#include "gemm/epilogue.cuh"

struct FinishArgs {
    const float* partial; // [splits, pixels, columns]
    Epilogue epilogue;
    int64_t pixels;
    int32_t splits;
    int32_t padding;
};

// One thread for each 16 bytes of activations of a row.
template <class T> __device__ __forceinline__ void finish(const FinishArgs& args) {
    constexpr int N = 16 / sizeof(T);
    const int columns = args.epilogue.columns;
    const int pieces = (columns + N - 1) / N;
    const int64_t piece = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t pixel = piece / pieces;
    if (pixel >= args.pixels) {
        return;
    }
    const int column = int(piece % pieces) * N;
    float values[N] = {};
    for (int split = 0; split < args.splits; ++split) {
        add_row(values, args.partial + (split * args.pixels + pixel) * columns, column, columns);
    }
    apply_epilogue<T>(args.epilogue, pixel, column, values);
}

KERNEL(conv_finish_f32, FinishArgs, 256) { finish<float>(args); }
KERNEL(conv_finish_bf16, FinishArgs, 256) { finish<bf16>(args); }

struct SumSplitsArgs {
    const float* partial; // [splits, split_elements]
    float* dw;
    float* db;
    int64_t dw_elements;
    int64_t db_elements;
    int64_t split_elements; // dw's and db's, rounded up to 16 bytes
    int64_t splits;
};

KERNEL(conv_wgrad_sum_splits_f32, SumSplitsArgs, 256) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= args.dw_elements + args.db_elements) {
        return;
    }
    float sum = 0.0f;
    for (int64_t split = 0; split < args.splits; ++split) {
        sum += args.partial[split * args.split_elements + i];
    }
    (i < args.dw_elements ? args.dw + i : args.db + (i - args.dw_elements))[0] = sum;
}
