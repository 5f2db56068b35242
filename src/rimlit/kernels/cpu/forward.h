// The forward pass of one shard: update the computed mechanisms' cells, let the active ones communicate, keep the
// state of the others.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "shard.h"

namespace {

// Multiplies values by the cells' input weights for the steps from t on: (M, rows, I·gates). Computes the rows of
// active mechanisms only where these are known already, else all rows.
template <typename T>
void Shard<T>::multiply_ahead(Int t, const PackedTiles& weights, T* out) {
    if constexpr (std::is_same<T, float>::value) {
        const Int all = std::min(ahead_steps, a.steps - t) * count, width = a.input_value;
        const bool all_alike = a.value_groups == 1 && !a.later_are_done;  // mechanisms share the rows, hence their tiles
        uint16_t* left = w.left.take(amx::tiles_size(all, width));
        bool has_parts = false;
        Int rows = 0;
        for (Int i = 0; i < I; ++i)
            for (Int m = 0; m < M; ++m) {
                Int* place = ahead_row + m * ahead_steps * count;  // index of each row among the computed ones
                if (m == 0 || !all_alike) {
                    rows = 0;
                    for (Int r = 0; r < all; ++r)
                        if (is_known_active(m, t + r / count, r % count)) listed[rows++] = r;
                }
                for (Int row = 0; row < rows; ++row) place[listed[row]] = row;
                const auto value = [&](Int row) {
                    const Int r = listed[row];
                    return data(a.values) + value_at(m, t + r / count, r % count) + i * width;
                };
                if (m == 0 || !all_alike) has_parts = amx::lay_rows(value, rows, width, left, false);
                T* into = out + m * ahead_steps * count * I * gates + i * gates;
                if (has_parts && weights.has_parts[m * I + i]) {
                    amx::multiply(left, weights.of(m * I + i), into, I * gates, rows, width, gates, false);
                    continue;
                }
                const T* weight = data(a.cell_input) + (m * I + i) * width * gates;
                for (Int row = 0; row < rows; ++row)
                    times(value(row), width, weight, gates, into + row * I * gates, I * gates, 1, width, gates, false);
            }
    }
}

// Computes the attended values (I·value) of mechanism m and sample s.
template <typename T>
void Shard<T>::attended(Int t, Int m, Int s, T* out) {
    const T* values = data(a.values) + value_at(m, t, s);
    const T* weights = attention(t, s, m);
    const Int width = a.input_value;
    for (Int i = 0; i < I; ++i) {
        T* into = out + i * width;
        for (Int n = 0; n < N; ++n) {
            const T factor = weights[i * N + n] * kept_input(t, m, s, i, n);
            const T* value = values + (n * I + i) * width;
            if (n == 0) {
#pragma omp simd
                for (Int v = 0; v < width; ++v) into[v] = factor * value[v];
            } else {
                add_scaled(into, value, factor, width);
            }
        }
    }
}

// Computes a row's candidate, its cell's new hidden state, from the gates on the tape.
template <typename T>
void Shard<T>::candidate(Int t, Int row, const T* hidden, T* out) const {
    const T* g = tape(a.gates, t, computed, G) + row * G;
    if (a.is_gru) {
#pragma omp simd
        for (Int j = 0; j < d; ++j) out[j] = g[2 * d + j] + g[d + j] * (hidden[j] - g[2 * d + j]);
    } else {
        const T* squashed = tape(a.squashed, t, computed, d) + row * d;
#pragma omp simd
        for (Int j = 0; j < d; ++j) out[j] = g[2 * d + j] * squashed[j];
    }
}

// Computes the gates and the new memory of all computed rows; writes the active ones' memory to `memory` (count, M, d).
template <typename T>
void Shard<T>::update(Int t, T* memory, const T* ahead, const PackedWeights<T>& packed) {
    const bool reads_values = V && !a.values_ahead;
    T* all = tape(a.gates, t, computed, G);
    T* read = w.buffers[3].take(count * std::max<Int>(V, 1));
    T* hidden = w.buffers[4].take(count * d);
    const Int numbers = a.is_gru ? 3 * d : 4 * d;
    for (Int m = 0; m < M; ++m) {
        const Int rows = offset[m + 1] - offset[m];
        if (rows == 0) continue;
        T* g = all + offset[m] * G;
        const T* bias = data(a.cell_bias) + m * G;
        for (Int r = 0; r < rows; ++r) {
            const Int s = row_sample[offset[m] + r];
            std::memcpy(hidden + r * d, before(t, s) + m * d, d * sizeof(T));
            std::memcpy(g + r * G, bias, G * sizeof(T));
            if (reads_values) {
                attended(t, m, s, read + r * V);
            } else {
                const T* values = data(a.values);
                if (a.values_ahead) {
                    const Int begin = m * ahead_steps * count;
                    values = ahead + (begin + ahead_row[begin + t % ahead_steps * count + s]) * I * gates;
                    if (a.is_taped)
                        std::memcpy(tape(a.ahead, t, computed, I * gates) + (offset[m] + r) * I * gates, values,
                                    I * gates * sizeof(T));
                } else {
                    values += value_at(m, t, s);
                }
                for (Int i = 0; i < I; ++i)
                    add_scaled(g + r * G, values + i * gates, attention(t, s, m)[i] * kept_input(t, m, s, i, 0),
                               gates);
            }
        }
        const T* weight = data(a.cell_hidden) + m * d * numbers;
        if (a.is_gru) {
            times(hidden, d, weight, numbers, g, G, rows, d, 2 * d, true);
            times(hidden, d, weight + 2 * d, numbers, g + 3 * d, G, rows, d, d, true);
        } else {
            times(hidden, d, weight, numbers, g, G, rows, d, numbers, true, packed.cell_hidden.of(m));
        }
        if (reads_values)
            times(read, V, data(a.cell_input) + m * V * gates, gates, g, G, rows, V, gates, true,
                  packed.cell_input.of(m));
        for (Int r = 0; r < rows; ++r) {
            const Int row = offset[m] + r, s = row_sample[row];
            T* x = g + r * G;
            if (a.is_gru) {
                sigmoid_all(x, 2 * d);
#pragma omp simd
                for (Int j = 0; j < d; ++j) x[2 * d + j] = hyperbolic(x[2 * d + j] + x[j] * x[3 * d + j]);
            } else {
                sigmoid_all(x, 3 * d);
                tanh_all(x + 3 * d, d);
                T* kept = memory + (s * M + m) * d;
                T* old = tape(a.old_memory, t, computed, d) + row * d;
                T* squashed = tape(a.squashed, t, computed, d) + row * d;
                std::memcpy(old, kept, d * sizeof(T));
                T* fresh = w.buffers[5].take(d);
#pragma omp simd
                for (Int j = 0; j < d; ++j) {
                    fresh[j] = x[d + j] * old[j] + x[j] * x[3 * d + j];
                    squashed[j] = hyperbolic(fresh[j]);
                }
                if (chosen[s * M + m]) std::memcpy(kept, fresh, d * sizeof(T));
            }
        }
    }
}

// Calls visit(s, m, c, row, at) for every head c of every active mechanism m of sample s; `at` is the offset of its
// attention weights.
template <typename T>
template <typename Visit>
void Shard<T>::for_active_heads(const Visit& visit) const {
    for (Int s = 0; s < count; ++s) {
        Int order = 0;
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            for (Int c = 0; c < a.heads; ++c) visit(s, m, c, row, ((s * a.heads + c) * K + order) * M);
            ++order;
        }
    }
}

