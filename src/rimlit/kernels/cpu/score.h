// The selection: scores of the slots, attention to them, relevance, and the K most relevant mechanisms of a step; and
// the lists of rows that follow from the choice.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "shard.h"

namespace {

// Lists the rows, which are all computed (mechanism, sample) pairs sorted by mechanism, and among them the active rows.
template <typename T>
void Shard<T>::list_rows() {
    Int row = 0, active_row = 0;
    for (Int m = 0; m < M; ++m) {
        offset[m] = row;
        active_offset[m] = active_row;
        for (Int s = 0; s < count; ++s) {
            const bool is_active = chosen[s * M + m];
            active_row_of[s * M + m] = is_active ? active_row++ : -1;
            row_of[s * M + m] = is_active || a.reads_candidates ? row : -1;
            if (is_active || a.reads_candidates) row_sample[row++] = s;
        }
    }
    offset[M] = row;
    active_offset[M] = active_row;
}

// Computes attention to the slots, relevance and the K active mechanisms of step t.
template <typename T>
void Shard<T>::score(Int t) {
    T* relevance = w.buffers[0].take(M);
    const T* query = a.keys_hold_query ? nullptr : compute_queries(t);
    for (Int s = 0; s < count; ++s) {
        for (Int m = 0; m < M; ++m) {
            score_slots(t, s, m, query);
            if (!a.across_mechanisms) relevance[m] = attend_slots(t, s, m);
        }
        if (a.across_mechanisms) attend_across(t, s, relevance);
        choose(t, s, relevance);
    }
}

// Computes the input queries (M, count, I·key) of step t.
template <typename T>
const T* Shard<T>::compute_queries(Int t) {
    T* query = w.buffers[1].take(M * count * query_width);
    T* rows = w.buffers[2].take(count * d);
    for (Int m = 0; m < M; ++m) {
        for (Int s = 0; s < count; ++s) std::memcpy(rows + s * d, before(t, s) + m * d, d * sizeof(T));
        times(rows, d, data(a.input_query) + m * d * query_width, query_width, query + m * count * query_width,
              query_width, count, d, query_width, false);
    }
    return query;
}

// Computes the scores of all heads and slots for mechanism m of sample s.
template <typename T>
void Shard<T>::score_slots(Int t, Int s, Int m, const T* query) const {
    const T scale = a.keys_hold_query ? T(1) : T(1) / std::sqrt(T(a.input_key));
    const T *hidden = before(t, s) + m * d, *keys = data(a.keys) + key_at(m, t, s);
    T* scores = attention(t, s, m);
    for (Int i = 0; i < I; ++i)
        for (Int n = 0; n < N; ++n)
            scores[i * N + n] = a.keys_hold_query
                                    ? dot(hidden, keys + i * d, d)
                                    : scale * dot(query + (m * count + s) * query_width + i * a.input_key,
                                                  keys + (n * I + i) * a.input_key, a.input_key);
}

// Turns the scores of mechanism m of sample s into attention to the slots and a null slot; returns the relevance.
template <typename T>
T Shard<T>::attend_slots(Int t, Int s, Int m) const {
    T mean_null = 0, relevance = 0;
    for (Int i = 0; i < I; ++i) {
        T* slots = attention(t, s, m) + i * N;
        if (N == 1) {
            if (I == 1) relevance = slots[0];
            const T raw = slots[0];
            slots[0] = T(1) / (T(1) + std::exp(-raw));
            mean_null += T(1) / (T(1) + std::exp(raw));
        } else {
            if (I == 1) {
                T top = slots[0], sum = 0;
                for (Int n = 1; n < N; ++n) top = slots[n] > top ? slots[n] : top;
                for (Int n = 0; n < N; ++n) sum += std::exp(slots[n] - top);
                relevance = top + std::log(sum);
            }
            mean_null += softmax(slots, N, 1, true);
        }
    }
    mean_null /= I;
    if (a.null_attention) data(a.null_attention)[((first + s) * a.steps + t) * M + m] = mean_null;
    return I > 1 ? -mean_null : relevance;
}

// Turns the scores of sample s into attention that is normalised across mechanisms, and computes their relevance.
template <typename T>
void Shard<T>::attend_across(Int t, Int s, T* relevance) const {
    for (Int e = 0; e < I * N; ++e) softmax(attention(t, s, 0) + e, M, I * N, false);
    for (Int m = 0; m < M; ++m) {
        relevance[m] = 0;
        for (Int e = 0; e < I * N; ++e) relevance[m] += attention(t, s, m)[e];
        relevance[m] /= I;
    }
}

// Chooses the K most relevant mechanisms of sample s; ties go to the lowest index, NaN ranks last.
template <typename T>
void Shard<T>::choose(Int t, Int s, const T* relevance) {
    Int* of_sample = chosen + s * M;
    std::fill(of_sample, of_sample + M, Int(0));
    for (Int k = 0; k < K; ++k) {
        Int best = -1;
        for (Int m = 0; m < M; ++m) {
            if (of_sample[m]) continue;
            if (best < 0 || relevance[m] > relevance[best] ||
                (std::isnan(relevance[best]) && !std::isnan(relevance[m]) && !(relevance[m] == -INFINITY)))
                best = m;
        }
        of_sample[best] = 1;
    }
    uint8_t* is_active = a.is_active + ((first + s) * a.steps + t) * M;
    for (Int m = 0; m < M; ++m) is_active[m] = static_cast<uint8_t>(of_sample[m]);
}

// Restores the active mechanisms of step t, which an earlier pass chose.
template <typename T>
void Shard<T>::recall(Int t) {
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) chosen[s * M + m] = a.is_active[((first + s) * a.steps + t) * M + m];
}

}  // namespace
