// The candidates of a strip of 16 rows, listed by a block of eight warps that shares all of its work.
//
// Few strips hold most candidates of trained inputs, so what counts is how long one strip takes. Therefore
//   1. the warps screen different rows of the other side, in units of 16 (screen bits wait in shared memory);
//   2. the candidates are listed row by row, in each row in the order of the other side;
//   3. the list is divided among warps by its length, whatever rows the candidates belong to.
// Everything that decides about an order of sums follows from the inputs alone.
#pragma once

#include "attention/cuda/portable/screen_product.cuh"

namespace tda::cuda::portable {

constexpr int kListWarps = 8, kListThreads = 32 * kListWarps;
constexpr int kUnitRows = 16;  // of the other side
constexpr int kUnits = 128;    // screened before their candidates are listed
constexpr int kListed = 2048;  // candidates listed at a time; a unit has at most 256
constexpr int kRowLanes = 16;  // lanes that hold the columns of one row
constexpr int kRowGroups = kListThreads / kRowLanes;
static_assert(kRowGroups == kStripRows, "a group of lanes sums up one row of the strip");

__device__ __forceinline__ int warp_of_block() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int row_group() { return static_cast<int>(threadIdx.x) / kRowLanes; }
__device__ __forceinline__ int lane_of_row() { return static_cast<int>(threadIdx.x) % kRowLanes; }

template <int VIEWS>
struct StripList {
  std::uint32_t entries[kListed];
  // Of each row and unit; two more columns spread rows and units over the banks.
  std::uint16_t bits[VIEWS][kStripRows][kUnits + 2];
  int others[kUnits];  // first row of the unit
  int counts[kUnits];  // of candidates; only when there are too many for the list
  int row_counts[kStripRows];
  int row_begin[kStripRows + 1];  // in the list
};

// By one warp: the bits of row `lane` in lanes 0 .. 15.
template <int VIEWS>
__device__ __forceinline__ void set_unit(StripList<VIEWS>& list, int view, int unit, std::uint32_t bits) {
  const int lane = lane_of_warp();
  if (lane < kStripRows) list.bits[view][lane][unit] = static_cast<std::uint16_t>(bits);
}

template <int VIEWS>
__device__ __forceinline__ std::uint32_t bits_of_either_view(const StripList<VIEWS>& list, int row, int unit) {
  std::uint32_t bits = list.bits[0][row][unit];
  if constexpr (VIEWS == 2) bits |= list.bits[1][row][unit];
  return bits;
}

// Where the rows' candidates of units begin .. end - 1 begin in the list: lane r returns row r's place, `listed` is the
// number of all. Ends with a barrier.
template <int VIEWS>
__device__ __forceinline__ int places_of_rows(StripList<VIEWS>& list, int begin, int end, int& listed) {
  const int lane = lane_of_warp();
#pragma unroll 1
  for (int row = warp_of_block(); row < kStripRows; row += kListWarps) {
    int count = 0;
    for (int unit = begin + lane; unit < end; unit += 32) count += __popc(bits_of_either_view(list, row, unit));
    count = __reduce_add_sync(kWholeWarp, count);
    if (lane == 0) list.row_counts[row] = count;
  }
  __syncthreads();
  return sum_before(lane < kStripRows ? list.row_counts[lane] : 0, listed);
}

// The unit behind the last one, from `begin` on, whose candidates the list still holds. Ends with a barrier.
template <int VIEWS>
__device__ __noinline__ int end_of_listing(StripList<VIEWS>& list, int begin, int units) {
  for (int unit = begin + static_cast<int>(threadIdx.x); unit < units; unit += kListThreads) {
    int count = 0;
    for (int row = 0; row < kStripRows; ++row) count += __popc(bits_of_either_view(list, row, unit));
    list.counts[unit] = count;
  }
  __syncthreads();
  int end = begin;
  for (int listed = 0; end < units; ++end) {
    listed += list.counts[end];
    if (listed > kListed) break;
  }
  __syncthreads();
  return end;
}

// Lists the candidates of the units from `begin` on, up to where `units` or the list ends; there the next listing
// begins. Returns their number. Begins and ends with a barrier.
template <int VIEWS>
__device__ __forceinline__ int list_units(StripList<VIEWS>& list, int begin, int units, int& end) {
  const int lane = lane_of_warp();
  __syncthreads();
  end = units;
  int listed, row_begin = places_of_rows(list, begin, end, listed);
  if (listed > kListed) {
    end = end_of_listing(list, begin, units);
    row_begin = places_of_rows(list, begin, end, listed);
  }
  if (warp_of_block() == 0 && lane <= kStripRows) list.row_begin[lane] = row_begin;
#pragma unroll 1
  for (int row = warp_of_block(); row < kStripRows; row += kListWarps) {
    int first = __shfl_sync(kWholeWarp, row_begin, row);
#pragma unroll 1
    for (int base = begin; base < end; base += 32) {
      const int unit = base + lane;
      std::uint32_t left = unit < end ? bits_of_either_view(list, row, unit) : 0u;
      int total;
      int place = first + sum_before(__popc(left), total);
      first += total;
      while (left != 0) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        unsigned views = list.bits[0][row][unit] >> bit & 1u;
        if constexpr (VIEWS == 2) views |= (list.bits[1][row][unit] >> bit & 1u) << 1;
        list.entries[place++] = pair_entry(row, views, list.others[unit] + bit);
      }
    }
  }
  __syncthreads();
  return listed;
}

