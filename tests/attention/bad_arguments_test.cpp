// Wrong arguments come back as a Status that names the argument, its value and what was expected. Nothing aborts.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <ostream>

#include "attention_case.h"

namespace tda::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// A sound call of both passes, to be spoiled.
struct Call {
  AttentionShape shape{2, 4, 2, 10, 12, 16, 16};
  AttentionOptions options;
  std::vector<float> storage = std::vector<float>(2 * 4 * 12 * 32, 0.25F);
  std::vector<float> output = std::vector<float>(2 * 4 * 12 * 32);
  std::vector<float> beta = std::vector<float>(4, 0.5F), lambda = std::vector<float>(4, 0.5F);
  AttentionInputs inputs;
  ForwardOutputs forward;
  ConstTensor d_output;
  BackwardOutputs backward;
  const PackedDocuments* documents = nullptr;
  std::ptrdiff_t workspace_shortage = 0;
  std::ptrdiff_t workspace_offset = 0;

  Call() {
    options.views = 2;
    const ConstTensor tensor{storage.data(), 4 * 12 * 16, 12 * 16, 16};
    inputs = {{tensor, tensor}, {tensor, tensor}, tensor, beta.data(), lambda.data()};
    forward.output = {output.data(), 4 * 10 * 16, 10 * 16, 16};
    d_output = tensor;
    backward.dv = {output.data(), 2 * 12 * 16, 12 * 16, 16};
  }

  struct Answer {
    Status forward, backward;
  };

  Answer run() {
    std::vector<unsigned char> index(attention_survivor_index_bytes(shape, options, documents) + 64);
    forward.survivor_index = align(index);
    const auto with_workspace = [&](std::size_t bytes, const auto& body) {
      std::vector<unsigned char> memory(bytes + 128);
      return body(align(memory) + workspace_offset,
                  static_cast<std::size_t>(static_cast<std::ptrdiff_t>(bytes) - workspace_shortage));
    };
    Answer answer;
    answer.forward =
        with_workspace(attention_forward_workspace_bytes(shape, options, documents), [&](void* data, std::size_t size) {
          return attention_forward(shape, options, inputs, forward, data, size, documents);
        });
    answer.backward = with_workspace(
        attention_backward_workspace_bytes(shape, options, documents), [&](void* data, std::size_t size) {
          return attention_backward(shape, options, inputs, d_output, forward.survivor_index, backward, data, size,
                                    documents);
        });
    return answer;
  }

 private:
  static unsigned char* align(std::vector<unsigned char>& memory) {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
  }
};

struct Mistake {
  const char* argument;
  const char* value;  // as the message prints it
  std::function<void(Call&)> make;
};

std::ostream& operator<<(std::ostream& out, const Mistake& mistake) { return out << mistake.argument; }

class BadArguments : public testing::TestWithParam<Mistake> {};

TEST_P(BadArguments, AreNamedByBothPasses) {
  Call call;
  GetParam().make(call);
  const Call::Answer answer = call.run();
  for (const Status& status : {answer.forward, answer.backward}) {
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message.find(GetParam().argument), std::string::npos) << status.message;
    EXPECT_NE(status.message.find(GetParam().value), std::string::npos) << status.message;
    EXPECT_NE(status.message.find("expected"), std::string::npos) << status.message;
    EXPECT_EQ(status.message.find('\n'), std::string::npos) << "one line: " << status.message;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BadArguments,
                         testing::Values(Mistake{"batch", "-1", [](Call& c) { c.shape.batch = -1; }},
                                         Mistake{"query_heads", "3", [](Call& c) { c.shape.query_heads = 3; }},
                                         Mistake{"query_heads", "-4", [](Call& c) { c.shape.query_heads = -4; }},
                                         Mistake{"key_heads", "0", [](Call& c) { c.shape.key_heads = 0; }},
                                         Mistake{"key_heads", "-2", [](Call& c) { c.shape.key_heads = -2; }},
                                         Mistake{"query_length", "13", [](Call& c) { c.shape.query_length = 13; }},
                                         Mistake{"query_length", "-1", [](Call& c) { c.shape.query_length = -1; }},
                                         Mistake{"head_dim", "0", [](Call& c) { c.shape.head_dim = 0; }},
                                         Mistake{"head_dim", "257",
                                                 [](Call& c) { c.shape.head_dim = c.shape.value_dim = 257; }},
                                         Mistake{"value_dim", "17", [](Call& c) { c.shape.value_dim = 17; }}));

