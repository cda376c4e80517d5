#include "packed_case.h"

#include "attention/reference/element_conversion.h"

namespace tda::test {
namespace {

// Rows first .. first + length - 1 of `from`, contiguous.
TensorBuffer rows_of(const TensorBuffer& from, std::int64_t first, std::int64_t length) {
  std::array<std::int64_t, 4> sizes = from.sizes();
  sizes[2] = length;
  TensorBuffer rows(from.type(), sizes, Layout::kContiguous);
  for (std::int64_t h = 0; h < sizes[1]; ++h) {
    for (std::int64_t t = 0; t < length; ++t) {
      for (std::int64_t c = 0; c < sizes[3]; ++c) rows.set(0, h, t, c, from.get(0, h, first + t, c));
    }
  }
  return rows;
}

// The same of a (heads, total, dim) array.
template <typename Value>
std::vector<Value> rows_of(const std::vector<Value>& from, std::int64_t total, std::int64_t dim, std::int64_t first,
                           std::int64_t length) {
  std::vector<Value> rows;
  const auto size = static_cast<std::int64_t>(from.size());
  for (std::int64_t start = first * dim; start < size; start += total * dim) {
    rows.insert(rows.end(), from.begin() + start, from.begin() + start + length * dim);
  }
  return rows;
}

}  // namespace

AttentionCase packed_case(const DocumentLengths& lengths, AttentionShape shape, const AttentionOptions& options,
                          const Layouts& layouts, std::uint64_t seed) {
  std::vector<std::int32_t> query_offsets{0}, key_offsets{0};
  for (const auto& [queries, keys] : lengths) {
    query_offsets.push_back(query_offsets.back() + queries);
    key_offsets.push_back(key_offsets.back() + keys);
  }
  shape.batch = 1;
  shape.query_length = query_offsets.back();
  shape.key_length = key_offsets.back();
  std::mt19937_64 random(seed);
  AttentionCase packed(shape, options, layouts, random);
  packed.query_offsets = query_offsets;
  packed.key_offsets = key_offsets;
  for (std::size_t h = 0; h < packed.beta.size(); ++h) {
    packed.beta[h] = round_to(DataType::kFloat32, 0.3 + 0.1 * static_cast<double>(h));
    packed.lambda[h] = round_to(DataType::kFloat32, 0.2 + 0.2 * static_cast<double>(h));
  }
  return packed;
}

AttentionCase document_case(const AttentionCase& packed, std::int64_t document) {
  const auto d = static_cast<std::size_t>(document);
  const std::int64_t query = packed.query_offsets[d], key = packed.key_offsets[d];
  AttentionCase alone = packed;
  alone.shape.query_length = packed.query_offsets[d + 1] - query;
  alone.shape.key_length = packed.key_offsets[d + 1] - key;
  alone.layouts = {};
  alone.query_offsets.clear();
  alone.key_offsets.clear();
  for (std::size_t view = 0; view < packed.q.size(); ++view) {
    alone.q[view] = rows_of(packed.q[view], query, alone.shape.query_length);
    alone.k[view] = rows_of(packed.k[view], key, alone.shape.key_length);
  }
  alone.v[0] = rows_of(packed.v[0], key, alone.shape.key_length);
  alone.d_output[0] = rows_of(packed.d_output[0], query, alone.shape.query_length);
  return alone;
}

Results document_results(const AttentionCase& packed, const Results& results, std::int64_t document) {
  const auto d = static_cast<std::size_t>(document);
  const AttentionShape& s = packed.shape;
  const std::int64_t query = packed.query_offsets[d], queries = packed.query_offsets[d + 1] - query;
  const std::int64_t key = packed.key_offsets[d], keys = packed.key_offsets[d + 1] - key;
  Results alone;
  alone.output = rows_of(results.output, s.query_length, s.value_dim, query, queries);
  alone.survivors = rows_of(results.survivors, s.query_length, 1, query, queries);
  alone.dv = rows_of(results.dv, s.key_length, s.value_dim, key, keys);
  for (std::size_t view = 0; view < packed.q.size(); ++view) {
    alone.dq[view] = rows_of(results.dq[view], s.query_length, s.head_dim, query, queries);
    alone.dk[view] = rows_of(results.dk[view], s.key_length, s.head_dim, key, keys);
  }
  return alone;
}

}  // namespace tda::test
