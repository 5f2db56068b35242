// The time loop of a RIM layer and its derivative on the CPU (Goyal et al. 2021, sec. 2, arXiv:1909.10893).
//
// Mechanisms couple only within a sample: every thread owns some samples for the whole loop and never waits.
// Only rows that are computed exist: where inactive mechanisms keep their state, a step gathers the (mechanism,
// sample) pairs that are active, sorted by mechanism, so that each weight meets its rows in one product
// (product.h, amx.h). Keys and values of a mechanism are computed again only when its state has changed.
//
// The interface is plain C, so that nothing here depends on torch's headers: it compiles in seconds and works with
// every version. Python reads the fields of its structs from the library itself. Letters as in rimlit/types.py.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "amx.h"
#include "product.h"

extern "C" {
// present where torch carries MKL: keeps a product on the thread that asks for it
int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
// runs a function on threads of OpenMP; present where torch carries it
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));

// Defines a struct and `Name_fields`, the text of its declarations, from which call.py builds the same struct.
#define STRUCT(Name, ...)  \
    struct Name {          \
        __VA_ARGS__        \
    };                     \
    const char Name##_fields[] = #__VA_ARGS__;

STRUCT(Arguments,
    // sizes
    Int batch, steps, mechanisms, active, size, input_heads, slots, input_key, input_value;
    Int heads, key, value;  // of the communication; heads 0: none
    Int key_groups, value_groups, output_groups, vocabulary, threads;
    // from group to group, step to step and sample to sample; or from token to token, and none between steps
    Int key_group_stride, key_step_stride, key_row_stride, value_group_stride, value_step_stride, value_row_stride;
    Int features_stride, from_features_stride;  // from sample to sample
    // choices
    Int is_gru, across_mechanisms, reads_candidates, output_kind;  // output: 0 linear, 1 tanh, 2 gated
    Int keys_hold_query, values_hold_cell, values_ahead, is_taped, is_double;
    // of a part of a sequence that is walked back from its end. If later parts are done, a walk forward finds the
    // outputs and writes the tape only, and one back adds to gradients. If earlier ones follow, threads' sums stay
    // apart.
    Int later_are_done, earlier_follow;
    // operands
    const void *keys, *values, *hidden, *memory, *initial_hidden, *initial_memory;
    const void *input_query, *cell_input, *cell_hidden, *cell_bias;
    const void *communication, *communication_output, *communication_bias;
    // setting
    const Int* tokens;  // (T, B)
    const uint8_t* resets;  // (B, T)
    const void *keep_input, *keep_communication;
    // outputs
    void *features, *last_hidden, *last_memory;
    uint8_t* is_active;  // (B, T, M)
    void *attention, *null_attention, *activity;  // null_attention (B, T, M) and activity only where they are recorded
    // tape
    void *gates, *old_memory, *squashed, *ahead, *projected, *weights, *read, *output;
    int32_t *place, *start;
    // gradients: of the outputs, of what belongs to samples, and of what all threads add to
    const void *from_features, *from_hidden, *from_memory;
    void *into_hidden, *into_memory, *into_initial_hidden, *into_initial_memory;
    void *into_keys, *into_values, *into_input_query, *into_cell_input, *into_cell_hidden, *into_cell_bias;
    void *into_communication, *into_communication_output, *into_communication_bias;
    // the same for all threads but the first, one after the other; keys and values only of tokens
    void *others_keys, *others_values, *others_input_query, *others_cell_input, *others_cell_hidden, *others_cell_bias;
    void *others_communication, *others_communication_output, *others_communication_bias;
)

// One step from the raw input (B, D): its projections are computed here, then the loop runs on them.
STRUCT(StepArguments,
    const Arguments* loop;
    Int input_size, key_size, key_groups;
    const void *key, *query;                 // (1 or M, D, I·key), (M, d, I·key)
    const void *folded_key, *folded_value;   // (M, D, I·d), (M, D, I·gates), where they are the cheaper
    const void* value;                       // (1 or M, D, I·value)
    void *keys, *values;                     // as the loop reads them
)
}

