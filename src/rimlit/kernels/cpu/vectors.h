// Loops over the numbers of a row, one vector at a time. A row of 30 numbers is two vectors, of which the second is
// partly masked; a compiler makes of it one vector, half a vector and six single numbers.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "product.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Where there are no wide vectors, those of 16 bytes that nearly every processor has.
constexpr Int kVectorBytes = product::kBytes ? product::kBytes : 16;
template <typename T>
constexpr Int lanes = kVectorBytes / static_cast<Int>(sizeof(T));

// A vector of N numbers, and of as many integers of their size.
template <typename T, Int N>
struct Numbers {
    using Integer = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
    typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
    typedef Integer integers __attribute__((vector_size(N * sizeof(T))));
};
template <typename T>
using Lanes = typename Numbers<T, lanes<T>>::type;

// The numbers of a row from `begin` on that fill a vector.
template <typename T>
struct Whole {
    Int begin;

    Lanes<T> operator()(const T* row) const { return *reinterpret_cast<const Lanes<T>*>(row + begin); }
    void put(T* row, Lanes<T> numbers) const { *reinterpret_cast<Lanes<T>*>(row + begin) = numbers; }
    Lanes<T> only(Lanes<T> numbers, T) const { return numbers; }
};

// The last numbers of a row, fewer than a vector holds. The others read as 0 and are not written.
template <typename T>
struct Part {
    Int begin, count;

#if defined(__AVX512F__)
    uint16_t mask() const { return static_cast<uint16_t>((1u << count) - 1); }
    static __m512 load(const float* from, uint16_t mask) { return _mm512_maskz_loadu_ps(mask, from); }
    static __m512d load(const double* from, uint16_t mask) {
        return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
    }
    static void store(float* into, uint16_t mask, __m512 numbers) { _mm512_mask_storeu_ps(into, mask, numbers); }
    static void store(double* into, uint16_t mask, __m512d numbers) {
        _mm512_mask_storeu_pd(into, static_cast<__mmask8>(mask), numbers);
    }
#elif defined(__AVX2__) && defined(__FMA__)
    __m256i mask() const {
        if constexpr (sizeof(T) == 4)
            return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
    }
    static __m256 load(const float* from, __m256i mask) { return _mm256_maskload_ps(from, mask); }
    static __m256d load(const double* from, __m256i mask) { return _mm256_maskload_pd(from, mask); }
    static void store(float* into, __m256i mask, __m256 numbers) { _mm256_maskstore_ps(into, mask, numbers); }
    static void store(double* into, __m256i mask, __m256d numbers) { _mm256_maskstore_pd(into, mask, numbers); }
#else
    Int mask() const { return count; }
    static Lanes<T> load(const T* from, Int count) {
        Lanes<T> numbers{};
        for (Int i = 0; i < count; ++i) numbers[i] = from[i];
        return numbers;
    }
    static void store(T* into, Int count, Lanes<T> numbers) {
        for (Int i = 0; i < count; ++i) into[i] = numbers[i];
    }
#endif
    Lanes<T> operator()(const T* row) const { return (Lanes<T>)load(row + begin, mask()); }
    void put(T* row, Lanes<T> numbers) const { store(row + begin, mask(), numbers); }
    // the row's numbers, and `others` beyond its end
    Lanes<T> only(Lanes<T> numbers, T others) const {
        using Integer = typename Numbers<T, lanes<T>>::Integer;
        typename Numbers<T, lanes<T>>::integers lane;
        for (Int i = 0; i < lanes<T>; ++i) lane[i] = static_cast<Integer>(i);
        return lane < static_cast<Integer>(count) ? numbers : Lanes<T>{} + others;
    }
};

