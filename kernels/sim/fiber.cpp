#include "sim/fiber.hpp"

#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifndef __x86_64__
#error "the simulator's stack switch is written for x86-64"
#endif

// `ret` instead of an indirect jump: two threads that switch at the same call share the processor's return predictions.
asm(R"(
.text
.hidden sim_switch_stack
.globl sim_switch_stack
.type sim_switch_stack, @function
sim_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sim_switch_stack, .-sim_switch_stack
)");

namespace sim {
namespace {

constexpr size_t GUARD_BYTES = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK_BYTES = 63 * 4096;
#else
// With the guard page 33 pages: an odd number, so that equal depths of neighbouring stacks fall into different cache
// sets.
constexpr size_t STACK_BYTES = 32 * 4096;
#endif
constexpr size_t STRIDE = GUARD_BYTES + STACK_BYTES;
constexpr uint32_t STACKS_PER_CHUNK = 32;
constexpr size_t SAVED_REGISTERS = 6;

}

Stacks::~Stacks() {
    for (unsigned char* chunk : chunks_) {
        munmap(chunk, STRIDE * STACKS_PER_CHUNK);
    }
}

void Stacks::grow() {
    void* memory = mmap(nullptr, STRIDE * STACKS_PER_CHUNK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        abort();
    }
    auto* chunk = static_cast<unsigned char*>(memory);
    const uint32_t first = uint32_t(chunks_.size()) * STACKS_PER_CHUNK;
    chunks_.push_back(chunk);
    for (uint32_t i = STACKS_PER_CHUNK; i-- > 0;) {
        mprotect(chunk + i * STRIDE, GUARD_BYTES, PROT_NONE);
        free_.push_back(first + i);
    }
}

uint32_t Stacks::acquire() {
    if (free_.empty()) {
        grow();
    }
    const uint32_t stack = free_.back();
    free_.pop_back();
    return stack;
}

void Stacks::release_all() {
    free_.clear();
    for (uint32_t i = uint32_t(chunks_.size()) * STACKS_PER_CHUNK; i-- > 0;) {
        free_.push_back(i);
    }
}

const void* Stacks::bottom(uint32_t stack) const {
    return chunks_[stack / STACKS_PER_CHUNK] + (stack % STACKS_PER_CHUNK) * STRIDE + GUARD_BYTES;
}

size_t Stacks::usable_bytes() { return STACK_BYTES; }

void* Stacks::prepare(uint32_t stack, void (*entry)()) {
    auto* low = static_cast<unsigned char*>(const_cast<void*>(bottom(stack)));
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(low, STACK_BYTES);
#endif
    // Stacks begin at different offsets in their top page: lanes in step would otherwise fight for the same cache sets.
    unsigned char* top = low + STACK_BYTES - stack * 17 % 64 * 64;
    auto** frame = reinterpret_cast<void**>(top) - 1;
    *frame = nullptr; // the entry's return address: it never returns, and unwinders stop here
    *--frame = reinterpret_cast<void*>(entry);
    frame -= SAVED_REGISTERS;
    memset(frame, 0, SAVED_REGISTERS * sizeof(void*));
    return frame;
}

}