INSTANTIATE_TEST_SUITE_P(Options, BadArguments,
                         testing::Values(Mistake{"views", "3", [](Call& c) { c.options.views = 3; }},
                                         Mistake{"views", "0", [](Call& c) { c.options.views = 0; }},
                                         Mistake{"kappa", "0", [](Call& c) { c.options.kappa = 0.0; }},
                                         Mistake{"kappa", "-2", [](Call& c) { c.options.kappa = -2.0; }},
                                         Mistake{"kappa", "nan", [](Call& c) { c.options.kappa = kNaN; }},
                                         Mistake{"kappa", "inf", [](Call& c) { c.options.kappa = kInf; }},
                                         Mistake{"power", "0.5", [](Call& c) { c.options.power = 0.5; }},
                                         Mistake{"power", "nan", [](Call& c) { c.options.power = kNaN; }},
                                         Mistake{"threads", "-1", [](Call& c) { c.options.threads = -1; }},
                                         Mistake{"data_type", "9",
                                                 [](Call& c) { c.options.data_type = static_cast<DataType>(9); }}));

INSTANTIATE_TEST_SUITE_P(Inputs, BadArguments,
                         testing::Values(Mistake{"q[0]", "null", [](Call& c) { c.inputs.q[0].data = nullptr; }},
                                         Mistake{"k[1]", "null", [](Call& c) { c.inputs.k[1].data = nullptr; }},
                                         Mistake{"v", "null", [](Call& c) { c.inputs.v.data = nullptr; }},
                                         Mistake{"beta", "null", [](Call& c) { c.inputs.beta = nullptr; }},
                                         Mistake{"lambda", "null", [](Call& c) { c.inputs.lambda = nullptr; }},
                                         Mistake{"beta[2]", "nan", [](Call& c) { c.beta[2] = std::nanf(""); }},
                                         Mistake{"lambda[3]", "inf", [](Call& c) { c.lambda[3] = HUGE_VALF; }}));

TEST(BadArguments, SoundCallIsAccepted) {
  const Call::Answer answer = Call().run();
  EXPECT_TRUE(answer.forward.ok()) << answer.forward.message;
  EXPECT_TRUE(answer.backward.ok()) << answer.backward.message;
}

TEST(BadArguments, NullOutputAndCotangent) {
  Call call;
  call.forward.output.data = nullptr;
  EXPECT_NE(call.run().forward.message.find("output"), std::string::npos);
  call.d_output.data = nullptr;
  EXPECT_NE(call.run().backward.message.find("d_output"), std::string::npos);
}

TEST(BadArguments, SmallOrMisalignedWorkspace) {
  Call call;
  call.workspace_shortage = 1;
  const Status small = call.run().forward;
  EXPECT_NE(small.message.find("workspace"), std::string::npos) << small.message;
  call.workspace_shortage = 0;
  call.workspace_offset = 4;
  const Status misaligned = call.run().forward;
  EXPECT_NE(misaligned.message.find("workspace"), std::string::npos) << misaligned.message;
  EXPECT_NE(misaligned.message.find("64"), std::string::npos) << misaligned.message;
}

// A sound call with packed documents, to be spoiled: three documents, one of them empty.
struct PackedCall {
  Call call;
  std::vector<std::int32_t> query_offsets{0, 4, 4, 10}, key_offsets{0, 5, 5, 12};
  PackedDocuments documents{query_offsets.data(), key_offsets.data(), 3, 6, 7};

