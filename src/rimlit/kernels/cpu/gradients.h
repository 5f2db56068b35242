// The buffers of a backward pass, and the logs from which it computes the gradients of the weights. A log gathers the
// rows of a gradient's two factors over many steps; flushing it multiplies them in one large product.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "shard.h"

namespace {

// Rows of the two factors of a weight's gradient, gathered over steps so that few large products sum them.
template <typename T>
class GradientLog {
public:
    void open(Buffer<T>& buffer, Int left_width, Int right_width, Int least, bool is_begun) {
        left_ = left_width, right_ = right_width, is_begun_ = is_begun;
        capacity_ = std::max<Int>(least, 128);
        memory_ = buffer.take(capacity_ * (left_ + right_));
    }
    Int capacity() const { return capacity_; }
    Int left_width() const { return left_; }
    Int right_width() const { return right_; }
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

// Buffers and logs of one backward pass: gradients, unless said otherwise.
template <typename T>
struct BackwardPass {
    const PackedWeights<T>& packed;
    T *hidden, *memory;  // (count, M, d): of the states after the step, in the end before it
    T* pending;          // (count, M, P): of projections, kept until the step that computed them
    T* output;           // (active rows, O), of the communication before its activation
    T* read;             // (active rows, R)
    T* candidate;        // (active rows, d)
    T* cell_gate;        // (active rows, d): of what the communication's output was multiplied by
    T* gate;             // (count, M)
    T* kept;             // (d): of a row's old memory that passes its gate by
    T* attention;        // (count, M, I, N), then of the scores
    T *visible, *attended, *previous;  // (count, d), (count, V), (count, d), of one mechanism
    T* query;            // (count, I·key), of one mechanism: input queries, no gradients
    std::vector<GradientLog<T>> cells, projections, outputs, queries;  // one per mechanism
    // where values are multiplied many steps at once, for each row of `cells`: the values it reads and their factors
    std::vector<Int*> value_of;
    std::vector<T*> factor_of;
    T* late;             // of the attended values of these rows
};

template <typename T>
BackwardPass<T> Shard<T>::begin_backward(const PackedWeights<T>& packed) {
    const Int block = M * d;
    const size_t base = kBuffers;
    w.buffers.resize(std::max<size_t>(w.buffers.size(), base + 5 * M));
    w.indices.resize(std::max<size_t>(w.indices.size(), kIndices + M));
    BackwardPass<T> pass{packed};
    pass.hidden = w.buffers[0].take(count * block);
    pass.memory = w.buffers[1].take(count * block);
    pass.pending = w.buffers[2].take(count * M * std::max<Int>(P, 1));
    pass.output = w.buffers[3].take(K * count * std::max<Int>(O, 1));
    pass.read = w.buffers[4].take(K * count * std::max<Int>(R, 1));
    pass.candidate = w.buffers[5].take(K * count * d);
    pass.cell_gate = w.buffers[16].take(a.output_kind == 3 ? K * count * d : 1);
    pass.gate = w.buffers[17].take(count * M);
    pass.kept = w.buffers[18].take(d);
    pass.visible = w.buffers[6].take(count * d);
    pass.attention = w.buffers[7].take(count * M * I * N);
    pass.attended = w.buffers[9].take(count * std::max<Int>(V, 1));
    pass.previous = w.buffers[10].take(count * d);
    pass.query = w.buffers[11].take(count * std::max<Int>(query_width, 1));
    pass.cells.resize(M), pass.projections.resize(M), pass.outputs.resize(M), pass.queries.resize(M);
    pass.value_of.resize(M), pass.factor_of.resize(M);
    for (Int m = 0; m < M; ++m) {
        Buffer<T>* buffers = &w.buffers[base + 4 * m];
        pass.cells[m].open(buffers[0], V + d, G, count, a.later_are_done);
        if (a.heads) pass.projections[m].open(buffers[1], d, P, count, a.later_are_done);
        if (a.heads) pass.outputs[m].open(buffers[2], R, O, count, a.later_are_done);
        if (query_width) pass.queries[m].open(buffers[3], d, query_width, count, a.later_are_done);
        if (!a.values_ahead) continue;
        pass.value_of[m] = w.indices[kIndices + m].take(pass.cells[m].capacity());
        pass.factor_of[m] = w.buffers[base + 4 * M + m].take(pass.cells[m].capacity() * I);
    }
    pass.late = w.buffers[12].take(a.values_ahead ? pass.cells[0].capacity() * V : 1);
    std::memcpy(pass.hidden, data(a.from_hidden) + first * block, count * block * sizeof(T));
    if (!a.is_gru) std::memcpy(pass.memory, data(a.from_memory) + first * block, count * block * sizeof(T));
    if (a.heads) std::fill(pass.pending, pass.pending + count * M * P, T(0));
    return pass;
}

// Adds the product of a log's factors to the gradient of mechanism m's weight at `base`, and empties the log.
template <typename T>
void Shard<T>::flush(GradientLog<T>& log, void* base, Int groups, Int m) {
    const Int left = log.left_width(), right = log.right_width();
    const bool is_shared = groups == 1 && m > 0;  // the first mechanism has written it
    T* into = data(base) + (groups > 1 ? m : 0) * left * right;
    outer(log.left(), left, log.right(), right, into, right, log.rows(), left, right, log.is_begun() || is_shared);
    log.clear();
}

// As `flush`, for the gradients of the cell's two weights and of values that are multiplied many steps at once.
template <typename T>
void Shard<T>::flush_cell(Int m, BackwardPass<T>& pass) {
    GradientLog<T>& log = pass.cells[m];
    const T *left = log.left(), *right = log.right();
    const Int rows = log.rows();
    const auto add_up = [&](const T* x, const T* y, T* into, Int columns_x, Int columns_y, bool is_packed) {
        const bool add = log.is_begun();
        if (outer_tiles(x, V + d, y, G, into, gates, rows, columns_x, columns_y, add, is_packed)) return true;
        outer(x, V + d, y, G, into, gates, rows, columns_x, columns_y, add);
        return false;
    };
    bool is_packed = false;
    if (V) is_packed = add_up(left, right, data(a.into_cell_input) + m * V * gates, V, gates, false);
    T* into = data(a.into_cell_hidden) + m * d * gates;
    add_up(left + V, right, into, d, a.is_gru ? 2 * d : gates, is_packed && !a.is_gru);
    if (a.is_gru) add_up(left + V, right + 3 * d, into + 2 * d, d, d, false);
    if (a.values_ahead) {
        late_gradient(m, right, rows, pass.packed.cell_tiles, pass.late);
        const Int width = a.input_value;
        for (Int r = 0; r < rows; ++r)
            for (Int i = 0; i < I; ++i)
                add_scaled(data(a.into_values) + pass.value_of[m][r] + i * width, pass.late + r * V + i * width,
                           pass.factor_of[m][r * I + i], width);
    }
    log.clear();
}

// As `flush`, for the communication's output, whose weight all mechanisms may share: the first one writes it.
template <typename T>
void Shard<T>::flush_output(Int m, BackwardPass<T>& pass) {
    if (a.output_groups == 1 && m > 0 && !pass.outputs[0].is_begun())
        flush(pass.outputs[0], a.into_communication_output, 1, 0);
    flush(pass.outputs[m], a.into_communication_output, a.output_groups, m);
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

template <typename T>
void Shard<T>::end_backward(BackwardPass<T>& pass) {
    const Int block = M * d;
    for (Int m = 0; m < M; ++m) {
        flush_cell(m, pass);
        if (a.heads) flush(pass.projections[m], a.into_communication, M, m), flush_output(m, pass);
        if (query_width) flush(pass.queries[m], a.into_input_query, M, m);
    }
    std::memcpy(data(a.into_hidden) + first * block, pass.hidden, count * block * sizeof(T));
    if (!a.is_gru) std::memcpy(data(a.into_memory) + first * block, pass.memory, count * block * sizeof(T));
}

}  // namespace
