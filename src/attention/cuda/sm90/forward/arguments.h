// What the kernels of the sm90 forward share: the problem on the device and the scratch memory between them.
//
// The forward is a chain of kernels on one stream:
//   prepare_keys   1/|k|, an 8-bit copy of the unit keys with its error bound; without documents clears the counters
//   screen         8-bit scores of all visible pairs; certifies blocks of 16 queries x 64 keys as empty, zeroes row
//                  tiles and listed strips without a candidate and hands out the others: sparse row tiles and listed
//                  strips by weight, dense row blocks apart
//   dense          exact scores and the product with V on row blocks where most blocks are candidates; skips nothing
//   product        the same on the candidate blocks of the sparse row tiles; begins beside the dense kernel
//   listed         the same on single candidate keys, for row tiles that have few; begins beside the product
// Where nothing is screened every row block goes to the dense kernel, which then follows prepare_keys alone, and may
// compute 1/|k| itself.
// With packed documents a fill that clears the counters and plan_documents come first, and nothing goes by lists.
// Outputs do not depend on which kernel computes a row nor on the false candidates it meets: all use the same exact
// scores in the same order, 16 aligned keys at a time, and keys without survivors add nothing. (A row whose result is
// not finite is computed once more in fp32, and which rows that concerns depends on the kernel:
// exact/exact_scores.cuh.)
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/cuda/common/survivor_index.h"
#include "tda/attention_cuda.h"

namespace tda::cuda::sm90 {

constexpr int kRowTile = 64;      // query rows of a sparse job (one warpgroup)
constexpr int kScreenRows = 256;  // query rows of a screen job and of a dense row block
constexpr int kScreenKeys = 256;  // keys of a screen tile; also the reach of one 8-bit scale
constexpr int kTilesPerBlock = kScreenRows / kRowTile;
constexpr int kBlockKeys = 64;  // keys of a product step; one flag bit
constexpr int kStripRows = 16;  // query rows behind one flag bit (one warp)
constexpr int kZeroRows = 8;    // rows of 64 elements that the screen zeroes at once
constexpr int kBlocksPerWord = 32;
constexpr int kBuckets = 20;  // sparse jobs by log2 of their number of candidate strips; the last: unscreened rows
constexpr int kStripsPerBlock = kScreenRows / kStripRows;
constexpr int kStripsPerTile = kRowTile / kStripRows;
constexpr int kStripKeys = 256;     // candidate keys that a strip's list holds
constexpr int kListBuckets = 10;    // listed strips by log2 of their number of keys
constexpr int kBlockBuckets = 16;   // row blocks of packed documents by log2 of the key tiles that they see
constexpr int kScaleAlignment = 4;  // of a document's first entry of key_scale

// What the screen knows about 256 consecutive keys of one head.
struct alignas(16) KeyTile {
  float error;  // largest |k' - k8 / scale|, k' the unit key; infinite when a key is not finite
  float scale;  // k8 = round(k' scale)
  float norm;   // largest |k'|
  float reserved;
};

// Counters that are clear when the screen, or with packed documents plan_documents, begins.
struct Counters {
  int screen_claims;
  int product_claims;
  int dense_claims;
  int dense_jobs;
  int sparse_jobs[kBuckets];
  int listed_claims;
  int listed_jobs[kListBuckets];
  int row_blocks[kBlockBuckets];  // of packed documents
};

// Which document a slot of 256 rows, or of 256 keys, belongs to. Part p of document d has the slot first / 256 + d + p,
// where `first` is the document's first row, or key.
struct alignas(16) DocumentSlot {
  std::int32_t document, part;
  std::int32_t first_query, first_key;
  std::int32_t query_length, key_length;  // key_length 0: no document has this slot
  std::int32_t reserved[2];
};

// A strip with lists of candidate keys.
struct alignas(16) ListedJob {
  std::int32_t batch, head, first_row;
  std::int32_t counts;  // keys in its list; of view 2 in the upper half
};

// Whether the dense kernel can compute 1/|k| itself (ForwardArguments::dense_scales).
constexpr bool dense_may_scale(std::int64_t head_dim, int views) { return head_dim == 64 && views == 1; }

struct ForwardArguments {
  CUtensorMap query[2];       // (D, T_q, H_q, B), boxes of 64 elements x 64 rows
  CUtensorMap key[2];         // (D, T_k, H_k, B), boxes of 64 elements x 64 rows
  CUtensorMap value;          // as key
  CUtensorMap key8;           // (D bytes, key_rows, views B H_k, 1), boxes of D bytes x 256 rows
  CUtensorMap zeroed_output;  // as query, boxes of 64 elements x kZeroRows rows

