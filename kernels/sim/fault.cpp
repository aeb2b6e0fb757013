// Invalid accesses of kernels: the signal handler continues the thread in a function that reports and ends the launch,
// so the process lives on. AddressSanitizer's build leaves faults to it.
#include "sim/fault.hpp"

#include <csignal>
#include <memory>
#include <mutex>
#include <ucontext.h>

#include "sim/state.hpp"

namespace sim {

#ifdef __SANITIZE_ADDRESS__

void install_fault_handler() {}

#else

namespace {

constexpr size_t REPORT_STACK = 128 * 1024, SIGNAL_STACK = 64 * 1024;
constexpr uint64_t PAGE_FAULT_WRITE = 2;

struct Fault {
    const void* address;
    const void* where;
    bool write;
};

struct sigaction previous[2];
thread_local Fault fault{};
// The thread's own stack may be what overflowed.
thread_local std::unique_ptr<unsigned char[]> report_stack, signal_stack;

[[noreturn]] void report_fault() {
    const std::string place = describe_address(fault.address);
    fail("invalid %s of address %p%s%s", fault.write ? "write" : "read", fault.address, place.c_str(),
         // One more: source_line expects the address behind a call.
         source_line(static_cast<const char*>(fault.where) + 1).c_str());
}

void on_fault(int number, siginfo_t* info, void* context) {
    if (block && block->threads_running && report_stack) {
        auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
        fault = {info->si_addr, reinterpret_cast<const void*>(registers[REG_RIP]),
                 (uint64_t(registers[REG_ERR]) & PAGE_FAULT_WRITE) != 0};
        registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&report_fault));
        // As after a call: 8 below a multiple of 16.
        registers[REG_RSP] =
            greg_t((reinterpret_cast<uintptr_t>(report_stack.get() + REPORT_STACK) & ~uintptr_t(15)) - 8);
        return;
    }
    // Not ours: whoever was there before decides, at the repeated fault.
    sigaction(number, &previous[number == SIGBUS], nullptr);
}

}

void install_fault_handler() {
    if (report_stack) {
        return;
    }
    report_stack = std::make_unique<unsigned char[]>(REPORT_STACK);
    stack_t current{};
    if (sigaltstack(nullptr, &current) == 0 && (current.ss_flags & SS_DISABLE)) {
        signal_stack = std::make_unique<unsigned char[]>(SIGNAL_STACK);
        const stack_t own{signal_stack.get(), 0, SIGNAL_STACK};
        sigaltstack(&own, nullptr);
    }
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous[0]);
        sigaction(SIGBUS, &action, &previous[1]);
    });
}

#endif

}
