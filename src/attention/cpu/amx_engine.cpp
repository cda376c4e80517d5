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
#define TDA_TARGET_AMX_INT8 \
  __attribute__((target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

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

TDA_TARGET_AMX inline __m512 largest_of_4(const float* tile, __m512 scale) {
  const __m512 first = _mm512_max_ps(_mm512_load_ps(tile), _mm512_load_ps(tile + 16));
  const __m512 second = _mm512_max_ps(_mm512_load_ps(tile + 32), _mm512_load_ps(tile + 48));
  return _mm512_mul_ps(_mm512_max_ps(first, second), scale);
}

TDA_TARGET_AMX inline bool exceeds_exactly(const float* tile, const float* scale, __m512 bound) {
  __m512 largest = _mm512_set1_ps(-__builtin_inff());
  for (int r = 0; r < 16; ++r) {
    largest = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(tile + 16 * r), _mm512_set1_ps(scale[r])), largest);
  }
  return _mm512_cmp_ps_mask(largest, bound, _CMP_GT_OQ) != 0;
}

// Tests one 16 x 16 sub-tile of scores and copies it out if some score exceeds its lane's bound. Operands are
// finite and of moderate size, so no score is NaN.
//
// Nearly every sub-tile is empty, so four rows at a time meet the largest of their scales first: a product of positive
// numbers rounds to no more than the product of larger ones, and a negative score exceeds no bound >= 0.
TDA_TARGET_AMX inline std::uint64_t keep_if_exceeding(const float* tile, const RowScales& scales, int first_row,
                                                      const Bounds& bounds, float* scores) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const float* of_4 = scales.scale == nullptr ? nullptr : scales.largest_of_4 + first_row / 4;
  __m512 largest[4];
  for (int i = 0; i < 4; ++i) {
    largest[i] = largest_of_4(tile + 64 * i, of_4 == nullptr ? one : _mm512_set1_ps(of_4[i]));
  }
  const __m512 all = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
  if (__builtin_expect(_mm512_cmp_ps_mask(all, bounds.coarse, _CMP_GT_OQ) == 0, 1)) return 0;
  if (scales.scale != nullptr && !exceeds_exactly(tile, scales.scale + first_row, bounds.exact)) return 0;
  for (int r = 0; r < 16; ++r) _mm512_storeu_ps(scores + 64 * r, _mm512_load_ps(tile + 16 * r));
  return 1;
}

// Head dimensions up to 64. Waiting is what costs here: a tile store waits for its products, a load of what it stores
// waits for the store. So two pairs of sub-tiles alternate, each is stored while the other multiplies, and what is
// tested was stored a step before.
template <int kSteps>
TDA_TARGET_AMX std::uint64_t score_resident(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices,
                                            const std::uint32_t* x, const RowScales& scales, const float* bound,
                                            float* scores) {
  alignas(64) float even[2][2][256], odd[2][2][256];
  const std::ptrdiff_t y_bytes = y_stride * 2;
  std::uint64_t live = 0;
  publish(y);
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t* lanes = x + 32 * half;
    // The first 32 dimensions of the lanes stay in tiles 5 and 6; tiles 4 and 7 are passed through.
    _tile_loadd(5, lanes, 256);
    _tile_loadd(6, lanes + 16, 256);
    const std::uint32_t* rest = lanes + 16 * 64;
    const Bounds bounds[2] = {load_bounds(bound + 32 * half), load_bounds(bound + 32 * half + 16)};
    const auto test = [&](const float(*tile)[256], int slice) TDA_TARGET_AMX {
      float* to = scores + 16 * slice * 64 + 32 * half;
      const std::uint64_t first = keep_if_exceeding(tile[0], scales, 16 * slice, bounds[0], to);
      const std::uint64_t second = keep_if_exceeding(tile[1], scales, 16 * slice, bounds[1], to + 16);
      live |= (first | second << 1) << (4 * slice + 2 * half);
    };
    int now = 0;
    for (int slice = 0; slice < slices; slice += 2, now ^= 1) {
      const std::uint16_t* rows = y + 16 * slice * y_stride;
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(4, rows, y_bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 6);
      if (slice > 0) {
        _tile_stored(2, odd[now ^ 1][0], 64);
        _tile_stored(3, odd[now ^ 1][1], 64);
      }
      if constexpr (kSteps == 2) {
        _tile_loadd(4, rows + 32, y_bytes);
        _tile_loadd(7, rest, 256);
        _tile_dpbf16ps(0, 4, 7);
        _tile_loadd(7, rest + 16, 256);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (slice > 0) test(even[now ^ 1], slice - 2);
      // Where the slices are odd, the last one is computed twice, which is cheaper than a branch.
      if (slice + 1 < slices) rows += 16 * y_stride;
      _tile_zero(2);
      _tile_zero(3);
      _tile_loadd(4, rows, y_bytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 6);
      _tile_stored(0, even[now][0], 64);
      _tile_stored(1, even[now][1], 64);
      if constexpr (kSteps == 2) {
        _tile_loadd(4, rows + 32, y_bytes);
        _tile_loadd(7, rest, 256);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(7, rest + 16, 256);
        _tile_dpbf16ps(3, 4, 7);
      }
      if (slice > 0) test(odd[now ^ 1], slice - 1);
    }
    _tile_stored(2, odd[now ^ 1][0], 64);
    _tile_stored(3, odd[now ^ 1][1], 64);
    const int last = (slices - 1) / 2 * 2;
    test(even[now ^ 1], last);
    if (last + 1 < slices) test(odd[now ^ 1], last + 1);
  }
  return live;
}