  int batch, query_heads, key_heads, heads_per_key;
  int query_length, key_length, position_offset;  // query row i stands at position_offset + i
  int views;
  int row_blocks;      // of kScreenRows; with packed documents slots of all
  int row_tiles;       // of kRowTile; 0 with packed documents
  int key_tiles;       // of kScreenKeys; with packed documents slots of all
  int key_rows;        // of a head in keys8
  int scale_pitch;     // of a head in key_scale
  int mean_keys;       // that the average row sees; with packed documents an estimate
  int flag_words;      // 32-bit words of a strip's flags
  int heads_per_wave;  // heads that screen jobs interleave, so that their keys stay in the L2 cache; not of documents
  float kappa, power;
  float largest_t;  // 2^(15 / power), see query_scale
  bool normalize;
  bool screening;     // false: everything is a candidate
  bool choose_heads;  // by the counters of the last call (screen/choice.cuh)
  bool dense_kernel;  // false: dense row blocks go to the sparse product, too
  bool all_dense;     // every row block goes to the dense kernel; no screen and no product run
  bool dense_scales;  // the dense kernel computes 1/|k| from the keys it has fetched; prepare_keys only clears
  bool listing;       // false: nothing goes by lists of candidate keys

  ConstTensor q[2], k[2], v;
  const float* beta;
  const float* lambda;
  void* output;
  std::int64_t output_batch_stride, output_head_stride, output_row_stride;
  std::int32_t* survivors;
  std::uint32_t* index;
  SurvivorIndexLayout index_layout;
  SurvivorLists lists;
  int list_heads;  // entries of lists.totals; 0 without an index
  bool lists_wanted;
  SavedFactors factors;  // `query` and `key` null: none are saved

  const std::int32_t* query_offsets;  // of packed documents, or null
  const std::int32_t* key_offsets;
  int documents;
  int longest_key;          // keys that a document may have
  DocumentSlot* row_slots;  // (row_blocks)
  DocumentSlot* key_slots;  // (key_tiles)
  int* block_list;          // (kBlockBuckets, row_blocks): slots of the row blocks that exist

  std::int8_t* keys8;      // (views, B, H_k, key_rows, D), dims permuted inside each 16 (prepare_keys.cuh)
  float* key_scale;        // (views, B, H_k, scale_pitch): 1 / |k|, or 1 without normalization
  KeyTile* key_tile;       // (views, B, H_k, key_tiles)
  std::uint32_t* flags;    // (views, B, H_q, row_blocks * 16 strips, flag_words), bit: 64 keys
  int* sparse_list;        // (kBuckets, B H_q row_blocks * 4): row tile jobs, 4 row_blocks a head
  int* dense_list;         // (B H_q row_blocks): row block jobs
  void* strip_keys;        // (views, B H_q row_blocks * 16, kStripKeys), screen/candidate_lists.cuh
  ListedJob* listed_list;  // (kListBuckets, B H_q row_blocks * 16)
  Counters* counters;
  ScreeningCounters* screening_counters;  // (H_q), the caller's, or null
};

}  // namespace tda::cuda::sm90
