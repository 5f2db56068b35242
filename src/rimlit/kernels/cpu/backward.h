// The backward pass of one shard, from the last step to the first. Each function is the derivative of one phase of the
// forward pass: it turns the gradients of the phase's results into those of its inputs, which BackwardPass keeps.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gate.h"
#include "gradients.h"
#include "shard.h"

namespace {

template <typename T>
void Shard<T>::backward(const PackedWeights<T>& packed) {
    BackwardPass<T> pass = begin_backward(packed);
    for (Int t = a.steps - 1; t >= 0; --t) {
        recall(t);
        list_rows();
        take_state_gradients(t, pass);
        if (a.heads) {
            output_backward(t, pass);
            with_sizes(a.key, a.value, [&](auto key, auto value) { communicate_backward(t, pass, key, value); });
            projections_backward(t, pass);
        }
        cells_backward(t, pass);
        scores_backward(t, pass);
        if (a.keys_hold_query)
            folded_keys_backward(t, pass);
        else
            for (Int m = 0; m < M; ++m) queries_backward(t, m, pass);
        resets_backward(t, pass);
    }
    end_backward(pass);
}

// Adds the features' gradient to that of the states; that of active mechanisms' states moves to their candidates.
template <typename T>
void Shard<T>::take_state_gradients(Int t, BackwardPass<T>& pass) {
    const Int block = M * d;
    for (Int s = 0; s < count; ++s) {
        T* hidden = pass.hidden + s * block;
        const T* features = data(a.from_features) + (first + s) * a.from_features_stride + t * block;
        add_scaled(hidden, features, T(1), block);
        if (t > 0) fetch(features - block, block);
        for (Int m = 0; m < M; ++m, hidden += d) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            T* candidate = pass.candidate + row * d;
            if (!a.gate) {
                std::memcpy(candidate, hidden, d * sizeof(T));
                std::fill(hidden, hidden + d, T(0));
                continue;
            }
            const T gate = data(a.gate)[output_at(t, s, m)];
            pass.gate[s * M + m] = dot(hidden, tape(a.moved, t, K, d) + row * d, d);
            by_vectors<T>(d, [&](auto at) {
                const Lanes<T> passed = gate * at(hidden);
                at.put(candidate, passed), at.put(hidden, at(hidden) - passed);
            });
        }
    }
}

// The communication's output: logs the factors of its weight's gradient and computes the gradient of what was read.
template <typename T>
void Shard<T>::output_backward(Int t, BackwardPass<T>& pass) {
    const T *output = a.output_kind ? tape(a.output, t, K, O) : nullptr, *read = tape(a.read, t, K, R);
    for (Int row = 0; row < active_offset[M]; ++row)
        activation_backward(pass.candidate + row * d, output + row * O, pass.output + row * O);
    if (a.output_kind == 3) cell_gate_backward(t, pass);
    for (Int m = 0; m < M; ++m) {
        const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
        if (rows == 0) continue;
        times_transposed(pass.output + begin * O, O,
                         mechanism_weight(a.communication_output, m, R * O, a.output_groups), O,
                         pass.packed.output.of(a.output_groups > 1 ? m : 0), pass.read + begin * R, rows, O, R, false);
        GradientLog<T>& log = pass.outputs[m];
        if (log.is_full(rows)) flush_output(m, pass);
        std::memcpy(log.left(log.rows()), read + begin * R, rows * R * sizeof(T));
        std::memcpy(log.right(log.rows()), pass.output + begin * O, rows * O * sizeof(T));
        log.add(rows);
    }
}

// Computes the gradient (O) of a row of the output before its activation from that of the candidate, `from` (d).
template <typename T>
void Shard<T>::activation_backward(const T* from, const T* output, T* into) const {
    if (a.output_kind == 0) {
        std::memcpy(into, from, d * sizeof(T));
    } else if (a.output_kind != 2) {
        by_vectors<T>(d, [&](auto at) { at.put(into, at(from) * (T(1) - at(output) * at(output))); });
    } else {
        by_vectors<T>(d, [&](auto at) {
            const Lanes<T> gate = at(output), squashed = at(output + d), passed = at(from) * gate;
            at.put(into, passed * squashed * (T(1) - gate));
            at.put(into + d, passed * (T(1) - squashed * squashed));
        });
        add_scaled(data(a.into_communication_bias), into, T(1), O);
    }
}

