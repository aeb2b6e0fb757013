// The log-probability of a class, log softmax(logits)[label], and its gradient, onehot(label) - softmax(logits).
//
// Shapes: logits, dlogits [N, K]; label [N]; log_p [N] f32. Shared memory: none. One warp an image.
// Limit: launch latency. A label that is no class gives NaN.

#include "device/device.cuh"

struct LogProbabilityArgs {
    const void* logits;
    const uint32_t* label;
    float* log_p;
    void* dlogits;
    uint32_t classes;
    uint32_t padding;
};

namespace {

template <class T> __device__ void log_probability(const LogProbabilityArgs& args) {
    const uint64_t image = blockIdx.x;
    const uint32_t label = args.label[image];
    const T* logits = static_cast<const T*>(args.logits) + image * args.classes;
    T* dlogits = static_cast<T*>(args.dlogits) + image * args.classes;
    float largest = to_float(logits[0]);
    for (uint32_t k = threadIdx.x; k < args.classes; k += 32) {
        largest = fmaxf(largest, to_float(logits[k]));
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (uint32_t k = threadIdx.x; k < args.classes; k += 32) {
        sum += expf(to_float(logits[k]) - largest);
    }
    sum = warp_sum(sum);
    const bool known = label < args.classes;
    for (uint32_t k = threadIdx.x; k < args.classes; k += 32) {
        const float p = expf(to_float(logits[k]) - largest) / sum;
        dlogits[k] = from_float<T>(known ? (k == label ? 1.0f : 0.0f) - p : __uint_as_float(0x7fffffffu));
    }
    if (threadIdx.x == 0) {
        args.log_p[image] = known ? to_float(logits[label]) - largest - logf(sum) : __uint_as_float(0x7fffffffu);
    }
}

} // namespace

KERNEL(log_probability_f32, LogProbabilityArgs, 32) { log_probability<float>(args); }
KERNEL(log_probability_bf16, LogProbabilityArgs, 32) { log_probability<bf16>(args); }
