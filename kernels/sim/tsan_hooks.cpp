// Kernels of the race build are compiled with -fsanitize=thread but not linked with its library: the calls that the
// compiler places before every access come here.
#ifdef SIM_RACE

#include "sim/fiber.hpp"
#include "sim/race.hpp"
#include "sim/state.hpp"

namespace {

// A thread's own stack is nobody else's business.
bool on_own_stack(const void* p) {
    const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return reinterpret_cast<uintptr_t>(p) - frame < sim::Stacks::usable_bytes();
}

void read(const void* p, size_t bytes, const void* where) {
    if (sim::block && !on_own_stack(p)) {
        sim::race::read(p, bytes, where);
    }
}

void write(const void* p, size_t bytes, const void* where) {
    if (sim::block && !on_own_stack(p)) {
        sim::race::write(p, bytes, where);
    }
}

}

#define HOOK(name, kind, bytes) \
    extern "C" void __tsan_##name(void* p) { kind(p, bytes, __builtin_return_address(0)); }

HOOK(read1, read, 1)
HOOK(read2, read, 2)
HOOK(read4, read, 4)
HOOK(read8, read, 8)
HOOK(read16, read, 16)
HOOK(write1, write, 1)
HOOK(write2, write, 2)
HOOK(write4, write, 4)
HOOK(write8, write, 8)
HOOK(write16, write, 16)
HOOK(unaligned_read2, read, 2)
HOOK(unaligned_read4, read, 4)
HOOK(unaligned_read8, read, 8)
HOOK(unaligned_read16, read, 16)
HOOK(unaligned_write2, write, 2)
HOOK(unaligned_write4, write, 4)
HOOK(unaligned_write8, write, 8)
HOOK(unaligned_write16, write, 16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, size_t bytes) { read(p, bytes, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { write(p, bytes, __builtin_return_address(0)); }
void __tsan_atomic_thread_fence(int) {}
}

#endif