// The cells' gates that the communication passed: their gradient, and that of the output before its activation.
template <typename T>
void Shard<T>::cell_gate_backward(Int t, BackwardPass<T>& pass) {
    const T* output = tape(a.output, t, K, O);
    const T one = a.is_gru ? T(1) : T(0), sign = a.is_gru ? T(-1) : T(1);
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            const T *gate = cell_gate(t, s, m), *from = pass.candidate + row * d, *x = output + row * d;
            T *into = pass.output + row * d, *into_gate = pass.cell_gate + row * d;
            by_vectors<T>(d, [&](auto at) {
                at.put(into, at(into) * (one + sign * at(gate)));
                at.put(into_gate, sign * at(from) * at(x) * at(gate) * (T(1) - at(gate)));
            });
        }
}

// Adds the projections' gradient to `pending`, from the gradient of what was read.
template <typename T>
template <typename Key, typename Value>
void Shard<T>::communicate_backward(Int t, const BackwardPass<T>& pass, Key key, Value value) {
    const T scale = T(1) / std::sqrt(T(key));
    const T* projected = data(static_cast<const void*>(a.projected));
    T* scores = w.buffers[8].take(M);
    for (Int s = 0; s < count; ++s) {
        const T* weights = tape(a.weights, t, a.heads * K * M, 1) + s * a.heads * K * M;
        const int32_t* places = a.place + (t * a.batch + first + s) * M;
        for_active_heads(s, [&](Int m, Int c, Int row, Int at) {
            const T *x = weights + at * M, *from = pass.read + row * R + c * value;
            const T *keep = kept_communication(t, s, c, m), *query = projected + places[m] * P + c * head;
            T *pending = pass.pending + s * M * P + c * head, *into_query = pending + m * P;
            T sum = 0;
            for (Int n = 0; n < M; ++n) {
                const T factor = keep ? keep[n] : T(1);
                scores[n] = factor * dot(from, projected + places[n] * P + c * head + 2 * key, value);
                sum += scores[n] * x[n];
                add_scaled(pending + n * P + 2 * key, from, x[n] * factor, value);
            }
            for (Int n = 0; n < M; ++n) {
                scores[n] = scale * x[n] * (scores[n] - sum);
                add_scaled(pending + n * P + key, query, scores[n], key);
            }
            by_vectors<T>(key, [&](auto vector) {
                Lanes<T> added = vector(into_query);
                for (Int n = 0; n < M; ++n) added += scores[n] * vector(projected + places[n] * P + c * head + key);
                vector.put(into_query, added);
            });
        });
    }
}

// Projections that were computed in step t: their gradient is complete now and passes to the projected states.
template <typename T>
void Shard<T>::projections_backward(Int t, BackwardPass<T>& pass) {
    const int32_t* saved = a.place + (t * a.batch + first) * M;
    const Int begin = a.start[index * (a.steps + 1) + t];
    for (Int m = 0; m < M; ++m) {
        GradientLog<T>& log = pass.projections[m];
        if (log.is_full(count)) flush(log, a.into_communication, M, m);
        T *left = log.left(log.rows()), *right = log.right(log.rows());
        Int rows = 0;
        for (Int s = 0; s < count; ++s) {
            const Int at = s * M + m;
            if (saved[at] < begin) continue;
            const T* old = before(t, s) + m * d;
            if (row_of[at] >= 0)
                candidate(t, row_of[at], old, left + rows * d);
            else
                std::memcpy(left + rows * d, old, d * sizeof(T));
            T* from = pass.pending + at * P;
            std::memcpy(right + rows * P, from, P * sizeof(T));
            std::fill(from, from + P, T(0));
            touched[rows++] = s;
        }
        times_transposed(right, P, data(a.communication) + m * d * P, P, pass.packed.communication.of(m),
                         pass.visible, rows, P, d, false);
        for (Int r = 0; r < rows; ++r) {
            const Int s = touched[r], row = active_row_of[s * M + m];
            if (row >= 0)
                add_scaled(pass.candidate + row * d, pass.visible + r * d, T(1), d);
            else if (!a.reads_candidates)  // candidates of inactive mechanisms are read without gradient
                add_scaled(pass.hidden + (s * M + m) * d, pass.visible + r * d, T(1), d);
        }
        log.add(rows);
    }
}

