// wgmma: the 128 threads of a warpgroup meet at each instruction; the last one multiplies, at once or at the wait.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "sim/race.hpp"
#include "sim/wgmma_operand.hpp"

namespace sim {
namespace {

constexpr uint32_t GROUP_THREADS = 128;
constexpr int ROWS = 64, MAX_DEPTH = 32, MAX_N = 256;

enum class Step : uint8_t { multiply, commit, wait };

struct Call {
    Step step;
    int pending;
    Wgmma operation;
};

float e4m3_value(uint8_t bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float magnitude = (bits & 0x7f) == 0x7f ? NAN
                            : exponent == 0       ? ldexpf(float(mantissa), -9)
                                                  : ldexpf(float(8 + mantissa), exponent - 10);
    return bits & 0x80 ? -magnitude : magnitude;
}

float element_at(size_t offset, bool e4m3) {
    static const auto values = [] {
        std::array<float, 256> table;
        for (int bits = 0; bits < 256; ++bits) {
            table[bits] = e4m3_value(uint8_t(bits));
        }
        return table;
    }();
    const size_t bytes = e4m3 ? 1 : 2;
    if (offset + bytes > block->dynamic_shared) {
        fail("wgmma: a descriptor leads to shared_memory+%zu, beyond its %u bytes", offset, block->dynamic_shared);
    }
    if (e4m3) {
        return values[shared_memory[offset]];
    }
    uint16_t bits;
    memcpy(&bits, shared_memory + offset, 2);
    return std::bit_cast<float>(uint32_t(bits) << 16);
}

// d[64][n] += a[64][depth] b[depth][n]
void multiply(const float* a, const float* b, float* d, int n, int depth) {
    for (int row = 0; row < ROWS; ++row) {
        float* out = d + row * n;
        for (int k = 0; k < depth; ++k) {
            const float scale = a[row * depth + k];
            const float* in = b + k * n;
#pragma GCC ivdep
            for (int j = 0; j < n; ++j) {
                out[j] += scale * in[j];
            }
        }
    }
}

// Where accumulator i of thread t is in the 64 x n result.
int element(int t, int i, int n) {
    const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
    return row * n + i / 4 * 8 + t % 4 * 2 + i % 2;
}

void perform(const PendingWgmma& pending) {
    static thread_local float a[ROWS * MAX_DEPTH], b[MAX_DEPTH * MAX_N], d[ROWS * MAX_N];
    const Wgmma& op = pending.operation;
    const int depth = sim::depth(op), bytes = 32 / depth;
    if (op.a_registers) {
        for (int t = 0; t < int(GROUP_THREADS); ++t) {
            for (int i = 0; i < 4; ++i) {
                float* target = &a[(t / 32 * 16 + t % 32 / 4 + i % 2 * 8) * depth + t % 4 * 2 + i / 2 * 8];
                target[0] = std::bit_cast<float>(pending.a[t][i] << 16);
                target[1] = std::bit_cast<float>(pending.a[t][i] & 0xffff0000u);
            }
        }
    } else {
        for (int row = 0; row < ROWS; ++row) {
            for (int k = 0; k < depth; ++k) {
                a[row * depth + k] = element_at(operand_offset(op.a, op.mn_major_a, row, k, bytes), op.e4m3);
            }
        }
    }
    for (int column = 0; column < op.n; ++column) {
        for (int k = 0; k < depth; ++k) {
            b[k * op.n + column] = element_at(operand_offset(op.b, op.mn_major_b, column, k, bytes), op.e4m3);
        }
    }
    for (int t = 0; t < int(GROUP_THREADS); ++t) {
        for (int i = 0; i < op.n / 2; ++i) {
            d[element(t, i, op.n)] = op.accumulate ? pending.d[t][i] : 0.0f;
        }
    }
    multiply(a, b, d, op.n, depth);
    for (int t = 0; t < int(GROUP_THREADS); ++t) {
        for (int i = 0; i < op.n / 2; ++i) {
            pending.d[t][i] = d[element(t, i, op.n)];
        }
    }
}

void start(Warpgroup& group, const Wgmma& operation) {
    auto pending = std::make_unique<PendingWgmma>();
    pending->operation = operation;
    for (uint32_t t = 0; t < GROUP_THREADS; ++t) {
        const Wgmma& own = static_cast<const Call*>(group.argument[t])->operation;
        pending->d[t] = own.d;
        if (own.a_registers) {
            memcpy(pending->a[t], own.a_registers, sizeof(pending->a[t]));
        }
    }
    group.in_flight = true;
    pending->done = AsyncMode(block->config.async_mode) == AsyncMode::eager;
    if (pending->done) {
        perform(*pending);
    }
    if (group.groups.empty()) {
        group.groups.emplace_back();
    }
    group.groups.back().push_back(std::move(pending));
}

void finish_groups(Warpgroup& group, int pending) {
    // The last entry holds what is not committed yet.
    while (int(group.groups.size()) - 1 > pending) {
        for (const auto& operation : group.groups.front()) {
            if (!operation->done) {
                perform(*operation);
            }
        }
        group.groups.erase(group.groups.begin());
    }
}

bool agrees(const Call& a, const Call& b) {
    return a.step == b.step && a.pending == b.pending && a.operation.n == b.operation.n &&
           a.operation.a == b.operation.a && a.operation.b == b.operation.b &&
           a.operation.accumulate == b.operation.accumulate && a.operation.mn_major_a == b.operation.mn_major_a &&
           a.operation.mn_major_b == b.operation.mn_major_b && a.operation.e4m3 == b.operation.e4m3 &&
           !a.operation.a_registers == !b.operation.a_registers;
}

void meet(const Call& own, const void* where) {
    static constexpr const char* NAMES[] = {"wgmma", "wgmma commit", "wgmma wait"};
    Block& b = *block;
    const uint32_t self = threadIdx.linear, first = self & ~(GROUP_THREADS - 1);
    Warpgroup& group = b.warpgroup[self / GROUP_THREADS];
    if (first + GROUP_THREADS > b.threads) {
        fail("%s: the warpgroup has fewer than 128 threads%s", NAMES[int(own.step)], source_line(where).c_str());
    }
    group.argument[self - first] = &own;
    if (++group.arrived < GROUP_THREADS) {
        suspend(NAMES[int(own.step)], where);
        return;
    }
    group.arrived = 0;
    for (uint32_t t = 0; t < GROUP_THREADS; ++t) {
        const Call& other = *static_cast<const Call*>(group.argument[t]);
        if (!agrees(own, other)) {
            fail("divergent warpgroup: this thread is in %s%s, thread %u in %s%s; or their descriptors differ",
                 NAMES[int(own.step)], source_line(where).c_str(), first + t, NAMES[int(other.step)],
                 source_line(b.waiting[first + t].where).c_str());
        }
    }
    switch (own.step) {
    case Step::multiply:
        race::wgmma(own.operation, where);
        start(group, own.operation);
        break;
    case Step::commit:
        group.groups.emplace_back();
        break;
    case Step::wait:
        finish_groups(group, own.pending);
        break;
    }
    for (uint32_t warp = first / 32; warp < first / 32 + 4; ++warp) {
        make_ready(warp, ALL_LANES);
    }
    offer_switch(where);
}

}

void wgmma_fence() { block->wgmma_fenced[threadIdx.linear] = true; }

void wgmma(const Wgmma& operation) {
    const void* where = __builtin_return_address(0);
    if (!block->wgmma_fenced[threadIdx.linear]) {
        fail("wgmma without wgmma_fence before it%s", source_line(where).c_str());
    }
    meet({Step::multiply, 0, operation}, where);
}

void wgmma_commit() {
    meet({Step::commit, 0, {}}, __builtin_return_address(0));
    race::wgmma_commit();
}

void wgmma_wait(int pending) {
    meet({Step::wait, pending, {}}, __builtin_return_address(0));
    if (pending == 0) {
        block->wgmma_fenced[threadIdx.linear] = false;
    }
    race::wgmma_wait(pending);
}

std::string describe_wgmma_in_flight() {
    Block& b = *block;
    for (uint32_t i = 0; i < (b.threads + GROUP_THREADS - 1) / GROUP_THREADS; ++i) {
        for (const auto& group : b.warpgroup[i].groups) {
            if (!group.empty()) {
                return "the block ended with wgmmas in flight in warpgroup " + std::to_string(i);
            }
        }
    }
    return {};
}

}