namespace {

using product::Right;

// out (rows, columns) = x · weight, or added to it; all row by row in memory, or the weight as it has been laid out
template <typename T>
void times(const T* x, Int ldx, const T* weight, Int ldw, T* out, Int ldo, Int rows, Int inner, Int columns,
           bool add, const Right<T>& laid = {}) {
    const Right<T> right = laid.data && rows > 1 ? laid : Right<T>{weight, ldw};
    product::multiply(x, ldx, 1, right, out, ldo, rows, inner, columns, add);
}

// out (rows, columns) = x · weightᵀ, weight (columns, inner); from its transpose where that has been laid out
template <typename T>
void times_transposed(const T* x, Int ldx, const T* weight, Int ldw, const Right<T>& laid, T* out, Int rows,
                      Int inner, Int columns, bool add) {
    if (rows == 0 || columns == 0) return;
    if (laid.data)
        product::multiply(x, ldx, 1, laid, out, columns, rows, inner, columns, add);
    else
        product::blas("T", "N", columns, rows, inner, weight, ldw, x, ldx, add, out, columns);
}

// out (columns_x, columns_y) = xᵀ · y over rows, or added to it
template <typename T>
void outer(const T* x, Int ldx, const T* y, Int ldy, T* out, Int ldo, Int rows, Int columns_x, Int columns_y,
           bool add) {
    product::multiply(x, 1, ldx, {y, ldy}, out, ldo, columns_x, rows, columns_y, add);
}

template <typename T, typename Size = Int>
inline T dot(const T* a, const T* b, Size count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Int i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

template <typename T, typename Size = Int>
inline void add_scaled(T* out, const T* x, T factor, Size count) {
#pragma omp simd
    for (Int i = 0; i < count; ++i) out[i] += factor * x[i];
}

// A size that the compiler knows: loops of sixteen numbers cost more to set up than to run.
template <Int N>
struct Fixed {
    constexpr operator Int() const { return N; }
};
template <typename Run>
void with_sizes(Int key, Int value, const Run& run) {
    if (key == 16 && value == 16) return run(Fixed<16>(), Fixed<16>());
    if (key == 32 && value == 32) return run(Fixed<32>(), Fixed<32>());
    if (key == 64 && value == 64) return run(Fixed<64>(), Fixed<64>());
    run(key, value);
}

// e^x without a branch, so that the loops around it become vector code; NaN stays NaN
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f;  // adding it rounds to an integer that its lowest bits hold
    const float shifted = x * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits, base;
    std::memcpy(&bits, &shifted, 4);
    std::memcpy(&base, &magic, 4);
    bits = static_cast<int32_t>(static_cast<uint32_t>(bits - base + 127) << 23);
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}
inline double exponential(double x) {
    x = x < -708.0 ? -708.0 : x;
    x = x > 709.0 ? 709.0 : x;
    const double magic = 6755399441055744.0;
    const double shifted = x * 1.4426950408889634 + magic;
    const double n = shifted - magic;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t bits, base;
    std::memcpy(&bits, &shifted, 8);
    std::memcpy(&base, &magic, 8);
    bits = static_cast<int64_t>(static_cast<uint64_t>(bits - base + 1023) << 52);
    double power;
    std::memcpy(&power, &bits, 8);
    return p * power;
}
template <typename T>
inline T sigmoid(T x) {
    return T(1) / (T(1) + exponential(-x));
}
template <typename T>
inline T hyperbolic(T x) {
    return T(1) - T(2) / (exponential(T(2) * x) + T(1));
}
template <typename T>
inline void sigmoid_all(T* x, Int count) {
#pragma omp simd
    for (Int i = 0; i < count; ++i) x[i] = sigmoid(x[i]);
}
template <typename T>
inline void tanh_all(T* x, Int count) {
#pragma omp simd
    for (Int i = 0; i < count; ++i) x[i] = hyperbolic(x[i]);
}

// softmax in place; a NaN makes all of them NaN. Returns the probability of the null slot, whose score is 0, where
// there is one: 1 − the sum of the others would cancel where it is small.
template <typename T>
inline T softmax(T* x, Int count, Int stride, bool with_null) {
    T top = with_null ? T(0) : x[0];
    for (Int i = 0; i < count; ++i) top = x[i * stride] > top ? x[i * stride] : top;
    const T null = with_null ? std::exp(-top) : T(0);
    T sum = null;
    for (Int i = 0; i < count; ++i) {
        x[i * stride] = std::exp(x[i * stride] - top);
        sum += x[i * stride];
    }
    for (Int i = 0; i < count; ++i) x[i * stride] /= sum;
    return null / sum;
}

// memory that is not set to zero and is kept between calls
template <typename T>
class Buffer {
public:
    // begins with a line of the cache
    T* take(Int count) {
        constexpr size_t line = 64;
        if (count > size_) {
            data_.reset(new T[count + line / sizeof(T)]);
            size_ = count;
        }
        const auto at = reinterpret_cast<uintptr_t>(data_.get());
        return reinterpret_cast<T*>((at + line - 1) / line * line);
    }

private:
    std::unique_ptr<T[]> data_;
    Int size_ = 0;
};

template <typename T>
struct Workspace {
    std::vector<Buffer<T>> buffers;
    std::vector<Buffer<Int>> indices;
    Buffer<uint16_t> left, right;  // tiles
};

// Workspaces that no call uses now. Calls in several threads each take their own.
template <typename T>
struct Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Workspace<T>>> idle;

    std::unique_ptr<Workspace<T>> take() {
        // a fork may have copied a locked mutex: then go without the pool
        std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        if (lock && !idle.empty()) {
            auto workspace = std::move(idle.back());
            idle.pop_back();
            return workspace;
        }
        return std::make_unique<Workspace<T>>();
    }
    void give(std::unique_ptr<Workspace<T>> workspace) {
        std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        if (lock && idle.size() < 64) idle.push_back(std::move(workspace));
    }
};
template <typename T>
Pool<T>& pool() {
    static auto* instance = new Pool<T>;  // never destroyed: threads may outlive static objects
    return *instance;
}

// A weight laid out once per call for many products; null: not done.
template <typename T>
struct Laid {
    const T* data = nullptr;
    Int inner = 0, columns = 0;  // as a right factor, for each mechanism

    // of one mechanism, from a row on
    Right<T> of(Int mechanism, Int row = 0) const {
        if (!data) return {};
        const T* own = data + mechanism * product::packed_size<T>(inner, columns);
        if (product::can_pack<T>(columns)) return {own, 0, inner, row};
        return {own + row * columns, columns};
    }
};

// The cells' input weights as tiles (amx.h), for each mechanism and head.
struct LaidTiles {
    uint16_t* data = nullptr;
    Int side = 0, inner = 0;
    std::vector<uint8_t> has_parts;  // of each; as many as there are

    uint16_t* of(Int index) const { return data + index * amx::tiles_size(side, inner); }
};

// forward as they are, backward transposed
template <typename T>
struct LaidWeights {
    Laid<T> cell_input, cell_hidden, communication, output, input_query;
    LaidTiles cell_tiles;  // in place of cell_input where values are multiplied many steps at once
};

