// The state of the block that an OS thread runs. One Block lives per OS thread and is reused from block to block.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/abi.h"
#include "sim/runtime.hpp"

namespace sim {

constexpr uint32_t MAX_THREADS = 1024;
constexpr uint32_t MAX_WARPS = MAX_THREADS / 32;
constexpr uint32_t MAX_DYNAMIC_SHARED = 227 * 1024;
constexpr uint32_t NO_THREAD = ~0u;

enum class Schedule : int32_t { fifo, lifo, random };
enum class AsyncMode : int32_t { eager, late, random };

// Why a thread does not run; `where` is an address in its kernel.
struct Waiting {
    const char* reason;
    const void* where;
    uint64_t* mbarrier;
    uint32_t parity;
};

struct Barrier {
    uint32_t arrived, expected, accumulated, result;
    uint32_t waiting[MAX_WARPS]; // a bit a lane
};

struct MmaOperands {
    float a[16][16], b[16][8];
};

struct Warp {
    uint32_t ready;   // lanes that can run
    uint32_t arrived; // lanes waiting in a collective
    uint32_t lanes;   // lanes that exist
    uint64_t tag[32]; // mask and operation of an arrived lane's collective
    void* argument[32];
    MmaOperands mma;
};

struct PendingCopy {
    void* shared;
    const void* global;
    bool valid;
    const void* where;
};

// A thread's cp.async copies, oldest first; `group_ends[i]` copies belong to the groups up to i.
struct CopyQueue {
    std::vector<PendingCopy> copies;
    std::vector<uint32_t> group_ends;
};

struct PendingTensorCopy {
    TensorCopy copy;
    bool store, done;
    uint32_t owner;
    int committed; // stores: commits by the owner since the issue
    const void* where;
};

struct PendingWgmma {
    Wgmma operation;
    bool done;
    float* d[128];
    uint32_t a[128][4];
};

struct Warpgroup {
    uint32_t arrived;
    bool in_flight; // `groups` has been used by this block
    const void* argument[128];
    std::vector<std::vector<std::unique_ptr<PendingWgmma>>> groups; // last: not committed yet
};

struct Block {
    const Kernel* kernel;
    const void* args;
    sim_config config;
    bool greedy; // nothing is decided by chance, and a warp runs on as long as it can
    uint64_t random_state;
    uint32_t dynamic_shared;

    uint32_t threads, warps, alive;
    uint32_t ready_warps; // a bit a warp with a ready lane
    bool threads_running; // false in the runtime's own code around them
    bool failed;
    std::string error;
    void* main_stack_pointer;

    ThreadIndex index[MAX_THREADS];
    void* stack_pointer[MAX_THREADS]; // null: not started
    Waiting waiting[MAX_THREADS];
    Warp warp[MAX_WARPS];
    Barrier barrier[16];
    uint32_t priority[MAX_WARPS];

    std::vector<CopyQueue> copies; // by thread
    bool copies_used;
    std::vector<uint32_t> mbarrier_waiters;
    std::vector<PendingTensorCopy> tensor_copies;
    Warpgroup warpgroup[MAX_THREADS / 128];
    bool wgmma_fenced[MAX_THREADS];
};

extern thread_local constinit Block* block;

inline uint64_t random_number(Block& b) {
    uint64_t& x = b.random_state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x * 0x2545F4914F6CDD1Dull >> 16;
}

inline uint32_t current_lane() { return threadIdx.linear % 32; }
inline Warp& current_warp() { return block->warp[threadIdx.linear / 32]; }

// ---- scheduler.cpp ----
void make_ready(uint32_t thread);
void make_ready(uint32_t warp, uint32_t lanes);
// Parks the running thread until someone makes it ready.
void suspend(const char* reason, const void* where);
// Lets the schedule run others first, the running thread staying ready.
void offer_switch_slowly(const void* where);
inline void offer_switch(const void* where) {
    if (Schedule(block->config.schedule) == Schedule::random) {
        offer_switch_slowly(where);
    }
}
// Runs all threads of the current block, or until one fails.
void run_threads();
[[noreturn]] void abandon_block();

// ---- report.cpp ----
void set_error(const std::string& message);
std::string describe_deadlock();
// " at FILE:LINE" of the kernel code that called the runtime from `where`; empty if unknown.
std::string source_line(const void* where);
// Looks many places up at once, for source_line to find.
void find_source_lines(const std::vector<const void*>& places);
std::string block_prefix();

// ---- mbarrier.cpp, async_copy.cpp, tma.cpp, wgmma.cpp: the descriptions are empty when nothing is in flight ----
bool wake_mbarrier_waiters();
bool run_pending_tensor_copy();
std::string describe_mbarrier(const uint64_t* barrier);
std::string describe_copies_in_flight();
std::string describe_tensor_copies_in_flight();
std::string describe_wgmma_in_flight();

// ---- shared_memory.cpp ----
void poison_static_shared();
bool is_static_shared_address(const void* p);
void poison_dynamic_shared(uint32_t bytes);
void check_dynamic_shared_canary(uint32_t bytes);

}
