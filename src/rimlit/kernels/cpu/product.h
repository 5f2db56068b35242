// Matrix products of few rows, without the packing that a BLAS does first: at some fifty rows that costs a fifth.
//
// out (rows, columns) (+)= x (rows, inner) · y (inner, columns), x by any two strides, y row by row or packed, out
// row by row. A tile of the result stays in registers while the inner dimension passes. Where the compiler has no
// wide vectors, or the result is narrower than one, the BLAS that torch carries does it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

using Int = int64_t;

extern "C" {
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
            const int*, const double*, const int*, const double*, double*, const int*);
}

namespace product {

#if defined(__AVX512F__)
constexpr Int kBytes = 64, kRows = 14, kVectors = 2;  // 28 of 32 registers hold the tile
#elif defined(__AVX2__) && defined(__FMA__)
constexpr Int kBytes = 32, kRows = 6, kVectors = 2;  // 12 of 16
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

// The right factor. Packed, it lies panel after panel of kVectors vectors, each row by row, and is read straight on.
template <typename T>
struct Right {
    const T* data = nullptr;
    Int stride = 0;  // from row to row; packed: 0
    Int depth = 0;   // packed: rows of the whole
    Int first = 0;   // packed: the row to begin at

    const T* panel(Int column, Int width) const {
        return stride ? data + column : data + column * depth + first * width;
    }
    Int step(Int width) const { return stride ? stride : width; }
};

// Ahead: y is read for the first time, from a far cache, in strides that the processor does not foresee
constexpr Int kAhead = 32;  // rows of y

// Where the second half of a tile's vectors begins, in y and in out: right after the first half, or elsewhere.
struct Second {
    Int y, out;
};

// Rows R, vectors C; their halves may be apart, or overlap.
template <typename T, int R, int C, bool Ahead>
inline void tile(const T* x, Int row_stride, Int inner_stride, const T* y, Int step, Second second, T* out, Int ldo,
                 Int inner, bool add) {
    using V = typename Vector<T>::type;
    constexpr Int L = Vector<T>::lanes, half = C > 1 ? C / 2 : 1;
    const auto into = [&](int r, int c) { return out + r * ldo + (c / half) * second.out + (c % half) * L; };
    V sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            sum[r][c] = V{};
            if (add) __builtin_prefetch(into(r, c), 1);  // by the end it is there
        }
    for (Int k = 0; k < inner; ++k) {
        V row[C];
        for (int c = 0; c < C; ++c) {
            const T* from = y + (c / half) * second.y + (c % half) * L + k * step;
            if constexpr (Ahead) __builtin_prefetch(from + kAhead * step);
            row[c] = *reinterpret_cast<const V*>(from);
        }
        for (int r = 0; r < R; ++r) {
            const T factor = x[r * row_stride + k * inner_stride];
            for (int c = 0; c < C; ++c) sum[r][c] += factor * row[c];
        }
    }
    // halves that overlap hold the same sums: all are added before any is written
    for (int r = 0; r < R && add; ++r)
        for (int c = 0; c < C; ++c) sum[r][c] += *reinterpret_cast<V*>(into(r, c));
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) *reinterpret_cast<V*>(into(r, c)) = sum[r][c];
}

template <typename T, int C, bool Ahead, int R>
inline void tile_of(Int rows, const T* x, Int row_stride, Int inner_stride, const T* y, Int step, Second second,
                    T* out, Int ldo, Int inner, bool add) {
    if constexpr (R > 1)
        if (rows < R)
            return tile_of<T, C, Ahead, R - 1>(rows, x, row_stride, inner_stride, y, step, second, out, ldo, inner, add);
    tile<T, R, C, Ahead>(x, row_stride, inner_stride, y, step, second, out, ldo, inner, add);
}