// One thread's samples [first, first + count) for the whole loop.
template <typename T>
class Shard {
public:
    Shard(const Arguments& arguments, Int index, Workspace<T>& workspace)
        : a(arguments), index(index), w(workspace) {
        first = a.batch * index / a.threads;
        count = a.batch * (index + 1) / a.threads - first;
        M = a.mechanisms, K = a.active, d = a.size, I = a.input_heads, N = a.slots;
        G = 4 * d;                                  // gates on the tape: the GRU's last quarter is what r scales
        gates = (a.is_gru ? 3 : 4) * d;             // gates of the weights
        V = a.values_hold_cell ? 0 : I * a.input_value;
        // rows of each step that are multiplied ahead
        const Int known = a.later_are_done && !a.reads_candidates ? K : M;
        ahead_steps = std::max<Int>(1, kAheadRows * M / std::max<Int>(known * count, 1));
        head = 2 * a.key + a.value;
        P = a.heads * head;
        R = a.heads * a.value;
        O = a.output_kind == 2 ? 2 * d : d;
        computed = a.reads_candidates ? M : K;      // mechanisms computed per sample and step
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
    }

    void forward(const LaidWeights<T>& laid);
    void backward(const LaidWeights<T>& laid);

private:
    static constexpr size_t kBuffers = 24, kIndices = 10;
    static constexpr Int kAheadRows = 256;  // enough for tiles to be worth laying out, few enough for a near cache
    const Arguments& a;
    Int index;
    Workspace<T>& w;
    Int first, count, M, K, d, I, N, G, gates, V, head, P, R, O, computed, ahead_steps;
    Int *chosen;                   // (count, M): is active
    Int *offset, *active_offset;   // rows of each mechanism, sorted by mechanism, then sample
    Int *row_sample, *row_of, *active_row_of, *place, *touched, *ahead_row, *listed;

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
    // the sample, or the token that it reads
    Int input_row(Int t, Int s) const { return a.tokens ? a.tokens[t * a.batch + first + s] : first + s; }
    // offset of what mechanism m of local sample s reads at step t: key n = 0, head i = 0
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
    // rows of this shard on the tape at step t, `per_sample` rows of `width` for each sample
    template <typename U>
    U* tape(U* base, Int t, Int per_sample, Int width) const {
        const Int step = a.is_taped ? t : 0;
        return base + (step * a.batch + first) * per_sample * width;
    }
    T* tape(void* base, Int t, Int per_sample, Int width) const { return tape(data(base), t, per_sample, width); }

    // as `outer`, on tiles; false where these are not to be had, not worth it, or cannot hold the numbers
    bool outer_tiles(const T* x, Int ldx, const T* y, Int ldy, T* out, Int ldo, Int rows, Int columns_x,
                     Int columns_y, bool add, bool is_laid) const {
        if constexpr (std::is_same<T, float>::value) {
            if (rows < amx::kInner || columns_x < 2 * amx::kSide || columns_y < 2 * amx::kSide) return false;
            if (!amx::is_available()) return false;
            uint16_t* left = w.left.take(amx::tiles_size(columns_x, rows));
            uint16_t* right = w.right.take(amx::tiles_size(columns_y, rows));
            if (!amx::lay([&](Int r) { return x + r * ldx; }, columns_x, rows, left, false)) return false;
            if (!is_laid && !amx::lay([&](Int r) { return y + r * ldy; }, columns_y, rows, right, true)) return false;
            amx::multiply(left, right, out, ldo, columns_x, rows, columns_y, add);
            return true;
        }
        return false;
    }

    void list_rows();
    void multiply_ahead(Int t, const LaidTiles& weights, T* out);
    void score(Int t);
    void recall(Int t);
    void attended(Int t, Int m, Int s, T* out);
    void update(Int t, T* memory, const T* ahead, const LaidWeights<T>& laid);
    template <typename Visit>
    void for_active_heads(const Visit& visit) const;
    template <typename Key, typename Value>
    void communicate(Int t, const T* all, Key key, Value value);
    template <typename Key, typename Value>
    void communicate_back(Int t, const T* rows_read, T* pending, Key key, Value value);
    void add_attention_gradient(Int t, Int m, Int s, const T* gradient, T* into);
    void late_gradient(Int m, const T* g, Int rows, const LaidTiles& weights, T* out) const;
    void candidate(Int t, Int row, const T* hidden, T* out) const;
    const T* mechanism_weight(const void* base, Int m, Int numbers, Int groups) const {
        return data(base) + (groups > 1 ? m : 0) * numbers;
    }
};

// rows: all computed (mechanism, sample) pairs sorted by mechanism; active rows: those that are active
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

// Attention to the slots, relevance and the K active mechanisms of step t.
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
        // the K most relevant; ties go to the lowest index, NaN counts least
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

// The active mechanisms of step t, as an earlier pass found them.
template <typename T>
void Shard<T>::recall(Int t) {
    for (Int s = 0; s < count; ++s)
        for (Int m = 0; m < M; ++m) chosen[s * M + m] = a.is_active[((first + s) * a.steps + t) * M + m];
}

