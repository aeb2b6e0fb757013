/* The simulator's C interface, as src/backend/gpu/driver/sim.rs and the tests call it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define SIM_API extern "C" __attribute__((visibility("default")))
#else
#define SIM_API
#endif

struct sim_config {
    int32_t threads;    /* OS threads running blocks; 0: one a core */
    int32_t schedule;   /* 0 fifo, 1 lifo, 2 random priorities */
    int32_t async_mode; /* 0 eager, 1 late, 2 random: when asynchronous copies and wgmma take effect */
    uint64_t seed;      /* of schedule 2 and async_mode 2 */
};

/* Kernels are numbered in the order of their names. Numbers out of range give NULL or 0. */
SIM_API int32_t sim_kernel_count(void);
SIM_API const char* sim_kernel_name(int32_t kernel);
SIM_API int32_t sim_find_kernel(const char* name); /* -1: none */
SIM_API uint32_t sim_kernel_args_bytes(int32_t kernel);
SIM_API uint32_t sim_kernel_max_threads(int32_t kernel);

/* Runs a grid to completion; 0: all is well, otherwise sim_last_error says what is wrong. */
SIM_API int32_t sim_launch(int32_t kernel, const uint32_t grid[3], const uint32_t block[3], const uint32_t cluster[3],
                           uint32_t dynamic_shared, const void* args, size_t args_bytes,
                           const struct sim_config* config);

/* Copies this OS thread's last error, zero-terminated and cut to `len`; returns its whole length. */
SIM_API size_t sim_last_error(char* out, size_t len);

/* Device memory: every byte 0xff (NaN in every float type), an inaccessible page behind its end. NULL: out of memory.
 */
SIM_API void* sim_malloc(size_t bytes);
SIM_API void sim_free(void* pointer, size_t bytes);

/* The parameters of cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col; `map`: 128 bytes at a multiple of 64. 0 = ok.
   Corners are in the map's order of dimensions without the innermost and the outermost: w, h, d. */
SIM_API int32_t sim_tensor_map_tiled(void* map, int32_t data_type, uint32_t rank, void* address,
                                     const uint64_t* dimensions, const uint64_t* strides, const uint32_t* box,
                                     const uint32_t* element_strides, int32_t interleave, int32_t swizzle,
                                     int32_t l2_promotion, int32_t oob_fill);
SIM_API int32_t sim_tensor_map_im2col(void* map, int32_t data_type, uint32_t rank, void* address,
                                      const uint64_t* dimensions, const uint64_t* strides, const int32_t* lower_corner,
                                      const int32_t* upper_corner, uint32_t channels_per_pixel,
                                      uint32_t pixels_per_column, const uint32_t* element_strides, int32_t interleave,
                                      int32_t swizzle, int32_t l2_promotion, int32_t oob_fill);
