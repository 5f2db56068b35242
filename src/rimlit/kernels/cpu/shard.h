// One thread's share of the samples: sizes, row lists and where to find what belongs to a step, a sample and a
// mechanism. The members are defined in score.h, forward.h, gradients.h and backward.h.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "amx.h"
#include "arguments.h"
#include "layout.h"
#include "numbers.h"
#include "workspace.h"

namespace {

constexpr Int kToBest = 3;  // a value of Arguments::margin: the bar is the strongest minus the width

template <typename T>
struct ForwardPass;   // forward.h
template <typename T>
class GradientLog;    // gradients.h
template <typename T>
struct BackwardPass;  // gradients.h

// Computes the whole loop for one thread's samples [first, first + count).
template <typename T>
class Shard {
public:
    Shard(const Arguments& arguments, Int index, Workspace<T>& workspace)
        : a(arguments), index(index), w(workspace) {
        first = a.batch * index / a.threads;
        count = a.batch * (index + 1) / a.threads - first;
        M = a.mechanisms, K = a.active, d = a.size, I = a.input_heads, N = a.slots;
        gates = (a.is_gru ? 3 : 4) * d;  // gates of the weights
        G = 4 * d;                       // gates on the tape: of the GRU also the term that the reset gate scales
        V = a.values_hold_cell ? 0 : I * a.input_value;
        query_width = a.keys_hold_query ? 0 : I * a.input_key;
        // values are multiplied for this many steps at once; `known` mechanisms per sample and step
        const Int known = a.later_are_done && !a.reads_candidates ? K : M;
        ahead_steps = std::max<Int>(1, kAheadRows * M / std::max<Int>(known * count, 1));
        head = 2 * a.key + a.value;
        P = a.heads * head;
        R = a.heads * a.value;
        O = a.output_kind == 2 ? 2 * d : d;
        computed = a.reads_candidates ? M : K;  // mechanisms computed per sample and step
        w.buffers.resize(std::max<size_t>(w.buffers.size(), kBuffers));
        w.indices.resize(std::max<size_t>(w.indices.size(), kIndices));
        chosen = w.indices[0].take(M * count);
        offset = w.indices[1].take(M + 1);
        active_offset = w.indices[2].take(M + 1);
        row_sample = w.indices[3].take(M * count);
        row_of = w.indices[4].take(M * count);
        active_row_of = w.indices[5].take(M * count);
        place = w.indices[6].take(M * count);
        touched = w.indices[7].take(M * count);
        ahead_row = w.indices[8].take(a.values_ahead ? M * ahead_steps * count : 1);
        listed = w.indices[9].take(ahead_steps * count);
        scored = w.indices[10].take(M * count);
    }

    void forward(const PackedWeights<T>& packed);
    void backward(const PackedWeights<T>& packed);

private:
    static constexpr size_t kBuffers = 28, kIndices = 11;
    static constexpr Int kAheadRows = 256;  // enough rows for packing tiles to pay, few enough to stay in a near cache
    const Arguments& a;
    Int index;
    Workspace<T>& w;
    Int first, count, M, K, d, I, N, G, gates, V, head, P, R, O, query_width, computed, ahead_steps;
    Int* chosen;                   // (count, M): 1 for active mechanisms
    Int* scored;                   // (count, M): 1 where the backward pass has a gradient of the scores
    Int *offset, *active_offset;   // first row of each mechanism; rows are sorted by mechanism, then sample
    Int *row_sample, *row_of, *active_row_of;
    Int* place;                    // (count, M): row of the projections of a state; -1: none since the state changed
    Int *touched, *ahead_row, *listed;

    const T* data(const void* pointer) const { return static_cast<const T*>(pointer); }
    T* data(void* pointer) const { return static_cast<T*>(pointer); }

