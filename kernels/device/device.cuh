// All device primitives: the only header that kernel sources include from outside their family.
#pragma once

#include "device/platform.cuh"

#include "device/activation.cuh"
#include "device/async.cuh"
#include "device/barrier.cuh"
#include "device/columns.cuh"
#include "device/exponential.cuh"
#include "device/fast_divide.cuh"
#include "device/mbarrier.cuh"
#include "device/mma.cuh"
#include "device/philox.cuh"
#include "device/reduce.cuh"
#include "device/ticket.cuh"
#include "device/tma.cuh"
#include "device/types.cuh"
#include "device/vec.cuh"
#include "device/wgmma.cuh"
