// The forward pass of one shard: update the computed mechanisms' cells, let the active ones communicate, keep the
// state of the others.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "shard.h"

namespace {

// Buffers of one forward pass.
template <typename T>
struct ForwardPass {
    const PackedWeights<T>& packed;
    T* memory;          // (count, M, d): after the step
    T* ahead;           // (M, ahead_steps · count, I·gates): values times the cells' input weights
    T* attended;        // (count, V), of one mechanism: attended values
    T* hidden;          // (count, d), of one mechanism: states before the step
    T* fresh;           // (d): a row's new memory
    T* rows_new;        // (active rows, d): candidates, then new states
    T* output;          // (active rows, O), of the communication
    T* visible;         // (count, d), of one mechanism: the states whose projections are computed
    T* projected;       // all projections: the tape's, or (count, M, P)
    T* rows_projected;  // (count, P), of one mechanism: its new projections where there is no tape
    Int next;           // the tape's first free row of projections
};

template <typename T>
void Shard<T>::forward(const PackedWeights<T>& packed) {
    ForwardPass<T> pass = begin_forward(packed);
    for (Int t = 0; t < a.steps; ++t) {
        reset_states(t, pass);
        a.later_are_done ? recall(t) : score(t);
        list_rows();
        if (a.values_ahead && t % ahead_steps == 0) multiply_ahead(t, packed.cell_tiles, pass.ahead);
        update(t, pass);
        if (!a.later_are_done || a.gate) take_candidates(t, pass);
        if (a.heads) {
            project_states(t, pass);
            with_sizes(a.key, a.value, [&](auto key, auto value) { communicate(t, pass.projected, key, value); });
            add_output(t, pass);
            keep_places(t);
        }
        if (a.gate) move_towards_candidates(t, pass);
        if (!a.later_are_done) keep(t, pass);
    }
    end_forward(pass);
}

template <typename T>
ForwardPass<T> Shard<T>::begin_forward(const PackedWeights<T>& packed) {
    const Int width = std::max<Int>(P, 1);
    T* projected = w.buffers[8].take(a.is_taped ? 1 : M * count * width);
    if (a.is_taped) projected = a.heads ? data(a.projected) : nullptr;
    ForwardPass<T> pass{
        packed,
        w.buffers[6].take(count * M * d),
        w.buffers[12].take(a.values_ahead ? M * ahead_steps * count * I * gates : 1),
        w.buffers[3].take(count * std::max<Int>(V, 1)),
        w.buffers[4].take(count * d),
        w.buffers[5].take(d),
        w.buffers[11].take(K * count * d),
        w.buffers[10].take(K * count * std::max<Int>(O, 1)),
        w.buffers[7].take(count * d),
        projected,
        w.buffers[9].take(count * width),
        first * a.projected_rows,
    };
    if (!a.is_gru) std::memcpy(pass.memory, data(a.memory) + first * M * d, count * M * d * sizeof(T));
    std::fill(place, place + M * count, Int(-1));
    return pass;
}

// Replaces the memory of samples that are reset before step t; `before` replaces their hidden state.
template <typename T>
void Shard<T>::reset_states(Int t, ForwardPass<T>& pass) {
    for (Int s = 0; s < count; ++s) {
        if (!is_reset(t, s)) continue;
        if (!a.is_gru)
            std::memcpy(pass.memory + s * M * d, data(a.initial_memory) + (first + s) * M * d, M * d * sizeof(T));
        std::fill(place + s * M, place + (s + 1) * M, Int(-1));
    }
}

// Multiplies values by the cells' input weights for the steps from t on: (M, rows, I·gates). Computes the rows of
// active mechanisms only where these are known already, else all rows.
template <typename T>
void Shard<T>::multiply_ahead(Int t, const PackedTiles& weights, T* out) {
    if constexpr (std::is_same<T, float>::value) {
        const Int all = std::min(ahead_steps, a.steps - t) * count, width = a.input_value;
        const bool all_alike = a.value_groups == 1 && !a.later_are_done;  // mechanisms share rows
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
                by_vectors<T>(width, [&](auto at) { at.put(into, factor * at(value)); });
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
        by_vectors<T>(d, [&](auto at) { at.put(out, at(g + 2 * d) + at(g + d) * (at(hidden) - at(g + 2 * d))); });
    } else {
        const T* squashed = tape(a.squashed, t, computed, d) + row * d;
        by_vectors<T>(d, [&](auto at) { at.put(out, at(g + 2 * d) * at(squashed)); });
    }
}

// Computes the gates and the new memory of all computed rows; keeps the memory of active ones.
template <typename T>
void Shard<T>::update(Int t, ForwardPass<T>& pass) {
    for (Int m = 0; m < M; ++m) {
        const Int begin = offset[m], end = offset[m + 1];
        if (begin == end) continue;
        T* g = tape(a.gates, t, computed, G) + begin * G;
        gather_cell_inputs(t, m, pass);
        multiply_cell(m, g, pass);
        for (Int row = begin; row < end; ++row, g += G) {
            if (a.is_gru) {
                activate_gru(g);
                continue;
            }
            const Int s = row_sample[row];
            T* memory = pass.memory + (s * M + m) * d;
            T* old_memory = tape(a.old_memory, t, computed, d) + row * d;
            std::memcpy(old_memory, memory, d * sizeof(T));
            activate_lstm(g, old_memory, pass.fresh, tape(a.squashed, t, computed, d) + row * d);
            if (!chosen[s * M + m]) continue;
            if (!a.gate) {
                std::memcpy(memory, pass.fresh, d * sizeof(T));
                continue;
            }
            const T gate = data(a.gate)[output_at(t, s, m)];
            by_vectors<T>(d, [&](auto at) {
                at.put(memory, at(old_memory) + gate * (at(pass.fresh) - at(old_memory)));
            });
        }
    }
}

// Gathers the hidden states and attended values of mechanism m's rows; sets their gates to the bias, plus the
// attended values where these are folded with the cell's weights or multiplied ahead.
template <typename T>
void Shard<T>::gather_cell_inputs(Int t, Int m, ForwardPass<T>& pass) {
    const T* bias = data(a.cell_bias) + m * G;
    for (Int row = offset[m]; row < offset[m + 1]; ++row) {
        const Int r = row - offset[m], s = row_sample[row];
        T* g = tape(a.gates, t, computed, G) + row * G;
        std::memcpy(pass.hidden + r * d, before(t, s) + m * d, d * sizeof(T));
        std::memcpy(g, bias, G * sizeof(T));
        if (V && !a.values_ahead) {
            attended(t, m, s, pass.attended + r * V);
            continue;
        }
        const T* values = data(a.values);
        if (a.values_ahead) {
            const Int begin = m * ahead_steps * count;
            values = pass.ahead + (begin + ahead_row[begin + t % ahead_steps * count + s]) * I * gates;
            if (a.is_taped)
                std::memcpy(tape(a.ahead, t, computed, I * gates) + row * I * gates, values, I * gates * sizeof(T));
        } else {
            values += value_at(m, t, s);
        }
        for (Int i = 0; i < I; ++i)
            add_scaled(g, values + i * gates, attention(t, s, m)[i] * kept_input(t, m, s, i, 0), gates);
    }
}

// Adds the products of mechanism m's hidden states and attended values with the cell's weights to its gates g.
template <typename T>
void Shard<T>::multiply_cell(Int m, T* g, const ForwardPass<T>& pass) {
    const Int rows = offset[m + 1] - offset[m];
    const T* weight = data(a.cell_hidden) + m * d * gates;
    if (a.is_gru) {
        times(pass.hidden, d, weight, gates, g, G, rows, d, 2 * d, true);
        times(pass.hidden, d, weight + 2 * d, gates, g + 3 * d, G, rows, d, d, true);
    } else {
        times(pass.hidden, d, weight, gates, g, G, rows, d, gates, true, pass.packed.cell_hidden.of(m));
    }
    if (V && !a.values_ahead)
        times(pass.attended, V, data(a.cell_input) + m * V * gates, gates, g, G, rows, V, gates, true,
              pass.packed.cell_input.of(m));
}

// Applies the activations to one row's gates x.
template <typename T>
void Shard<T>::activate_gru(T* x) const {
    sigmoid_all(x, 2 * d);
    T* fresh = x + 2 * d;
    by_vectors<T>(d, [&](auto at) { at.put(fresh, hyperbolic<T>(at(fresh) + at(x) * at(x + 3 * d))); });
}

// Applies the activations to one row's gates x; computes its new memory and tanh of that.
template <typename T>
void Shard<T>::activate_lstm(T* x, const T* old_memory, T* memory, T* squashed) const {
    sigmoid_all(x, 3 * d);
    tanh_all(x + 3 * d, d);
    by_vectors<T>(d, [&](auto at) {
        const Lanes<T> fresh = at(x + d) * at(old_memory) + at(x) * at(x + 3 * d);
        at.put(memory, fresh), at.put(squashed, hyperbolic<T>(fresh));
    });
}

// Writes the candidates of active rows to `rows_new`.
template <typename T>
void Shard<T>::take_candidates(Int t, ForwardPass<T>& pass) {
    for (Int m = 0; m < M; ++m)
        for (Int row = offset[m]; row < offset[m + 1]; ++row) {
            const Int s = row_sample[row], active_row = active_row_of[s * M + m];
            if (active_row >= 0) candidate(t, row, before(t, s) + m * d, pass.rows_new + active_row * d);
        }
}

// Projects the candidates of computed rows, and the other states whose projections are out of date.
template <typename T>
void Shard<T>::project_states(Int t, ForwardPass<T>& pass) {
    if (a.is_taped) a.start[index * (a.steps + 1) + t] = static_cast<int32_t>(pass.next);
    for (Int m = 0; m < M; ++m) {
        Int rows = 0;
        for (Int s = 0; s < count; ++s) {
            const Int at = s * M + m;
            if (row_of[at] >= 0)
                candidate(t, row_of[at], before(t, s) + m * d, pass.visible + rows * d);
            else if (place[at] < 0)
                std::memcpy(pass.visible + rows * d, before(t, s) + m * d, d * sizeof(T));
            else
                continue;
            touched[rows++] = s;
        }
        T* into = a.is_taped ? pass.projected + pass.next * P : pass.rows_projected;
        times(pass.visible, d, data(a.communication) + m * d * P, P, into, P, rows, d, P, false);
        for (Int r = 0; r < rows; ++r) {
            const Int at = touched[r] * M + m;
            place[at] = a.is_taped ? pass.next + r : at;
            if (!a.is_taped) std::memcpy(pass.projected + at * P, into + r * P, P * sizeof(T));
        }
        if (a.is_taped) pass.next += rows;
    }
}

// Calls visit(m, c, row, at) for every head c of every active mechanism m of sample s; `at` counts them from 0 to C·K.
template <typename T>
template <typename Visit>
void Shard<T>::for_active_heads(Int s, const Visit& visit) const {
    Int order = 0;
    for (Int m = 0; m < M; ++m) {
        const Int row = active_row_of[s * M + m];
        if (row < 0) continue;
        for (Int c = 0; c < a.heads; ++c) visit(m, c, row, c * K + order);
        ++order;
    }
}

// Computes the active mechanisms' attention to all mechanisms and what they read; `all` are the projections.
template <typename T>
template <typename Key, typename Value>
void Shard<T>::communicate(Int t, const T* all, Key key, Value value) {
    const T scale = T(1) / std::sqrt(T(key));
    const Int wide = padded<T>(M);
    T *read = tape(a.read, t, K, R), *attention = w.buffers[19].take(a.heads * K * wide);
    for (Int s = 0; s < count; ++s) {
        T* weights = tape(a.weights, t, a.heads * K * M, 1) + s * a.heads * K * M;
        const Int* places = place + s * M;
        // one phase after the other for all heads: none waits for the results of the one before
        for_active_heads(s, [&](Int m, Int c, Int, Int at) {
            const T* query = all + places[m] * P + c * head;
            T* x = attention + at * wide;
            for (Int n = 0; n < M; ++n) x[n] = scale * dot(query, all + places[n] * P + c * head + key, key);
        });
        for_active_heads(s, [&](Int, Int, Int, Int at) { softmax_padded(attention + at * wide, M); });
        for_active_heads(s, [&](Int m, Int c, Int row, Int at) {
            T* x = attention + at * wide;
            std::memcpy(weights + at * M, x, M * sizeof(T));
            if (a.activity) {
                T* mean = data(a.activity) + (((first + s) * a.steps + t) * M + m) * M;
                for (Int n = 0; n < M; ++n) mean[n] += x[n] / a.heads;
            }
            if (const T* keep = kept_communication(t, s, c, m))
                for (Int n = 0; n < M; ++n) x[n] *= keep[n];
            by_vectors<T>(value, [&](auto vector) {
                Lanes<T> sum{};
                for (Int n = 0; n < M; ++n) sum += x[n] * vector(all + places[n] * P + c * head + 2 * key);
                vector.put(read + row * R + c * value, sum);
            });
        });
    }
}

// Computes the communication's output and adds it to the candidates in `rows_new`.
template <typename T>
void Shard<T>::add_output(Int t, ForwardPass<T>& pass) {
    const T* read = tape(a.read, t, K, R);
    const bool is_output_taped = a.output_kind != 0;
    const bool is_added = !a.later_are_done || a.gate;
    if (!is_output_taped && !is_added) return;
    T* output = is_output_taped ? tape(a.output, t, K, O) : pass.output;
    for (Int m = 0; m < M; ++m) {
        const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
        times(read + begin * R, R, mechanism_weight(a.communication_output, m, R * O, a.output_groups), O,
              output + begin * O, O, rows, R, O, false);
    }
    for (Int row = 0; row < active_offset[M]; ++row) {
        T *x = output + row * O, *into = pass.rows_new + row * d;
        if (a.output_kind == 1 || a.output_kind == 3) {
            tanh_all(x, d);
        } else if (a.output_kind == 2) {
            add_scaled(x, data(a.communication_bias), T(1), O);
            sigmoid_all(x, d);
            tanh_all(x + d, d);
        }
        if (!is_added || a.output_kind == 3) continue;
        if (a.output_kind == 2) {
            by_vectors<T>(d, [&](auto at) { at.put(into, at(into) + at(x) * at(x + d)); });
        } else {
            add_scaled(into, x, T(1), d);
        }
    }
    if (!is_added || a.output_kind != 3) return;
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            const T *x = output + row * d, *gate = cell_gate(t, s, m);
            T* into = pass.rows_new + row * d;
            const T one = a.is_gru ? T(1) : T(0), sign = a.is_gru ? T(-1) : T(1);
            by_vectors<T>(d, [&](auto at) { at.put(into, at(into) + (one + sign * at(gate)) * at(x)); });
        }
}