    // the state (M, d) of local sample s before step t, after a reset
    const T* before(Int t, Int s) const {
        const Int b = first + s;
        if (a.resets && a.resets[b * a.steps + t]) return data(a.initial_hidden) + b * M * d;
        if (t == 0) return data(a.hidden) + b * M * d;
        return data(static_cast<const void*>(a.features)) + b * a.features_stride + (t - 1) * M * d;
    }
    bool is_known_active(Int m, Int t, Int s) const {
        return !a.later_are_done || a.reads_candidates || a.is_active[((first + s) * a.steps + t) * M + m];
    }
    bool is_reset(Int t, Int s) const { return a.resets && a.resets[(first + s) * a.steps + t]; }
    // the row of keys and values: the sample, or the token at this step
    Int input_row(Int t, Int s) const { return a.tokens ? a.tokens[t * a.batch + first + s] : first + s; }
    // offset of the first key (slot 0, head 0) of mechanism m and local sample s at step t; then of the first value
    Int key_at(Int m, Int t, Int s) const {
        return (a.key_groups > 1 ? m : 0) * a.key_group_stride + t * a.key_step_stride +
               input_row(t, s) * a.key_row_stride;
    }
    Int value_at(Int m, Int t, Int s) const {
        return (a.value_groups > 1 ? m : 0) * a.value_group_stride + t * a.value_step_stride +
               input_row(t, s) * a.value_row_stride;
    }
    T* attention(Int t, Int s, Int m) const {
        return data(a.attention) + (((first + s) * a.steps + t) * M + m) * I * N;
    }
    T kept_input(Int t, Int m, Int s, Int i, Int n) const {
        if (!a.keep_input) return T(1);
        return data(a.keep_input)[(((t * M + m) * a.batch + first + s) * I + i) * N + n];
    }
    const T* kept_communication(Int t, Int s, Int c, Int m) const {
        if (!a.keep_communication) return nullptr;
        return data(a.keep_communication) + (((t * a.batch + first + s) * a.heads + c) * M + m) * M;
    }
    // of mechanism m of local sample s at step t, in outputs (B, T, M)
    Int output_at(Int t, Int s, Int m) const { return ((first + s) * a.steps + t) * M + m; }
    T ranking_offset(Int t, Int s, Int m) const {
        if (!a.offset) return T(0);
        return data(a.offset)[t * a.offset_step_stride + m * a.offset_mechanism_stride +
                              (first + s) * a.offset_row_stride];
    }
    // rows of this shard on the tape at step t, `per_sample` rows of `width` for each sample
    template <typename U>
    U* tape(U* base, Int t, Int per_sample, Int width) const {
        const Int step = a.is_taped ? t : 0;
        return base + (step * a.batch + first) * per_sample * width;
    }
    T* tape(void* base, Int t, Int per_sample, Int width) const { return tape(data(base), t, per_sample, width); }

    // as `outer`, on tiles; false where the processor has none, they do not pay, or they cannot hold the numbers
    bool outer_tiles(const T* x, Int ldx, const T* y, Int ldy, T* out, Int ldo, Int rows, Int columns_x,
                     Int columns_y, bool add, bool is_packed) const {
        if constexpr (std::is_same<T, float>::value) {
            if (rows < amx::kInner || columns_x < 2 * amx::kSide || columns_y < 2 * amx::kSide) return false;
            if (!amx::is_available()) return false;
            uint16_t* left = w.left.take(amx::tiles_size(columns_x, rows));
            uint16_t* right = w.right.take(amx::tiles_size(columns_y, rows));
            if (!amx::lay([&](Int r) { return x + r * ldx; }, columns_x, rows, left, false)) return false;
            if (!is_packed && !amx::lay([&](Int r) { return y + r * ldy; }, columns_y, rows, right, true)) return false;
            amx::multiply(left, right, out, ldo, columns_x, rows, columns_y, add);
            return true;
        }
        return false;
    }

