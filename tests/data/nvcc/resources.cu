// Kernels that take one resource each, for tests/nvcc_build.rs. Recorded with nvcc 13.0.88:
//   nvcc -std=c++20 -Xptxas -v -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -fatbin
//        --keep -o resources.fatbin resources.cu 2>resources.ptxas.txt
//   sed -n '/\.entry/,/)/p' resources.compute_90a.ptx >resources.ptx
struct Args {
    const float* x;
    float* y;
    unsigned long long count;
};

extern "C" __global__ void nothing() {}

extern "C" __global__ void parameters(const __grid_constant__ Args args, int offset, char flag, double* out) {
    *out = args.x[offset] + flag;
}

extern "C" __global__ void shared_memory(const __grid_constant__ Args args) {
    __shared__ float reversed[96];
    reversed[95 - threadIdx.x] = args.x[threadIdx.x];
    __syncthreads();
    args.y[threadIdx.x] = reversed[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(1024, 2) spills(const __grid_constant__ Args args) {
    float values[80];
#pragma unroll
    for (int i = 0; i < 80; i++) {
        values[i] = args.x[i * 33 + threadIdx.x];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 80; i++) {
        args.y[i * 77 + threadIdx.x] = values[79 - i] * values[i * 7 % 80];
    }
}

__device__ __noinline__ float indexed(float value, int n) {
    float values[64];
    for (int i = 0; i < 64; i++) {
        values[i] = value * i;
    }
    return values[n & 63];
}

extern "C" __global__ void stack(const __grid_constant__ Args args) {
    args.y[0] = indexed(args.x[0], static_cast<int>(args.count));
}

__device__ __noinline__ float recursion(float value, int n) {
    return n == 0 ? value : recursion(value * 2, n - 1) + recursion(value, n / 2);
}

extern "C" __global__ void callee_spills(const __grid_constant__ Args args) {
    args.y[0] = recursion(args.x[0], static_cast<int>(args.count));
}
