// Error reports: which thread of which block, where in the kernel's source, and who waits for what.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <unistd.h>

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

std::mutex lines_mutex;

// By address; empty where nothing is known. Never destroyed: OS threads may report to the end.
std::map<const void*, std::string>& known_lines() {
    static auto& lines = *new std::map<const void*, std::string>;
    return lines;
}

std::string executable_path() {
    char path[4096];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
    return std::string(path, length > 0 ? size_t(length) : 0);
}

// Looks addresses of one file up in a single run: reading a large executable's debug information takes addr2line
// seconds.
void look_up(const std::string& file, const std::vector<std::pair<const void*, size_t>>& addresses) {
    std::string command = "addr2line -a -i -e '" + file + "'";
    for (const auto& [where, offset] : addresses) {
        char text[24];
        snprintf(text, sizeof(text), " 0x%zx", offset);
        command += text;
    }
    FILE* lines = popen((command + " 2>/dev/null").c_str(), "r");
    if (!lines) {
        return;
    }
    // For each address a line with it, then the innermost place and the callers into which it is inlined.
    size_t number = 0;
    char line[1024];
    while (fgets(line, sizeof(line), lines)) {
        line[strcspn(line, " \n")] = 0;
        if (strncmp(line, "0x", 2) == 0) {
            ++number;
        } else if (number > 0 && number <= addresses.size() && is_kernel_source(line) && line[0] != '?') {
            std::string& found = known_lines()[addresses[number - 1].first];
            if (found.empty()) {
                const char* inside = strstr(line, "/kernels/");
                found = std::string(" at ") + (inside ? inside + 1 : line);
            }
        }
    }
    pclose(lines);
}

}

void find_source_lines(const std::vector<const void*>& places) {
    const std::lock_guard lock(lines_mutex);
    std::map<std::string, std::vector<std::pair<const void*, size_t>>> by_file;
    for (const void* where : places) {
        Dl_info info;
        if (where && known_lines().try_emplace(where).second && dladdr(where, &info) && info.dli_fname) {
            // One less: the address of a call, not of what follows it.
            const auto offset = size_t(static_cast<const char*>(where) - static_cast<const char*>(info.dli_fbase)) - 1;
            // The executable's name is as it was typed, perhaps from another directory.
            const bool library = strstr(info.dli_fname, ".so") != nullptr;
            by_file[library ? info.dli_fname : executable_path()].push_back({where, offset});
        }
    }
    for (const auto& [file, addresses] : by_file) {
        look_up(file, addresses);
    }
}

std::string source_line(const void* where) {
    find_source_lines({where});
    const std::lock_guard lock(lines_mutex);
    const auto known = known_lines().find(where);
    return known == known_lines().end() ? std::string() : known->second;
}

std::string block_prefix() {
    return std::string("kernel ") + block->kernel->name + ", block " + triple(blockIdx) + ": ";
}

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
    std::vector<const void*> places;
    for (uint32_t thread = 0; thread < b.threads; ++thread) {
        places.push_back(b.waiting[thread].where);
    }
    find_source_lines(places);
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
