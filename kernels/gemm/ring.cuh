// A ring of slots in shared memory between one producer thread, which fills them by TMA, and warpgroups that read them
// by wgmma (sm_90).
//
// Each slot has two mbarriers. `full` counts the bytes of the copies into the slot, `empty` one arrival of every warp
// that reads it: a warp waits for its own wgmma groups only, so one thread cannot speak for its warpgroup. Producer and
// readers walk the slots in one order, each with a cursor of its own. A reader may skip slots that belong to others,
// but must know before its next wait that the last of them has been filled: a barrier tells turns apart by one bit
// only.
#pragma once

#include "device/device.cuh"

#ifdef DEVICE_HAS_HOPPER

// A place in the endless sequence of uses of a ring.
struct RingCursor {
    uint32_t slot = 0;
    uint32_t parity = 0; // of the turn: 0, 1, 0, ...

    __device__ __forceinline__ void advance(uint32_t slots) {
        if (++slot == slots) {
            slot = 0;
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void skip(uint32_t uses, uint32_t slots) {
        const uint32_t turns = (slot + uses) / slots;
        slot = slot + uses - turns * slots;
        parity ^= turns & 1;
    }
};

struct Ring {
    unsigned char* memory; // slots * slot_bytes, aligned to 1024 bytes
    uint64_t* barriers;    // slots * BARRIERS_A_SLOT
    uint32_t slots;
    uint32_t slot_bytes; // a multiple of 1024 for swizzled operands

    static constexpr uint32_t BARRIERS_A_SLOT = 2;

    // By one thread of the block; fence_mbarrier_init and a block barrier follow.
    __device__ __forceinline__ void init(uint32_t reading_warps) const {
        for (uint32_t slot = 0; slot < slots; ++slot) {
            mbarrier_init(full(slot), 1);
            mbarrier_init(empty(slot), reading_warps);
        }
    }

    __device__ __forceinline__ uint64_t* full(uint32_t slot) const { return barriers + slot; }
    __device__ __forceinline__ uint64_t* empty(uint32_t slot) const { return barriers + slots + slot; }
    __device__ __forceinline__ unsigned char* at(uint32_t slot) const { return memory + slot * slot_bytes; }

    // Producer: waits until the slot is free and announces `bytes` of copies, which then complete on full(cursor.slot).
    // Boxes count whole, their parts outside the tensor included.
    __device__ __forceinline__ unsigned char* acquire(RingCursor cursor, uint32_t bytes) const {
        mbarrier_wait(empty(cursor.slot), cursor.parity ^ 1);
        mbarrier_arrive_expect_tx(full(cursor.slot), bytes);
        return at(cursor.slot);
    }

    // Reader: waits until the slot is filled and gives its shared address.
    __device__ __forceinline__ uint32_t wait(RingCursor cursor) const {
        mbarrier_wait(full(cursor.slot), cursor.parity);
        return shared_address(at(cursor.slot));
    }

    // Reader, all warps: the wgmma groups that read the slot are complete.
    __device__ __forceinline__ void release(uint32_t slot) const {
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive(empty(slot));
        }
    }
};

#endif
