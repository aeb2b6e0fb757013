// The training loss of each example and its gradient: loss = w_t MSE(out, target) + vb_weight * bound, in bits per
// dimension (2006.11239, eq. 14; 2102.09672, section 3.1), dout = d mean(loss) / d out.
//
// Shapes: out, dout [N,H,W,C or 2C] in the activation type; x0, x_t, eps [N,H,W,C], t [N] and losses [N,3], (loss,
// L_simple, bound), in f32. Without eps the kernel draws it again from its counter, and x_t follows from it.
// Layout: dense NHWC. A block takes one chunk of one image; images of several chunks are added up by a second launch,
// in order, so that an example's numbers do not depend on its batch. Shared memory: 64 bytes.
// The squared error is f32, the bound f64: see bound.cuh.
// Limit: Philox where eps is drawn again, else bytes; with the bound about 100 f64 instructions an element (300 at t =
// 0), which a chip with f64 at half rate does in a few microseconds. Floor: 8 bytes an element in bf16 (4 more with
// variance channels).

#include "diffusion/bound.cuh"
#include "diffusion/quad.cuh"
#include "diffusion/variance.cuh"

// The scalars of a timestep.
struct LossRow {
    double signal;  // x_t = signal x_0 + noise eps
    double noise;
    double target_x0;  // target = target_x0 x_0 + target_eps eps
    double target_eps;
    double x0_x_t;  // x_0 = x0_x_t x_t + x0_model out
    double x0_model;
    double mean_x0;  // the posterior's mean = mean_x0 x_0 + mean_x_t x_t
    double posterior_log_variance;
    double log_min;  // log variance at v = -1 and at v = 1
    double log_max;
    double mse_weight;
    double valid;      // 0 where the parameterisation is singular
};

struct LossArgs {
    const void* out;
    const float* x0;
    const float* x_t;
    const float* eps;
    const uint32_t* example_index;
    const uint32_t* key;
    const float* t;
    const LossRow* rows;
    float* losses;
    double* partial;  // [N, chunks, 2]
    void* dout;
    double vb_weight;
    double half_width;  // of a grey level's bin
    double edge;        // beyond it a bin is open
    uint32_t batch;
    uint32_t timesteps;
    uint32_t image_elements;
    uint32_t channels;
    uint32_t chunks;       // of an image
    uint32_t chunk_quads;  // of a chunk
    Variance variance;
    uint32_t bound_trains_mean;
    uint32_t whole;
    uint32_t unused;
};

