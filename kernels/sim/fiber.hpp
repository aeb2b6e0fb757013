// Stackful coroutines: a stack for each suspended GPU thread, and the switch between two of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Saves the caller's registers and stack pointer to *save, and continues where `target` was saved.
extern "C" void sim_switch_stack(void** save, void* target);

namespace sim {

// The stacks of one OS thread. A page below each faults on overflow.
class Stacks {
  public:
    Stacks() = default;
    Stacks(const Stacks&) = delete;
    ~Stacks();

    // A free stack's number; takes new memory when none is free.
    uint32_t acquire();
    void release(uint32_t stack) { free_.push_back(stack); }
    // Takes all stacks back, whatever was on them.
    void release_all();
    // The stack pointer from which a switch enters `entry`.
    void* prepare(uint32_t stack, void (*entry)());

    const void* bottom(uint32_t stack) const;
    static size_t usable_bytes();

  private:
    void grow();

    std::vector<unsigned char*> chunks_;
    std::vector<uint32_t> free_;
};

}
