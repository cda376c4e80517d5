// What attention_cuda_forward says about bad counters and choices of the screen, before it looks for a device.
#include <gtest/gtest.h>

#include "tda/attention_cuda.h"

namespace tda::test {
namespace {

std::string message_of(const CudaAttentionOptions& choice) {
  const AttentionShape shape{1, 2, 1, 16, 16, 64, 64};
  float values[1] = {};
  const ConstTensor tensor{values, 1, 1, 1};
  AttentionInputs inputs;
  inputs.q[0] = inputs.k[0] = inputs.v = tensor;
  inputs.beta = values;
  ForwardOutputs outputs;
  outputs.output.data = values;
  AttentionOptions options;
  options.data_type = DataType::kBFloat16;
  return attention_cuda_forward(shape, options, inputs, outputs, nullptr, 0, nullptr, choice).message;
}

TEST(ScreeningArguments, RefusesCountersThatAreNotAligned) {
  CudaAttentionOptions choice;
  choice.screening_counters = reinterpret_cast<ScreeningCounters*>(std::uintptr_t{0x1002});
  EXPECT_EQ(message_of(choice), "screening_counters is 0x1002, expected an address that is a multiple of 4");
}

TEST(ScreeningArguments, RefusesAnUnknownChoice) {
  CudaAttentionOptions choice;
  choice.screening = static_cast<Screening>(7);
  EXPECT_EQ(message_of(choice), "screening is 7, expected kAutomatic, kAlways or kNever");
}

TEST(ScreeningArguments, TakesTheOthers) {
  for (const Screening screening : {Screening::kAutomatic, Screening::kAlways, Screening::kNever}) {
    CudaAttentionOptions choice;
    choice.screening = screening;
    EXPECT_EQ(message_of(choice).find("workspace is null"), 0u);
  }
}

}  // namespace
}  // namespace tda::test