    // score.h
    void list_rows();
    void score(Int t);
    const T* compute_queries(Int t);
    void score_slots(Int t, Int s, Int m, const T* query) const;
    T attend_slots(Int t, Int s, Int m) const;
    void attend_across(Int t, Int s, T* relevance) const;
    void choose(Int t, Int s, const T* relevance);
    Int best_of(const T* ranked, const Int* is_taken) const;
    Int take_best(const T* ranked, Int* is_taken) const;
    void recall(Int t);
    // gate.h
    struct Bar {
        T value;
        Int rival;  // the mechanism whose score it is; -1: none
    };
    Bar bar_of(const T* ranked, Int rival) const;
    T lead_over(const Bar& bar, T ranked) const;
    void gate_winners(Int t, Int s, const T* relevance, const T* ranked, const Bar& bar);
    void move_towards_candidates(Int t, ForwardPass<T>& pass);
    void gate_backward(Int t, Int s, const T* from_gate, T* into);
    void relevance_backward(Int t, Int s, BackwardPass<T>& pass);
    // forward.h
    ForwardPass<T> begin_forward(const PackedWeights<T>& packed);
    void reset_states(Int t, ForwardPass<T>& pass);
    void multiply_ahead(Int t, const PackedTiles& weights, T* out);
    void update(Int t, ForwardPass<T>& pass);
    void gather_cell_inputs(Int t, Int m, ForwardPass<T>& pass);
    void attended(Int t, Int m, Int s, T* out);
    void multiply_cell(Int m, T* g, const ForwardPass<T>& pass);
    void activate_gru(T* x) const;
    void activate_lstm(T* x, const T* old_memory, T* memory, T* squashed) const;
    void candidate(Int t, Int row, const T* hidden, T* out) const;
    void take_candidates(Int t, ForwardPass<T>& pass);
    void project_states(Int t, ForwardPass<T>& pass);
    template <typename Visit>
    void for_active_heads(Int s, const Visit& visit) const;
    template <typename Key, typename Value>
    void communicate(Int t, const T* all, Key key, Value value);
    void add_output(Int t, ForwardPass<T>& pass);
    void keep_places(Int t);
    void keep(Int t, const ForwardPass<T>& pass);
    void end_forward(const ForwardPass<T>& pass);
    // gradients.h
    BackwardPass<T> begin_backward(const PackedWeights<T>& packed);
    void flush(GradientLog<T>& log, void* base, Int groups, Int m);
    void flush_cell(Int m, BackwardPass<T>& pass);
    void flush_output(Int m, BackwardPass<T>& pass);
    void late_gradient(Int m, const T* g, Int rows, const PackedTiles& weights, T* out) const;
    void end_backward(BackwardPass<T>& pass);
    // backward.h
    void take_state_gradients(Int t, BackwardPass<T>& pass);
    void output_backward(Int t, BackwardPass<T>& pass);
    void activation_backward(const T* from, const T* output, T* into) const;
    const T* cell_gate(Int t, Int s, Int m) const;
    void cell_gate_backward(Int t, BackwardPass<T>& pass);
    template <typename Key, typename Value>
    void communicate_backward(Int t, const BackwardPass<T>& pass, Key key, Value value);
    void projections_backward(Int t, BackwardPass<T>& pass);
    void cells_backward(Int t, BackwardPass<T>& pass);
    void gates_backward(Int t, Int m, BackwardPass<T>& pass);
    T split_memory(const T* x, const T* old_memory, Int at, T* memory, T* kept) const;
    void gru_backward(const T* x, const T* old, const T* from, T* g, T* into) const;
    void lstm_backward(const T* x, const T* old_memory, const T* squashed, const T* from, T* g, T* into_memory) const;
    void cell_inputs_backward(Int t, Int m, Int rows, BackwardPass<T>& pass);
    void add_attention_gradient(Int t, Int m, Int s, const T* gradient, T* into);
    void scores_backward(Int t, BackwardPass<T>& pass);
    void folded_keys_backward(Int t, BackwardPass<T>& pass);
    void queries_backward(Int t, Int m, BackwardPass<T>& pass);
    void resets_backward(Int t, BackwardPass<T>& pass);
    const T* mechanism_weight(const void* base, Int m, Int numbers, Int groups) const {
        return data(base) + (groups > 1 ? m : 0) * numbers;
    }
};

}  // namespace
