// Tickets: who draws one sees what everyone did before drawing an earlier one. Threads that were at a block or named
// barrier with the drawing thread before are included, and so are those that are at one with it afterwards. Nobody
// waits.
#pragma once

#include "device/platform.cuh"

// Adds 1 to a counter in global memory and gives its value before.
__device__ __forceinline__ uint32_t draw_ticket(uint32_t* counter) {
#ifdef __CUDACC__
    uint32_t ticket;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                 : "=r"(ticket)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    return ticket;
#else
    return sim::draw_ticket(counter);
#endif
}
