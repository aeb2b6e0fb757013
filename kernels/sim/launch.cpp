// The C interface: kernels by number, and launches of grids.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>

#include "sim/fault.hpp"
#include "sim/race.hpp"
#include "sim/state.hpp"
#include "sim/tensor_map.hpp"
#include "sim/workers.hpp"

namespace sim {

namespace {

thread_local std::string last_error;

std::vector<Kernel>& registered() {
    static std::vector<Kernel> kernels;
    return kernels;
}

const std::vector<Kernel>& kernels() {
    static const bool sorted = [] {
        std::sort(registered().begin(), registered().end(),
                  [](const Kernel& a, const Kernel& b) { return strcmp(a.name, b.name) < 0; });
        return true;
    }();
    (void)sorted;
    return registered();
}

const Kernel* kernel_at(int32_t number) {
    return number >= 0 && size_t(number) < kernels().size() ? &kernels()[size_t(number)] : nullptr;
}

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    uint32_t dynamic_shared;
    const void* args;
    sim_config config;

    size_t blocks() const { return size_t(grid.x) * grid.y * grid.z; }
    uint32_t threads() const { return block.x * block.y * block.z; }
};

std::string invalid(const Launch& launch, const uint32_t cluster[3], size_t args_bytes) {
    const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
    const auto refuse = [&](const std::string& reason) {
        return std::string("kernel ") + launch.kernel->name + ": " + reason;
    };
    if (threads == 0 || threads > launch.kernel->max_threads) {
        return refuse(std::to_string(threads) + " threads a block; the kernel is built for 1 to " +
                      std::to_string(launch.kernel->max_threads));
    }
    if (launch.blocks() == 0 || launch.grid.y > 65535 || launch.grid.z > 65535 || launch.grid.x > 0x7fffffff) {
        return refuse("the grid is empty or beyond the limits 2^31-1, 65535, 65535");
    }
    if (launch.dynamic_shared > MAX_DYNAMIC_SHARED) {
        return refuse(std::to_string(launch.dynamic_shared) + " bytes of dynamic shared memory; at most " +
                      std::to_string(MAX_DYNAMIC_SHARED) + " fit");
    }
    if (cluster && (cluster[0] != 1 || cluster[1] != 1 || cluster[2] != 1)) {
        return refuse("clusters of more than one block are not simulated");
    }
    if (args_bytes != launch.kernel->args_bytes) {
        return refuse(std::to_string(args_bytes) + " bytes of arguments; the kernel takes " +
                      std::to_string(launch.kernel->args_bytes));
    }
    return {};
}

void set_up_threads(Block& b, const Launch& launch) {
    b.kernel = launch.kernel;
    b.args = launch.args;
    b.config = launch.config;
    b.greedy = Schedule(b.config.schedule) == Schedule::fifo && AsyncMode(b.config.async_mode) != AsyncMode::random;
    b.dynamic_shared = launch.dynamic_shared;
    b.threads = launch.threads();
    b.warps = (b.threads + 31) / 32;
    for (uint32_t i = 0; i < b.threads; ++i) {
        const uint32_t x = i % launch.block.x, rest = i / launch.block.x;
        b.index[i] = ThreadIndex{{x, rest % launch.block.y, rest / launch.block.y}, i};
    }
    b.copies.resize(std::max<size_t>(b.copies.size(), b.threads));
}

void reset(Block& b, uint64_t block_number) {
    b.random_state = (b.config.seed + 1) * 0x9E3779B97F4A7C15ull ^ (block_number * 0xD1B54A32D192ED03ull + 1);
    b.alive = b.threads;
    b.failed = false;
    b.error.clear();
    b.ready_warps = 0;
    std::fill_n(b.stack_pointer, b.threads, nullptr);
    std::fill_n(b.waiting, b.threads, Waiting{"not started", nullptr, nullptr, 0});
    for (uint32_t i = 0; i < b.warps; ++i) {
        const uint32_t lanes = std::min(32u, b.threads - i * 32);
        b.warp[i].lanes = lanes == 32 ? ~0u : (1u << lanes) - 1;
        b.warp[i].ready = b.warp[i].lanes;
        b.warp[i].arrived = 0;
        b.ready_warps |= 1u << i;
        b.priority[i] = uint32_t(random_number(b));
    }
    memset(b.barrier, 0, sizeof(b.barrier));
    if (b.copies_used) {
        for (CopyQueue& queue : b.copies) {
            queue.copies.clear();
            queue.group_ends.clear();
        }
        b.copies_used = false;
    }
    b.mbarrier_waiters.clear();
    b.tensor_copies.clear();
    for (Warpgroup& group : b.warpgroup) {
        group.arrived = 0;
        if (group.in_flight) {
            group.groups.clear();
            group.in_flight = false;
        }
    }
    std::fill_n(b.wgmma_fenced, b.threads, false);
}

void check_at_exit(const Block& b) {
    for (const auto describe :
         {describe_copies_in_flight, describe_tensor_copies_in_flight, describe_wgmma_in_flight}) {
        if (const std::string in_flight = describe(); !in_flight.empty()) {
            set_error(block_prefix() + in_flight);
        }
    }
    for (int id = 0; id < 16; ++id) {
        if (b.barrier[id].arrived) {
            set_error(block_prefix() + "the block ended with barrier " + std::to_string(id) + " reached by " +
                      std::to_string(b.barrier[id].arrived) + " of " + std::to_string(b.barrier[id].expected) +
                      " threads");
        }
    }
    check_dynamic_shared_canary(b.dynamic_shared);
}

// Runs blocks until none are left; the error of the lowest-numbered failing block of this OS thread ends its part.
class GridRun : public Job {
  public:
    explicit GridRun(const Launch& launch) : launch_(launch) {}

