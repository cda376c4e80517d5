// bf16 products on Intel AMX tiles (Sapphire Rapids and later), 16 x 16 x 32 at a time.
#include <cstring>

#include "attention/cpu/bf16_engine.h"
#include "attention/cpu/bf16_layout.h"

#if defined(TDA_HAS_BF16_ENGINES) && defined(__linux__)
#include <cpuid.h>
// GCC 12 reports the deliberately undefined operands inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TDA_TARGET_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace tda::cpu {
namespace {

struct alignas(64) TileConfiguration {
  std::uint8_t palette = 0;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == kEngineStateBytes);

// The intrinsics of GCC 12 name only the first bytes of a configuration as what they touch, and nothing for a tile
// load; this keeps the compiler from moving memory accesses across them.
inline void publish(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

TDA_TARGET_AMX void begin(void* saved_state) {
  TileConfiguration saved;
  _tile_storeconfig(&saved);
  publish(&saved);
  std::memcpy(saved_state, &saved, sizeof(saved));
  TileConfiguration ours;
  ours.palette = 1;
  for (int i = 0; i < 8; ++i) {
    ours.row_bytes[i] = 64;
    ours.rows[i] = 16;
  }
  publish(&ours);
  _tile_loadconfig(&ours);
}

TDA_TARGET_AMX void end(const void* saved_state) {
  TileConfiguration saved;
  std::memcpy(&saved, saved_state, sizeof(saved));
  publish(&saved);
  if (saved.palette == 0) {
    _tile_release();
  } else {
    _tile_loadconfig(&saved);
  }
}

// What decides about 16 rows against 16 lanes (see Bf16Engine::score).
struct Bounds {
  __m512 exact;   // what score * scale must exceed
  __m512 coarse;  // the same for lanes where it is not negative, else -infinity
};

TDA_TARGET_AMX inline Bounds load_bounds(const float* bound) {
  const __m512 exact = _mm512_loadu_ps(bound);
  const __mmask16 negative = _mm512_cmp_ps_mask(exact, _mm512_setzero_ps(), _CMP_LT_OQ);
  return {exact, _mm512_mask_mov_ps(exact, negative, _mm512_set1_ps(-__builtin_inff()))};
}

// Two chains of maxima, since one would wait for its own latency. A NaN score counts as -infinity.
template <bool kScaled>
TDA_TARGET_AMX inline __m512 largest_scores(const float* tile, const float* scale) {
  __m512 even = _mm512_set1_ps(-__builtin_inff()), odd = even;
  for (int r = 0; r < 16; r += 2) {
    __m512 first = _mm512_load_ps(tile + 16 * r), second = _mm512_load_ps(tile + 16 * r + 16);
    if constexpr (kScaled) {
      first = _mm512_mul_ps(first, _mm512_set1_ps(scale[r]));
      second = _mm512_mul_ps(second, _mm512_set1_ps(scale[r + 1]));
    }
    even = _mm512_max_ps(first, even);
    odd = _mm512_max_ps(second, odd);
  }
  return _mm512_max_ps(even, odd);
}

// Tests one 16 x 16 sub-tile of scores and copies it out if some score exceeds its lane's bound.
//
// Nearly every sub-tile is empty, so one comparison with the largest scale of the rows comes first: a product of
// positive numbers rounds to no more than the product of larger ones, and a negative score exceeds no bound >= 0.
TDA_TARGET_AMX inline std::uint64_t keep_if_exceeding(const float* tile, const float* scale, float largest_scale,
                                                      const Bounds& bounds, float* scores) {
  const __m512 largest = _mm512_mul_ps(largest_scores<false>(tile, nullptr), _mm512_set1_ps(largest_scale));
  if (__builtin_expect(_mm512_cmp_ps_mask(largest, bounds.coarse, _CMP_GT_OQ) == 0, 1)) return 0;
  if (scale != nullptr && _mm512_cmp_ps_mask(largest_scores<true>(tile, scale), bounds.exact, _CMP_GT_OQ) == 0) {
    return 0;
  }
  for (int r = 0; r < 16; ++r) _mm512_storeu_ps(scores + 64 * r, _mm512_load_ps(tile + 16 * r));
  return 1;
}

// Head dimensions up to 64: the operand of 32 lanes stays in tiles 4..7 while the rows stream past. A load right behind
// the tile store that feeds it would wait for the products, so each pair of sub-tiles is tested one step later.
template <int kSteps>
TDA_TARGET_AMX std::uint64_t score_resident(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices,
                                            const std::uint32_t* x, const RowScales& scales, const float* bound,
                                            float* scores) {
  alignas(64) float buffer[2][2][256];
  const std::ptrdiff_t y_bytes = y_stride * 2;
  std::uint64_t live = 0;
  Bounds bounds[2][2];
  for (int half = 0; half < 2; ++half) {
    for (int group = 0; group < 2; ++group) bounds[half][group] = load_bounds(bound + 32 * half + 16 * group);
  }
  const auto test = [&](const float(*tile)[256], int half, int slice) __attribute__((always_inline)) {
    const float* scale = scales.scale == nullptr ? nullptr : scales.scale + 16 * slice;
    const float largest = scales.scale == nullptr ? 1.0f : scales.largest[slice];
    float* to = scores + 16 * slice * 64 + 32 * half;
    const std::uint64_t first = keep_if_exceeding(tile[0], scale, largest, bounds[half][0], to);
    const std::uint64_t second = keep_if_exceeding(tile[1], scale, largest, bounds[half][1], to + 16);
    live |= (first | second << 1) << (4 * slice + 2 * half);
  };
  publish(y);
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t* lanes = x + 32 * half;
    _tile_loadd(4, lanes, 256);
    _tile_loadd(5, lanes + 16, 256);
    if constexpr (kSteps == 2) {
      _tile_loadd(6, lanes + 16 * 64, 256);
      _tile_loadd(7, lanes + 16 * 64 + 16, 256);
    }
    for (int slice = 0; slice < slices; ++slice) {
      const std::uint16_t* rows = y + 16 * slice * y_stride;
      const int step = half * slices + slice;
      float(*tile)[256] = buffer[step % 2];
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(2, rows, y_bytes);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(1, 2, 5);
      if constexpr (kSteps == 2) {
        _tile_loadd(3, rows + 32, y_bytes);
        _tile_dpbf16ps(0, 3, 6);
        _tile_dpbf16ps(1, 3, 7);
      }
      _tile_stored(0, tile[0], 64);
      _tile_stored(1, tile[1], 64);
      if (slice > 0) {
        test(buffer[(step - 1) % 2], half, slice - 1);
      } else if (half > 0) {
        test(buffer[(step - 1) % 2], 0, slices - 1);
      }
    }
  }
  test(buffer[(2 * slices - 1) % 2], 1, slices - 1);
  return live;
}

// Any head dimension: one slice against all 64 lanes, both operands streamed, tested one step later as above.
TDA_TARGET_AMX std::uint64_t score_streamed(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices, int depth32,
                                            const std::uint32_t* x, const RowScales& scales, const float* bound,
                                            float* scores) {
  alignas(64) float buffer[2][4][256];
  std::uint64_t live = 0;
  Bounds bounds[4];
  for (int group = 0; group < 4; ++group) bounds[group] = load_bounds(bound + 16 * group);
  const auto test = [&](int slice) __attribute__((always_inline)) {
    const float* scale = scales.scale == nullptr ? nullptr : scales.scale + 16 * slice;
    const float largest = scales.scale == nullptr ? 1.0f : scales.largest[slice];
    for (int group = 0; group < 4; ++group) {
      live |= keep_if_exceeding(buffer[slice % 2][group], scale, largest, bounds[group],
                                scores + 16 * slice * 64 + 16 * group)
              << (4 * slice + group);
    }
  };
  publish(y);
  for (int slice = 0; slice < slices; ++slice) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < depth32; ++step) {
      const std::uint32_t* lanes = x + step * 16 * 64;
      _tile_loadd(4, y + 16 * slice * y_stride + 32 * step, y_stride * 2);
      _tile_loadd(5, lanes, 256);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, lanes + 16, 256);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, lanes + 32, 256);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, lanes + 48, 256);
      _tile_dpbf16ps(3, 4, 5);
    }
    float(*tile)[256] = buffer[slice % 2];
    _tile_stored(0, tile[0], 64);
    _tile_stored(1, tile[1], 64);
    _tile_stored(2, tile[2], 64);
    _tile_stored(3, tile[3], 64);
    if (slice > 0) test(slice - 1);
  }
  test(slices - 1);
  return live;
}

