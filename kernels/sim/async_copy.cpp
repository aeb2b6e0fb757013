// cp.async: copies take effect at once, at the wait, or at either by chance. Late ones leave NaN behind until then, so
// that a reader who does not wait gets NaN.
#include <cstring>

#include "sim/race.hpp"
#include "sim/state.hpp"

namespace sim {
namespace {

constexpr size_t COPY_BYTES = 16;

CopyQueue& own_queue() { return block->copies[threadIdx.linear]; }

void perform(const PendingCopy& copy) {
    race::write(copy.shared, COPY_BYTES, copy.where);
    if (copy.valid) {
        memcpy(copy.shared, copy.global, COPY_BYTES);
    } else {
        memset(copy.shared, 0, COPY_BYTES);
    }
}

bool deferred() {
#ifdef SIM_RACE
    return true; // until the wait the write is not ordered after anything
#else
    const auto mode = AsyncMode(block->config.async_mode);
    return mode == AsyncMode::late || (mode == AsyncMode::random && random_number(*block) % 2 == 0);
#endif
}

}

void cp_async_16(void* shared, const void* global, bool valid) {
    const void* where = __builtin_return_address(0);
    if (reinterpret_cast<uintptr_t>(shared) % COPY_BYTES != 0 ||
        (valid && reinterpret_cast<uintptr_t>(global) % COPY_BYTES != 0)) {
        fail("cp.async: an address is not a multiple of 16 bytes%s", source_line(where).c_str());
    }
    PendingCopy copy{shared, global, valid, where};
    if (deferred()) {
        memset(shared, 0xff, COPY_BYTES);
    } else {
        perform(copy);
        copy.shared = nullptr;
    }
    block->copies_used = true;
    own_queue().copies.push_back(copy);
}

void cp_async_commit() {
    block->copies_used = true;
    CopyQueue& queue = own_queue();
    queue.group_ends.push_back(uint32_t(queue.copies.size()));
}

void cp_async_wait(int pending) {
    CopyQueue& queue = own_queue();
    if (queue.group_ends.size() <= size_t(pending)) {
        return;
    }
    const size_t groups = queue.group_ends.size() - size_t(pending);
    const uint32_t done = queue.group_ends[groups - 1];
    for (uint32_t i = 0; i < done; ++i) {
        if (queue.copies[i].shared) {
            perform(queue.copies[i]);
        }
    }
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + done);
    queue.group_ends.erase(queue.group_ends.begin(), queue.group_ends.begin() + long(groups));
    for (uint32_t& end : queue.group_ends) {
        end -= done;
    }
}

std::string describe_copies_in_flight() {
    if (!block->copies_used) {
        return {};
    }
    for (uint32_t thread = 0; thread < block->threads; ++thread) {
        const CopyQueue& queue = block->copies[thread];
        if (!queue.copies.empty()) {
            return "the block ended with cp.async copies in flight: thread " + std::to_string(thread) +
                   " never waited for " + std::to_string(queue.copies.size()) + source_line(queue.copies.front().where);
        }
    }
    return {};
}

}