// all rows of a panel of C vectors, in tiles of about the same height, at most R
template <typename T, int C, int R = kRows>
inline void panel(const T* x, Int row_stride, Int inner_stride, const T* y, Int step, Second second, T* out, Int ldo,
                  Int rows, Int inner, bool add) {
    const Int tiles = (rows + R - 1) / R;
    for (Int i = 0, begin = 0; i < tiles; ++i) {
        const Int end = rows * (i + 1) / tiles;
        const auto run = i ? tile_of<T, C, false, R> : tile_of<T, C, true, R>;
        run(end - begin, x + begin * row_stride, row_stride, inner_stride, y, step, second, out + begin * ldo, ldo,
            inner, add);
        begin = end;
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

// Columns of the panels that are whole. Those that are left are one vector, or two that overlap, or both.
template <typename T>
Int whole_panels(Int columns) {
    constexpr Int L = Vector<T>::lanes, W = kVectors * L;
    const Int rest = columns % W;
    return columns - rest - (0 < rest && rest < L ? W : 0);
}

template <typename T>
void multiply(const T* x, Int row_stride, Int inner_stride, const Right<T>& y, T* out, Int ldo, Int rows, Int inner,
              Int columns, bool add) {
    constexpr Int L = Vector<T>::lanes, W = kVectors * L;
    if (rows == 0 || columns == 0) return;
    if (y.stride && rows == 1) return multiply_row(x, inner_stride, y.data, y.stride, out, inner, columns, add);
    if (!kBytes || columns < L) {
        const bool is_transposed = inner_stride != 1;
        blas("N", is_transposed ? "T" : "N", columns, rows, inner, y.data, y.stride, x,
             is_transposed ? inner_stride : row_stride, add, out, ldo);
        return;
    }
    const Int whole = whole_panels<T>(columns);
    Int c = 0;
    if (2 * rows <= kRows)  // few rows: two panels at once keep as many sums in flight
        for (; c + 2 * W <= whole; c += 2 * W)
            panel<T, 2 * kVectors, kRows / 2>(x, row_stride, inner_stride, y.panel(c, W), y.step(W),
                                              {y.panel(c + W, W) - y.panel(c, W), W}, out + c, ldo, rows, inner, add);
    for (; c < whole; c += W)
        panel<T, kVectors>(x, row_stride, inner_stride, y.panel(c, W), y.step(W), {L, L}, out + c, ldo, rows, inner,
                           add);
    if (columns - c == L || columns - c > W) {
        panel<T, 1>(x, row_stride, inner_stride, y.panel(c, L), y.step(L), {}, out + c, ldo, rows, inner, add);
        c += L;
    }
    if (c == columns) return;
    const Int last = columns - L - c;  // the last two vectors overlap
    panel<T, 2>(x, row_stride, inner_stride, y.panel(c, W), y.step(W), {y.stride ? last : L, last}, out + c, ldo, rows,
                inner, add);
}

template <typename T>
constexpr bool can_pack(Int columns) {
    return kBytes && columns >= Vector<T>::lanes;
}

// numbers that `pack` writes
template <typename T>
Int packed_size(Int inner, Int columns) {
    constexpr Int L = Vector<T>::lanes;
    return can_pack<T>(columns) ? inner * ((columns + L - 1) / L) * L : inner * columns;
}

// Lays x (inner, columns), by any two strides, out as a right factor: packed, or row by row where it is narrow.
template <typename T>
void pack(const T* x, Int inner_stride, Int column_stride, Int inner, Int columns, T* y) {
    constexpr Int L = Vector<T>::lanes, W = kVectors * L, block = 16;
    // `width` columns from `first` on, as rows that are `step` apart
    const auto lay = [&](Int first, Int width, T* into, Int step) {
        const T* from = x + first * column_stride;
        if (column_stride == 1) {
            for (Int k = 0; k < inner; ++k) std::memcpy(into + k * step, from + k * inner_stride, width * sizeof(T));
            return;
        }
        for (Int k = 0; k < inner; k += block)
            for (Int j = k; j < k + block && j < inner; ++j) {
#pragma omp simd
                for (Int i = 0; i < width; ++i) into[j * step + i] = from[i * column_stride + j * inner_stride];
            }
    };
    if (!can_pack<T>(columns)) return lay(0, columns, y, columns);
    const Int whole = whole_panels<T>(columns);
    Int c = 0;
    for (; c < whole; c += W) lay(c, W, y + c * inner, W);
    if (columns - c == L || columns - c > W) lay(c, L, y + c * inner, L), c += L;
    if (c == columns) return;
    lay(c, L, y + c * inner, W);
    lay(columns - L, L, y + c * inner + L, W);
}

}  // namespace product
