// Error reports: which thread of which block, where in the kernel's source, and who waits for what.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>

#include "sim/state.hpp"

namespace sim {
namespace {

std::string triple(const uint3& v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

// Frames of the primitives and of the simulator itself tell a kernel's author nothing.
bool is_kernel_source(const char* line) {
    if (strstr(line, "/kernels/sim/")) {
        return strstr(line, "/kernels/sim/tests/");
    }
    return !strstr(line, "/kernels/device/");
}

}

std::string source_line(const void* where) {
    Dl_info info;
    if (!where || !dladdr(where, &info) || !info.dli_fname) {
        return {};
    }
    // One less: the address of a call, not of what follows it.
    const auto offset = static_cast<const char*>(where) - static_cast<const char*>(info.dli_fbase) - 1;
    char command[1024];
    snprintf(command, sizeof(command), "addr2line -i -e '%s' 0x%lx 2>/dev/null", strcmp(info.dli_fname, "") ? info.dli_fname : "/proc/self/exe",
             static_cast<unsigned long>(offset));
    std::string found;
    if (FILE* lines = popen(command, "r")) {
        char line[1024];
        while (found.empty() && fgets(line, sizeof(line), lines)) {
            line[strcspn(line, " \n")] = 0;
            if (is_kernel_source(line) && line[0] != '?') {
                const char* inside = strstr(line, "/kernels/");
                found = std::string(" at ") + (inside ? inside + 1 : line);
            }
        }
        pclose(lines);
    }
    return found;
}

std::string block_prefix() { return std::string("kernel ") + block->kernel->name + ", block " + triple(blockIdx) + ": "; }

void set_error(const std::string& message) {
    if (!block->failed) {
        block->error = message;
        block->failed = true;
    }
}

void fail(const char* format, ...) {
    char message[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    set_error(block_prefix() + "thread " + triple(threadIdx) + ": " + message);
    abandon_block();
}

std::string describe_deadlock() {
    const Block& b = *block;
    std::string report = block_prefix() + "DEADLOCK, no thread can go on:";
    // Runs of threads that wait for the same thing at the same place are one line.
    for (uint32_t first = 0; first < b.threads;) {
        const Waiting& waiting = b.waiting[first];
        uint32_t last = first;
        while (last + 1 < b.threads && memcmp(&b.waiting[last + 1], &waiting, sizeof(Waiting)) == 0) {
            ++last;
        }
        report += "\n  threads " + std::to_string(first) + "-" + std::to_string(last) + ": ";
        report += waiting.mbarrier ? describe_mbarrier(waiting.mbarrier) + ", parity " + std::to_string(waiting.parity)
                                   : std::string(waiting.reason);
        report += source_line(waiting.where);
        first = last + 1;
    }
    return report;
}

}
