// Weights packed once per call into the order in which products read them: panels (product.h) or tiles (amx.h). The
// forward pass reads the weights as they are, the backward pass their transposes. Threads share the packing.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "amx.h"
#include "arguments.h"
#include "numbers.h"
#include "workspace.h"

namespace {

// A weight that is packed once per call for many products; null: not packed.
template <typename T>
struct Packed {
    const T* data = nullptr;
    Int inner = 0, columns = 0;  // as a right factor, for each mechanism

    // one mechanism's, beginning at `row`
    Right<T> of(Int mechanism, Int row = 0) const {
        if (!data) return {};
        const T* own = data + mechanism * product::packed_size<T>(inner, columns);
        if (product::can_pack<T>(columns)) return {own, 0, inner, row};
        return {own + row * columns, columns};
    }
};

// The cells' input weights as tiles (amx.h), for each mechanism and head.
struct PackedTiles {
    uint16_t* data = nullptr;
    Int side = 0, inner = 0;
    std::vector<uint8_t> has_parts;  // of each factor: whether tiles can hold its numbers

    uint16_t* of(Int index) const { return data + index * amx::tiles_size(side, inner); }
};

// All packed weights: as they are in the forward pass, transposed in the backward pass.
template <typename T>
struct PackedWeights {
    Packed<T> cell_input, cell_hidden, communication, output, input_query;
    PackedTiles cell_tiles;  // replaces cell_input where values are multiplied many steps at once
};

// Packs the weights; the threads share the work by mechanism.
template <typename T>
class Layout {
public:
    Layout(const Arguments& a, bool is_backward, Workspace<T>& w) : w_(w), is_backward_(is_backward) {
        // rows that each weight is multiplied by; with few of them packing does not pay
        const Int rows = a.batch * a.steps * a.active / a.mechanisms;
        const Int gates = (a.is_gru ? 3 : 4) * a.size, M = a.mechanisms;
        if (a.values_ahead) {
            PackedTiles& tiles = result.cell_tiles;
            tiles.side = gates, tiles.inner = a.input_value;
            if (is_backward) std::swap(tiles.side, tiles.inner);
            cell_input_ = a.cell_input;
            tiles.has_parts.resize(M * a.input_heads);
            tiles.data = w.right.take(M * a.input_heads * amx::tiles_size(tiles.side, tiles.inner));
        }
        if (rows < (is_backward ? 32 : 256)) return;
        w.buffers.resize(std::max<size_t>(w.buffers.size(), 5));
        if (!a.values_hold_cell && !a.values_ahead)
            add(result.cell_input, a.cell_input, M, a.input_heads * a.input_value, gates);
        // in the forward pass two products share the GRU's hidden weight, and no panel ends at the border between them
        if (is_backward || !a.is_gru) add(result.cell_hidden, a.cell_hidden, M, a.size, gates);
        if (!is_backward) return;
        add(result.communication, a.communication, M, a.size, a.heads * (2 * a.key + a.value));
        add(result.output, a.communication_output, a.output_groups, a.heads * a.value,
            (a.output_kind == 2 ? 2 : 1) * a.size);
        if (!a.keys_hold_query) add(result.input_query, a.input_query, M, a.size, a.input_heads * a.input_key);
    }

    void run(Int index, Int threads) {
        Int count = 0;
        PackedTiles& tiles = result.cell_tiles;
        const Int inner = is_backward_ ? tiles.side : tiles.inner, columns = is_backward_ ? tiles.inner : tiles.side;
        for (Int factor = 0; factor < static_cast<Int>(tiles.has_parts.size()); ++factor) {
            if (count++ % threads != index) continue;
            const float* weight = static_cast<const float*>(cell_input_) + factor * inner * columns;
            const auto row = [&](Int r) { return weight + r * columns; };
            tiles.has_parts[factor] = is_backward_
                                          ? amx::lay_rows(row, inner, columns, tiles.of(factor), true)
                                          : amx::lay(row, columns, inner, tiles.of(factor), true);
        }
        for (const Job& job : jobs_)
            for (Int group = 0; group < job.groups; ++group) {
                if (count++ % threads != index) continue;
                const T* from = job.from + group * job.inner * job.columns;
                T* into = job.into + group * product::packed_size<T>(job.inner, job.columns);
                if (is_backward_)
                    product::pack(from, 1, job.inner, job.inner, job.columns, into);
                else
                    product::pack(from, job.columns, 1, job.inner, job.columns, into);
            }
    }

    bool is_empty() const { return jobs_.empty() && !result.cell_tiles.data; }

    PackedWeights<T> result;

private:
    struct Job {
        const T* from;
        T* into;
        Int groups, inner, columns;
    };
    Workspace<T>& w_;
    const bool is_backward_;
    const void* cell_input_ = nullptr;
    std::vector<Job> jobs_;

    void add(Packed<T>& packed, const void* weight, Int groups, Int rows, Int columns) {
        if (!weight || groups * rows * columns == 0) return;
        if (is_backward_) std::swap(rows, columns);
        T* into = w_.buffers[jobs_.size()].take(groups * product::packed_size<T>(rows, columns));
        jobs_.push_back({static_cast<const T*>(weight), into, groups, rows, columns});
        packed = {into, rows, columns};
    }
};

}  // namespace