// Any head dimension: one slice against all 64 lanes, both operands streamed, tested one step after it is stored.
TDA_TARGET_AMX std::uint64_t score_streamed(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices, int depth32,
                                            const std::uint32_t* x, const RowScales& scales, const float* bound,
                                            float* scores) {
  alignas(64) float buffer[2][4][256];
  std::uint64_t live = 0;
  Bounds bounds[4];
  for (int group = 0; group < 4; ++group) bounds[group] = load_bounds(bound + 16 * group);
  const auto test = [&](int slice) TDA_TARGET_AMX {
    for (int group = 0; group < 4; ++group) {
      live |= keep_if_exceeding(buffer[slice % 2][group], scales, 16 * slice, bounds[group],
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

TDA_TARGET_AMX inline bool any_exceeds(const std::int32_t* tile, __m512i bound) {
  __m512i largest[4];
  for (int i = 0; i < 4; ++i) largest[i] = _mm512_load_si512(tile + 16 * i);
  for (int r = 4; r < 16; r += 4) {
    for (int i = 0; i < 4; ++i) largest[i] = _mm512_max_epi32(largest[i], _mm512_load_si512(tile + 16 * (r + i)));
  }
  const __m512i all =
      _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3]));
  return _mm512_cmpgt_epi32_mask(all, bound) != 0;
}

// The order of score_resident with one product a sub-tile.
TDA_TARGET_AMX_INT8 std::uint64_t screen(const std::int8_t* y, int slices, const std::uint32_t* x,
                                         const std::int32_t* bound) {
  alignas(64) std::int32_t even[2][2][256], odd[2][2][256];
  std::uint64_t live = 0;
  publish(y);
  for (int half = 0; half < 2; ++half) {
    _tile_loadd(6, x + 32 * half, 256);
    _tile_loadd(7, x + 32 * half + 16, 256);
    const __m512i bounds[2] = {_mm512_loadu_si512(bound + 32 * half), _mm512_loadu_si512(bound + 32 * half + 16)};
    const auto test = [&](const std::int32_t(*tile)[256], int slice) TDA_TARGET_AMX {
      const std::uint64_t first = any_exceeds(tile[0], bounds[0]), second = any_exceeds(tile[1], bounds[1]);
      live |= (first | second << 1) << (4 * slice + 2 * half);
    };
    int now = 0;
    for (int slice = 0; slice < slices; slice += 2, now ^= 1) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(4, y + 16 * slice * 64, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      if (slice > 0) {
        _tile_stored(2, odd[now ^ 1][0], 64);
        _tile_stored(3, odd[now ^ 1][1], 64);
        test(even[now ^ 1], slice - 2);
      }
      // Where the slices are odd, the last one is computed twice, which is cheaper than a branch.
      _tile_zero(2);
      _tile_zero(3);
      _tile_loadd(5, y + 16 * (slice + 1 < slices ? slice + 1 : slice) * 64, 64);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
      _tile_stored(0, even[now][0], 64);
      _tile_stored(1, even[now][1], 64);
      if (slice > 0) test(odd[now ^ 1], slice - 1);
    }
    _tile_stored(2, odd[now ^ 1][0], 64);
    _tile_stored(3, odd[now ^ 1][1], 64);
    const int last = (slices - 1) / 2 * 2;
    test(even[now ^ 1], last);
    if (last + 1 < slices) test(odd[now ^ 1], last + 1);
  }
  return live;
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

bool has_int8_products() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 25 & 1) != 0;
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
  static const bool usable = available();
  static const Bf16Engine engine = {"amx",
                                    begin,
                                    end,
                                    score,
                                    multiply,
                                    transpose_words,
                                    pair_bf16_rows,
                                    pair_fp32_rows,
                                    round_fp32_tile,
                                    has_int8_products() ? screen : nullptr};
  return usable ? &engine : nullptr;
}

}  // namespace tda::cpu
#else
namespace tda::cpu {
const Bf16Engine* amx_engine() { return nullptr; }
}  // namespace tda::cpu
#endif
