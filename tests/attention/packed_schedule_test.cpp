// Packed documents on the CPU are calls of their own, bit for bit, however the threads divide them.
#include <gtest/gtest.h>

#include "operator_under_test.h"
#include "packed_case.h"

namespace tda::test {
namespace {

AttentionOptions make_options(DataType type, int threads) {
  AttentionOptions options;
  options.data_type = type;
  options.views = 2;
  options.threads = threads;
  return options;
}

constexpr AttentionShape kHeads{0, 4, 2, 0, 0, 64, 64};

void expect_same(const Results& x, const Results& y) {
  EXPECT_EQ(x.output, y.output);
  EXPECT_EQ(x.survivors, y.survivors);
  for (int view = 0; view < 2; ++view) {
    EXPECT_EQ(x.dq[view], y.dq[view]);
    EXPECT_EQ(x.dk[view], y.dk[view]);
  }
  EXPECT_EQ(x.dv, y.dv);
}

class PackedSchedule : public testing::TestWithParam<DataType> {};

TEST_P(PackedSchedule, GivesTheBitsOfOneCallPerDocument) {
  const DocumentLengths lengths{{70, 70}, {1, 1}, {3, 200}, {0, 5}, {129, 129}, {40, 41}};
  const AttentionCase packed = packed_case(lengths, kHeads, make_options(GetParam(), 1), {}, 3);
  const Results ours = run(packed, Implementation::kOperator, true);
  std::vector<double> dbeta(4), dlambda(4);
  for (std::int64_t d = 0; d < packed.document_count(); ++d) {
    if (packed.query_offsets[static_cast<std::size_t>(d)] == packed.query_offsets[static_cast<std::size_t>(d) + 1])
      continue;
    const Results alone = run(document_case(packed, d), Implementation::kOperator, true);
    expect_same(document_results(packed, ours, d), alone);
    for (std::size_t h = 0; h < 4; ++h) {
      dbeta[h] += alone.dbeta[h];
      dlambda[h] += alone.dlambda[h];
    }
  }
  const DataType type = packed.parameter_type();
  for (std::size_t h = 0; h < 4; ++h) {
    EXPECT_EQ(ours.dbeta[h], type == DataType::kFloat64 ? dbeta[h] : static_cast<double>(static_cast<float>(dbeta[h])));
    EXPECT_EQ(ours.dlambda[h],
              type == DataType::kFloat64 ? dlambda[h] : static_cast<double>(static_cast<float>(dlambda[h])));
  }
}

// Forty documents on three threads: a long one that all share, the others one thread each.
TEST_P(PackedSchedule, IsRepeatable) {
  DocumentLengths lengths;
  for (int d = 0; d < 40; ++d) lengths.emplace_back(1 + d * 7 % 23, 1 + d * 7 % 23 + d % 5);
  lengths[11] = {150, 170};
  const AttentionCase packed = packed_case(lengths, kHeads, make_options(GetParam(), 3), {}, 4);
  const Results first = run(packed, Implementation::kOperator, true);
  EXPECT_TRUE(first.gaps_untouched);
  for (int repetition = 0; repetition < 5; ++repetition) {
    const Results again = run(packed, Implementation::kOperator, true);
    expect_same(first, again);
    EXPECT_EQ(first.dbeta, again.dbeta);
    EXPECT_EQ(first.dlambda, again.dlambda);
  }
  // One thread computes the short documents alike.
  AttentionCase alone = packed;
  alone.options.threads = 1;
  const Results one = run(alone, Implementation::kOperator, true);
  for (const std::int64_t d : {0, 5, 39})
    expect_same(document_results(packed, first, d), document_results(packed, one, d));
}

// The index has room for every document and is known without the offsets.
TEST(PackedIndex, SizeIsAFunctionOfTotalLengthsCountAndLongestKey) {
  const AttentionOptions options = make_options(DataType::kFloat32, 1);
  const AttentionShape shape{1, 4, 2, 1000, 5000, 64, 64};
  const PackedDocuments documents{nullptr, nullptr, 7, 300, 2000};
  // 1000 / 64 + 7 row tiles of 2 words (1024 keys each), per view and head.
  EXPECT_EQ(attention_survivor_index_bytes(shape, options, &documents), (15U + 7U) * 2U * 2U * 4U * 8U);
  AttentionOptions wide = options;
  wide.data_type = DataType::kFloat64;
  EXPECT_EQ(attention_survivor_index_bytes(shape, wide, &documents), 0U);
}

// Who compares or hashes it meets no uninitialized byte.
TEST(PackedIndex, EveryByteIsWritten) {
  const AttentionCase packed =
      packed_case({{70, 70}, {0, 5}, {3, 40}, {0, 0}}, kHeads, make_options(DataType::kBFloat16, 2), {}, 5);
  const PackedDocuments documents{packed.query_offsets.data(), packed.key_offsets.data(), 4, 73, 115};
  const CaseInputs inputs(packed);
  TensorBuffer output(packed.options.data_type, packed.d_output[0].sizes(), Layout::kContiguous);
  std::vector<std::uint64_t> workspace(attention_forward_workspace_bytes(packed.shape, packed.options, &documents) / 8 +
                                       16);
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(workspace.data()) + 63) / 64 * 64;
  const std::size_t bytes = attention_survivor_index_bytes(packed.shape, packed.options, &documents);
  std::vector<unsigned char> index[2];
  for (const unsigned char fill : {0x00, 0xFF}) {
    index[fill / 0xFF].assign(bytes, fill);
    ForwardOutputs outputs;
    outputs.output = output.mutable_view();
    outputs.survivor_index = index[fill / 0xFF].data();
    ASSERT_TRUE(attention_forward(packed.shape, packed.options, inputs.get(), outputs, reinterpret_cast<void*>(begin),
                                  workspace.size() * 8 - 64, &documents)
                    .ok());
  }
  EXPECT_EQ(index[0], index[1]);
  EXPECT_NE(index[0], std::vector<unsigned char>(bytes, 0));
}

INSTANTIATE_TEST_SUITE_P(Types, PackedSchedule,
                         testing::Values(DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16,
                                         DataType::kFloat64));

}  // namespace
}  // namespace tda::test
