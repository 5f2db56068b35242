// The backward pass of one shard, from the last step to the first. Factors of the weights' gradients are gathered
// over many steps and multiplied in few large products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "shard.h"

namespace {

// Rows of the two factors of a weight's gradient, gathered over steps so that few large products sum them.
template <typename T>
class Log {
public:
    void open(Buffer<T>& buffer, Int left_width, Int right_width, Int least, bool is_begun) {
        left_ = left_width, right_ = right_width, is_begun_ = is_begun;
        capacity_ = std::max<Int>(least, 128);
        memory_ = buffer.take(capacity_ * (left_ + right_));
    }
    Int capacity() const { return capacity_; }
    bool is_full(Int more) const { return rows_ + more > capacity_; }
    T* left(Int row = 0) { return memory_ + row * left_; }
    T* right(Int row = 0) { return memory_ + capacity_ * left_ + row * right_; }
    Int rows() const { return rows_; }
    void add(Int more) { rows_ += more; }
    bool is_begun() const { return is_begun_; }  // earlier rows have been summed already
    void clear() { rows_ = 0, is_begun_ = true; }

private:
    Int left_ = 0, right_ = 0, rows_ = 0, capacity_ = 0;
    bool is_begun_ = false;
    T* memory_ = nullptr;
};

// Computes the gradients of attention and values from that of one sample's attended values (or gates) of mechanism m.
template <typename T>
void Shard<T>::add_attention_gradient(Int t, Int m, Int s, const T* gradient, T* into) {
    const Int at = value_at(m, t, s);
    const T *values = data(a.values) + at, *weights = attention(t, s, m);
    const Int width = V ? a.input_value : gates;
    T* into_values = data(a.into_values) + at;
    for (Int i = 0; i < I; ++i)
        for (Int n = 0; n < N; ++n) {
            const Int e = (n * I + i) * width;
            const T* from = gradient + (V ? i * width : 0);
            const T keep = kept_input(t, m, s, i, n);
            into[i * N + n] = keep * dot(from, values + e, width);
            add_scaled(into_values + e, from, weights[i * N + n] * keep, width);
        }
}

// Computes the gradient (rows, V) of the attended values from the gradient g (rows, G) of mechanism m's gates.
template <typename T>
void Shard<T>::late_gradient(Int m, const T* g, Int rows, const PackedTiles& weights, T* out) const {
    if constexpr (std::is_same<T, float>::value) {
        const Int width = a.input_value;
        uint16_t* left = w.left.take(amx::tiles_size(rows, gates));
        const bool has_parts = amx::lay_rows([&](Int r) { return g + r * G; }, rows, gates, left, false);
        for (Int i = 0; i < I; ++i) {
            if (has_parts && weights.has_parts[m * I + i]) {
                amx::multiply(left, weights.of(m * I + i), out + i * width, V, rows, gates, width, false);
                continue;
            }
            product::blas("T", "N", width, rows, gates, data(a.cell_input) + (m * I + i) * width * gates, gates, g, G,
                          0, out + i * width, V);
        }
    }
}

// Adds the projections' gradient to `pending`, from the gradient of what was read.
template <typename T>
template <typename Key, typename Value>
void Shard<T>::communicate_back(Int t, const T* rows_read, T* pending, Key key, Value value) {
    const T scale = T(1) / std::sqrt(T(key));
    const T *projected = data(static_cast<const void*>(a.projected)), *weights = tape(a.weights, t, a.heads * K * M, 1);
    const int32_t* saved = a.place + (t * a.batch + first) * M;
    T* scratch = w.buffers[8].take(M);
    for_active_heads([&](Int s, Int m, Int c, Int row, Int at) {
        const T* x = weights + at;
        const T* from = rows_read + row * R + c * value;
        const T* keep = kept_communication(t, s, c, m);
        T sum = 0;
        for (Int n = 0; n < M; ++n) {
            const T factor = keep ? keep[n] : T(1);
            scratch[n] = factor * dot(from, projected + saved[s * M + n] * P + c * head + 2 * key, value);
            sum += scratch[n] * x[n];
            add_scaled(pending + (s * M + n) * P + c * head + 2 * key, from, x[n] * factor, value);
        }
        const T* query = projected + saved[s * M + m] * P + c * head;
        T* into_query = pending + (s * M + m) * P + c * head;
        for (Int n = 0; n < M; ++n) {
            const T score = scale * x[n] * (scratch[n] - sum);
            add_scaled(into_query, projected + saved[s * M + n] * P + c * head + key, score, key);
            add_scaled(pending + (s * M + n) * P + c * head + key, query, score, key);
        }
    });
}

template <typename T>
void Shard<T>::backward(const PackedWeights<T>& packed) {
    const Int numbers = gates, block = M * d;
    T* hidden = w.buffers[0].take(count * block);        // gradient of the state after the step, then before it
    T* memory = w.buffers[1].take(count * block);
    T* pending = w.buffers[2].take(count * M * std::max<Int>(P, 1));  // of projections, until their step
    T* rows_out = w.buffers[3].take(K * count * std::max<Int>(O, 1));
    T* rows_read = w.buffers[4].take(K * count * std::max<Int>(R, 1));
    T* rows_candidate = w.buffers[5].take(K * count * d);
    T* rows_visible = w.buffers[6].take(M * count * d);
    T* attention_gradient = w.buffers[7].take(count * M * I * N);
    T* rows_attended = w.buffers[9].take(count * std::max<Int>(V, 1));
    T* rows_hidden = w.buffers[10].take(count * d);
    const Int query_width = a.keys_hold_query ? 0 : I * a.input_key;
    T* rows_query = w.buffers[11].take(count * std::max<Int>(query_width, 1));

    // left and right factors of every weight's gradient
    const size_t base = kBuffers;
    w.buffers.resize(std::max<size_t>(w.buffers.size(), base + 5 * M));
    w.indices.resize(std::max<size_t>(w.indices.size(), kIndices + M));
    std::vector<Log<T>> cell(M), talk(M), out(M), ask(M);
    for (Int m = 0; m < M; ++m) {
        cell[m].open(w.buffers[base + 4 * m], V + d, G, count, a.later_are_done);
        if (a.heads) talk[m].open(w.buffers[base + 4 * m + 1], d, P, count, a.later_are_done);
        if (a.heads) out[m].open(w.buffers[base + 4 * m + 2], R, O, count, a.later_are_done);
        if (query_width) ask[m].open(w.buffers[base + 4 * m + 3], d, query_width, count, a.later_are_done);
    }
    // where values are multiplied many steps at once, of each row of `cell`: the values that it reads and their factors
    std::vector<Int*> value_of(M);
    std::vector<T*> factor_of(M);
    for (Int m = 0; m < M && a.values_ahead; ++m) {
        value_of[m] = w.indices[kIndices + m].take(cell[m].capacity());
        factor_of[m] = w.buffers[base + 4 * M + m].take(cell[m].capacity() * I);
    }
    T* late = w.buffers[12].take(a.values_ahead ? cell[0].capacity() * V : 1);
    auto flush_cell = [&](Int m) {
        Log<T>& log = cell[m];
        const T *left = log.left(), *right = log.right();
        const Int rows = log.rows();
        const auto add_up = [&](const T* x, const T* y, T* into, Int columns_x, Int columns_y, bool is_packed) {
            const bool add = log.is_begun();
            if (outer_tiles(x, V + d, y, G, into, numbers, rows, columns_x, columns_y, add, is_packed)) return true;
            outer(x, V + d, y, G, into, numbers, rows, columns_x, columns_y, add);
            return false;
        };
        bool is_packed = false;
        if (V) is_packed = add_up(left, right, data(a.into_cell_input) + m * V * numbers, V, numbers, false);
        T* into = data(a.into_cell_hidden) + m * d * numbers;
        add_up(left + V, right, into, d, a.is_gru ? 2 * d : numbers, is_packed && !a.is_gru);
        if (a.is_gru) add_up(left + V, right + 3 * d, into + 2 * d, d, d, false);
        if (a.values_ahead) {
            late_gradient(m, right, rows, packed.cell_tiles, late);
            const Int width = a.input_value;
            for (Int r = 0; r < rows; ++r)
                for (Int i = 0; i < I; ++i)
                    add_scaled(data(a.into_values) + value_of[m][r] + i * width, late + r * V + i * width,
                               factor_of[m][r * I + i], width);
        }
        log.clear();
    };
    auto flush = [&](Log<T>& log, void* base, Int groups, Int m, Int left, Int right) {
        const bool is_shared = groups == 1 && m > 0;  // the first mechanism has written it
        T* into = data(base) + (groups > 1 ? m : 0) * left * right;
        outer(log.left(), left, log.right(), right, into, right, log.rows(), left, right,
              log.is_begun() || is_shared);
        log.clear();
    };
    auto flush_talk = [&](Int m) { flush(talk[m], a.into_communication, M, m, d, P); };
    auto flush_out = [&](Int m) {
        if (a.output_groups == 1 && m > 0 && !out[0].is_begun()) flush(out[0], a.into_communication_output, 1, 0, R, O);
        flush(out[m], a.into_communication_output, a.output_groups, m, R, O);
    };
    auto flush_ask = [&](Int m) { flush(ask[m], a.into_input_query, M, m, d, query_width); };

    std::memcpy(hidden, data(a.from_hidden) + first * block, count * block * sizeof(T));
    if (!a.is_gru) std::memcpy(memory, data(a.from_memory) + first * block, count * block * sizeof(T));
    if (a.heads) std::fill(pending, pending + count * M * P, T(0));

    for (Int t = a.steps - 1; t >= 0; --t) {
        for (Int s = 0; s < count; ++s) {
            const Int b = first + s;
            add_scaled(hidden + s * block, data(a.from_features) + b * a.from_features_stride + t * block, T(1), block);
        }
        recall(t);
        list_rows();
        const Int active_rows = active_offset[M];

        // the new states of active mechanisms were their candidates and what these read
        for (Int s = 0; s < count; ++s)
            for (Int m = 0; m < M; ++m) {
                const Int row = active_row_of[s * M + m];
                if (row < 0) continue;
                T* from = hidden + s * block + m * d;
                std::memcpy(rows_candidate + row * d, from, d * sizeof(T));
                std::fill(from, from + d, T(0));
            }
        if (a.heads) {
            const T* output = a.output_kind ? tape(a.output, t, K, O) : nullptr;
            for (Int row = 0; row < active_rows; ++row) {
                T* into = rows_out + row * O;
                const T *from = rows_candidate + row * d, *o = output + row * O;
                if (a.output_kind == 0) {
                    std::memcpy(into, from, d * sizeof(T));
                } else if (a.output_kind == 1) {
#pragma omp simd
                    for (Int j = 0; j < d; ++j) into[j] = from[j] * (T(1) - o[j] * o[j]);
                } else {
#pragma omp simd
                    for (Int j = 0; j < d; ++j) {
                        into[j] = from[j] * o[d + j] * o[j] * (T(1) - o[j]);
                        into[d + j] = from[j] * o[j] * (T(1) - o[d + j] * o[d + j]);
                    }
                    add_scaled(data(a.into_communication_bias), into, T(1), O);
                }
            }
            const T* read = tape(a.read, t, K, R);
            for (Int m = 0; m < M; ++m) {
                const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
                if (rows == 0) continue;
                times_transposed(rows_out + begin * O, O,
                                 mechanism_weight(a.communication_output, m, R * O, a.output_groups), O,
                                 packed.output.of(a.output_groups > 1 ? m : 0), rows_read + begin * R, rows, O, R,
                                 false);
                if (out[m].is_full(rows)) flush_out(m);
                std::memcpy(out[m].left(out[m].rows()), read + begin * R, rows * R * sizeof(T));
                std::memcpy(out[m].right(out[m].rows()), rows_out + begin * O, rows * O * sizeof(T));
                out[m].add(rows);
            }

            const int32_t* saved = a.place + (t * a.batch + first) * M;
            with_sizes(a.key, a.value,
                       [&](auto key, auto value) { communicate_back(t, rows_read, pending, key, value); });

            // projections that were computed in this step
            const Int begin = a.start[index * (a.steps + 1) + t];
            for (Int m = 0; m < M; ++m) {
                if (talk[m].is_full(count)) flush_talk(m);
                T *left = talk[m].left(talk[m].rows()), *right = talk[m].right(talk[m].rows());
                Int rows = 0;
                for (Int s = 0; s < count; ++s) {
                    const Int at = s * M + m;
                    if (saved[at] < begin) continue;
                    const T* old = before(t, s) + m * d;
                    if (row_of[at] >= 0)
                        candidate(t, row_of[at], old, left + rows * d);
                    else
                        std::memcpy(left + rows * d, old, d * sizeof(T));
                    T* from = pending + at * P;
                    std::memcpy(right + rows * P, from, P * sizeof(T));
                    std::fill(from, from + P, T(0));
                    touched[rows++] = s;
                }
                times_transposed(right, P, data(a.communication) + m * d * P, P,
                                 packed.communication.of(m), rows_visible, rows, P, d, false);
                for (Int r = 0; r < rows; ++r) {
                    const Int s = touched[r], row = active_row_of[s * M + m];
                    if (row >= 0)
                        add_scaled(rows_candidate + row * d, rows_visible + r * d, T(1), d);
                    else if (!a.reads_candidates)  // candidates of inactive mechanisms are read without gradient
                        add_scaled(hidden + s * block + m * d, rows_visible + r * d, T(1), d);
                }
                talk[m].add(rows);
            }
        }

        // the cells of active mechanisms
        std::fill(attention_gradient, attention_gradient + count * M * I * N, T(0));
        for (Int m = 0; m < M; ++m) {
            const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
            if (rows == 0) continue;
            if (cell[m].is_full(rows)) flush_cell(m);
            T *left = cell[m].left(cell[m].rows()), *right = cell[m].right(cell[m].rows());
            T* bias = data(a.into_cell_bias) + m * G;
            Int r = 0;
            for (Int s = 0; s < count; ++s) {
                const Int row = row_of[s * M + m];
                if (active_row_of[s * M + m] < 0) continue;
                touched[r] = s;
                const T *old = before(t, s) + m * d, *from = rows_candidate + (begin + r) * d;
                const T* x = tape(a.gates, t, computed, G) + row * G;
                T *g = right + r * G, *into = hidden + s * block + m * d;
                if (V) attended(t, m, s, left + r * (V + d));
                std::memcpy(left + r * (V + d) + V, old, d * sizeof(T));
                if (a.is_gru) {
#pragma omp simd
                    for (Int j = 0; j < d; ++j) {
                        const T reset = x[j], keep = x[d + j], fresh = x[2 * d + j];
                        const T into_fresh = from[j] * (T(1) - keep) * (T(1) - fresh * fresh);
                        g[j] = into_fresh * x[3 * d + j] * reset * (T(1) - reset);
                        g[d + j] = from[j] * (old[j] - fresh) * keep * (T(1) - keep);
                        g[2 * d + j] = into_fresh;
                        g[3 * d + j] = into_fresh * reset;
                        into[j] = from[j] * keep;
                    }
                } else {
                    const T* old_memory = tape(a.old_memory, t, computed, d) + row * d;
                    const T* squashed = tape(a.squashed, t, computed, d) + row * d;
                    T* into_memory = memory + s * block + m * d;
#pragma omp simd
                    for (Int j = 0; j < d; ++j) {
                        const T i = x[j], f = x[d + j], o = x[2 * d + j], n = x[3 * d + j];
                        const T through = into_memory[j] + from[j] * o * (T(1) - squashed[j] * squashed[j]);
                        g[j] = through * n * i * (T(1) - i);
                        g[d + j] = through * old_memory[j] * f * (T(1) - f);
                        g[2 * d + j] = from[j] * squashed[j] * o * (T(1) - o);
                        g[3 * d + j] = through * i * (T(1) - n * n);
                        into_memory[j] = through * f;
                    }
                }
                add_scaled(bias, g, T(1), G);
                ++r;
            }
            const T* weight = data(a.cell_hidden) + m * d * numbers;
            times_transposed(right, G, weight, numbers, packed.cell_hidden.of(m), rows_hidden, rows,
                             a.is_gru ? 2 * d : numbers, d, false);
            if (a.is_gru)
                times_transposed(right + 3 * d, G, weight + 2 * d, numbers, packed.cell_hidden.of(m, 2 * d),
                                 rows_hidden, rows, d, d, true);
            if (V && !a.values_ahead)
                times_transposed(right, G, data(a.cell_input) + m * V * numbers, numbers, packed.cell_input.of(m),
                                 rows_attended, rows, numbers, V, false);
            for (r = 0; r < rows; ++r) {
                const Int s = touched[r];
                add_scaled(hidden + s * block + m * d, rows_hidden + r * d, T(1), d);
                if (a.values_ahead) {
                    const Int at = cell[m].rows() + r;
                    const T* ahead = tape(a.ahead, t, computed, I * gates) + row_of[s * M + m] * I * gates;
                    value_of[m][at] = value_at(m, t, s);
                    for (Int i = 0; i < I; ++i) {
                        const T keep = kept_input(t, m, s, i, 0);
                        attention_gradient[(s * M + m) * I + i] = keep * dot(right + r * G, ahead + i * gates, gates);
                        factor_of[m][at * I + i] = keep * attention(t, s, m)[i];
                    }
                    continue;
                }
                add_attention_gradient(t, m, s, V ? rows_attended + r * V : right + r * G,
                                       attention_gradient + (s * M + m) * I * N);
            }
            cell[m].add(rows);
        }

        // the scores
        for (Int s = 0; s < count; ++s) {
            T* gradient = attention_gradient + s * M * I * N;
            const T* x = attention(t, s, 0);
            if (a.across_mechanisms) {
                for (Int e = 0; e < I * N; ++e) {
                    T sum = 0;
                    for (Int m = 0; m < M; ++m) sum += x[m * I * N + e] * gradient[m * I * N + e];
                    for (Int m = 0; m < M; ++m)
                        gradient[m * I * N + e] = x[m * I * N + e] * (gradient[m * I * N + e] - sum);
                }
            } else {
                for (Int e = 0; e < M * I; ++e) {
                    if (!chosen[s * M + e / I]) continue;
                    const T sum = dot(x + e * N, gradient + e * N, N);
                    for (Int n = 0; n < N; ++n) gradient[e * N + n] = x[e * N + n] * (gradient[e * N + n] - sum);
                }
            }
        }
        for (Int m = 0; m < M; ++m) {
            if (a.keys_hold_query) {
                for (Int s = 0; s < count; ++s) {
                    const Int at = key_at(m, t, s);
                    const T *old = before(t, s) + m * d, *gradient = attention_gradient + (s * M + m) * I;
                    T* into = data(a.into_keys) + at;
                    const bool is_chosen = chosen[s * M + m] || a.across_mechanisms;
                    for (Int i = 0; i < I; ++i, into += d) {
                        if (!a.tokens) std::fill(into, into + d, T(0));  // a token's key is read again and again
                        if (!is_chosen) continue;
                        add_scaled(hidden + s * block + m * d, data(a.keys) + at + i * d, gradient[i], d);
                        add_scaled(into, old, gradient[i], d);
                    }
                }
                continue;
            }
            Int rows = 0;
            for (Int s = 0; s < count; ++s)
                if (chosen[s * M + m] || a.across_mechanisms) touched[rows++] = s;
            if (ask[m].is_full(rows)) flush_ask(m);
            T *left = ask[m].left(ask[m].rows()), *right = ask[m].right(ask[m].rows());
            const T* weight = data(a.input_query) + m * d * query_width;
            const T scale = T(1) / std::sqrt(T(a.input_key));
            for (Int r = 0; r < rows; ++r)
                std::memcpy(left + r * d, before(t, touched[r]) + m * d, d * sizeof(T));
            times(left, d, weight, query_width, rows_query, query_width, rows, d, query_width, false);
            for (Int r = 0; r < rows; ++r) {
                const Int s = touched[r], at = key_at(m, t, s);
                const T* gradient = attention_gradient + (s * M + m) * I * N;
                T *into = right + r * query_width, *into_keys = data(a.into_keys) + at;
                std::fill(into, into + query_width, T(0));
                for (Int i = 0; i < I; ++i)
                    for (Int n = 0; n < N; ++n) {
                        const Int e = (n * I + i) * a.input_key;
                        const T score = scale * gradient[i * N + n];
                        add_scaled(into + i * a.input_key, data(a.keys) + at + e, score, a.input_key);
                        add_scaled(into_keys + e, rows_query + r * query_width + i * a.input_key, score,
                                   a.input_key);
                    }
            }
            times_transposed(right, query_width, weight, query_width, packed.input_query.of(m), rows_hidden, rows,
                             query_width, d, false);
            for (Int r = 0; r < rows; ++r)
                add_scaled(hidden + touched[r] * block + m * d, rows_hidden + r * d, T(1), d);
            ask[m].add(rows);
        }

        for (Int s = 0; s < count; ++s) {
            if (!is_reset(t, s)) continue;
            const Int b = first + s;
            add_scaled(data(a.into_initial_hidden) + b * block, hidden + s * block, T(1), block);
            std::fill(hidden + s * block, hidden + (s + 1) * block, T(0));
            if (a.is_gru) continue;
            add_scaled(data(a.into_initial_memory) + b * block, memory + s * block, T(1), block);
            std::fill(memory + s * block, memory + (s + 1) * block, T(0));
        }
    }
    for (Int m = 0; m < M; ++m) {
        flush_cell(m);
        if (a.heads) flush_talk(m), flush_out(m);
        if (query_width) flush_ask(m);
    }
    std::memcpy(data(a.into_hidden) + first * block, hidden, count * block * sizeof(T));
    if (!a.is_gru) std::memcpy(data(a.into_memory) + first * block, memory, count * block * sizeof(T));
}

}  // namespace