// Values times the cells' input weights for the steps from t on, row by row for each mechanism: (M, rows, I·gates).
// Where it is known who is active only these rows are computed, else all.
template <typename T>
void Shard<T>::multiply_ahead(Int t, const LaidTiles& weights, T* out) {
    if constexpr (std::is_same<T, float>::value) {
        const Int all = std::min(ahead_steps, a.steps - t) * count, width = a.input_value;
        const bool all_alike = a.value_groups == 1 && !a.later_are_done;  // mechanisms share rows and their tiles
        uint16_t* left = w.left.take(amx::tiles_size(all, width));
        bool has_parts = false;
        Int rows = 0;
        for (Int i = 0; i < I; ++i)
            for (Int m = 0; m < M; ++m) {
                Int* place = ahead_row + m * ahead_steps * count;  // of a row in what is computed
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

// What mechanism m of sample s reads from the slots: (I·value)
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
#pragma omp simd
                for (Int v = 0; v < width; ++v) into[v] = factor * value[v];
            } else {
                add_scaled(into, value, factor, width);
            }
        }
    }
}

// The hidden state that a computed row's cell proposes, from its gates on the tape.
template <typename T>
void Shard<T>::candidate(Int t, Int row, const T* hidden, T* out) const {
    const T* g = tape(a.gates, t, computed, G) + row * G;
    if (a.is_gru) {
#pragma omp simd
        for (Int j = 0; j < d; ++j) out[j] = g[2 * d + j] + g[d + j] * (hidden[j] - g[2 * d + j]);
    } else {
        const T* squashed = tape(a.squashed, t, computed, d) + row * d;
#pragma omp simd
        for (Int j = 0; j < d; ++j) out[j] = g[2 * d + j] * squashed[j];
    }
}

// Gates, memory and candidate of all computed rows; `memory` (count, M, d) takes the active ones' new memory.
template <typename T>
void Shard<T>::update(Int t, T* memory, const T* ahead, const LaidWeights<T>& laid) {
    const bool reads_values = V && !a.values_ahead;
    T* all = tape(a.gates, t, computed, G);
    T* read = w.buffers[3].take(count * std::max<Int>(V, 1));
    T* hidden = w.buffers[4].take(count * d);
    const Int numbers = a.is_gru ? 3 * d : 4 * d;
    for (Int m = 0; m < M; ++m) {
        const Int rows = offset[m + 1] - offset[m];
        if (rows == 0) continue;
        T* g = all + offset[m] * G;
        const T* bias = data(a.cell_bias) + m * G;
        for (Int r = 0; r < rows; ++r) {
            const Int s = row_sample[offset[m] + r];
            std::memcpy(hidden + r * d, before(t, s) + m * d, d * sizeof(T));
            std::memcpy(g + r * G, bias, G * sizeof(T));
            if (reads_values) {
                attended(t, m, s, read + r * V);
            } else {
                const T* values = data(a.values);
                if (a.values_ahead) {
                    const Int begin = m * ahead_steps * count;
                    values = ahead + (begin + ahead_row[begin + t % ahead_steps * count + s]) * I * gates;
                    if (a.is_taped)
                        std::memcpy(tape(a.ahead, t, computed, I * gates) + (offset[m] + r) * I * gates, values,
                                    I * gates * sizeof(T));
                } else {
                    values += value_at(m, t, s);
                }
                for (Int i = 0; i < I; ++i)
                    add_scaled(g + r * G, values + i * gates, attention(t, s, m)[i] * kept_input(t, m, s, i, 0),
                               gates);
            }
        }
        const T* weight = data(a.cell_hidden) + m * d * numbers;
        if (a.is_gru) {
            times(hidden, d, weight, numbers, g, G, rows, d, 2 * d, true);
            times(hidden, d, weight + 2 * d, numbers, g + 3 * d, G, rows, d, d, true);
        } else {
            times(hidden, d, weight, numbers, g, G, rows, d, numbers, true, laid.cell_hidden.of(m));
        }
        if (reads_values)
            times(read, V, data(a.cell_input) + m * V * gates, gates, g, G, rows, V, gates, true,
                  laid.cell_input.of(m));
        for (Int r = 0; r < rows; ++r) {
            const Int row = offset[m] + r, s = row_sample[row];
            T* x = g + r * G;
            if (a.is_gru) {
                sigmoid_all(x, 2 * d);
#pragma omp simd
                for (Int j = 0; j < d; ++j) x[2 * d + j] = hyperbolic(x[2 * d + j] + x[j] * x[3 * d + j]);
            } else {
                sigmoid_all(x, 3 * d);
                tanh_all(x + 3 * d, d);
                T* kept = memory + (s * M + m) * d;
                T* old = tape(a.old_memory, t, computed, d) + row * d;
                T* squashed = tape(a.squashed, t, computed, d) + row * d;
                std::memcpy(old, kept, d * sizeof(T));
                T* fresh = w.buffers[5].take(d);
#pragma omp simd
                for (Int j = 0; j < d; ++j) {
                    fresh[j] = x[d + j] * old[j] + x[j] * x[3 * d + j];
                    squashed[j] = hyperbolic(fresh[j]);
                }
                if (chosen[s * M + m]) std::memcpy(kept, fresh, d * sizeof(T));
            }
        }
    }
}

// Visits every head c of every active mechanism m of sample s: its row and where its weights begin.
template <typename T>
template <typename Visit>
void Shard<T>::for_active_heads(const Visit& visit) const {
    for (Int s = 0; s < count; ++s) {
        Int order = 0;
        for (Int m = 0; m < M; ++m) {
            const Int row = active_row_of[s * M + m];
            if (row < 0) continue;
            for (Int c = 0; c < a.heads; ++c) visit(s, m, c, row, ((s * a.heads + c) * K + order) * M);
            ++order;
        }
    }
}

