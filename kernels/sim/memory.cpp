// Device memory: filled with NaN, ending at an inaccessible page (AddressSanitizer's red zones in its build).
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>

#include "sim/abi.h"
#include "sim/fault.hpp"

#ifdef __SANITIZE_ADDRESS__

void* sim_malloc(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0) {
        return nullptr;
    }
    memset(memory, 0xff, bytes);
    return memory;
}

void sim_free(void* pointer, size_t) { free(pointer); }

#else

namespace {

constexpr size_t PAGE = 4096;
// What the drivers promise. An overrun within the last rounding is left to AddressSanitizer.
constexpr size_t ALIGNMENT = 256;

size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }
size_t mapped(size_t bytes) { return (rounded(bytes) + PAGE - 1) & ~(PAGE - 1); }

struct Allocations {
    std::mutex mutex;
    std::map<const unsigned char*, size_t> bytes;
};

// Never destroyed: memory may be freed after the end of main.
Allocations& allocations() {
    static Allocations& all = *new Allocations;
    return all;
}

}

std::string sim::describe_address(const void* address) {
    Allocations& all = allocations();
    const std::lock_guard lock(all.mutex);
    const auto* byte = static_cast<const unsigned char*>(address);
    auto next = all.bytes.upper_bound(byte);
    if (next == all.bytes.begin()) {
        return {};
    }
    const auto& [first, bytes] = *--next;
    return ", byte " + std::to_string(byte - first) + " of an allocation of " + std::to_string(bytes);
}

void* sim_malloc(size_t bytes) {
    const size_t pages = mapped(bytes);
    void* memory = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return nullptr;
    }
    auto* first = static_cast<unsigned char*>(memory);
    mprotect(first + pages, PAGE, PROT_NONE);
    memset(first, 0xff, pages);
    first += pages - rounded(bytes);
    Allocations& all = allocations();
    const std::lock_guard lock(all.mutex);
    all.bytes[first] = bytes;
    return first;
}

void sim_free(void* pointer, size_t bytes) {
    if (pointer) {
        auto* first = static_cast<unsigned char*>(pointer);
        Allocations& all = allocations();
        {
            const std::lock_guard lock(all.mutex);
            all.bytes.erase(first);
        }
        munmap(first + rounded(bytes) - mapped(bytes), mapped(bytes) + PAGE);
    }
}

#endif
