// Matrix products of few rows, without the packing that a BLAS does first: at some fifty rows that costs a fifth.
//
// out (rows, columns) (+)= x (rows, inner) · y (inner, columns), y and out row by row, x by any two strides. A tile
// of the result stays in registers while the inner dimension passes. Where the compiler has no wide vectors, or
// the result is narrower than one, the BLAS that torch carries does it.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

using Int = int64_t;

extern "C" {
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
            const int*, const double*, const int*, const double*, double*, const int*);
}

namespace product {

#if defined(__AVX512F__)
constexpr Int kBytes = 64, kRows = 8, kVectors = 3;  // 24 of 32 registers hold the tile
#elif defined(__AVX2__) && defined(__FMA__)
constexpr Int kBytes = 32, kRows = 4, kVectors = 3;  // 12 of 16
#else
constexpr Int kBytes = 0, kRows = 1, kVectors = 1;
#endif

inline void blas(const char* a, const char* b, int m, int n, int k, const float* x, int ldx, const float* y, int ldy,
                 float beta, float* z, int ldz) {
    const float one = 1;
    sgemm_(a, b, &m, &n, &k, &one, x, &ldx, y, &ldy, &beta, z, &ldz);
}
inline void blas(const char* a, const char* b, int m, int n, int k, const double* x, int ldx, const double* y,
                 int ldy, double beta, double* z, int ldz) {
    const double one = 1;
    dgemm_(a, b, &m, &n, &k, &one, x, &ldx, y, &ldy, &beta, z, &ldz);
}

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(kBytes ? kBytes : sizeof(T)), aligned(sizeof(T)), may_alias));
    static constexpr Int lanes = (kBytes ? kBytes : sizeof(T)) / sizeof(T);
};

// Ahead: y is read for the first time, from a far cache, in strides that the processor does not foresee
constexpr Int kAhead = 24;  // rows of y