// The cells of active mechanisms: gradients of their gates, then of the states and attention that they read.
template <typename T>
void Shard<T>::cells_backward(Int t, BackwardPass<T>& pass) {
    std::fill(pass.attention, pass.attention + count * M * I * N, T(0));
    for (Int m = 0; m < M; ++m) {
        const Int rows = active_offset[m + 1] - active_offset[m];
        if (rows == 0) continue;
        if (pass.cells[m].is_full(rows)) flush_cell(m, pass);
        gates_backward(t, m, pass);
        cell_inputs_backward(t, m, rows, pass);
        pass.cells[m].add(rows);
    }
}

// Logs, for each active row of mechanism m, what its cell read and the gradient of its gates; lists the samples in
// `touched`.
template <typename T>
void Shard<T>::gates_backward(Int t, Int m, BackwardPass<T>& pass) {
    GradientLog<T>& log = pass.cells[m];
    T *left = log.left(log.rows()), *g = log.right(log.rows()), *bias = data(a.into_cell_bias) + m * G;
    const T* from = pass.candidate + active_offset[m] * d;
    Int rows = 0;
    for (Int s = 0; s < count; ++s) {
        const Int row = row_of[s * M + m], state = (s * M + m) * d;
        if (active_row_of[s * M + m] < 0) continue;
        touched[rows++] = s;
        const T *old = before(t, s) + m * d, *x = tape(a.gates, t, computed, G) + row * G;
        if (V) attended(t, m, s, left);
        std::memcpy(left + V, old, d * sizeof(T));
        if (a.is_gru) {
            gru_backward(x, old, from, g, pass.hidden + state);
        } else {
            const T* old_memory = tape(a.old_memory, t, computed, d) + row * d;
            T* memory = pass.memory + state;
            if (a.gate) pass.gate[s * M + m] += split_memory(x, old_memory, output_at(t, s, m), memory, pass.kept);
            lstm_backward(x, old_memory, tape(a.squashed, t, computed, d) + row * d, from, g, memory);
            if (a.gate) add_scaled(memory, pass.kept, T(1), d);
        }
        if (a.output_kind == 3 && a.heads)
            add_scaled(g + (a.is_gru ? d : 2 * d), pass.cell_gate + active_row_of[s * M + m] * d, T(1), d);
        add_scaled(bias, g, T(1), G);
        left += V + d, g += G, from += d;
    }
}

// Splits the gradient of a row's memory in what goes to its candidate, in place, and what goes to the old memory,
// `kept`; returns the gradient of the gate between them.
template <typename T>
T Shard<T>::split_memory(const T* x, const T* old_memory, Int at, T* memory, T* kept) const {
    const T gate = data(a.gate)[at];
    Lanes<T> from_gate{};
    by_vectors<T>(d, [&](auto at) {
        const Lanes<T> from = at(memory), old = at(old_memory);
        from_gate += from * (at(x + d) * old + at(x) * at(x + 3 * d) - old);
        at.put(kept, from - gate * from);
        at.put(memory, gate * from);
    });
    return total<T>(from_gate);
}

// Computes the gradients g (4·d) of a row's gates x, and adds to that of its old state, from that of its candidate.
template <typename T>
void Shard<T>::gru_backward(const T* x, const T* old, const T* from, T* g, T* into) const {
    by_vectors<T>(d, [&](auto at) {
        const Lanes<T> reset = at(x), keep = at(x + d), fresh = at(x + 2 * d), gradient = at(from);
        const Lanes<T> into_fresh = gradient * (T(1) - keep) * (T(1) - fresh * fresh);
        at.put(g, into_fresh * at(x + 3 * d) * reset * (T(1) - reset));
        at.put(g + d, gradient * (at(old) - fresh) * keep * (T(1) - keep));
        at.put(g + 2 * d, into_fresh);
        at.put(g + 3 * d, into_fresh * reset);
        at.put(into, at(into) + gradient * keep);
    });
}

