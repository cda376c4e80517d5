// Packed documents: every document has the numbers of a call of its own.
#include <gtest/gtest.h>

#include <cmath>

#include "operator_under_test.h"
#include "packed_case.h"
#include "rounding_rule.h"
#include "survivor_rule.h"

namespace tda::test {
namespace {

struct Packing {
  const char* name;
  DocumentLengths lengths;
  AttentionShape shape;  // heads and dims
  Layouts layouts;
};

const Packing kPackings[] = {
    // Tiles are powers of two: lengths around them, and documents that begin everywhere in a tile.
    {"training", {{65, 65}, {1, 1}, {63, 63}, {128, 128}, {17, 17}}, {0, 3, 3, 0, 0, 64, 64}, {}},
    {"grouped heads, fewer queries than keys",
     {{5, 40}, {1, 130}, {33, 64}, {64, 65}, {1, 1}},
     {0, 4, 2, 0, 0, 64, 64},
     {Layout::kTransposed, Layout::kTransposed, Layout::kTransposed, Layout::kTransposed}},
    {"empty documents", {{0, 0}, {7, 7}, {0, 0}, {0, 19}, {40, 70}, {0, 0}}, {0, 2, 1, 0, 0, 32, 64}, {}},
    {"odd dimension and strides",
     {{30, 31}, {2, 2}, {50, 50}},
     {0, 2, 2, 0, 0, 24, 24},
     {Layout::kPaddedRows, Layout::kReversedRows, Layout::kPaddedRows, Layout::kPaddedRows}},
    {"one document", {{90, 100}}, {0, 2, 2, 0, 0, 128, 128}, {}},
    {"tiles of 256", {{3, 3}, {2, 257}, {0, 0}, {257, 257}, {1, 1}}, {0, 1, 1, 0, 0, 64, 64}, {}},
    {"wide heads", {{1, 1}, {9, 258}, {65, 127}, {0, 3}}, {0, 2, 1, 0, 0, 128, 128}, {}},
};

AttentionOptions make_options(DataType type, int views, double power = 2.0) {
  AttentionOptions options;
  options.data_type = type;
  options.views = views;
  options.power = power;
  options.threads = 2;
  return options;
}

class PackedDocumentsTest : public testing::TestWithParam<std::tuple<DataType, int>> {
 protected:
  void SetUp() override {
    if (!operator_takes(std::get<0>(GetParam()))) GTEST_SKIP() << "the device has no such data type";
  }
  static AttentionOptions options(double power = 2.0) {
    return make_options(std::get<0>(GetParam()), std::get<1>(GetParam()), power);
  }
};

void expect_zero(const std::vector<double>& values) {
  for (const double value : values) ASSERT_EQ(value, 0.0);
}

// The sum over documents may stray by what its terms may.
void add(const NaiveError& error, NaiveError& sum) {
  sum.dbeta += error.dbeta;
  sum.dlambda += error.dlambda;
}

void add(const std::vector<double>& terms, std::vector<double>& sum) {
  sum.resize(terms.size());
  for (std::size_t h = 0; h < terms.size(); ++h) sum[h] += terms[h];
}

void expect_follows_documents(const AttentionCase& packed) {
  const Results ours = run(packed, Implementation::kOperator, true);
  EXPECT_TRUE(ours.gaps_untouched) << "memory outside the outputs was written";
  NaiveError parameter_error;
  std::vector<double> dbeta, dlambda;
  for (std::int64_t d = 0; d < packed.document_count(); ++d) {
    SCOPED_TRACE("document " + std::to_string(d));
    const AttentionCase alone = document_case(packed, d);
    Results own = document_results(packed, ours, d);
    if (alone.shape.query_length == 0) {
      for (const auto* gradient : {&own.dk[0], &own.dk[1], &own.dv}) expect_zero(*gradient);
      continue;
    }
    const Results reference = run(alone.in_double(), Implementation::kReference, true);
    const NaiveError naive = measure_naive_error(alone, reference);
    own.dbeta = reference.dbeta;  // judged below, as a sum
    own.dlambda = reference.dlambda;
    expect_follows_rule(alone, own, reference, naive);
    expect_survivors(alone, own.survivors);
    add(naive, parameter_error);
    add(reference.dbeta, dbeta);
    add(reference.dlambda, dlambda);
  }
  EXPECT_TRUE(follows_rule(packed.parameter_type(), ours.dbeta, dbeta, parameter_error.dbeta)) << "dbeta";
  if (packed.options.views == 1) return;
  EXPECT_TRUE(follows_rule(packed.parameter_type(), ours.dlambda, dlambda, parameter_error.dlambda)) << "dlambda";
}

TEST_P(PackedDocumentsTest, FollowTheReferenceOfEveryDocument) {
  std::uint64_t seed = 100;
  for (const Packing& packing : kPackings) {
    for (const double power : {2.0, 3.0}) {
      SCOPED_TRACE(std::string(packing.name) + ", power " + std::to_string(power));
      expect_follows_documents(packed_case(packing.lengths, packing.shape, options(power), packing.layouts, ++seed));
    }
  }
}

// What happens in one document stays there: NaN in a key of the second one.
TEST_P(PackedDocumentsTest, DoNotDisturbTheirNeighbours) {
  const DocumentLengths lengths{{50, 50}, {20, 33}, {64, 70}};
  const AttentionCase packed = packed_case(lengths, {0, 2, 2, 0, 0, 64, 64}, options(), {}, 8);
  AttentionCase spoiled = packed;
  spoiled.k[0].set(0, 1, packed.key_offsets[1] + 3, 5, std::nan(""));
  const Results before = run(packed, Implementation::kOperator, true);
  const Results after = run(spoiled, Implementation::kOperator, true);
  for (const std::int64_t d : {0, 2}) {
    const Results x = document_results(packed, before, d), y = document_results(packed, after, d);
    EXPECT_EQ(x.output, y.output);
    EXPECT_EQ(x.dq[0], y.dq[0]);
    EXPECT_EQ(x.dk[0], y.dk[0]);
    EXPECT_EQ(x.dv, y.dv);
  }
  const Results own = document_results(packed, after, 1);
  EXPECT_TRUE(std::isnan(own.output.back()));
  EXPECT_TRUE(std::isnan(after.dbeta[1]));
  EXPECT_FALSE(std::isnan(after.dbeta[0]));
}

// Nor does a document that is not finite anywhere reach those before and behind it.
TEST_P(PackedDocumentsTest, AreSafeFromNeighboursThatAreNotFinite) {
  for (const std::int64_t dim : {64, 128}) {
    SCOPED_TRACE(dim);
    const AttentionCase packed =
        packed_case({{50, 50}, {20, 33}, {64, 70}}, {0, 2, 1, 0, 0, dim, dim}, options(), {}, 9);
    AttentionCase spoiled = packed;
    const auto spoil = [&](TensorBuffer& tensor, const std::vector<std::int32_t>& offsets) {
      for (std::int64_t h = 0; h < tensor.sizes()[1]; ++h) {
        for (std::int64_t t = offsets[1]; t < offsets[2]; ++t) {
          for (std::int64_t c = 0; c < dim; ++c) tensor.set(0, h, t, c, std::nan(""));
        }
      }
    };
    for (TensorBuffer& q : spoiled.q) spoil(q, packed.query_offsets);
    for (TensorBuffer& k : spoiled.k) spoil(k, packed.key_offsets);
    spoil(spoiled.v[0], packed.key_offsets);
    spoil(spoiled.d_output[0], packed.query_offsets);
    const Results before = run(packed, Implementation::kOperator, true);
    const Results after = run(spoiled, Implementation::kOperator, true);
    for (const std::int64_t d : {0, 2}) {
      const Results x = document_results(packed, before, d), y = document_results(packed, after, d);
      EXPECT_EQ(x.output, y.output);
      EXPECT_EQ(x.survivors, y.survivors);
      EXPECT_EQ(x.dq[0], y.dq[0]);
      EXPECT_EQ(x.dk[0], y.dk[0]);
      EXPECT_EQ(x.dv, y.dv);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(TypesAndViews, PackedDocumentsTest,
                         testing::Combine(testing::Values(DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16,
                                                          DataType::kFloat64),
                                          testing::Values(1, 2)));

}  // namespace
}  // namespace tda::test