// Where 16-byte chunk `chunk` of a row of the strip lies: even ones first, because eight lanes read every other chunk.
template <int DIM>
__device__ __forceinline__ int strip_slot(int row, int chunk) {
  return row * DIM + (chunk % 2 * (DIM / 8) + chunk / 2) * 4;
}

// Fills the strip's rows first .. first + 15 from load(row, d, float4 (&)[2]), zeros where a row does not exist.
template <int DIM, class Load>
__device__ __forceinline__ void load_strip_rows(float* rows, int first, int count, Load load) {
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x); n < kStripRows * (DIM / 8); n += kListThreads) {
    const int row = n / (DIM / 8), d = n % (DIM / 8) * 8;
    float4 x[2] = {make_float4(0.f, 0.f, 0.f, 0.f), make_float4(0.f, 0.f, 0.f, 0.f)};
    if (first + row < count) load(first + row, d, x);
    *reinterpret_cast<float4*>(rows + strip_slot<DIM>(row, d / 4)) = x[0];
    *reinterpret_cast<float4*>(rows + strip_slot<DIM>(row, d / 4 + 1)) = x[1];
  }
}

// pair_products of rows of the strip with rows that load_other(row, d, float4 (&)[2]) reads. `count` is at least 1.
template <int DIM, int AT_ONCE, class LoadOther>
__device__ __forceinline__ float strip_products(const float* rows, const std::uint32_t* entries, int count,
                                                LoadOther load_other) {
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < DIM / 64; ++n) {
    const int chunk = 16 * n + lane_of_warp() % 8 * 2;
    float partial[8] = {};
#pragma unroll
    for (int first = 0; first < 8; first += AT_ONCE) {
      if (4 * first >= count) continue;
      float4 b[AT_ONCE][2];
      int row[AT_ONCE];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const std::uint32_t entry = entries[min(4 * (first + u) + lane_of_warp() / 8, count - 1)];
        row[u] = entry_row(entry);
        load_other(entry_other(entry), 4 * chunk, b[u]);
      }
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const float4 low = *reinterpret_cast<const float4*>(rows + strip_slot<DIM>(row[u], chunk));
        const float4 high = *reinterpret_cast<const float4*>(rows + strip_slot<DIM>(row[u], chunk + 1));
        partial[first + u] = chain_of_four(high, b[u][1], chain_of_four(low, b[u][0], 0.f));
      }
    }
    transpose_over_group(partial);
#pragma unroll
    for (int c = 0; c < 8; ++c) sum += partial[c];
  }
  return sum;
}

// Columns of a row that belong to a lane of its group: four neighbours of each 64.
template <int COLUMNS>
struct GroupColumns {
  static constexpr int kCount = COLUMNS / 64;
  float4 x[kCount];

  __device__ static __forceinline__ int column(int n) { return 64 * n + 4 * lane_of_row(); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kCount; ++n) x[n] = make_float4(0.f, 0.f, 0.f, 0.f);
  }
  __device__ __forceinline__ void load(const float* row, int columns) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      x[n] = column(n) < columns ? __ldg(reinterpret_cast<const float4*>(row + column(n)))
                                 : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void store(float* row, int columns) const {
    const bool aligned = reinterpret_cast<std::uintptr_t>(row) % 16 == 0;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      float* const to = row + column(n);
      if (column(n) >= columns) continue;
      if (aligned) {
        *reinterpret_cast<float4*>(to) = x[n];
      } else {
        to[0] = x[n].x, to[1] = x[n].y, to[2] = x[n].z, to[3] = x[n].w;
      }
    }
  }
  __device__ __forceinline__ void add(const GroupColumns& other) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      x[n].x += other.x[n].x, x[n].y += other.x[n].y, x[n].z += other.x[n].z, x[n].w += other.x[n].w;
    }
  }
  __device__ __forceinline__ void multiply_add(float weight, const GroupColumns& values) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      x[n].x = fmaf(weight, values.x[n].x, x[n].x), x[n].y = fmaf(weight, values.x[n].y, x[n].y);
      x[n].z = fmaf(weight, values.x[n].z, x[n].z), x[n].w = fmaf(weight, values.x[n].w, x[n].w);
    }
  }
};

}  // namespace tda::cuda::portable
