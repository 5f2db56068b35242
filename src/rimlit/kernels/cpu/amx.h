// Products of float32 on a processor's bfloat16 tiles (Intel AMX), as exact as those of float32 vectors.
//
// A float32 number is the sum of three bfloat16 numbers of 8 bits each: x = x0 + x1 + x2. Of the nine products of
// two such sums the six largest are added up in float32; the others are below its last bit. Six products of tiles
// take about half the time of one of vectors, as long as the factors come from a near cache. Infinities and NaN
// have no such sum: they are left to the vectors. What is smaller than 1e-33 may lose bits to the smallest number.

#pragma once

#include <algorithm>

#include "product.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define RIMLIT_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace amx {

// A tile has 16 rows (left factor) or columns (right factor) and 32 of the inner dimension, in numbers of two
// bytes; a block is the tiles of the three parts. A factor is its blocks, the inner dimension running fastest.
constexpr Int kSide = 16, kInner = 32, kTile = kSide * kInner, kBlock = 3 * kTile;

inline Int blocks(Int count, Int size) { return (count + size - 1) / size; }

// numbers of two bytes in a factor
inline Int tiles_size(Int side, Int inner) { return blocks(side, kSide) * blocks(inner, kInner) * kBlock; }

#ifdef RIMLIT_AMX

// The kernel gives a process the registers when it asks for them.
inline bool is_available() {
    constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool is_granted = syscall(SYS_arch_prctl, ask, tile_data) == 0;
    return is_granted;
}

// finite, and not so large that the first part would round to infinity
inline __mmask16 has_parts(__m512 x) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(3.38e38f), _CMP_LT_OQ);
}

inline void split(__m512 low, __m512 high, __m512i part[3]) {
    const auto widened = [](__m256i half) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    };
    for (int p = 0; p < 3; ++p) {
        part[p] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
        low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(part[p])));
        high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(part[p], 1)));
    }
}

inline __mmask16 first_of(Int count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1 << count) - 1); }

// Between the two ways to hold 16 by 16 pairs: turns the three parts of a block and puts them into its tiles.
inline void turn(const uint32_t parts[3][kTile / 2], uint16_t* tiles) {
    const __m512i column = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    for (int p = 0; p < 3; ++p)
        for (int i = 0; i < kSide; ++i)
            _mm512_storeu_si512(tiles + p * kTile + 32 * i, _mm512_i32gather_epi32(column, parts[p] + i, 4));
}

// Lays x (inner, side), of rows row(0) … row(inner - 1), out as a factor: its transpose as a left one, itself as a
// right one. False: some number has no parts.
template <typename Row>
inline bool lay(const Row& row, Int side, Int inner, uint16_t* tiles, bool is_right) {
    // a right tile holds pairs of inner neighbours side by side, a left tile is its transpose in such pairs
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    alignas(64) uint32_t parts[3][kTile / 2];
    __mmask16 fine = 0xffff;
    const Int inner_blocks = blocks(inner, kInner);
    for (Int k = 0; k < inner; k += kInner) {
        const float* rows[kInner];
        for (Int i = 0; i < kInner; ++i) rows[i] = row(std::min(k + i, inner - 1));
        for (Int s = 0; s < side; s += kSide) {  // reads along the rows, which the processor foresees
            uint16_t* block = tiles + (s / kSide * inner_blocks + k / kInner) * kBlock;
            for (Int i = 0; i < kInner / 2; ++i) {
                const Int at = k + 2 * i;
                const __m512 a = _mm512_maskz_loadu_ps(at < inner ? first_of(side - s) : 0, rows[2 * i] + s);
                const __m512 b = _mm512_maskz_loadu_ps(at + 1 < inner ? first_of(side - s) : 0, rows[2 * i + 1] + s);
                fine &= has_parts(a) & has_parts(b);
                __m512i part[3];
                split(a, b, part);
                for (int p = 0; p < 3; ++p) {
                    void* into = is_right ? static_cast<void*>(block + p * kTile + 32 * i) : parts[p] + 16 * i;
                    _mm512_storeu_si512(into, _mm512_permutexvar_epi16(pairs, part[p]));
                }
            }
            if (!is_right) turn(parts, block);
        }
    }
    return fine == 0xffff;
}

