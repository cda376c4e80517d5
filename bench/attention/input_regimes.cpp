#include "attention/input_regimes.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/stack.h>

#include <fstream>
#include <stdexcept>

namespace tda::bench {
namespace {

constexpr std::uint64_t kSeed = 1337;
constexpr std::int64_t kKeysPerDirection = 8;
constexpr InputShape kTrainedShape{12, 4096, 64};

at::Tensor unit(const at::Tensor& x) { return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, true); }

// Rows near the directions that `choice` names.
at::Tensor near_directions(const at::Tensor& directions, const at::Tensor& choice, const at::Generator& generator) {
  const at::Tensor noise = unit(at::randn({choice.size(0), directions.size(1)}, generator));
  return unit(directions.index_select(0, choice) + 0.2 * noise);
}

void plant(RegimeInputs& inputs, const InputShape& shape, const at::Generator& generator) {
  for (int view = 0; view < 2; ++view) {
    std::vector<at::Tensor> queries, keys;
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::int64_t count = (shape.length + kKeysPerDirection - 1) / kKeysPerDirection;
      const at::Tensor directions = unit(at::randn({count, shape.dim}, generator));
      const at::Tensor owner = at::randperm(shape.length, generator).remainder(count);
      keys.push_back(near_directions(directions, owner, generator));
      queries.push_back(near_directions(directions, at::randint(count, {shape.length}, generator), generator));
    }
    inputs.q[view] = at::stack(queries).unsqueeze(0);
    inputs.k[view] = at::stack(keys).unsqueeze(0);
  }
}

at::Tensor read_bfloat16(const std::filesystem::path& file, const InputShape& shape) {
  at::Tensor whole = at::empty({1, kTrainedShape.heads, kTrainedShape.length, kTrainedShape.dim}, at::kBFloat16);
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(static_cast<char*>(whole.mutable_data_ptr()), static_cast<std::streamsize>(whole.nbytes()))) {
    throw std::runtime_error(file.string() + ": expected " + std::to_string(whole.nbytes()) + " bytes of bfloat16");
  }
  return whole.narrow(2, 0, shape.length).contiguous();
}

bool load_trained(RegimeInputs& inputs, const InputShape& shape, const std::filesystem::path& data) {
  const auto folder = data / "trained_qkv";
  if (!std::filesystem::is_directory(folder) || shape.heads != kTrainedShape.heads || shape.dim != kTrainedShape.dim ||
      shape.length > kTrainedShape.length) {
    return false;
  }
  inputs.q[0] = read_bfloat16(folder / "layer4_q1_1x12x4096x64.bf16", shape);
  inputs.k[0] = read_bfloat16(folder / "layer4_k1_1x12x4096x64.bf16", shape);
  inputs.q[1] = read_bfloat16(folder / "layer4_q2_1x12x4096x64.bf16", shape);
  inputs.k[1] = read_bfloat16(folder / "layer4_k2_1x12x4096x64.bf16", shape);
  inputs.v = read_bfloat16(folder / "layer4_v_1x12x4096x64.bf16", shape);
  inputs.beta = 1.0352;
  inputs.lambda = 0.3789;
  return true;
}

}  // namespace

const std::vector<std::string>& regime_names() {
  static const std::vector<std::string> names{"random", "trained", "planted-8", "dense"};
  return names;
}

std::optional<RegimeInputs> make_inputs(const std::string& regime, const InputShape& shape, at::ScalarType type,
                                        const std::filesystem::path& data) {
  const at::Generator generator = at::detail::createCPUGenerator(kSeed);
  RegimeInputs inputs;
  if (regime == "trained") {
    if (!load_trained(inputs, shape, data)) return std::nullopt;
  } else {
    const auto normal = [&] { return at::randn({1, shape.heads, shape.length, shape.dim}, generator); };
    for (at::Tensor* x : {&inputs.q[0], &inputs.k[0], &inputs.q[1], &inputs.k[1], &inputs.v}) *x = normal();
    if (regime == "planted-8") plant(inputs, shape, generator);
    if (regime == "dense") inputs.beta = 0.0;
  }
  for (at::Tensor* x : {&inputs.q[0], &inputs.k[0], &inputs.q[1], &inputs.k[1], &inputs.v}) *x = x->to(type);
  return inputs;
}

}  // namespace tda::bench
