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
    T* query = nullptr;
    const Int width = I * a.input_key;
    if (!a.keys_hold_query) {
        query = w.buffers[1].take(M * count * width);
        T* rows = w.buffers[2].take(count * d);
        for (Int m = 0; m < M; ++m) {
            for (Int s = 0; s < count; ++s) std::memcpy(rows + s * d, before(t, s) + m * d, d * sizeof(T));
            times(rows, d, data(a.input_query) + m * d * width, width, query + m * count * width, width, count, d,
                  width, false);
        }
    }
    const T scale = a.keys_hold_query ? T(1) : T(1) / std::sqrt(T(a.input_key));
    for (Int s = 0; s < count; ++s) {
        const T* hidden = before(t, s);
        for (Int m = 0; m < M; ++m) {
            T* scores = attention(t, s, m);
            const T* keys = data(a.keys) + key_at(m, t, s);
            for (Int i = 0; i < I; ++i)
                for (Int n = 0; n < N; ++n)
                    scores[i * N + n] =
                        a.keys_hold_query
                            ? dot(hidden + m * d, keys + i * d, d)
                            : scale * dot(query + (m * count + s) * width + i * a.input_key,
                                          keys + (n * I + i) * a.input_key, a.input_key);
            if (a.across_mechanisms) continue;
            T mean_null = 0;
            for (Int i = 0; i < I; ++i) {
                T* slots = scores + i * N;
                if (N == 1) {
                    if (I == 1) relevance[m] = slots[0];
                    const T raw = slots[0];
                    slots[0] = T(1) / (T(1) + std::exp(-raw));
                    mean_null += T(1) / (T(1) + std::exp(raw));
                } else {
                    if (I == 1) {
                        T top = slots[0], sum = 0;
                        for (Int n = 1; n < N; ++n) top = slots[n] > top ? slots[n] : top;
                        for (Int n = 0; n < N; ++n) sum += std::exp(slots[n] - top);
                        relevance[m] = top + std::log(sum);
                    }
                    mean_null += softmax(slots, N, 1, true);
                }
            }
            mean_null /= I;
            if (I > 1) relevance[m] = -mean_null;
            if (a.null_attention) data(a.null_attention)[((first + s) * a.steps + t) * M + m] = mean_null;
        }
        if (a.across_mechanisms) {
            std::fill(relevance, relevance + M, T(0));
            for (Int e = 0; e < I * N; ++e) softmax(attention(t, s, 0) + e, M, I * N, false);
            for (Int m = 0; m < M; ++m) {
                for (Int e = 0; e < I * N; ++e) relevance[m] += attention(t, s, m)[e];
                relevance[m] /= I;
            }
        }
        // the K most relevant; ties go to the lowest index, NaN ranks last
        uint8_t* is_active = a.is_active + ((first + s) * a.steps + t) * M;
        std::fill(chosen + s * M, chosen + (s + 1) * M, Int(0));
        for (Int k = 0; k < K; ++k) {
            Int best = -1;
            for (Int m = 0; m < M; ++m) {
                if (chosen[s * M + m]) continue;
                if (best < 0 || relevance[m] > relevance[best] ||
                    (std::isnan(relevance[best]) && !std::isnan(relevance[m]) && !(relevance[m] == -INFINITY)))
                    best = m;
            }
            chosen[s * M + best] = 1;
        }
        for (Int m = 0; m < M; ++m) is_active[m] = static_cast<uint8_t>(chosen[s * M + m]);
    }
}

// Restores the active mechanisms of step t, which an earlier pass chose.
template <typename T>
void Shard<T>::recall(Int t) {
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) chosen[s * M + m] = a.is_active[((first + s) * a.steps + t) * M + m];
}

}  // namespace