TDA_TARGET_AMX std::uint64_t score(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices, int depth32,
                                   const std::uint32_t* x, const RowScales& scales, const float* bound, float* scores) {
  if (depth32 == 1) return score_resident<1>(y, y_stride, slices, x, scales, bound, scores);
  if (depth32 == 2) return score_resident<2>(y, y_stride, slices, x, scales, bound, scores);
  return score_streamed(y, y_stride, slices, depth32, x, scales, bound, scores);
}

// c (16 kM x 16 kN): tiles 0..3 hold c, 4 and 5 rows of a, 6 and 7 columns of b.
template <int kM, int kN>
TDA_TARGET_AMX void multiply_block(int k32, const std::uint16_t* a, std::ptrdiff_t a_stride, const std::uint32_t* b,
                                   std::ptrdiff_t b_stride, float* c, std::ptrdiff_t c_stride, bool accumulate) {
  const std::ptrdiff_t c_bytes = c_stride * 4;
  publish(c);
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kN == 2) _tile_loadd(1, c + 16, c_bytes);
    if constexpr (kM == 2) _tile_loadd(2, c + 16 * c_stride, c_bytes);
    if constexpr (kM == 2 && kN == 2) _tile_loadd(3, c + 16 * c_stride + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int step = 0; step < k32; ++step, a += 32, b += 16 * b_stride) {
    _tile_loadd(4, a, a_stride * 2);
    _tile_loadd(6, b, b_stride * 4);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kN == 2) {
      _tile_loadd(7, b + 16, b_stride * 4);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kM == 2) {
      _tile_loadd(5, a + 16 * a_stride, a_stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kN == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kN == 2) _tile_stored(1, c + 16, c_bytes);
  if constexpr (kM == 2) _tile_stored(2, c + 16 * c_stride, c_bytes);
  if constexpr (kM == 2 && kN == 2) _tile_stored(3, c + 16 * c_stride + 16, c_bytes);
}

