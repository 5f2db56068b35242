// Arithmetic on rows of numbers: products of matrices, dot products, e^x and what is built from it, softmax. All
// functions are templates over float and double, and their loops are written so that the compiler makes vector code.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "product.h"

namespace {

using product::Right;

// out (rows, columns) = x · weight, or added to it; all row by row in memory, the weight optionally packed
template <typename T>
void times(const T* x, Int ldx, const T* weight, Int ldw, T* out, Int ldo, Int rows, Int inner, Int columns,
           bool add, const Right<T>& packed = {}) {
    const Right<T> right = packed.data && rows > 1 ? packed : Right<T>{weight, ldw};
    product::multiply(x, ldx, 1, right, out, ldo, rows, inner, columns, add);
}

// out (rows, columns) = x · weightᵀ, weight (columns, inner); from its packed transpose where there is one
template <typename T>
void times_transposed(const T* x, Int ldx, const T* weight, Int ldw, const Right<T>& packed, T* out, Int rows,
                      Int inner, Int columns, bool add) {
    if (rows == 0 || columns == 0) return;
    if (packed.data)
        product::multiply(x, ldx, 1, packed, out, columns, rows, inner, columns, add);
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
    if (key == 8 && value == 8) return run(Fixed<8>(), Fixed<8>());
    if (key == 16 && value == 16) return run(Fixed<16>(), Fixed<16>());
    if (key == 32 && value == 32) return run(Fixed<32>(), Fixed<32>());
    if (key == 64 && value == 64) return run(Fixed<64>(), Fixed<64>());
    run(key, value);
}

// e^x without a branch, so that the compiler vectorises the loops around it; NaN stays NaN
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