namespace {

constexpr int THREADS = 256;

// The row of an example's timestep; null for what is no timestep of the schedule and where the parameterisation is
// singular.
__device__ const LossRow* row_of(const LossArgs& args, uint64_t example) {
    const float t = args.t[example];
    if (!(t >= 0.0f && t < float(args.timesteps) && t == floorf(t))) return nullptr;
    const LossRow* row = args.rows + uint32_t(t);
    return row->valid != 0.0 ? row : nullptr;
}

__device__ void write_losses(const LossArgs& args, uint64_t example, double squares, double nats) {
    const LossRow* row = row_of(args, example);
    float* losses = args.losses + 3 * example;
    const double simple = squares / args.image_elements;
    const double bound = nats / args.image_elements / 0.69314718055994530942;
    const double loss = row ? row->mse_weight * simple + args.vb_weight * bound : 0.0;
    losses[0] = row ? float(loss) : not_a_number();
    losses[1] = row ? float(simple) : not_a_number();
    losses[2] = row ? float(bound) : not_a_number();
}

// The bound of one element with the derivatives by the model's prediction and by its variance channel.
__device__ GaussianGrad element_bound(const LossArgs& args, const LossRow& row, bool decodes, double x0, double x_t,
                                      double model, double v) {
    const double estimate = row.x0_x_t * x_t + row.x0_model * model;
    double log_variance, d_v;
    if (args.variance == Variance::direct) {
        log_variance = log(v);
        d_v = 1.0 / v;
    } else {
        log_variance = interpolate_log_variance(v, row.log_min, row.log_max);
        d_v = 0.5 * (row.log_max - row.log_min);
    }
    // At t = 0 the posterior's mean is x_0 itself; later the terms in x_t cancel between the two means.
    GaussianGrad g = decodes ? decoder_nll(x0, row.mean_x0 * estimate, log_variance, args.half_width, args.edge)
                             : normal_kl(row.mean_x0 * (estimate - x0), row.posterior_log_variance, log_variance);
    g.d_mean *= row.mean_x0 * row.x0_model;
    g.d_log_variance *= d_v;
    return g;
}

template <class T, bool REDRAWN, bool BOUND>
__device__ void loss(const LossArgs& args) {
    __shared__ double scratch[THREADS / 32];
    const uint32_t example = blockIdx.x / args.chunks;
    const uint32_t chunk = blockIdx.x - example * args.chunks;
    const LossRow* row = row_of(args, example);
    const bool learned = args.variance != Variance::fixed;
    const bool decodes = args.t[example] < 1.0f;
    const double per_element = 1.0 / args.image_elements;
    const double bound_factor = args.vb_weight * per_element / 0.69314718055994530942 / args.batch;
    const float mse_factor = row ? float(row->mse_weight * 2.0 * per_element / args.batch) : 0.0f;
    const float target_x0 = row ? float(row->target_x0) : 0.0f;
    const float target_eps = row ? float(row->target_eps) : 0.0f;
    double squares = 0.0, nats = 0.0;
    for (uint32_t i = threadIdx.x; i < args.chunk_quads; i += THREADS) {
        const Quad quad = quad_at(example, chunk * args.chunk_quads + i, args.image_elements);
        if (quad.count == 0) break;
        float model[QUAD], v[QUAD] = {}, x0[QUAD], x_t[QUAD], eps[QUAD], d_model[QUAD] = {}, d_v[QUAD] = {};
        load_quad<float>(args.x0, quad, args.whole, x0);
        if constexpr (REDRAWN) {
            const uint32_t index = args.example_index[example];
            normals4(random_words(load_key(args.key), stream::training_noise, index, 0, quad.index), eps);
        } else {
            load_quad<float>(args.eps, quad, args.whole, eps);
            if constexpr (BOUND) load_quad<float>(args.x_t, quad, args.whole, x_t);
        }
        Strided places = {};
        if (learned) {
            places = strided(quad, args.image_elements, args.channels, 2 * args.channels);
            load_strided<T>(args.out, quad, places, 0, model);
            load_strided<T>(args.out, quad, places, args.channels, v);
        } else {
            load_quad<T>(args.out, quad, args.whole, model);
        }
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            if (!row || uint32_t(k) >= quad.count) continue;
            const float error = model[k] - (target_x0 * x0[k] + target_eps * eps[k]);
            squares += double(error) * error;
            d_model[k] = mse_factor * error;
            if constexpr (BOUND) {
                const double noisy = REDRAWN ? row->signal * x0[k] + row->noise * double(eps[k]) : double(x_t[k]);
                const GaussianGrad g = element_bound(args, *row, decodes, x0[k], noisy, model[k], v[k]);
                nats += g.nats;
                if (args.bound_trains_mean) d_model[k] = float(d_model[k] + bound_factor * g.d_mean);
                d_v[k] = float(bound_factor * g.d_log_variance);
            }
        }
        if (learned) {
            store_strided<T>(args.dout, quad, places, 0, d_model);
            store_strided<T>(args.dout, quad, places, args.channels, d_v);
        } else {
            store_quad<T>(args.dout, quad, args.whole, d_model);
        }
    }
    squares = block_sum<THREADS>(squares, scratch);
    if constexpr (BOUND) nats = block_sum<THREADS>(nats, scratch);
    if (threadIdx.x != 0) return;
    if (args.chunks == 1) {
        write_losses(args, example, squares, nats);
    } else {
        args.partial[2 * uint64_t(blockIdx.x)] = squares;
        args.partial[2 * uint64_t(blockIdx.x) + 1] = nats;
    }
}

}  // namespace

KERNEL(loss_simple_f32, LossArgs, THREADS) { loss<float, false, false>(args); }
KERNEL(loss_simple_bf16, LossArgs, THREADS) { loss<bf16, false, false>(args); }
KERNEL(loss_simple_redrawn_f32, LossArgs, THREADS) { loss<float, true, false>(args); }
KERNEL(loss_simple_redrawn_bf16, LossArgs, THREADS) { loss<bf16, true, false>(args); }
// Two blocks a multiprocessor leave room for the 92 registers of the f64 bound.
KERNEL(loss_bound_f32, LossArgs, THREADS, 2) { loss<float, false, true>(args); }
KERNEL(loss_bound_bf16, LossArgs, THREADS, 2) { loss<bf16, false, true>(args); }
KERNEL(loss_bound_redrawn_f32, LossArgs, THREADS, 2) { loss<float, true, true>(args); }
KERNEL(loss_bound_redrawn_bf16, LossArgs, THREADS, 2) { loss<bf16, true, true>(args); }

// A thread an example: its chunks in order.
KERNEL(loss_total, LossArgs, 128) {
    const uint32_t example = blockIdx.x * blockDim.x + threadIdx.x;
    if (example >= args.batch) return;
    double squares = 0.0, nats = 0.0;
    for (uint32_t chunk = 0; chunk < args.chunks; chunk++) {
        const double* partial = args.partial + 2 * (uint64_t(example) * args.chunks + chunk);
        squares += partial[0];
        nats += partial[1];
    }
    write_losses(args, example, squares, nats);
}