// Lays the rows row(0) … row(side - 1) of `inner` numbers out: as they are for a left factor, as columns of a right one.
template <typename Row>
inline bool lay_rows(const Row& row, Int side, Int inner, uint16_t* tiles, bool is_right) {
    alignas(64) uint32_t parts[3][kTile / 2];
    __mmask16 fine = 0xffff;
    for (Int s = 0; s < side; s += kSide)
        for (Int k = 0; k < inner; k += kInner, tiles += kBlock) {
            for (Int i = 0; i < kSide; ++i) {
                __m512 a = _mm512_setzero_ps(), b = a;
                if (s + i < side) {
                    const float* x = row(s + i) + k;
                    a = _mm512_maskz_loadu_ps(first_of(inner - k), x);
                    if (k + 16 < inner) b = _mm512_maskz_loadu_ps(first_of(inner - k - 16), x + 16);
                }
                fine &= has_parts(a) & has_parts(b);
                __m512i part[3];
                split(a, b, part);
                for (int p = 0; p < 3; ++p) {
                    void* into = is_right ? static_cast<void*>(parts[p] + 16 * i) : tiles + p * kTile + 32 * i;
                    _mm512_storeu_si512(into, part[p]);
                }
            }
            if (is_right) turn(parts, tiles);
        }
    return fine == 0xffff;
}

// Registers 0 to 3 hold up to 2 × 2 tiles of the result, 4 and 5 left tiles, 6 and 7 right tiles.
inline void configure(Int rows, Int columns) {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    const auto side = [](Int count, int second) {
        return static_cast<uint8_t>(std::max<Int>(1, std::min<Int>(kSide, count - second * kSide)));
    };
    for (int i = 0; i < 4; ++i) config.rows[i] = side(rows, i / 2), config.bytes[i] = 4 * side(columns, i % 2);
    for (int i = 0; i < 2; ++i) {
        config.rows[4 + i] = side(rows, i), config.bytes[4 + i] = 2 * kInner;
        config.rows[6 + i] = kInner / 2, config.bytes[6 + i] = 4 * side(columns, i);
    }
    asm volatile("" ::"r"(&config) : "memory");  // gcc 12 believes that 8 bytes are read, and writes no more
    _tile_loadconfig(&config);
}

