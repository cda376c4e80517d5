// Tiles of 16-bit elements in shared memory, for the tensor-core kernels: 64 rows of DIM elements, DIM a multiple
// of 64.
//
// The 16-byte chunk c of row r lies at chunk c ^ (r % 8), so that ldmatrix, which reads eight rows at one chunk, meets
// no bank twice. A block has 128 threads; each of its four warps owns 16 rows of a product.
#pragma once

#include "attention/cuda/common/warp_matrix.cuh"
#include "attention/cuda/portable/device_problem.cuh"

namespace tda::cuda::portable {

constexpr int kHalfThreads = 128;
constexpr int kHalfTile = 64;

template <int DIM>
__device__ __forceinline__ int half_slot(int row, int chunk) {
  return row * DIM + ((chunk ^ (row & 7)) * 8);
}

// Rows of one head of one sequence.
struct HalfRows {
  const void* data;
  std::int64_t start, row_stride;
  int rows, dim;
  bool vector;  // rows may be read 16 bytes at a time
};

// `count` rows of a tile, of which the source has the first `rows`, one element at a time, for sources that cannot be
// read sixteen bytes at a time. Out of line: in every place it would crowd the instruction cache.
template <class T, int DIM>
__device__ __noinline__ void load_rows_slowly(T* tile, const T* first, std::int64_t row_stride, int rows, int columns,
                                              int count, int own, int threads) {
#pragma unroll 1
  for (int i = own; i < count * DIM; i += threads) {
    const int r = i / DIM, d = i % DIM;
    tile[half_slot<DIM>(r, d / 8) + d % 8] = r < rows && d < columns ? first[r * row_stride + d] : T(0.f);
  }
}

// Begins to fill a tile with rows first .. first + ROWS - 1, zeros where there is none (a negative `first` means none
// at all). `own` of THREADS threads take part. The caller commits and waits.
template <class T, int DIM, int ROWS, int THREADS>
__device__ __forceinline__ void load_rows(T* tile, const HalfRows& source, int own, int first) {
  constexpr int kChunks = DIM / 8, kRowsAtOnce = THREADS / kChunks;
  static_assert(THREADS % kChunks == 0 && ROWS % kRowsAtOnce == 0);
  if (first < 0) first = source.rows;
  const T* from = static_cast<const T*>(source.data) + source.start + first * source.row_stride;
  if (!source.vector) {
    load_rows_slowly<T, DIM>(tile, from, source.row_stride, source.rows - first, source.dim, ROWS, own, THREADS);
    return;
  }
  const int chunk = own % kChunks, r = own / kChunks;
  from += r * source.row_stride + chunk * 8;
  const std::int64_t step = kRowsAtOnce * source.row_stride;
  if (source.dim == DIM && first + ROWS <= source.rows) {  // every chunk exists
#pragma unroll
    for (int n = 0; n < ROWS / kRowsAtOnce; ++n) {
      copy_async(tile + half_slot<DIM>(r + n * kRowsAtOnce, chunk), from, true);
      from += step;
    }
    return;
  }
  const int left = chunk * 8 < source.dim ? source.rows - first - r : 0;
#pragma unroll 1
  for (int n = 0; n < ROWS / kRowsAtOnce; ++n) {
    copy_async(tile + half_slot<DIM>(r + n * kRowsAtOnce, chunk), from, n * kRowsAtOnce < left);
    from += step;
  }
}

// The same for a tile of 64 rows, by the whole block.
template <class T, int DIM>
__device__ __forceinline__ void load_half_tile(T* tile, const HalfRows& source, int first) {
  load_rows<T, DIM, kHalfTile, kHalfThreads>(tile, source, static_cast<int>(threadIdx.x), first);
}

__device__ __forceinline__ int own_lane() { return static_cast<int>(threadIdx.x) % 32; }

// The same, but the compiler must not compute what follows from it before this point. Where a loop holds many products,
// it would otherwise keep all their addresses in registers around the loop, and spill.
__device__ __forceinline__ int fresh_lane() {
  int lane = own_lane();
  asm volatile("" : "+r"(lane));
  return lane;
}

// The A fragment of rows first_row .. + 15 at depth 16 step.
template <class T, int DIM>
__device__ __forceinline__ void load_rows_fragment(std::uint32_t (&a)[4], const T* tile, int first_row, int step,
                                                   int lane = own_lane()) {
  load_matrices(a, tile + half_slot<DIM>(first_row + lane % 16, step * 2 + lane / 16));
}

// sums[n] += A rows times B rows^T over the whole depth: sums tile n covers rows 8 n .. of B starting at first_b.
template <class T, int DIM, int COUNT>
__device__ __forceinline__ void multiply_rows(float (&sums)[COUNT][4], const T* a_tile, int first_a, const T* b_tile,
                                              int first_b, int lane = own_lane()) {
  static_assert(COUNT % 2 == 0);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    std::uint32_t a[4];
    load_rows_fragment<T, DIM>(a, a_tile, first_a, step, lane);
#pragma unroll
    for (int n = 0; n < COUNT; n += 2) {
      std::uint32_t b[4];
      // Matrices: (rows 0-7, depth 0-7), (rows 0-7, depth 8-15), (rows 8-15, depth 0-7), (rows 8-15, depth 8-15).
      load_matrices(b, b_tile + half_slot<DIM>(first_b + n * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      multiply_add<T>(sums[n], a, b[0], b[1]);
      multiply_add<T>(sums[n + 1], a, b[2], b[3]);
    }
  }
}

// A pair of elements with those that are not finite replaced by 0.
template <class T>
__device__ inline std::uint32_t finite_pair(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = std::is_same_v<T, __nv_bfloat16> ? 0x7f80u : 0x7c00u;
  const bool low_spoiled = (pair & kExponent) == kExponent, high_spoiled = (pair >> 16 & kExponent) == kExponent;
  return pair & ((low_spoiled ? 0u : 0xffffu) | (high_spoiled ? 0u : 0xffff0000u));
}

// sums[n] += A (16 x 16, the fragment) times rows first_row .. + 15 of B: sums tile n covers columns 8 n of B.
// FINITE_ONLY takes elements of B that are not finite for 0.
template <class T, int DIM, bool FINITE_ONLY = false>
__device__ __forceinline__ void multiply_columns(float (&sums)[DIM / 8][4], const std::uint32_t (&a)[4],
                                                 const T* b_tile, int first_row, int lane = own_lane()) {
#pragma unroll
  for (int n = 0; n < DIM / 8; n += 2) {
    std::uint32_t b[4];
    // Transposed on the way: (rows 0-7, columns 0-7), (rows 8-15, columns 0-7), then columns 8-15.
    load_matrices_transposed(b, b_tile + half_slot<DIM>(first_row + lane % 16, n + lane / 16));
    if constexpr (FINITE_ONLY) {
#pragma unroll
      for (int m = 0; m < 4; ++m) b[m] = finite_pair<T>(b[m]);
    }
    multiply_add<T>(sums[n], a, b[0], b[1]);
    multiply_add<T>(sums[n + 1], a, b[2], b[3]);
  }
}

// The other half of multiply_columns with FINITE_ONLY: adds the products of elements of B that are not finite with
// weights that are not 0, so that a NaN in B reaches only rows that use it, and the others come out the same to the
// bit. weights: two tiles of sums, columns 0-7 and 8-15. Slow, and rare.
template <class T, int DIM>
__device__ void add_spoiled_products(float (&sums)[DIM / 8][4], const float (&low)[4], const float (&high)[4],
                                     const T* b_tile, int first_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
#pragma unroll 1
  for (int k = 0; k < 16; ++k) {
    const int owner = lane / 4 * 4 + k % 8 / 2;
    const bool odd = k % 2 != 0;
    const float low_upper = odd ? low[1] : low[0], low_lower = odd ? low[3] : low[2];
    const float high_upper = odd ? high[1] : high[0], high_lower = odd ? high[3] : high[2];
    const float upper = __shfl_sync(0xffffffffu, k < 8 ? low_upper : high_upper, owner);
    const float lower = __shfl_sync(0xffffffffu, k < 8 ? low_lower : high_lower, owner);
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float b = static_cast<float>(b_tile[half_slot<DIM>(first_row + k, n) + 2 * t + e]);
        if (isfinite(b)) continue;
        if (upper != 0.f) sums[n][e] = fmaf(upper, b, sums[n][e]);
        if (lower != 0.f) sums[n][2 + e] = fmaf(lower, b, sums[n][2 + e]);
      }
    }
  }
}