    void work(bool helper) override {
        static thread_local const auto own_block = std::make_unique<Block>();
        block = own_block.get();
        install_fault_handler();
        gridDim = launch_.grid;
        blockDim = launch_.block;
        block_threads = launch_.threads();
        set_up_threads(*block, launch_);
        const auto begin = std::chrono::steady_clock::now();
        bool asked_for_help = helper;
        for (size_t number; !failed_ && (number = next_++) < launch_.blocks();) {
            run(number);
            if (!asked_for_help && next_ < launch_.blocks() && std::chrono::steady_clock::now() - begin > HELP_AFTER) {
                asked_for_help = true;
                ask_for_help(*this, launch_.config.threads);
            }
        }
        block = nullptr;
    }

    std::string error() const { return error_; }

  private:
    // Waking workers costs a few microseconds: shorter grids stay on the caller's thread.
    static constexpr auto HELP_AFTER = std::chrono::microseconds(20);

    void run(size_t number) {
        Block& b = *block;
        const dim3 grid = launch_.grid;
        blockIdx = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
        reset(b, number);
        poison_dynamic_shared(launch_.dynamic_shared);
        poison_static_shared();
        race::begin_block();
        run_threads();
        if (!b.failed) {
            check_at_exit(b);
        }
        if (b.failed) {
            const std::lock_guard lock(mutex_);
            if (number < failed_block_) {
                failed_block_ = number;
                error_ = b.error;
            }
            failed_ = true;
        }
    }

    const Launch& launch_;
    std::atomic<size_t> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    size_t failed_block_ = ~size_t(0);
    std::string error_;
};

// Kernel arguments hold tensor maps, which need 64-byte alignment.
struct ArgumentCopy {
    explicit ArgumentCopy(const void* args, size_t bytes)
        : words((bytes + sizeof(TensorMap) - 1) / sizeof(TensorMap) + 1) {
        memcpy(words.data(), args, bytes);
    }
    std::vector<TensorMap> words;
};

}

void set_last_error(const std::string& message) { last_error = message; }

Registration::Registration(const Kernel& kernel) { registered().push_back(kernel); }

}

using namespace sim;

int32_t sim_kernel_count() { return int32_t(kernels().size()); }

const char* sim_kernel_name(int32_t number) {
    const Kernel* kernel = kernel_at(number);
    return kernel ? kernel->name : nullptr;
}

int32_t sim_find_kernel(const char* name) {
    const auto& all = kernels();
    const auto at = std::lower_bound(all.begin(), all.end(), name, [](const Kernel& kernel, const char* wanted) {
        return strcmp(kernel.name, wanted) < 0;
    });
    return at != all.end() && strcmp(at->name, name) == 0 ? int32_t(at - all.begin()) : -1;
}

uint32_t sim_kernel_args_bytes(int32_t number) {
    const Kernel* kernel = kernel_at(number);
    return kernel ? uint32_t(kernel->args_bytes) : 0;
}

uint32_t sim_kernel_max_threads(int32_t number) {
    const Kernel* kernel = kernel_at(number);
    return kernel ? kernel->max_threads : 0;
}

int32_t sim_launch(int32_t number, const uint32_t grid[3], const uint32_t thread_block[3], const uint32_t cluster[3],
                   uint32_t dynamic_shared, const void* args, size_t args_bytes, const sim_config* config) {
    const Kernel* kernel = kernel_at(number);
    if (!kernel) {
        last_error = "there is no kernel number " + std::to_string(number);
        return 1;
    }
    Launch launch{kernel,
                  {grid[0], grid[1], grid[2]},
                  {thread_block[0], thread_block[1], thread_block[2]},
                  dynamic_shared,
                  nullptr,
                  *config};
    last_error = invalid(launch, cluster, args_bytes);
    if (!last_error.empty()) {
        return 1;
    }
    const ArgumentCopy copy(args, args_bytes);
    launch.args = copy.words.data();
    GridRun run(launch);
    run.work(false);
    finish(run);
    last_error = run.error();
    return last_error.empty() ? 0 : 1;
}

size_t sim_last_error(char* out, size_t length) {
    if (length > 0) {
        const size_t copied = std::min(length - 1, last_error.size());
        memcpy(out, last_error.data(), copied);
        out[copied] = 0;
    }
    return last_error.size();
}