  PackedCall() {
    call.shape.batch = 1;
    call.documents = &documents;
  }
};

struct PackedMistake {
  const char* argument;
  const char* value;
  std::function<void(PackedCall&)> make;
};

std::ostream& operator<<(std::ostream& out, const PackedMistake& mistake) { return out << mistake.argument; }

class BadDocuments : public testing::TestWithParam<PackedMistake> {};

TEST_P(BadDocuments, AreNamedByBothPasses) {
  PackedCall packed;
  GetParam().make(packed);
  const Call::Answer answer = packed.call.run();
  for (const Status& status : {answer.forward, answer.backward}) {
    EXPECT_EQ(status.message.find(std::string(GetParam().argument) + " is " + GetParam().value), 0U) << status.message;
    EXPECT_NE(status.message.find("expected"), std::string::npos) << status.message;
    EXPECT_EQ(status.message.find('\n'), std::string::npos) << "one line: " << status.message;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Packed, BadDocuments,
    testing::Values(
        PackedMistake{"batch", "2", [](PackedCall& c) { c.call.shape.batch = 2; }},
        PackedMistake{"documents.count", "0", [](PackedCall& c) { c.documents.count = 0; }},
        PackedMistake{"documents.longest_query", "11", [](PackedCall& c) { c.documents.longest_query = 11; }},
        PackedMistake{"documents.longest_key", "5", [](PackedCall& c) { c.documents.longest_key = 5; }},
        PackedMistake{"documents.longest_key", "13", [](PackedCall& c) { c.documents.longest_key = 13; }},
        PackedMistake{"documents.longest_key", "0",
                      [](PackedCall& c) { c.documents.longest_query = c.documents.longest_key = 0; }},
        PackedMistake{"documents.query_offsets", "null", [](PackedCall& c) { c.documents.query_offsets = nullptr; }},
        PackedMistake{"documents.key_offsets", "null", [](PackedCall& c) { c.documents.key_offsets = nullptr; }},
        PackedMistake{"documents.query_offsets[0]", "1", [](PackedCall& c) { c.query_offsets[0] = 1; }},
        PackedMistake{"documents.query_offsets[2]", "3", [](PackedCall& c) { c.query_offsets[2] = 3; }},
        PackedMistake{"documents.query_offsets[3]", "9", [](PackedCall& c) { c.query_offsets[3] = 9; }},
        PackedMistake{"documents.key_offsets[3]", "11", [](PackedCall& c) { c.key_offsets[3] = 11; }},
        PackedMistake{"documents.key_offsets[3]", "12", [](PackedCall& c) { c.documents.longest_key = 6; }},
        PackedMistake{"documents.query_offsets", "6 queries long in document 2", [](PackedCall& c) {
                        c.key_offsets = {0, 7, 7, 12};
                        c.documents.key_offsets = c.key_offsets.data();
                      }}));

TEST(BadDocuments, SoundCallIsAccepted) {
  PackedCall packed;
  const Call::Answer answer = packed.call.run();
  EXPECT_TRUE(answer.forward.ok()) << answer.forward.message;
  EXPECT_TRUE(answer.backward.ok()) << answer.backward.message;
}

TEST(BadArguments, NoQueriesIsNoMistake) {
  Call call;
  call.shape.query_length = 0;
  std::fill(call.output.begin(), call.output.end(), std::nanf(""));
  const Call::Answer answer = call.run();
  EXPECT_TRUE(answer.forward.ok()) << answer.forward.message;
  EXPECT_TRUE(answer.backward.ok()) << answer.backward.message;
  // Keys and values exist and nobody attends to them.
  for (std::size_t i = 0; i < 2 * 2 * 12 * 16; ++i) ASSERT_EQ(call.output[i], 0.0F);
  call.shape.query_length = 10;
  call.shape.batch = 0;
  EXPECT_TRUE(call.run().forward.ok());
}

}  // namespace
}  // namespace tda::test