// up to 2 × 2 tiles of the result
template <bool TwoRows, bool TwoColumns>
inline void square(const uint16_t* left, const uint16_t* right, Int inner_blocks, float* out, Int ldo, bool add) {
    const Int bytes = ldo * sizeof(float), line = 2 * kInner, next = inner_blocks * kBlock;
    float *beside = out + kSide, *below = out + kSide * ldo, *across = below + kSide;
    asm volatile("" ::: "memory");  // the compiler does not know that tiles read and write memory
    if (add) {
        _tile_loadd(0, out, bytes);
        if constexpr (TwoColumns) _tile_loadd(1, beside, bytes);
        if constexpr (TwoRows) _tile_loadd(2, below, bytes);
        if constexpr (TwoRows && TwoColumns) _tile_loadd(3, across, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const auto take_left = [&](int part) {
        _tile_loadd(4, left + part * kTile, line);
        if constexpr (TwoRows) _tile_loadd(5, left + next + part * kTile, line);
    };
    const auto take_right = [&](int part) {
        _tile_loadd(6, right + part * kTile, line);
        if constexpr (TwoColumns) _tile_loadd(7, right + next + part * kTile, line);
    };
    const auto multiply = [] {
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (TwoColumns) _tile_dpbf16ps(1, 4, 7);
        if constexpr (TwoRows) _tile_dpbf16ps(2, 5, 6);
        if constexpr (TwoRows && TwoColumns) _tile_dpbf16ps(3, 5, 7);
    };
    for (Int k = 0; k < inner_blocks; ++k, left += kBlock, right += kBlock) {
        take_left(0), take_right(2), multiply();
        take_right(1), multiply();
        take_left(1), multiply();
        take_right(0), multiply();
        take_left(2), multiply();
        take_left(0), multiply();
    }
    _tile_stored(0, out, bytes);
    if constexpr (TwoColumns) _tile_stored(1, beside, bytes);
    if constexpr (TwoRows) _tile_stored(2, below, bytes);
    if constexpr (TwoRows && TwoColumns) _tile_stored(3, across, bytes);
    asm volatile("" ::: "memory");
}

// out (rows, columns) = left · right, or added to it
inline void multiply(const uint16_t* left, const uint16_t* right, float* out, Int ldo, Int rows, Int inner,
                     Int columns, bool add) {
    constexpr Int pair = 2 * kSide;
    const Int inner_blocks = blocks(inner, kInner), next = inner_blocks * kBlock;
    const Int whole_rows = rows / pair * pair, whole_columns = columns / pair * pair;
    const auto area = [&](Int r0, Int r1, Int c0, Int c1) {
        if (r0 == r1 || c0 == c1) return;
        const Int height = std::min(pair, r1 - r0), width = std::min(pair, c1 - c0);
        configure(height, width);
        const auto run = height > kSide ? (width > kSide ? square<true, true> : square<true, false>)
                                        : (width > kSide ? square<false, true> : square<false, false>);
        for (Int c = c0; c < c1; c += pair)
            for (Int r = r0; r < r1; r += pair) {
                float* into = out + r * ldo + c;
                if (add && r + pair < r1)  // what is added to next comes from a far cache
                    for (Int i = pair; i < 2 * pair; ++i)
                        for (Int j = 0; j < width; j += kSide) __builtin_prefetch(into + i * ldo + j, 1);
                run(left + r / kSide * next, right + c / kSide * next, inner_blocks, into, ldo, add);
            }
    };
    area(0, whole_rows, 0, whole_columns);
    area(whole_rows, rows, 0, whole_columns);
    area(0, whole_rows, whole_columns, columns);
    area(whole_rows, rows, whole_columns, columns);
}

// out (rows, columns) = left (rows, inner) · right (inner, columns), row by row in memory. A factor is given by a
// function that returns where the numbers of a row begin, or of a column where it lies in memory as its transpose.
// False: some number has no parts.
template <typename Left, typename Right, typename Buffer>
inline bool product(const Left& left, bool is_left_turned, const Right& right, bool is_right_turned, float* out,
                    Int rows, Int inner, Int columns, Buffer& left_buffer, Buffer& right_buffer) {
    constexpr Int some = 256;  // what is packed at once stays in a near cache
    const Int many = blocks(blocks(inner, kInner), blocks(inner, 2 * some)) * kInner;
    uint16_t* left_tiles = left_buffer.take(tiles_size(std::min(some, rows), many));
    uint16_t* right_tiles = right_buffer.take(tiles_size(columns, many));
    for (Int k = 0; k < inner; k += many) {
        const Int depth = std::min(many, inner - k);
        const auto row_from = [&](Int i) { return right(k + i); };
        const auto column_from = [&](Int c) { return right(c) + k; };
        if (!(is_right_turned ? lay_rows(column_from, columns, depth, right_tiles, true)
                              : lay(row_from, columns, depth, right_tiles, true)))
            return false;
        for (Int r = 0; r < rows; r += some) {
            const Int count = std::min(some, rows - r);
            const auto left_row = [&](Int i) { return left(r + i) + k; };
            const auto left_column = [&](Int i) { return left(k + i) + r; };
            if (!(is_left_turned ? lay(left_column, count, depth, left_tiles, false)
                                 : lay_rows(left_row, count, depth, left_tiles, false)))
                return false;
            multiply(left_tiles, right_tiles, out + r * columns, columns, count, depth, columns, k > 0);
        }
    }
    return true;
}

// gives the registers back, so that whoever switches threads need not save them
inline void release() { _tile_release(); }

#else

inline bool is_available() { return false; }
template <typename Row>
inline bool lay(const Row&, Int, Int, uint16_t*, bool) {
    return false;
}
template <typename Row>
inline bool lay_rows(const Row&, Int, Int, uint16_t*, bool) {
    return false;
}
inline void multiply(const uint16_t*, const uint16_t*, float*, Int, Int, Int, Int, bool) {}
template <typename Left, typename Right, typename Buffer>
inline bool product(const Left&, bool, const Right&, bool, float*, Int, Int, Int, Buffer&, Buffer&) {
    return false;
}
inline void release() {}

#endif

}  // namespace amx