void multiply(int m16, int n16, int k32, const std::uint16_t* a, std::ptrdiff_t a_stride, const std::uint32_t* b,
              std::ptrdiff_t b_stride, float* c, std::ptrdiff_t c_stride, bool accumulate) {
  for (int m = 0; m < m16; m += 2) {
    const std::uint16_t* rows = a + 16 * m * a_stride;
    for (int n = 0; n < n16; n += 2) {
      const std::uint32_t* columns = b + 16 * n;
      float* to = c + 16 * m * c_stride + 16 * n;
      const bool two_m = m + 1 < m16, two_n = n + 1 < n16;
      const auto block = two_m ? (two_n ? multiply_block<2, 2> : multiply_block<2, 1>)
                               : (two_n ? multiply_block<1, 2> : multiply_block<1, 1>);
      block(k32, rows, a_stride, columns, b_stride, to, c_stride, accumulate);
    }
  }
}

bool available() {
  if (!cpu_has_avx512_bf16()) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0, products = (d >> 22 & 1) != 0;
  if (!tiles || !products) return false;
  // Linux grants the tile registers to a process on request (ARCH_REQ_XCOMP_PERM of the TILEDATA state).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Bf16Engine* amx_engine() {
  static const Bf16Engine engine = {
      "amx", begin, end, score, multiply, transpose_words, pair_bf16_rows, pair_fp32_rows, round_fp32_tile};
  static const bool usable = available();
  return usable ? &engine : nullptr;
}

}  // namespace tda::cpu
#else
namespace tda::cpu {
const Bf16Engine* amx_engine() { return nullptr; }
}  // namespace tda::cpu
#endif
