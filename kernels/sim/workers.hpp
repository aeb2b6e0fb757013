// OS threads that help with large grids; they live from launch to launch.
#pragma once

#include <cstdint>

namespace sim {

// Work that several OS threads can share: each runs work() until nothing is left.
class Job {
  public:
    virtual void work(bool helper) = 0;

  protected:
    ~Job() = default;
};

// Offers the job to up to `threads` OS threads, the caller's included (0: one a core). Ignored while another job has
// them.
void ask_for_help(Job& job, int32_t threads);
// Returns once no helper works on the job any more.
void finish(Job& job);

}
