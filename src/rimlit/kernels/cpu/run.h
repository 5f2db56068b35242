// Whole calls: pack the weights, run every thread's shard, sum the gradients; and the projection of the raw input of a
// single step.

#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "backward.h"
#include "forward.h"
#include "gate.h"
#include "layout.h"
#include "score.h"
#include "shard.h"
#include "threads.h"
#include "workspace.h"

namespace {

template <typename T>
void run_shard(const Arguments& a, Int index, bool is_backward, const PackedWeights<T>& packed) {
    const OwnThread own_thread;
    auto workspace = pool<T>().take();
    {
        Shard<T> shard(a, index, *workspace);
        if (is_backward)
            shard.backward(packed);
        else
            shard.forward(packed);
    }
    if ((is_backward || a.values_ahead) && amx::is_available()) amx::release();
    pool<T>().give(std::move(workspace));
}

template <typename T>
void run(const Arguments& a, bool is_backward) {
    auto workspace = pool<T>().take();
    Layout<T> layout(a, is_backward, *workspace);
    if (!layout.is_empty()) in_parallel(a.threads, [&](Int index) { layout.run(index, a.threads); });
    const auto all = is_backward ? sums(a) : std::vector<Sum>();
    in_parallel(a.threads, [&](Int index) {
        run_shard<T>(own_arguments<T>(a, all, index), index, is_backward, layout.result);
    });
    if (is_backward && a.threads > 1 && !a.earlier_follow)
        in_parallel(a.threads, [&](Int index) { add_up<T>(a, all, index); });
    pool<T>().give(std::move(workspace));
}

template <typename T>
void project(const StepArguments& step, const void* input) {
    const Arguments& a = *step.loop;
    const T* x = static_cast<const T*>(input);
    const Int B = a.batch, D = step.input_size, I = a.input_heads, d = a.size;
    T *keys = static_cast<T*>(step.keys), *values = static_cast<T*>(step.values);
    const auto multiply = [&](const void* weight, Int groups, Int columns, T* into) {
        for (Int g = 0; g < groups; ++g)
            times(x, D, static_cast<const T*>(weight) + g * D * columns, columns, into + g * B * columns, columns, B,
                  D, columns, false);
    };
    if (step.folded_key) {
        multiply(step.folded_key, a.mechanisms, I * d, keys);
    } else {
        const Int width = I * step.key_size;
        auto workspace = pool<T>().take();
        workspace->buffers.resize(std::max<size_t>(workspace->buffers.size(), 1));
        T* between = workspace->buffers[0].take(step.key_groups * B * width);
        multiply(step.key, step.key_groups, width, between);
        const T scale = T(1) / std::sqrt(T(step.key_size));
        for (Int m = 0; m < a.mechanisms; ++m)
            for (Int b = 0; b < B; ++b)
                for (Int i = 0; i < I; ++i) {
                    const T* key = between + ((step.key_groups > 1 ? m : 0) * B + b) * width + i * step.key_size;
                    const T* query = static_cast<const T*>(step.query) + m * d * width + i * step.key_size;
                    T* into = keys + ((m * B + b) * I + i) * d;
                    for (Int j = 0; j < d; ++j) into[j] = scale * dot(query + j * width, key, step.key_size);
                }
        pool<T>().give(std::move(workspace));
    }
    if (step.folded_value)
        multiply(step.folded_value, a.mechanisms, I * (a.is_gru ? 3 : 4) * d, values);
    else
        multiply(step.value, a.value_groups, I * a.input_value, values);
}

}  // namespace