// Computes the gradients g (4·d) of a row's gates x, and turns that of its new memory into that of its old one.
template <typename T>
void Shard<T>::lstm_backward(const T* x, const T* old_memory, const T* squashed, const T* from, T* g,
                             T* into_memory) const {
    by_vectors<T>(d, [&](auto at) {
        const Lanes<T> i = at(x), f = at(x + d), o = at(x + 2 * d), n = at(x + 3 * d), gradient = at(from);
        const Lanes<T> through = at(into_memory) + gradient * o * (T(1) - at(squashed) * at(squashed));
        at.put(g, through * n * i * (T(1) - i));
        at.put(g + d, through * at(old_memory) * f * (T(1) - f));
        at.put(g + 2 * d, gradient * at(squashed) * o * (T(1) - o));
        at.put(g + 3 * d, through * i * (T(1) - n * n));
        at.put(into_memory, through * f);
    });
}

// Computes the gradients of what mechanism m's `rows` active rows read, from those of their gates: states, attention
// and values.
template <typename T>
void Shard<T>::cell_inputs_backward(Int t, Int m, Int rows, BackwardPass<T>& pass) {
    const T *g = pass.cells[m].right(pass.cells[m].rows()), *weight = data(a.cell_hidden) + m * d * gates;
    times_transposed(g, G, weight, gates, pass.packed.cell_hidden.of(m), pass.previous, rows, a.is_gru ? 2 * d : gates,
                     d, false);
    if (a.is_gru)
        times_transposed(g + 3 * d, G, weight + 2 * d, gates, pass.packed.cell_hidden.of(m, 2 * d), pass.previous,
                         rows, d, d, true);
    if (V && !a.values_ahead)
        times_transposed(g, G, data(a.cell_input) + m * V * gates, gates, pass.packed.cell_input.of(m), pass.attended,
                         rows, gates, V, false);
    for (Int r = 0; r < rows; ++r, g += G) {
        const Int s = touched[r];
        T* attention_gradient = pass.attention + (s * M + m) * I * N;
        add_scaled(pass.hidden + (s * M + m) * d, pass.previous + r * d, T(1), d);
        if (!a.values_ahead) {
            add_attention_gradient(t, m, s, V ? pass.attended + r * V : g, attention_gradient);
            continue;
        }
        const Int at = pass.cells[m].rows() + r;
        const T* ahead = tape(a.ahead, t, computed, I * gates) + row_of[s * M + m] * I * gates;
        pass.value_of[m][at] = value_at(m, t, s);
        for (Int i = 0; i < I; ++i) {
            const T keep = kept_input(t, m, s, i, 0);
            attention_gradient[i] = keep * dot(g, ahead + i * gates, gates);
            pass.factor_of[m][at * I + i] = keep * attention(t, s, m)[i];
        }
    }
}

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

// The scores: turns the gradient of the attention into theirs, in place.
template <typename T>
void Shard<T>::scores_backward(Int t, BackwardPass<T>& pass) {
    for (Int s = 0; s < count; ++s) {
        T* gradient = pass.attention + s * M * I * N;
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
        for (Int m = 0; m < M; ++m) scored[s * M + m] = chosen[s * M + m] || a.across_mechanisms;
        if (a.gate || a.from_relevance) relevance_backward(t, s, pass);
        if (!a.score_bias) continue;
        for (Int m = 0; m < M; ++m)
            for (Int e = 0; e < I * N; ++e) data(a.into_score_bias)[m] += gradient[m * I * N + e];
    }
}

// Returns the derivative of a capped score by the score.
template <typename T>
inline T cap_slope(T score, T cap) {
    const T capped = std::tanh(score / cap);
    return T(1) - capped * capped;
}