// The whole vector at `begin` of a row that is padded to whole vectors, and the numbers that such a row has.
template <typename T>
inline Lanes<T>& whole(T* row, Int begin) {
    return *reinterpret_cast<Lanes<T>*>(row + begin);
}
template <typename T>
inline Int padded(Int count) {
    return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// Calls run(at) for each vector of a row of `count` numbers: at(row) reads it, at.put(row, numbers) writes it.
template <typename T, typename Run>
inline void by_vectors(Int count, const Run& run) {
    Int begin = 0;
    for (; begin + lanes<T> <= count; begin += lanes<T>) run(Whole<T>{begin});
    if (begin < count) run(Part<T>{begin, count - begin});
}

// All numbers of a vector combined in halves: one after the other would wait for each.
template <typename T, Int N = lanes<T>, typename Combine>
inline T combined(typename Numbers<T, N>::type numbers, const Combine& combine) {
    if constexpr (N == 2) return combine(numbers[0], numbers[1]);
    if constexpr (N > 2) {
        typename Numbers<T, N / 2>::type first, second;
        std::memcpy(&first, &numbers, sizeof(first));
        std::memcpy(&second, reinterpret_cast<const char*>(&numbers) + sizeof(first), sizeof(second));
        return combined<T, N / 2>(combine(first, second), combine);
    }
}
template <typename T, Int N = lanes<T>>
inline T total(typename Numbers<T, N>::type numbers) {
    return combined<T, N>(numbers, [](auto x, auto y) { return x + y; });
}

// e^x without a branch; NaN stays NaN
template <typename T>
inline Lanes<T> exponential(Lanes<T> x) {
    using I = typename Numbers<T, lanes<T>>::integers;
    constexpr bool is_float = sizeof(T) == 4;
    const Lanes<T> least = Lanes<T>{} - (is_float ? T(87) : T(708)), most = Lanes<T>{} + (is_float ? T(88) : T(709));
    x = x < least ? least : x;
    x = x > most ? most : x;
    const Lanes<T> magic = Lanes<T>{} + (is_float ? T(12582912) : T(6755399441055744));
    const Lanes<T> shifted = x * T(1.4426950408889634) + magic;  // rounded to an integer that its lowest bits hold
    const Lanes<T> n = shifted - magic;
    const T high = is_float ? T(0.693359375) : T(0.693147180369123816490);
    const T low = is_float ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
    const Lanes<T> r = (x - n * high) - n * low;
    Lanes<T> p = Lanes<T>{} + T(1.0 / 5040);
    if constexpr (!is_float) {
        p = Lanes<T>{} + T(1.0 / 6227020800.0);
        for (const T factorial : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0})
            p = p * r + T(1) / factorial;
    }
    for (const T factorial : {T(720), T(120), T(24), T(6), T(2), T(1), T(1)}) p = p * r + T(1) / factorial;
    const I bits = reinterpret_cast<I>(shifted) - reinterpret_cast<I>(magic) + (is_float ? 127 : 1023);
    return p * reinterpret_cast<Lanes<T>>(bits << (is_float ? 23 : 52));
}
template <typename T>
inline Lanes<T> sigmoid(Lanes<T> x) {
    return T(1) / (T(1) + exponential<T>(-x));
}
template <typename T>
inline Lanes<T> hyperbolic(Lanes<T> x) {
    return T(1) - T(2) / (exponential<T>(T(2) * x) + T(1));
}
// Softmax in place of a row that is padded to whole vectors; what is beyond its end becomes 0. One NaN makes all
// results NaN.
template <typename T>
inline void softmax_padded(T* x, Int count) {
    Lanes<T> greatest = Lanes<T>{} + x[0], sum{};
    by_vectors<T>(count, [&](auto at) {
        const Lanes<T> scores = at.only(whole<T>(x, at.begin), x[0]);
        greatest = scores > greatest ? scores : greatest;
    });
    const T top = combined<T>(greatest, [](auto x, auto y) { return x > y ? x : y; });
    by_vectors<T>(count, [&](auto at) {
        Lanes<T>& scores = whole<T>(x, at.begin);
        scores = at.only(exponential<T>(scores - top), T(0));
        sum += scores;
    });
    const T all = total<T>(sum);
    by_vectors<T>(count, [&](auto at) { whole<T>(x, at.begin) /= all; });
}
template <typename T>
inline void sigmoid_all(T* x, Int count) {
    by_vectors<T>(count, [&](auto at) { at.put(x, sigmoid<T>(at(x))); });
}
template <typename T>
inline void tanh_all(T* x, Int count) {
    by_vectors<T>(count, [&](auto at) { at.put(x, hyperbolic<T>(at(x))); });
}

}  // namespace