// Returns the gate of the cell of mechanism m of sample s that its communication passes: an LSTM's output gate, a
// GRU's update gate, which lets 1 minus itself pass.
template <typename T>
const T* Shard<T>::cell_gate(Int t, Int s, Int m) const {
    return tape(a.gates, t, computed, G) + row_of[s * M + m] * G + (a.is_gru ? d : 2 * d);
}

// Writes the places of the projections to the tape; marks those of states that change in this step as out of date.
template <typename T>
void Shard<T>::keep_places(Int t) {
    if (a.is_taped) {
        int32_t* saved = a.place + (t * a.batch + first) * M;
        for (Int at = 0; at < M * count; ++at) saved[at] = static_cast<int32_t>(place[at]);
    }
    for (Int at = 0; at < M * count; ++at)
        if (chosen[at] || a.reads_candidates) place[at] = -1;
}

// Writes the step's states to the features: new ones of active mechanisms, the previous ones of the others.
template <typename T>
void Shard<T>::keep(Int t, const ForwardPass<T>& pass) {
    for (Int s = 0; s < count; ++s) {
        T* into = data(a.features) + (first + s) * a.features_stride + t * M * d;
        const T* old = before(t, s);
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            std::memcpy(into + m * d, row >= 0 ? pass.rows_new + row * d : old + m * d, d * sizeof(T));
        }
    }
}

template <typename T>
void Shard<T>::end_forward(const ForwardPass<T>& pass) {
    if (a.is_taped && a.heads) a.start[index * (a.steps + 1) + a.steps] = static_cast<int32_t>(pass.next);
    if (a.later_are_done) return;
    for (Int s = 0; s < count; ++s)
        std::memcpy(data(a.last_hidden) + (first + s) * M * d,
                    data(a.features) + (first + s) * a.features_stride + (a.steps - 1) * M * d, M * d * sizeof(T));
    if (!a.is_gru) std::memcpy(data(a.last_memory) + first * M * d, pass.memory, count * M * d * sizeof(T));
}

}  // namespace
