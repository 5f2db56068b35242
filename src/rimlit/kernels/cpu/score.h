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
    const bool is_last = t + 1 == a.steps;
    for (Int s = 0; s < count; ++s) {
        for (Int m = 0; m < M; ++m) {
            if (a.keys_hold_query && !is_last) fetch(data(a.keys) + key_at(m, t + 1, s), I * d);
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
    if (a.soft_cap > 0) {
        const T cap = T(a.soft_cap);
        for (Int e = 0; e < I * N; ++e) scores[e] = cap * std::tanh(scores[e] / cap);
    }
    if (a.score_bias)
        for (Int e = 0; e < I * N; ++e) scores[e] += data(a.score_bias)[m];
}

// Turns the scores of mechanism m of sample s into attention to the slots and a null slot; returns the relevance: the
// log-odds of reading against null, with the null slot's probability averaged over heads.
template <typename T>
T Shard<T>::attend_slots(Int t, Int s, Int m) const {
    T mean_null = 0;
    T* totals = w.buffers[13].take(3 * I);
    for (Int i = 0; i < I; ++i) {
        T* slots = attention(t, s, m) + i * N;
        if (N == 1) {
            const T raw = totals[i] = slots[0];
            slots[0] = T(1) / (T(1) + std::exp(-raw));
            if (a.null_attention) mean_null += T(1) / (T(1) + std::exp(raw));
        } else {
            totals[i] = log_sum_exp(slots, N);
            mean_null += softmax(slots, N, 1, true);
        }
    }
    if (a.null_attention) data(a.null_attention)[output_at(t, s, m)] = mean_null / I;
    if (I == 1) return totals[0];
    if (a.total) std::memcpy(data(a.total) + output_at(t, s, m) * I, totals, I * sizeof(T));
    T *reads = totals + I, *skips = totals + 2 * I;
    for (Int i = 0; i < I; ++i) reads[i] = log_sigmoid(totals[i]), skips[i] = log_sigmoid(-totals[i]);
    return log_sum_exp(reads, I) - log_sum_exp(skips, I);
}

// Turns the scores of sample s into attention that is normalised across mechanisms, and computes the log-odds of their
// shares.
template <typename T>
void Shard<T>::attend_across(Int t, Int s, T* relevance) const {
    for (Int e = 0; e < I * N; ++e) softmax(attention(t, s, 0) + e, M, I * N, false);
    for (Int m = 0; m < M; ++m) {
        T share = 0;
        for (Int e = 0; e < I * N; ++e) share += attention(t, s, m)[e];
        share /= I * N;
        relevance[m] = std::log(share) - std::log(T(1) - share);
    }
}

// Returns the mechanism of greatest rank that is not taken; ties go to the lowest index, NaN ranks as −∞.
template <typename T>
Int Shard<T>::best_of(const T* ranked, const Int* is_taken) const {
    Int best = -1;
    for (Int m = 0; m < M; ++m) {
        if (is_taken[m]) continue;
        if (best < 0 || ranked[m] > ranked[best] ||
            (std::isnan(ranked[best]) && !std::isnan(ranked[m]) && !(ranked[m] == -INFINITY)))
            best = m;
    }
    return best;
}

// Takes the K mechanisms of greatest rank. Returns the one that sets the bar of gates, the strongest or the best of the
// others; -1 where there is none.
template <typename T>
Int Shard<T>::take_best(const T* ranked, Int* is_taken) const {
    Int strongest = -1;
    for (Int k = 0; k < K; ++k) {
        const Int best = best_of(ranked, is_taken);
        is_taken[best] = 1;
        if (k == 0) strongest = best;
    }
    if (a.margin == kToBest) return strongest;
    return a.margin && K < M ? best_of(ranked, is_taken) : -1;
}

// Chooses the K mechanisms of sample s whose relevance plus offset is greatest; among them, with a dynamic count, those
// that read the input more than null, and with a bar below the strongest those above it. A mechanism whose offset is −∞
// is never active.
template <typename T>
void Shard<T>::choose(Int t, Int s, const T* relevance) {
    Int* of_sample = chosen + s * M;
    std::fill(of_sample, of_sample + M, Int(0));
    const T* ranked = relevance;
    if (a.offset) {
        T* sums = w.buffers[14].take(M);
        for (Int m = 0; m < M; ++m) sums[m] = relevance[m] + ranking_offset(t, s, m);
        ranked = sums;
    }
    const Bar bar = bar_of(ranked, take_best(ranked, of_sample));
    for (Int m = 0; m < M; ++m) {
        if (a.dynamic && !(ranked[m] > 0)) of_sample[m] = 0;
        if (a.margin == kToBest && !(ranked[m] > bar.value)) of_sample[m] = 0;
        if (a.offset && ranking_offset(t, s, m) == -INFINITY) of_sample[m] = 0;
        a.is_active[output_at(t, s, m)] = static_cast<uint8_t>(of_sample[m]);
    }
    if (a.relevance) std::memcpy(data(a.relevance) + output_at(t, s, 0), relevance, M * sizeof(T));
    if (a.gate) gate_winners(t, s, relevance, ranked, bar);
}

// Restores the active mechanisms of step t, which an earlier pass chose.
template <typename T>
void Shard<T>::recall(Int t) {
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) chosen[s * M + m] = a.is_active[((first + s) * a.steps + t) * M + m];
}

}  // namespace
