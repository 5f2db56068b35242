// Gates: how far the active mechanisms of a step move towards their candidates. A winner's lead over the bar, which is
// the best loser, the strongest minus the width, or a relevance of 0, fades its update in; a graded update moves as far
// as the mechanism attends.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gradients.h"
#include "shard.h"

namespace {

template <typename T>
inline T probability(T log_odds) {
    return T(1) / (T(1) + std::exp(-log_odds));
}

// Returns the bar that winners lead over, given the mechanism that sets it, -1 where there is none.
template <typename T>
typename Shard<T>::Bar Shard<T>::bar_of(const T* ranked, Int rival) const {
    if (rival < 0) return {T(0), -1};
    const T bar = a.margin == kToBest ? ranked[rival] - T(a.width) : ranked[rival];
    if (a.dynamic && bar < 0) return {T(0), -1};
    return {bar, rival};
}

// Returns the lead over the bar, in widths.
template <typename T>
T Shard<T>::lead_over(const Bar& bar, T ranked) const {
    if (a.margin == 2) return (probability(ranked) - probability(bar.value)) / T(a.width);
    return (ranked - bar.value) / T(a.width);
}

// Writes the gates of sample s: in [0, 1] for active mechanisms, 0 for the others.
template <typename T>
void Shard<T>::gate_winners(Int t, Int s, const T* relevance, const T* ranked, const Bar& bar) {
    for (Int m = 0; m < M; ++m) {
        T gate = 0;
        if (chosen[s * M + m]) {
            gate = 1;
            if (a.margin) {
                gate = lead_over(bar, ranked[m]);
                gate = gate < 0 ? T(0) : gate > 1 ? T(1) : gate;
            }
            if (a.graded) gate *= probability(relevance[m]);
        }
        data(a.gate)[output_at(t, s, m)] = gate;
    }
}

// Turns the candidates in `rows_new` into new states, and keeps on tape how far they were from the old ones.
template <typename T>
void Shard<T>::move_towards_candidates(Int t, ForwardPass<T>& pass) {
    T* all_moved = tape(a.moved, t, K, d);
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            const T *old = before(t, s) + m * d, gate = data(a.gate)[output_at(t, s, m)];
            T *into = pass.rows_new + row * d, *moved = all_moved + row * d;
            by_vectors<T>(d, [&](auto at) {
                const Lanes<T> all = at(into) - at(old);
                at.put(moved, all), at.put(into, at(old) + gate * all);
            });
        }
}

// Adds to `into` (M) the gradient of the relevance of sample s, given that of its gates (M).
template <typename T>
void Shard<T>::gate_backward(Int t, Int s, const T* from_gate, T* into) {
    const T* relevance = data(static_cast<const void*>(a.relevance)) + output_at(t, s, 0);
    T* ranked = w.buffers[14].take(M);
    for (Int m = 0; m < M; ++m) ranked[m] = relevance[m] + ranking_offset(t, s, m);
    Bar bar{T(0), -1};
    if (a.margin) {
        std::fill(touched, touched + M, Int(0));
        bar = bar_of(ranked, take_best(ranked, touched));
    }
    for (Int m = 0; m < M; ++m) {
        if (!chosen[s * M + m]) continue;
        const T attended = a.graded ? probability(relevance[m]) : T(1);
        T lead = 1;
        if (a.margin) {
            lead = lead_over(bar, ranked[m]);
            if (lead >= 0 && lead <= 1) {
                const T through = from_gate[m] * attended / T(a.width);
                T own_slope = 1, bar_slope = 1;
                if (a.margin == 2) {
                    const T own = probability(ranked[m]), other = probability(bar.value);
                    own_slope = own * (1 - own), bar_slope = other * (1 - other);
                }
                into[m] += through * own_slope;
                if (bar.rival >= 0) into[bar.rival] -= through * bar_slope;
            }
            lead = lead < 0 ? T(0) : lead > 1 ? T(1) : lead;
        }
        if (a.graded) into[m] += from_gate[m] * lead * attended * (1 - attended);
    }
}

// Adds the gradient that gates and penalty of sample s send to its scores, by way of the relevance.
template <typename T>
void Shard<T>::relevance_backward(Int t, Int s, BackwardPass<T>& pass) {
    T* from = w.buffers[15].take(M);
    std::fill(from, from + M, T(0));
    if (a.gate) gate_backward(t, s, pass.gate + s * M, from);
    if (a.from_relevance) add_scaled(from, data(a.from_relevance) + output_at(t, s, 0), T(1), M);
    for (Int m = 0; m < M; ++m) {
        if (from[m] == 0) continue;
        scored[s * M + m] = 1;
        T* gradient = pass.attention + (s * M + m) * I * N;
        const T* x = attention(t, s, m);
        T *reads = w.buffers[13].take(2 * I), *skips = reads + I;
        if (I > 1) {
            const T* totals = data(static_cast<const void*>(a.total)) + output_at(t, s, m) * I;
            for (Int i = 0; i < I; ++i) reads[i] = log_sigmoid(totals[i]), skips[i] = log_sigmoid(-totals[i]);
            softmax(reads, I, 1, false), softmax(skips, I, 1, false);
            for (Int i = 0; i < I; ++i)
                reads[i] = reads[i] * probability(-totals[i]) + skips[i] * probability(totals[i]);
        }
        for (Int i = 0; i < I; ++i) {
            const T slope = from[m] * (I > 1 ? reads[i] : T(1));
            if (N == 1) {
                gradient[i] += slope;
                continue;
            }
            T all = 0;
            for (Int n = 0; n < N; ++n) all += x[i * N + n];
            if (all > 0)
                for (Int n = 0; n < N; ++n) gradient[i * N + n] += slope * x[i * N + n] / all;
        }
    }
}

}  // namespace
