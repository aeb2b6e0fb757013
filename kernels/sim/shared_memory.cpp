// Shared memory of a block: NaN at its start, guarded at its end.
//
// Dynamic shared memory ends, rounded up to its alignment, at an inaccessible page; the rest up to there is a canary.
// Static
// __shared__ variables are thread-local ones, found by name in the symbol table of this executable or library.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim/state.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace sim {

thread_local constinit unsigned char* shared_memory = nullptr;

namespace {

constexpr uint32_t ALIGNMENT = 1024;
constexpr uint32_t CAPACITY = 256 * 1024; // a multiple of the page size
constexpr uint32_t LOWER_CANARY = 256;
constexpr size_t PAGE = 4096;
constexpr unsigned char POISON = 0xff;

struct Region {
    unsigned char* end = nullptr;

    Region() {
        void* memory =
            mmap(nullptr, CAPACITY + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            abort();
        }
        end = static_cast<unsigned char*>(memory) + CAPACITY;
        mprotect(end, PAGE, PROT_NONE);
    }
    ~Region() { munmap(end - CAPACITY, CAPACITY + PAGE); }
};

thread_local Region region;

uint32_t rounded(uint32_t bytes) { return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }

struct StaticVariable {
    size_t offset, bytes;
};

// Kernel sources are compiled inside namespace `kernel` (build/sim.rs); _ZZ begins a local entity's mangled name.
bool is_static_shared(const Elf64_Sym& symbol, const char* name) {
    return ELF64_ST_TYPE(symbol.st_info) == STT_TLS && strncmp(name, "_ZZN6kernel", 11) == 0;
}

std::vector<StaticVariable> variables_of(const unsigned char* file) {
    std::vector<StaticVariable> found;
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; ++i) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const auto* symbols = reinterpret_cast<const Elf64_Sym*>(file + sections[i].sh_offset);
        const auto* names = reinterpret_cast<const char*>(file + sections[sections[i].sh_link].sh_offset);
        for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
            if (is_static_shared(symbols[k], names + symbols[k].st_name)) {
                found.push_back({symbols[k].st_value, symbols[k].st_size});
            }
        }
    }
    // The same variable of several objects is one symbol, but may be listed more than once.
    std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
    found.erase(std::unique(found.begin(), found.end(), [](auto& a, auto& b) { return a.offset == b.offset; }),
                found.end());
    return found;
}

std::vector<StaticVariable> read_symbols() {
    Dl_info info;
    const char* path = "/proc/self/exe";
    static const int anchor = 0;
    if (dladdr(&anchor, &info) && info.dli_fname && strstr(info.dli_fname, ".so")) {
        path = info.dli_fname;
    }
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
        return {};
    }
    void* bytes = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) {
        return {};
    }
    auto found = variables_of(static_cast<const unsigned char*>(bytes));
    munmap(bytes, size_t(status.st_size));
    return found;
}

// This OS thread's copy of the thread-local segment that holds the simulator's variables.
unsigned char* thread_local_segment() {
    unsigned char* segment = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
            auto* data = static_cast<unsigned char*>(info->dlpi_tls_data);
            const auto* anchor = reinterpret_cast<const unsigned char*>(&shared_memory);
            for (int i = 0; data && i < info->dlpi_phnum; ++i) {
                const auto& header = info->dlpi_phdr[i];
                if (header.p_type == PT_TLS && anchor >= data && anchor < data + header.p_memsz) {
                    *static_cast<unsigned char**>(out) = data;
                    return 1;
                }
            }
            return 0;
        },
        &segment);
    return segment;
}

const std::vector<StaticVariable>& variables() {
    static const std::vector<StaticVariable> variables = read_symbols();
    return variables;
}

unsigned char* own_segment() {
    static thread_local unsigned char* const segment = thread_local_segment();
    return segment;
}

void set_accessible(uint32_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(region.end - CAPACITY, CAPACITY);
    __asan_poison_memory_region(region.end - CAPACITY, CAPACITY - rounded(bytes));
    __asan_poison_memory_region(shared_memory + bytes, rounded(bytes) - bytes);
#else
    (void)bytes;
#endif
}

[[maybe_unused]] bool poisoned(const unsigned char* first, const unsigned char* last) {
    return std::all_of(first, last, [](unsigned char byte) { return byte == POISON; });
}

}

void poison_dynamic_shared(uint32_t bytes) {
    shared_memory = region.end - rounded(bytes);
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(region.end - CAPACITY, CAPACITY);
#endif
    memset(shared_memory - LOWER_CANARY, POISON, LOWER_CANARY + rounded(bytes));
    set_accessible(bytes);
}

void check_dynamic_shared_canary(uint32_t bytes) {
#ifndef __SANITIZE_ADDRESS__
    const unsigned char* past = shared_memory + bytes;
    if (!poisoned(past, region.end)) {
        const unsigned char* at = std::find_if(past, static_cast<const unsigned char*>(region.end),
                                               [](unsigned char byte) { return byte != POISON; });
        set_error(block_prefix() + "a write past the end of dynamic shared memory: byte " +
                  std::to_string(at - shared_memory) + " of " + std::to_string(bytes));
    } else if (!poisoned(shared_memory - LOWER_CANARY, shared_memory)) {
        set_error(block_prefix() + "a write before the start of dynamic shared memory");
    }
#else
    (void)bytes;
#endif
}

void poison_static_shared() {
    for (const StaticVariable& variable : variables()) {
        memset(own_segment() + variable.offset, POISON, variable.bytes);
    }
}

bool is_static_shared_address(const void* p) {
    return std::any_of(variables().begin(), variables().end(), [&](const StaticVariable& variable) {
        return size_t(static_cast<const unsigned char*>(p) - own_segment()) - variable.offset < variable.bytes;
    });
}

}