// What active mechanisms read from all, `all` the projections.
template <typename T>
template <typename Key, typename Value>
void Shard<T>::communicate(Int t, const T* all, Key key, Value value) {
    const T scale = T(1) / std::sqrt(T(key));
    T* read = tape(a.read, t, K, R);
    T* weights = tape(a.weights, t, a.heads * K * M, 1);
    for_active_heads([&](Int s, Int m, Int c, Int row, Int at) {
        T* x = weights + at;
        const T* query = all + place[s * M + m] * P + c * head;
        for (Int n = 0; n < M; ++n) x[n] = scale * dot(query, all + place[s * M + n] * P + c * head + key, key);
        softmax(x, M, 1, false);
        const T* keep = kept_communication(t, s, c, m);
        T* into = read + row * R + c * value;
        std::fill(into, into + value, T(0));
        for (Int n = 0; n < M; ++n)
            add_scaled(into, all + place[s * M + n] * P + c * head + 2 * key, keep ? x[n] * keep[n] : x[n], value);
        if (a.activity) {
            T* mean = data(a.activity) + (((first + s) * a.steps + t) * M + m) * M;
            for (Int n = 0; n < M; ++n) mean[n] += x[n] / a.heads;
        }
    });
}

template <typename T>
void Shard<T>::forward(const LaidWeights<T>& laid) {
    T* memory = w.buffers[6].take(count * M * d);
    T* proposed = w.buffers[7].take(M * count * d);  // by touched row
    T* loose = w.buffers[8].take(a.is_taped ? 1 : M * count * std::max<Int>(P, 1));  // P by (m, s)
    T* fresh = w.buffers[9].take(count * std::max<Int>(P, 1));
    T* output = w.buffers[10].take(K * count * std::max<Int>(O, 1));
    T* out_rows = w.buffers[11].take(K * count * d);
    T* ahead = w.buffers[12].take(a.values_ahead ? M * ahead_steps * count * I * gates : 1);
    if (!a.is_gru)
        std::memcpy(memory, data(a.memory) + first * M * d, count * M * d * sizeof(T));
    std::fill(place, place + M * count, Int(-1));  // where a state's keys and values are; -1: it has changed
    T* projected = a.heads ? data(a.projected) : nullptr;
    // the caller has set where this shard's rows of the tape of projections begin
    Int next = a.is_taped && a.heads ? a.start[index * (a.steps + 1)] : 0;
    for (Int t = 0; t < a.steps; ++t) {
        for (Int s = 0; s < count; ++s)
            if (is_reset(t, s)) {
                if (!a.is_gru)
                    std::memcpy(memory + s * M * d, data(a.initial_memory) + (first + s) * M * d,
                                M * d * sizeof(T));
                std::fill(place + s * M, place + (s + 1) * M, Int(-1));
            }
        a.later_are_done ? recall(t) : score(t);
        list_rows();
        if (a.values_ahead && t % ahead_steps == 0) multiply_ahead(t, laid.cell_tiles, ahead);
        update(t, memory, ahead, laid);
        T* features = data(a.features);
        // candidates of active rows, by active row
        for (Int m = 0; m < M && !a.later_are_done; ++m)
            for (Int row = offset[m]; row < offset[m + 1]; ++row) {
                const Int s = row_sample[row], active_row = active_row_of[s * M + m];
                if (active_row >= 0) candidate(t, row, before(t, s) + m * d, out_rows + active_row * d);
            }
        if (a.heads) {
            if (a.is_taped) a.start[index * (a.steps + 1) + t] = static_cast<int32_t>(next);
            for (Int m = 0; m < M; ++m) {
                Int rows = 0;
                for (Int s = 0; s < count; ++s) {
                    const Int at = s * M + m;
                    if (row_of[at] >= 0)
                        candidate(t, row_of[at], before(t, s) + m * d, proposed + rows * d);
                    else if (place[at] < 0)
                        std::memcpy(proposed + rows * d, before(t, s) + m * d, d * sizeof(T));
                    else
                        continue;
                    touched[rows++] = s;
                }
                T* into = a.is_taped ? projected + next * P : fresh;
                times(proposed, d, data(a.communication) + m * d * P, P, into, P, rows, d, P, false);
                for (Int r = 0; r < rows; ++r) {
                    const Int at = touched[r] * M + m;
                    if (a.is_taped) {
                        place[at] = next + r;
                    } else {
                        place[at] = at;
                        std::memcpy(loose + at * P, fresh + r * P, P * sizeof(T));
                    }
                }
                if (a.is_taped) next += rows;
            }
            const T* all = a.is_taped ? projected : loose;
            with_sizes(a.key, a.value, [&](auto key, auto value) { communicate(t, all, key, value); });
            const T* read = tape(a.read, t, K, R);
            const bool is_output_taped = a.output_kind != 0;
            T* o = is_output_taped ? tape(a.output, t, K, O) : output;
            for (Int m = 0; m < M && (is_output_taped || !a.later_are_done); ++m) {
                const Int begin = active_offset[m], rows = active_offset[m + 1] - begin;
                times(read + begin * R, R, mechanism_weight(a.communication_output, m, R * O, a.output_groups), O,
                      o + begin * O, O, rows, R, O, false);
            }
            for (Int row = 0; row < active_offset[M] && is_output_taped; ++row) {
                T* x = o + row * O;
                if (a.output_kind == 1) {
                    tanh_all(x, d);
                } else {
                    add_scaled(x, data(a.communication_bias), T(1), O);
                    sigmoid_all(x, d);
                    tanh_all(x + d, d);
                }
            }
            for (Int row = 0; row < active_offset[M] && !a.later_are_done; ++row) {
                const T* x = o + row * O;
                T* into = out_rows + row * d;
                if (a.output_kind == 2) {
#pragma omp simd
                    for (Int j = 0; j < d; ++j) into[j] += x[j] * x[d + j];
                } else {
                    add_scaled(into, x, T(1), d);
                }
            }
            if (a.is_taped) {
                int32_t* saved = a.place + (t * a.batch + first) * M;
                for (Int at = 0; at < M * count; ++at) saved[at] = static_cast<int32_t>(place[at]);
            }
            for (Int at = 0; at < M * count; ++at)
                if (chosen[at] || a.reads_candidates) place[at] = -1;  // its state changes now
        }
        for (Int s = 0; s < count && !a.later_are_done; ++s) {
            T* into = features + (first + s) * a.features_stride + t * M * d;
            const T* old = before(t, s);
            for (Int m = 0; m < M; ++m) {
                const Int row = active_row_of[s * M + m];
                std::memcpy(into + m * d, row >= 0 ? out_rows + row * d : old + m * d, d * sizeof(T));
            }
        }
    }
    if (a.is_taped && a.heads) a.start[index * (a.steps + 1) + a.steps] = static_cast<int32_t>(next);
    if (a.later_are_done) return;
    for (Int s = 0; s < count; ++s)
        std::memcpy(data(a.last_hidden) + (first + s) * M * d,
                    data(a.features) + (first + s) * a.features_stride + (a.steps - 1) * M * d, M * d * sizeof(T));
    if (!a.is_gru) std::memcpy(data(a.last_memory) + first * M * d, memory, count * M * d * sizeof(T));
}