// Computes the active mechanisms' attention to all mechanisms and what they read; `all` are the projections.
template <typename T>
template <typename Key, typename Value>
void Shard<T>::communicate(Int t, const T* all, Key key, Value value) {
    const T scale = T(1) / std::sqrt(T(key));
    T* read = tape(a.read, t, K, R);
    T* weights = tape(a.weights, t, a.heads * K * M, 1);
    for_active_heads([&](Int s, Int m, Int c, Int row, Int at) {
        T* x = weights + at;
        const T* query = all + place[s * M + m] * P + c * head;
        for (Int n = 0; n < M; ++n) x[n] = scale * dot(query, all + place[s * M + n] * P + c * head + key, key);
        softmax(x, M, 1, false);
        const T* keep = kept_communication(t, s, c, m);
        T* into = read + row * R + c * value;
        std::fill(into, into + value, T(0));
        for (Int n = 0; n < M; ++n)
            add_scaled(into, all + place[s * M + n] * P + c * head + 2 * key, keep ? x[n] * keep[n] : x[n], value);
        if (a.activity) {
            T* mean = data(a.activity) + (((first + s) * a.steps + t) * M + m) * M;
            for (Int n = 0; n < M; ++n) mean[n] += x[n] / a.heads;
        }
    });
}

template <typename T>
void Shard<T>::forward(const PackedWeights<T>& packed) {
    T* memory = w.buffers[6].take(count * M * d);
    T* proposed = w.buffers[7].take(M * count * d);  // by touched row
    T* loose = w.buffers[8].take(a.is_taped ? 1 : M * count * std::max<Int>(P, 1));  // P by (m, s)
    T* fresh = w.buffers[9].take(count * std::max<Int>(P, 1));
    T* output = w.buffers[10].take(K * count * std::max<Int>(O, 1));
    T* out_rows = w.buffers[11].take(K * count * d);
    T* ahead = w.buffers[12].take(a.values_ahead ? M * ahead_steps * count * I * gates : 1);
    if (!a.is_gru)
        std::memcpy(memory, data(a.memory) + first * M * d, count * M * d * sizeof(T));
    std::fill(place, place + M * count, Int(-1));  // where a state's keys and values are; -1: it has changed
    T* projected = a.heads ? data(a.projected) : nullptr;
    // the caller has set where this shard's rows of the tape of projections begin
    Int next = a.is_taped && a.heads ? a.start[index * (a.steps + 1)] : 0;
    for (Int t = 0; t < a.steps; ++t) {
        for (Int s = 0; s < count; ++s)
            if (is_reset(t, s)) {
                if (!a.is_gru)
                    std::memcpy(memory + s * M * d, data(a.initial_memory) + (first + s) * M * d,
                                M * d * sizeof(T));
                std::fill(place + s * M, place + (s + 1) * M, Int(-1));
            }
        a.later_are_done ? recall(t) : score(t);
        list_rows();
        if (a.values_ahead && t % ahead_steps == 0) multiply_ahead(t, packed.cell_tiles, ahead);
        update(t, memory, ahead, packed);
        T* features = data(a.features);
        // candidates of active rows, by active row
        for (Int m = 0; m < M && !a.later_are_done; ++m)
            for (Int row = offset[m]; row < offset[m + 1]; ++row) {
                const Int s = row_sample[row], active_row = active_row_of[s * M + m];
                if (active_row >= 0) candidate(t, row, before(t, s) + m * d, out_rows + active_row * d);
            }
        if (a.heads) {
            if (a.is_taped) a.start[index * (a.steps + 1) + t] = static_cast<int32_t>(next);
            for (Int m = 0; m < M; ++m) {
                Int rows = 0;
                for (Int s = 0; s < count; ++s) {
                    const Int at = s * M + m;
                    if (row_of[at] >= 0)
                        candidate(t, row_of[at], before(t, s) + m * d, proposed + rows * d);
                    else if (place[at] < 0)
                        std::memcpy(proposed + rows * d, before(t, s) + m * d, d * sizeof(T));
                    else
                        continue;
                    touched[rows++] = s;
                }
                T* into = a.is_taped ? projected + next * P : fresh;
                times(proposed, d, data(a.communication) + m * d * P, P, into, P, rows, d, P, false);
                for (Int r = 0; r < rows; ++r) {
                    const Int at = touched[r] * M + m;
                    if (a.is_taped) {
                        place[at] = next + r;
                    } else {
                        place[at] = at;
                        std::memcpy(loose + at * P, fresh + r * P, P * sizeof(T));
                    }
                }
                if (a.is_taped) next += rows;
            }
            const T* all = a.is_taped ? projected : loose;
            with_sizes(a.key, a.value, [&](auto key, auto value) { communicate(t, all, key, value); });
            const T* read = tape(a.read, t, K, R);
            const bool is_output_taped = a.output_kind != 0;
            T* o = is_output_taped ? tape(a.output, t, K, O) : output;
            for (Int m = 0; m < M && (is_output_taped || !a.later_are_done); ++m) {
                const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
                times(read + begin * R, R, mechanism_weight(a.communication_output, m, R * O, a.output_groups), O,
                      o + begin * O, O, rows, R, O, false);
            }
            for (Int row = 0; row < active_offset[M] && is_output_taped; ++row) {
                T* x = o + row * O;
                if (a.output_kind == 1) {
                    tanh_all(x, d);
                } else {
                    add_scaled(x, data(a.communication_bias), T(1), O);
                    sigmoid_all(x, d);
                    tanh_all(x + d, d);
                }
            }
            for (Int row = 0; row < active_offset[M] && !a.later_are_done; ++row) {
                const T* x = o + row * O;
                T* into = out_rows + row * d;
                if (a.output_kind == 2) {
#pragma omp simd
                    for (Int j = 0; j < d; ++j) into[j] += x[j] * x[d + j];
                } else {
                    add_scaled(into, x, T(1), d);
                }
            }
            if (a.is_taped) {
                int32_t* saved = a.place + (t * a.batch + first) * M;
                for (Int at = 0; at < M * count; ++at) saved[at] = static_cast<int32_t>(place[at]);
            }
            for (Int at = 0; at < M * count; ++at)
                if (chosen[at] || a.reads_candidates) place[at] = -1;  // its state changes now
        }
        for (Int s = 0; s < count && !a.later_are_done; ++s) {
            T* into = features + (first + s) * a.features_stride + t * M * d;
            const T* old = before(t, s);
            for (Int m = 0; m < M; ++m) {
                const Int row = active_row_of[s * M + m];
                std::memcpy(into + m * d, row >= 0 ? out_rows + row * d : old + m * d, d * sizeof(T));
            }
        }
    }
    if (a.is_taped && a.heads) a.start[index * (a.steps + 1) + a.steps] = static_cast<int32_t>(next);
    if (a.later_are_done) return;
    for (Int s = 0; s < count; ++s)
        std::memcpy(data(a.last_hidden) + (first + s) * M * d,
                    data(a.features) + (first + s) * a.features_stride + (a.steps - 1) * M * d, M * d * sizeof(T));
    if (!a.is_gru) std::memcpy(data(a.last_memory) + first * M * d, memory, count * M * d * sizeof(T));
}

}  // namespace
