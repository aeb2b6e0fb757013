// What the race detector remembers of memory: for every 8 bytes the last few accesses.
#pragma once

#include <cstdint>
#include <vector>

namespace sim::race {

// One access: by which agent (a thread or an asynchronous unit), at which value of that agent's clock, to which of the
// 8 bytes.
struct Access {
    uint32_t clock; // 0: none
    uint16_t agent;
    uint8_t bytes; // a bit a byte
    bool write;
};

constexpr int REMEMBERED = 8;

struct Cell {
    Access accesses[REMEMBERED];
};

// Dynamic shared memory has a cell for every 8 bytes; other addresses share a table, in which newer ones displace
// older.
class Shadow {
  public:
    void begin(const unsigned char* shared, uint32_t shared_bytes) {
        shared_ = reinterpret_cast<uintptr_t>(shared);
        shared_bytes_ = shared_bytes;
        shared_cells_.assign(shared_bytes / 8 + 1, Cell{});
        elsewhere_.resize(ELSEWHERE);
        ++block_;
    }

    Cell& cell(uintptr_t address) {
        if (address - shared_ < shared_bytes_) {
            return shared_cells_[(address - shared_) / 8];
        }
        const uint64_t key = address / 8;
        Entry& entry = elsewhere_[(key * 0x9E3779B97F4A7C15ull >> 32) % ELSEWHERE];
        if (entry.key != key || entry.block != block_) {
            entry = Entry{key, block_, {}};
        }
        return entry.cell;
    }

  private:
    static constexpr size_t ELSEWHERE = 1 << 16;
    struct Entry {
        uint64_t key, block;
        Cell cell;
    };

    uintptr_t shared_ = 0;
    uint32_t shared_bytes_ = 0;
    uint64_t block_ = 0;
    std::vector<Cell> shared_cells_;
    std::vector<Entry> elsewhere_;
};

}
