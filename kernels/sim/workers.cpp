#include "sim/workers.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace sim {
namespace {

// Each OS thread has hundreds of guarded stacks, and the kernel limits the mappings of a process.
constexpr uint32_t MAX_HELPERS = 15;

struct Pool {
    std::mutex mutex;
    std::condition_variable offered, left;
    Job* job = nullptr;
    uint32_t wanted = 0;  // helpers that may still join
    uint32_t working = 0; // helpers inside work()
    uint32_t started = 0;

    void help() {
        std::unique_lock lock(mutex);
        for (;;) {
            offered.wait(lock, [&] { return job && wanted > 0; });
            Job& current = *job;
            --wanted;
            ++working;
            lock.unlock();
            current.work(true);
            lock.lock();
            --working;
            left.notify_all();
        }
    }
};

// Never destroyed: helpers wait in it until the process ends.
Pool& pool() {
    static Pool& pool = *new Pool;
    return pool;
}

}

void ask_for_help(Job& job, int32_t threads) {
    const uint32_t total = threads > 0 ? uint32_t(threads) : std::max(1u, std::thread::hardware_concurrency());
    const uint32_t helpers = std::min(total - 1, MAX_HELPERS);
    Pool& p = pool();
    {
        const std::lock_guard lock(p.mutex);
        if (p.job || helpers == 0) {
            return;
        }
        p.job = &job;
        p.wanted = helpers;
        while (p.started < helpers) {
            std::thread([&p] { p.help(); }).detach();
            ++p.started;
        }
    }
    p.offered.notify_all();
}

void finish(Job& job) {
    Pool& p = pool();
    std::unique_lock lock(p.mutex);
    if (p.job != &job) {
        return;
    }
    p.wanted = 0;
    p.left.wait(lock, [&] { return p.working == 0; });
    p.job = nullptr;
}

}
