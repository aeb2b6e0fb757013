// What kernel code calls in the simulator's runtime. Each function is one GPU instruction, executed by the calling
// thread.
#pragma once

#include "sim/builtin_types.hpp"

namespace sim {

// ---- the thread that runs ----
struct ThreadIndex : uint3 {
    uint32_t linear;
};
extern thread_local constinit ThreadIndex threadIdx;
extern thread_local constinit uint3 blockIdx;
extern thread_local constinit dim3 blockDim, gridDim;
extern thread_local constinit uint32_t block_threads;
extern thread_local constinit unsigned char* shared_memory;

// ---- registration of kernels ----
struct Kernel {
    const char* name;
    size_t args_bytes;
    uint32_t max_threads;
    void (*run)(const void* args);
};
struct Registration {
    explicit Registration(const Kernel& kernel);
};

// Ends the launch with a report; printf-style.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- barriers of the block ----
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
uint32_t barrier_reduce(bool predicate); // barrier 0; how many threads passed true

// ---- warp collectives ----
enum class Collective : uint8_t { shuffle = 1, ballot, syncwarp, ldmatrix, stmatrix, mma };
struct CollectiveId {
    Collective operation;
    uint8_t variant; // must agree among the lanes, too
};
// Called once by the last lane of the mask, with every present lane's argument.
using CollectiveBody = void (*)(void* const* lanes, uint32_t present);
void warp_collective(uint32_t mask, CollectiveId id, void* argument, CollectiveBody body);
uint32_t ballot(uint32_t mask, bool predicate);
void ldmatrix(uint32_t* out, const void* row, int matrices, bool transposed);
void stmatrix_x4(void* row, const uint32_t* values);
void mma_m16n8k16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1);

// ---- cp.async ----
void cp_async_16(void* shared, const void* global, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

// ---- sm_90 ----
uint32_t shared_address(const void* pointer); // offset into dynamic shared memory
void fence_proxy_async();
void fence_mbarrier_init();
void mbarrier_init(uint64_t* barrier, uint32_t arrivals);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
void mbarrier_wait(uint64_t* barrier, uint32_t parity);

struct TensorMap {
    alignas(64) uint64_t opaque[16];
};
struct TensorCopy {
    const TensorMap* map;
    void* shared;
    uint64_t* barrier; // loads only
    int rank;
    int coordinates[5];
    bool im2col;
    uint16_t tap[3];
};
void tma_load(const TensorCopy& copy);
void tma_store(const TensorCopy& copy);
void tma_store_commit();
void tma_store_wait(int pending);

struct Wgmma {
    float* d;
    const uint32_t* a_registers; // null: operand a is in shared memory
    uint64_t a, b;               // descriptors
    int n;
    bool accumulate, mn_major_a, mn_major_b;
    bool e4m3; // instead of bf16
};
void wgmma(const Wgmma& operation);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

}
