// Device memory: filled with NaN, ending at an inaccessible page (AddressSanitizer's red zones in its build).
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "sim/abi.h"

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
// cudaMalloc's alignment; the end of a block is its size rounded up to it.
constexpr size_t ALIGNMENT = 256;

size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }
size_t mapped(size_t bytes) { return (rounded(bytes) + PAGE - 1) & ~(PAGE - 1); }

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
    return first + pages - rounded(bytes);
}

void sim_free(void* pointer, size_t bytes) {
    if (pointer) {
        munmap(static_cast<unsigned char*>(pointer) + rounded(bytes) - mapped(bytes), mapped(bytes) + PAGE);
    }
}

#endif
