// Runs the threads of a block on one OS thread. A thread runs until it must wait; the switch goes straight to the next
// one.
#include "sim/scheduler.hpp"

#include "sim/fiber.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace sim {

thread_local constinit ThreadIndex threadIdx{};
thread_local constinit uint3 blockIdx{};
thread_local constinit dim3 blockDim{}, gridDim{};
thread_local constinit uint32_t block_threads = 0;
thread_local constinit Block* block = nullptr;

namespace {

thread_local Stacks stacks;
thread_local uint32_t stack_of[MAX_THREADS]; // by thread: the stack it runs on

// AddressSanitizer must know which stack is in use; elsewhere these do nothing.
struct StackNote {
    void* fake_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
    void leave(bool for_good, const void* bottom, size_t bytes) {
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, bottom, bytes);
    }
    void enter() { __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr); }
#else
    void leave(bool, const void*, size_t) {}
    void enter() {}
#endif
};

#ifdef __SANITIZE_ADDRESS__
struct StackRange {
    const void* bottom;
    size_t bytes;
};
thread_local StackRange main_range{};
StackRange range_of(uint32_t thread) { return {stacks.bottom(stack_of[thread]), Stacks::usable_bytes()}; }
#else
struct StackRange {
    const void* bottom = nullptr;
    size_t bytes = 0;
};
const StackRange main_range{};
StackRange range_of(uint32_t) { return {}; }
#endif

void run_on_this_stack();

// Continues thread `next`, starting it on a fresh stack if it has none; the running context is saved to *save.
inline void switch_to(void** save, uint32_t next, bool for_good) {
    Block& b = *block;
    void* target = b.stack_pointer[next];
    if (!target) [[unlikely]] {
        const uint32_t stack = stacks.acquire();
        stack_of[next] = stack;
        target = stacks.prepare(stack, run_on_this_stack);
    }
    threadIdx = b.index[next];
    StackNote note;
    const StackRange range = range_of(next);
    note.leave(for_good, range.bottom, range.bytes);
    sim_switch_stack(save, target);
    note.enter();
}

void switch_to_main(bool for_good) {
    void* unused;
    StackNote note;
    note.leave(for_good, main_range.bottom, main_range.bytes);
    sim_switch_stack(&unused, block->main_stack_pointer);
    note.enter();
}

uint32_t next_ready(uint32_t current) {
    Block& b = *block;
    switch (Schedule(b.config.schedule)) {
    case Schedule::fifo:
        return next_in_order(b, current);
    case Schedule::lifo:
        return next_in_reverse(b);
    case Schedule::random:
        break;
    }
    wake_mbarrier_waiters();
    return next_by_priority(b);
}

// The next thread, after letting asynchronous work happen where no thread is ready.
uint32_t next_thread(uint32_t current) {
    Block& b = *block;
    if (AsyncMode(b.config.async_mode) == AsyncMode::random && random_number(b) % 8 == 0) {
        run_pending_tensor_copy();
    }
    for (;;) {
        const uint32_t next = next_ready(current);
        if (next != NO_THREAD) {
            return next;
        }
        if (!wake_mbarrier_waiters() && !run_pending_tensor_copy()) {
            set_error(describe_deadlock());
            abandon_block();
        }
    }
}

void clear_ready(uint32_t thread) {
    Warp& warp = block->warp[thread / 32];
    warp.ready &= ~(1u << thread % 32);
    if (!warp.ready) {
        block->ready_warps &= ~(1u << thread / 32);
    }
}

// The life of a stack: runs threads to their ends one after the other, until the next one already has a stack of its
// own.
void run_on_this_stack() {
    Block& b = *block;
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!main_range.bottom) {
        // The first stack of an OS thread is entered from its main one.
        main_range = {bottom, bytes};
    }
#endif
    const uint32_t own_stack = stack_of[threadIdx.linear];
    for (;;) {
        b.kernel->run(b.args);
        const uint32_t self = threadIdx.linear;
        b.waiting[self] = {"exited", nullptr, nullptr, 0};
        clear_ready(self);
        if (--b.alive == 0) {
            switch_to_main(true);
        }
        const uint32_t next = next_thread(self);
        if (b.stack_pointer[next]) {
            void* unused;
            stacks.release(own_stack);
            switch_to(&unused, next, true);
        }
        threadIdx = b.index[next];
        stack_of[next] = own_stack;
    }
}

}

void make_ready(uint32_t warp, uint32_t lanes) {
    block->warp[warp].ready |= lanes;
    block->ready_warps |= uint32_t(lanes != 0) << warp;
}

void make_ready(uint32_t thread) { make_ready(thread / 32, 1u << thread % 32); }

void suspend(const char* reason, const void* where) {
    const uint32_t self = threadIdx.linear;
    Block& b = *block;
    b.waiting[self].reason = reason;
    b.waiting[self].where = where;
    Warp& warp = b.warp[self / 32];
    warp.ready &= ~(1u << self % 32);
    if (b.greedy && warp.ready) [[likely]] {
        // The lanes of a warp follow one another to their collective.
        switch_to(&b.stack_pointer[self], (self & ~31u) + uint32_t(std::countr_zero(warp.ready)), false);
        return;
    }
    clear_ready(self);
    const uint32_t next = next_thread(self);
    if (next != self) {
        switch_to(&b.stack_pointer[self], next, false);
    }
}

void offer_switch_slowly(const void* where) {
    Block& b = *block;
    const uint32_t self = threadIdx.linear;
    const uint32_t next = next_thread(self);
    if (next != self) {
        b.waiting[self].reason = "ready";
        b.waiting[self].where = where;
        switch_to(&b.stack_pointer[self], next, false);
    }
}

void abandon_block() {
    switch_to_main(false);
    __builtin_unreachable();
}

void run_threads() {
    Block& b = *block;
    stacks.release_all();
    const uint32_t first = next_ready(0);
    b.threads_running = true;
    switch_to(&b.main_stack_pointer, first, false);
    b.threads_running = false;
}

}