// Rows of a weight's two factors, gathered over steps: few large products add up its gradient.
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
    bool is_begun() const { return is_begun_; }  // its rows have been added up before
    void clear() { rows_ = 0, is_begun_ = true; }

private:
    Int left_ = 0, right_ = 0, rows_ = 0, capacity_ = 0;
    bool is_begun_ = false;
    T* memory_ = nullptr;
};

// The gradient that one sample's gates (or attended values) of mechanism m send to attention and values.
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

// The gradient (rows, V) that gates g (rows, G) of mechanism m send to what it read.
template <typename T>
void Shard<T>::late_gradient(Int m, const T* g, Int rows, const LaidTiles& weights, T* out) const {
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

// The gradient that what was read sends to the projections, added to `pending`.
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
void Shard<T>::backward(const LaidWeights<T>& laid) {
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
    // of the rows of `cell`, where values are multiplied many steps at once: which values they read, by what factors
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
        const auto add_up = [&](const T* x, const T* y, T* into, Int columns_x, Int columns_y, bool is_laid) {
            const bool add = log.is_begun();
            if (outer_tiles(x, V + d, y, G, into, numbers, rows, columns_x, columns_y, add, is_laid)) return true;
            outer(x, V + d, y, G, into, numbers, rows, columns_x, columns_y, add);
            return false;
        };
        bool is_laid = false;
        if (V) is_laid = add_up(left, right, data(a.into_cell_input) + m * V * numbers, V, numbers, false);
        T* into = data(a.into_cell_hidden) + m * d * numbers;
        add_up(left + V, right, into, d, a.is_gru ? 2 * d : numbers, is_laid && !a.is_gru);
        if (a.is_gru) add_up(left + V, right + 3 * d, into + 2 * d, d, d, false);
        if (a.values_ahead) {
            late_gradient(m, right, rows, laid.cell_tiles, late);
            const Int width = a.input_value;
            for (Int r = 0; r < rows; ++r)
                for (Int i = 0; i < I; ++i)
                    add_scaled(data(a.into_values) + value_of[m][r] + i * width, late + r * V + i * width,
                               factor_of[m][r * I + i], width);
        }
        log.clear();
    };
    auto flush = [&](Log<T>& log, void* base, Int groups, Int m, Int left, Int right) {
        const bool is_shared = groups == 1 && m > 0;  // the first mechanism's is begun before
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
    const T* projected = a.heads ? data(a.projected) : nullptr;

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
                                 laid.output.of(a.output_groups > 1 ? m : 0), rows_read + begin * R, rows, O, R,
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
                                 laid.communication.of(m), rows_visible, rows, P, d, false);
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
            times_transposed(right, G, weight, numbers, laid.cell_hidden.of(m), rows_hidden, rows,
                             a.is_gru ? 2 * d : numbers, d, false);
            if (a.is_gru)
                times_transposed(right + 3 * d, G, weight + 2 * d, numbers, laid.cell_hidden.of(m, 2 * d),
                                 rows_hidden, rows, d, d, true);
            if (V && !a.values_ahead)
                times_transposed(right, G, data(a.cell_input) + m * V * numbers, numbers, laid.cell_input.of(m),
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
            times_transposed(right, query_width, weight, query_width, laid.input_query.of(m), rows_hidden, rows,
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

// Lays weights out; threads share the work by mechanism.
template <typename T>
class Layout {
public:
    Layout(const Arguments& a, bool is_backward, Workspace<T>& w) : w_(w), is_backward_(is_backward) {
        // each weight is laid out once and then meets this many rows
        const Int rows = a.batch * a.steps * a.active / a.mechanisms;
        const Int gates = (a.is_gru ? 3 : 4) * a.size, M = a.mechanisms;
        if (a.values_ahead) {
            LaidTiles& tiles = result.cell_tiles;
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
        // forward the GRU's hidden weight goes two ways, and panels do not end where these part
        if (is_backward || !a.is_gru) add(result.cell_hidden, a.cell_hidden, M, a.size, gates);
        if (!is_backward) return;
        add(result.communication, a.communication, M, a.size, a.heads * (2 * a.key + a.value));
        add(result.output, a.communication_output, a.output_groups, a.heads * a.value,
            (a.output_kind == 2 ? 2 : 1) * a.size);
        if (!a.keys_hold_query) add(result.input_query, a.input_query, M, a.size, a.input_heads * a.input_key);
    }

    void run(Int index, Int threads) {
        Int count = 0;
        LaidTiles& tiles = result.cell_tiles;
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

    LaidWeights<T> result;

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

    void add(Laid<T>& laid, const void* weight, Int groups, Int rows, Int columns) {
        if (!weight || groups * rows * columns == 0) return;
        if (is_backward_) std::swap(rows, columns);
        T* into = w_.buffers[jobs_.size()].take(groups * product::packed_size<T>(rows, columns));
        jobs_.push_back({static_cast<const T*>(weight), into, groups, rows, columns});
        laid = {into, rows, columns};
    }
};

// While it lives, products that this thread asks of MKL run on this thread.
class OwnThread {
public:
    OwnThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
    ~OwnThread() {
        if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
    }
    OwnThread(const OwnThread&) = delete;

private:
    int before_;
};

template <typename T>
void run_shard(const Arguments& a, Int index, bool is_backward, const LaidWeights<T>& laid) {
    const OwnThread own_thread;
    auto workspace = pool<T>().take();
    {
        Shard<T> shard(a, index, *workspace);
        if (is_backward)
            shard.backward(laid);
        else
            shard.forward(laid);
    }
    if ((is_backward || a.values_ahead) && amx::is_available()) amx::release();
    pool<T>().give(std::move(workspace));
}

// Set while the library is loaded, not at the first call, which may come after a fork.
const pid_t loader = getpid();

// Does work(0) … work(threads - 1) on the threads that torch keeps: those it has used wait for more in a busy loop,
// and threads of our own would share the processors with them. In a fork these threads are missing, and new ones start.
template <typename Work>
void in_parallel(Int threads, const Work& work) {
    struct Task {
        const Work& work;
        const Int threads;
        std::vector<std::exception_ptr> failures;
        std::atomic<Int> next{0};

        void run() {
            for (Int index; (index = next++) < threads;) {
                try {
                    work(index);
                } catch (...) {
                    failures[index] = std::current_exception();
                }
            }
        }
        static void join(void* task) { static_cast<Task*>(task)->run(); }
    };
    Task task{work, threads, std::vector<std::exception_ptr>(threads)};
    if (threads == 1) {
        task.run();
    } else if (GOMP_parallel && getpid() == loader) {
        GOMP_parallel(Task::join, &task, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> helpers;
        try {
            for (Int i = 1; i < threads; ++i) helpers.emplace_back(Task::join, &task);
        } catch (...) {  // no more threads to be had: this one does their work too
        }
        task.run();
        for (auto& helper : helpers) helper.join();
    }
    for (const auto& failure : task.failures)
        if (failure) std::rethrow_exception(failure);
}

// A gradient that all threads add to. What is written whole needs no zeros to begin with.
struct Sum {
    void *Arguments::*into, *Arguments::*others;
    Int numbers;
    bool is_written;
};

std::vector<Sum> sums(const Arguments& a) {
    const Int M = a.mechanisms, d = a.size, I = a.input_heads, gates = (a.is_gru ? 3 : 4) * d;
    const Int R = a.heads * a.value, O = (a.output_kind == 2 ? 2 : 1) * d, P = a.heads * (2 * a.key + a.value);
    using A = Arguments;
    return {
        {&A::into_keys, &A::others_keys, a.tokens ? M * a.vocabulary * I * d : 0, false},
        {&A::into_values, &A::others_values, a.tokens ? M * a.vocabulary * I * gates : 0, false},
        {&A::into_input_query, &A::others_input_query, a.keys_hold_query ? 0 : M * d * I * a.input_key, true},
        {&A::into_cell_input, &A::others_cell_input, a.values_hold_cell ? 0 : M * I * a.input_value * gates, true},
        {&A::into_cell_hidden, &A::others_cell_hidden, M * d * gates, true},
        {&A::into_cell_bias, &A::others_cell_bias, M * 4 * d, false},
        {&A::into_communication, &A::others_communication, a.heads ? M * d * P : 0, true},
        {&A::into_communication_output, &A::others_communication_output, a.heads ? a.output_groups * R * O : 0, true},
        {&A::into_communication_bias, &A::others_communication_bias, a.heads && a.output_kind == 2 ? O : 0, false},
    };
}

// the arguments of one thread, whose sums lie apart and begin here or with later steps
template <typename T>
Arguments own_arguments(const Arguments& a, const std::vector<Sum>& sums, Int index) {
    Arguments own = a;
    for (const Sum& sum : sums) {
        if (sum.numbers == 0) continue;
        if (index > 0) own.*sum.into = static_cast<T*>(a.*sum.others) + (index - 1) * sum.numbers;
        if (!sum.is_written && !a.later_are_done) std::fill_n(static_cast<T*>(own.*sum.into), sum.numbers, T(0));
    }
    return own;
}

// adds the sums of all threads up, a part of every one, when all steps are in them
template <typename T>
void add_up(const Arguments& a, const std::vector<Sum>& sums, Int index) {
    for (const Sum& sum : sums) {
        const Int begin = sum.numbers * index / a.threads, end = sum.numbers * (index + 1) / a.threads;
        for (Int other = 0; other + 1 < a.threads; ++other)
            add_scaled(static_cast<T*>(a.*sum.into) + begin,
                       static_cast<const T*>(a.*sum.others) + other * sum.numbers + begin, T(1), end - begin);
    }
}

template <typename T>
void run(const Arguments& a, bool is_backward) {
    auto workspace = pool<T>().take();
    Layout<T> layout(a, is_backward, *workspace);
    if (!layout.is_empty()) in_parallel(a.threads, [&](Int index) { layout.run(index, a.threads); });
    const auto all = is_backward ? sums(a) : std::vector<Sum>();
    in_parallel(a.threads, [&](Int index) {
        run_shard<T>(own_arguments<T>(a, all, index), index, is_backward, layout.result);
    });
    if (is_backward && a.threads > 1 && !a.earlier_follow)
        in_parallel(a.threads, [&](Int index) { add_up<T>(a, all, index); });
    pool<T>().give(std::move(workspace));
}

template <typename T>
void project(const StepArguments& step, const void* input) {
    const Arguments& a = *step.loop;
    const T* x = static_cast<const T*>(input);
    const Int B = a.batch, D = step.input_size, I = a.input_heads, d = a.size;
    T *keys = static_cast<T*>(step.keys), *values = static_cast<T*>(step.values);
    const auto multiply = [&](const void* weight, Int groups, Int columns, T* into) {
        for (Int g = 0; g < groups; ++g)
            times(x, D, static_cast<const T*>(weight) + g * D * columns, columns, into + g * B * columns, columns, B,
                  D, columns, false);
    };
    if (step.folded_key) {
        multiply(step.folded_key, a.mechanisms, I * d, keys);
    } else {
        const Int width = I * step.key_size;
        auto workspace = pool<T>().take();
        workspace->buffers.resize(std::max<size_t>(workspace->buffers.size(), 1));
        T* between = workspace->buffers[0].take(step.key_groups * B * width);
        multiply(step.key, step.key_groups, width, between);
        const T scale = T(1) / std::sqrt(T(step.key_size));
        for (Int m = 0; m < a.mechanisms; ++m)
            for (Int b = 0; b < B; ++b)
                for (Int i = 0; i < I; ++i) {
                    const T* key = between + ((step.key_groups > 1 ? m : 0) * B + b) * width + i * step.key_size;
                    const T* query = static_cast<const T*>(step.query) + m * d * width + i * step.key_size;
                    T* into = keys + ((m * B + b) * I + i) * d;
                    for (Int j = 0; j < d; ++j) into[j] = scale * dot(query + j * width, key, step.key_size);
                }
        pool<T>().give(std::move(workspace));
    }
    if (step.folded_value)
        multiply(step.folded_value, a.mechanisms, I * (a.is_gru ? 3 : 4) * d, values);
    else
        multiply(step.value, a.value_groups, I * a.input_value, values);
}

thread_local std::string error;  // of this thread's last call that failed

// Returns 0, or 1 where the work threw; rimlit_error then says what.
template <typename Work>
int guard(const Work& work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        error.clear();
    } catch (const std::exception& exception) {
        error = exception.what();
    } catch (...) {
        error = "an exception of an unknown type";
    }
    return 1;
}

int run_any(const Arguments& a, bool is_backward) {
    return guard([&] { a.is_double ? run<double>(a, is_backward) : run<float>(a, is_backward); });
}

}  // namespace

extern "C" {
int rimlit_forward(const Arguments* arguments) { return run_any(*arguments, false); }
int rimlit_backward(const Arguments* arguments) { return run_any(*arguments, true); }
int rimlit_step(const StepArguments* step, const void* input, const void* hidden, const void* memory, void* features,
                void* last_hidden, void* last_memory) {
    const OwnThread own_thread;
    Arguments loop = *step->loop;
    loop.hidden = hidden, loop.memory = memory;
    loop.features = features, loop.last_hidden = last_hidden, loop.last_memory = last_memory;
    return guard([&] {
        loop.is_double ? project<double>(*step, input) : project<float>(*step, input);
        loop.is_double ? run<double>(loop, false) : run<float>(loop, false);
    });
}
// What this thread's last call that failed reported; empty where memory was lacking.
const char* rimlit_error() { return error.c_str(); }
const char* rimlit_arguments_fields() { return Arguments_fields; }
Int rimlit_arguments_size() { return sizeof(Arguments); }
const char* rimlit_step_arguments_fields() { return StepArguments_fields; }
Int rimlit_step_arguments_size() { return sizeof(StepArguments); }
int rimlit_has_tiles() { return amx::is_available(); }
// out (rows, columns) = x (rows, inner) · y (inner, columns). In memory x, or its transpose where it is turned, is
// groups of rows; y lies row by row, or column by column where it is turned. Returns 0, 1 where it failed, or 2 where
// tiles cannot hold the numbers.
int rimlit_multiply(const float* x, Int group_rows, Int group_stride, Int row_stride, Int is_x_turned, const float* y,
                    Int y_stride, Int is_y_turned, float* out, Int rows, Int inner, Int columns, Int threads) {
    std::vector<uint8_t> has_parts(threads, 1);
    const int failed = guard([&] {
        in_parallel(threads, [&](Int index) {
            const Int begin = rows * index / threads, end = rows * (index + 1) / threads;
            const auto left = [&](Int r) {
                if (!is_x_turned) r += begin;
                return x + r / group_rows * group_stride + r % group_rows * row_stride + (is_x_turned ? begin : 0);
            };
            const auto right = [&](Int r) { return y + r * y_stride; };
            auto workspace = pool<float>().take();
            has_parts[index] = amx::product(left, is_x_turned, right, is_y_turned, out + begin * columns, end - begin,
                                            inner, columns, workspace->left, workspace->right);
            pool<float>().give(std::move(workspace));
            amx::release();
        });
    });
    if (failed) return 1;
    return std::count(has_parts.begin(), has_parts.end(), 1) == threads ? 0 : 2;
}
}
