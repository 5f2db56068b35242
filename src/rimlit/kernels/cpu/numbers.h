// Arithmetic on rows of numbers: products of matrices, dot products, e^x and what is built from it, softmax. All
// functions are templates over float and double, and their loops are written so that the compiler makes vector code.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "product.h"
#include "vectors.h"

namespace {

using product::Right;

// out (rows, columns) = x · weight, or added to it; all row by row in memory, the weight optionally packed
template <typename T>
void times(const T* x, Int ldx, const T* weight, Int ldw, T* out, Int ldo, Int rows, Int inner, Int columns,
           bool add, const Right<T>& packed = {}) {
    const Right<T> right = packed.data && rows > 1 ? packed : Right<T>{weight, ldw};
    product::multiply(x, ldx, 1, right, out, ldo, rows, inner, columns, add);
}

// out (columns_x, columns_y) = xᵀ · y over rows, or added to it
template <typename T>
void outer(const T* x, Int ldx, const T* y, Int ldy, T* out, Int ldo, Int rows, Int columns_x, Int columns_y,
           bool add) {
    product::multiply(x, 1, ldx, {y, ldy}, out, ldo, columns_x, rows, columns_y, add);
}

// A size that the compiler knows: loops of sixteen numbers cost more to set up than to run.
template <Int N>
struct Fixed {
    static constexpr Int value = N;
    constexpr operator Int() const { return N; }
};
template <typename Size>
constexpr bool is_fixed = !std::is_same<Size, Int>::value;

template <typename T, typename Size = Int>
inline T dot(const T* a, const T* b, Size count) {
    if constexpr (is_fixed<Size>) {
        constexpr Int width = std::min(Size::value, lanes<T>);
        using Part = typename Numbers<T, width>::type;
        Part sum{};
        for (Int i = 0; i < count; i += width)
            sum += *reinterpret_cast<const Part*>(a + i) * *reinterpret_cast<const Part*>(b + i);
        return total<T, width>(sum);
    }
    Lanes<T> sum{};
    by_vectors<T>(count, [&](auto at) { sum += at(a) * at(b); });
    return total<T>(sum);
}

// out (rows, columns) = x · weightᵀ, weight (columns, inner); from its packed transpose where there is one
template <typename T>
void times_transposed(const T* x, Int ldx, const T* weight, Int ldw, const Right<T>& packed, T* out, Int rows,
                      Int inner, Int columns, bool add) {
    if (rows == 0 || columns == 0) return;
    if (columns < lanes<T>) {  // narrower than a tile
        for (Int r = 0; r < rows; ++r)
            for (Int c = 0; c < columns; ++c) {
                T& into = out[r * columns + c];
                into = (add ? into : T(0)) + dot(x + r * ldx, weight + c * ldw, inner);
            }
        return;
    }
    if (packed.data)
        product::multiply(x, ldx, 1, packed, out, columns, rows, inner, columns, add);
    else
        product::blas("T", "N", columns, rows, inner, weight, ldw, x, ldx, add, out, columns);
}

template <typename T, typename Size = Int>
inline void add_scaled(T* out, const T* x, T factor, Size count) {
    if constexpr (is_fixed<Size>) {
#pragma omp simd
        for (Int i = 0; i < count; ++i) out[i] += factor * x[i];
        return;
    }
    by_vectors<T>(count, [&](auto at) { at.put(out, at(out) + factor * at(x)); });
}

template <typename Run>
void with_sizes(Int key, Int value, const Run& run) {
    if (key == 8 && value == 8) return run(Fixed<8>(), Fixed<8>());
    if (key == 16 && value == 16) return run(Fixed<16>(), Fixed<16>());
    if (key == 32 && value == 32) return run(Fixed<32>(), Fixed<32>());
    if (key == 64 && value == 64) return run(Fixed<64>(), Fixed<64>());
    run(key, value);
}

// Fetches a row that a later step reads (or writes): samples lie far apart, and the processor does not foresee them.
template <typename T>
inline void fetch(const T* row, Int count) {
    for (Int i = 0; i < count; i += 64 / static_cast<Int>(sizeof(T))) __builtin_prefetch(row + i);
}

// softmax in place; one NaN makes all results NaN. Returns the probability of the null slot (score 0), or 0 without
// one. Computing it as 1 − the sum of the others would lose digits where it is small.
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

// log(1 / (1 + e^-x))
template <typename T>
inline T log_sigmoid(T x) {
    return (x < 0 ? x : T(0)) - std::log1p(std::exp(x < 0 ? x : -x));
}

template <typename T>
inline T log_sum_exp(const T* x, Int count) {
    T top = x[0], sum = 0;
    for (Int n = 1; n < count; ++n) top = x[n] > top ? x[n] : top;
    for (Int n = 0; n < count; ++n) sum += std::exp(x[n] - top);
    return top + std::log(sum);
}

}  // namespace