template <typename T, int R, int C, bool Ahead>
inline void tile(const T* x, Int row_stride, Int inner_stride, const T* y, Int ldy, T* out, Int ldo, Int inner,
                 bool add) {
    using V = typename Vector<T>::type;
    constexpr Int L = Vector<T>::lanes;
    V sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sum[r][c] = add ? *reinterpret_cast<const V*>(out + r * ldo + c * L) : V{};
    for (Int k = 0; k < inner; ++k) {
        V row[C];
        if constexpr (Ahead)
            for (int c = 0; c < C; ++c) __builtin_prefetch(y + (k + kAhead) * ldy + c * L);
        for (int c = 0; c < C; ++c) row[c] = *reinterpret_cast<const V*>(y + k * ldy + c * L);
        for (int r = 0; r < R; ++r) {
            const T factor = x[r * row_stride + k * inner_stride];
            for (int c = 0; c < C; ++c) sum[r][c] += factor * row[c];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) *reinterpret_cast<V*>(out + r * ldo + c * L) = sum[r][c];
}

// all rows of a panel of C vectors, kRows at a time and the rest one tile of its own height
template <typename T, int C, int R = kRows, bool Ahead = true>
inline void panel(const T* x, Int row_stride, Int inner_stride, const T* y, Int ldy, T* out, Int ldo, Int rows,
                  Int inner, bool add) {
    const auto next = [&] {
        x += R * row_stride, out += R * ldo, rows -= R;
    };
    if (rows >= R) {
        tile<T, R, C, Ahead>(x, row_stride, inner_stride, y, ldy, out, ldo, inner, add);
        for (next(); rows >= R; next())
            tile<T, R, C, false>(x, row_stride, inner_stride, y, ldy, out, ldo, inner, add);
        if constexpr (R > 1)
            if (rows) panel<T, C, R - 1, false>(x, row_stride, inner_stride, y, ldy, out, ldo, rows, inner, add);
    } else if constexpr (R > 1) {
        if (rows) panel<T, C, R - 1, Ahead>(x, row_stride, inner_stride, y, ldy, out, ldo, rows, inner, add);
    }
}

// one row: the matrix streams through in the order it lies in memory, eight of its rows at a time
template <typename T>
void multiply_row(const T* x, Int stride, const T* y, Int ldy, T* out, Int inner, Int columns, bool add) {
    if (!add) std::memset(out, 0, columns * sizeof(T));
    Int k = 0;
    for (; k + 8 <= inner; k += 8) {
        const T* row = y + k * ldy;
        T f[8];
        for (int i = 0; i < 8; ++i) f[i] = x[(k + i) * stride];
#pragma omp simd
        for (Int c = 0; c < columns; ++c)
            out[c] += ((f[0] * row[c] + f[1] * row[ldy + c]) + (f[2] * row[2 * ldy + c] + f[3] * row[3 * ldy + c])) +
                      ((f[4] * row[4 * ldy + c] + f[5] * row[5 * ldy + c]) +
                       (f[6] * row[6 * ldy + c] + f[7] * row[7 * ldy + c]));
    }
    for (; k < inner; ++k) {
        const T factor = x[k * stride], *row = y + k * ldy;
#pragma omp simd
        for (Int c = 0; c < columns; ++c) out[c] += factor * row[c];
    }
}

template <typename T>
void multiply(const T* x, Int row_stride, Int inner_stride, const T* y, Int ldy, T* out, Int ldo, Int rows,
              Int inner, Int columns, bool add) {
    constexpr Int L = Vector<T>::lanes;
    if (rows == 0 || columns == 0) return;
    if (rows == 1) return multiply_row(x, inner_stride, y, ldy, out, inner, columns, add);
    if (!kBytes || columns < L) {
        const bool is_transposed = inner_stride != 1;
        blas("N", is_transposed ? "T" : "N", columns, rows, inner, y, ldy, x, is_transposed ? inner_stride : row_stride,
             add, out, ldo);
        return;
    }
    Int c = 0;
    if (rows < kRows)  // few rows: wider panels keep as many sums in flight
        for (; c + 2 * kVectors * L <= columns; c += 2 * kVectors * L)
            panel<T, 2 * kVectors, (kRows + 1) / 2>(x, row_stride, inner_stride, y + c, ldy, out + c, ldo, rows, inner, add);
    for (; c + kVectors * L <= columns; c += kVectors * L)
        panel<T, kVectors>(x, row_stride, inner_stride, y + c, ldy, out + c, ldo, rows, inner, add);
    for (; c + L <= columns; c += L)
        panel<T, 1>(x, row_stride, inner_stride, y + c, ldy, out + c, ldo, rows, inner, add);
    if (c == columns) return;
    // the last columns fill a vector only in a copy
    const Int rest = columns - c;
    static thread_local std::vector<T> padded;
    padded.assign((inner + rows) * L, T(0));
    T *narrow = padded.data(), *result = narrow + inner * L;
    for (Int k = 0; k < inner; ++k) std::memcpy(narrow + k * L, y + k * ldy + c, rest * sizeof(T));
    panel<T, 1>(x, row_stride, inner_stride, narrow, L, result, L, rows, inner, false);
    for (Int r = 0; r < rows; ++r)
        for (Int j = 0; j < rest; ++j) {
            T& into = out[r * ldo + c + j];
            into = add ? into + result[r * L + j] : result[r * L + j];
        }
}

// y (columns, rows) = xᵀ, x (rows, columns)
template <typename T>
void transpose(const T* x, Int rows, Int columns, T* y) {
    constexpr Int block = 16;
    for (Int r = 0; r < rows; r += block)
        for (Int c = 0; c < columns; c += block)
            for (Int j = c; j < c + block && j < columns; ++j)
                for (Int i = r; i < r + block && i < rows; ++i) y[j * rows + i] = x[i * columns + j];
}

}  // namespace product
