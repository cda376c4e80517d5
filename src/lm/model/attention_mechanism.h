// An attention mechanism: what happens between the projections of a layer and its output matrix.
//
// The layer owns the projections query*/key*/value/output, RoPE and the key-value cache; a mechanism declares how many
// views and heads it wants and which parameters it adds, and turns projected heads into the input of `output`.
// To add one: write mechanisms/NAME.cpp with a `make_NAME` and add its line to mechanisms/registry.h. A program that
// links this library adds its own with a RegisteredMechanism.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lm/model/model_config.h"
#include "lm/model/parameter.h"

namespace tda {

// How a layer's projections are cut into heads. Head h owns rows h*head_dim.. of every query and key matrix, rows
// h*value_dim.. of value, and columns h*value_dim.. of output.
struct HeadLayout {
  int views = 1;  // 1: query, key; 2: query1, key1, query2, key2
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
};

// H heads of width/H for queries, keys and values.
HeadLayout one_view_layout(const ModelConfig& config);
// kFull: the same with a second query and key. kHalved: H/2 heads, queries and keys of width/H, values of twice that,
// as in the Differential Transformer; the projections then hold as many parameters as those of one view.
HeadLayout two_view_layout(const ModelConfig& config, ViewHeads view_heads);

// One layer's heads after RoPE, in the mechanism's head_type(), unit last stride, any other strides.
struct ProjectedHeads {
  std::array<at::Tensor, 2> q;  // (B, H, T_q, D); the second only with two views
  std::array<at::Tensor, 2> k;  // (B, H, T_k, D); queries are the last T_q positions
  at::Tensor v;                 // (B, H, T_k, D_v)
  at::Tensor hidden;       // (B, T_q, W): the normalized input of the layer, for gates computed from the query token
  std::int64_t layer = 0;  // from 0: some start values depend on depth
  // ThresholdOptions' counters of this layer; none while decoding, where a call has a single query.
  std::optional<at::Tensor> screening_counters;
};

// (B, H, T, D) -> (B, T, H*D), what `output` takes.
at::Tensor joined_heads(const at::Tensor& rows);

// Dense weights for analysis, fp32 (B, H, T_q, T_k), 0 above the diagonal. For a differential mechanism `effective` is
// the signed map a1 - lambda a2 that multiplies V; otherwise it is the only view.
struct AttentionMaps {
  std::vector<at::Tensor> views;
  at::Tensor effective;
};

// Per head, int64 (H): causal pairs, how many of them carry an exact 0 in the effective map, rows, and rows that are
// zero throughout. Summed over the batch.
struct WeightCounts {
  std::int64_t pairs = 0;
  std::int64_t rows = 0;
  at::Tensor zeros;
  at::Tensor empty_rows;
};

class AttentionMechanism {
 public:
  virtual ~AttentionMechanism() = default;

  virtual HeadLayout layout() const = 0;
  // What is added to the projections, in file order, named relative to "layers.{l}.attention.".
  virtual std::vector<ParameterSpec> parameters(std::int64_t layer) const = 0;

  // The dtype that attend() wants its heads in, for a model that computes in `compute`.
  virtual at::ScalarType head_type(at::ScalarType compute, at::Device) const { return compute; }

  // (B, T_q, H*D_v) in the dtype of v, ready for `output`. `parameters` are the fp32 tensors declared above, in order.
  virtual at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const = 0;

  // Zeros of the effective map. Takes maps() of some rows after the others, so that memory does not grow with T^2; a
  // mechanism that knows a faster way overrides it.
  virtual WeightCounts count(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const;

  // Dense, hence for analysis of sequences that fit: 4*B*H*T^2 bytes a map.
  virtual AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const = 0;
};

// Throws Error naming the nearest mechanism when config.mechanism is not registered.
std::unique_ptr<AttentionMechanism> make_attention_mechanism(const ModelConfig& config);

// Registered names, in the order of docs/mechanisms.md.
std::vector<std::string_view> attention_mechanism_names();

using MechanismMaker = std::unique_ptr<AttentionMechanism> (*)(const ModelConfig&);

// A mechanism from outside this library, registered behind the others while this object lives:
//   const tda::RegisteredMechanism registered("my_mechanism", make_my_mechanism);
// at namespace scope makes recipes and checkpoints know the name. Not for use beside other threads that make models.
class RegisteredMechanism {
 public:
  // Throws Error when the name is taken.
  RegisteredMechanism(std::string name, MechanismMaker make);
  ~RegisteredMechanism();
  RegisteredMechanism(const RegisteredMechanism&) = delete;
  RegisteredMechanism& operator=(const RegisteredMechanism&) = delete;

 private:
  std::string name_;
};

}  // namespace tda