// The keys, where these are folded with the query's weights: gradients of keys and states from those of the scores.
template <typename T>
void Shard<T>::folded_keys_backward(Int t, BackwardPass<T>& pass) {
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) {
            const Int at = key_at(m, t, s);
            const T *old = before(t, s) + m * d, *gradient = pass.attention + (s * M + m) * I;
            const T* keys = data(a.keys) + at;
            T *into = data(a.into_keys) + at, *hidden = pass.hidden + (s * M + m) * d;
            if (t > 0) fetch(keys - a.key_step_stride, I * d), fetch(into - a.key_step_stride, I * d);
            for (Int i = 0; i < I; ++i, into += d) {
                if (!a.tokens) std::fill(into, into + d, T(0));  // a token's key may be read in several steps
                if (!scored[s * M + m]) continue;
                const T* key = keys + i * d;
                T score = gradient[i];
                if (a.soft_cap > 0) score *= cap_slope(dot(old, key, d), T(a.soft_cap));
                add_scaled(hidden, key, score, d);
                add_scaled(into, old, score, d);
            }
        }
}

// The input queries and keys of mechanism m: gradients of keys, queries and states from those of the scores.
template <typename T>
void Shard<T>::queries_backward(Int t, Int m, BackwardPass<T>& pass) {
    Int rows = 0;
    for (Int s = 0; s < count; ++s)
        if (scored[s * M + m]) touched[rows++] = s;
    GradientLog<T>& log = pass.queries[m];
    if (log.is_full(rows)) flush(log, a.into_input_query, M, m);
    T *left = log.left(log.rows()), *right = log.right(log.rows());
    const T* weight = data(a.input_query) + m * d * query_width;
    const T scale = T(1) / std::sqrt(T(a.input_key));
    for (Int r = 0; r < rows; ++r) std::memcpy(left + r * d, before(t, touched[r]) + m * d, d * sizeof(T));
    times(left, d, weight, query_width, pass.query, query_width, rows, d, query_width, false);
    for (Int r = 0; r < rows; ++r) {
        const Int s = touched[r], at = key_at(m, t, s);
        const T *gradient = pass.attention + (s * M + m) * I * N, *query = pass.query + r * query_width;
        T *into = right + r * query_width, *into_keys = data(a.into_keys) + at;
        std::fill(into, into + query_width, T(0));
        for (Int i = 0; i < I; ++i)
            for (Int n = 0; n < N; ++n) {
                const Int e = (n * I + i) * a.input_key;
                T score = scale * gradient[i * N + n];
                if (a.soft_cap > 0)
                    score *= cap_slope(scale * dot(query + i * a.input_key, data(a.keys) + at + e, a.input_key),
                                       T(a.soft_cap));
                add_scaled(into + i * a.input_key, data(a.keys) + at + e, score, a.input_key);
                add_scaled(into_keys + e, query + i * a.input_key, score, a.input_key);
            }
    }
    times_transposed(right, query_width, weight, query_width, pass.packed.input_query.of(m), pass.previous, rows,
                     query_width, d, false);
    for (Int r = 0; r < rows; ++r)
        add_scaled(pass.hidden + (touched[r] * M + m) * d, pass.previous + r * d, T(1), d);
    log.add(rows);
}

// Samples that were reset before step t: their states' gradient belongs to the initial state.
template <typename T>
void Shard<T>::resets_backward(Int t, BackwardPass<T>& pass) {
    const Int block = M * d;
    for (Int s = 0; s < count; ++s) {
        if (!is_reset(t, s)) continue;
        const Int b = first + s;
        T *hidden = pass.hidden + s * block, *memory = pass.memory + s * block;
        add_scaled(data(a.into_initial_hidden) + b * block, hidden, T(1), block);
        std::fill(hidden, hidden + block, T(0));
        if (a.is_gru) continue;
        add_scaled(data(a.into_initial_memory) + b * block, memory, T(1), block);
        std::fill(memory, memory + block, T(0));
    }
}

}  // namespace