// The sum over the four lanes that share a row of the sums.
__device__ inline float sum_over_quad(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <class T>
__device__ inline float2 load_pair(const T* pair) {
  return make_float2(static_cast<float>(pair[0]), static_cast<float>(pair[1]));
}

// Stores one row of the sums of a warp (`half` picks row g or g + 8), columns below `columns`; two at once where
// `pairs` says that rows allow it.
template <class T, int DIM>
__device__ __forceinline__ void store_sums(T* row, const float (&sums)[DIM / 8][4], int half, int columns, bool pairs) {
  const int first = 2 * (own_lane() % 4);
  if (pairs && columns % 2 == 0) {
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      if (8 * n + first < columns) {
        *reinterpret_cast<std::uint32_t*>(row + 8 * n + first) =
            rounded_pair<T>(sums[n][2 * half], sums[n][2 * half + 1]);
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < DIM / 8; ++n) {
    if (8 * n + first < columns) row[8 * n + first] = T(sums[n][2 * half]);
    if (8 * n + first + 1 < columns) row[8 * n + first + 1] = T(sums[n][2 * half + 1]);
  }
}

// Undoes the L2 norm of 16 rows, the tile's rows first_tile_row .. + 15, whose gradients with respect to the unit
// vectors lie in `sums` (times `unscale`), and stores them. `tile` holds the rows, raw or times a power of two, and
// `tile_factors` what makes them unit vectors (0 where the norm was clamped); `factors` are 1 / max(|x|, 1e-12) of the
// raw rows. All three, and `first_row` of the sequence, belong to the tile's row 0.
template <class T, int DIM>
__device__ __forceinline__ void store_half_gradient(bool normalize, const T* tile, const float* tile_factors,
                                                    const float* factors, const HalfRows& rows, int first_row,
                                                    int first_tile_row, float unscale, const Tensor& target,
                                                    std::int64_t start, bool pairs, float (&sums)[DIM / 8][4]) {
  const int lane = own_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first_tile_row + g + 8 * half;
    const bool exists = first_row + r < rows.rows;
    const float factor = unscale * (exists ? factors[r] : 0.f);
    float along = 0.f;
    if (normalize) {
      // dx = (du - u <u, du>) / |x| with u = x f: the part along x is x f^2 <x, du>. A row of one element has nothing
      // else: its gradient is 0, to the bit.
      const float unit = tile_factors[r];
#pragma unroll
      for (int n = 0; n < DIM / 8; ++n) {
        const float2 x = load_pair(tile + half_slot<DIM>(r, n) + 2 * t);
        along = fmaf(x.x, sums[n][2 * half], fmaf(x.y, sums[n][2 * half + 1], along));
      }
      along = sum_over_quad(along) * unit * unit;
      if (rows.dim == 1 && unit > 0.f) along = sums[0][2 * half] = 0.f;
    }
    if (!exists) continue;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      const float2 x = load_pair(tile + half_slot<DIM>(r, n) + 2 * t);
      sums[n][2 * half] = fmaf(-along, x.x, sums[n][2 * half]) * factor;
      sums[n][2 * half + 1] = fmaf(-along, x.y, sums[n][2 * half + 1]) * factor;
    }
    store_sums<T, DIM>(static_cast<T*>(target.data) + start + (first_row + r) * target.row_stride, sums, half, rows.dim,
                       pairs);
  }
}

}  // namespace tda::cuda::portable
