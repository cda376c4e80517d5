// AdamW (Loshchilov and Hutter, arXiv 1711.05101): Adam with bias correction and decoupled weight decay.
//
//   w -= lr·decay·w (matrices only);  m = β1·m + (1-β1)·g;  v = β2·v + (1-β2)·g²
//   w -= lr · (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + ε)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lm/model/parameter.h"
#include "lm/training/shard.h"

namespace tda {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
};

class AdamW {
 public:
  // Parameters without requires_grad() are left alone. Moments start at zero on the device of their parameter. With
  // `shard`, step() updates and holds moments for those elements only.
  AdamW(const std::vector<NamedParameter>& parameters, const AdamWOptions& options,
        const std::optional<Shard>& shard = std::nullopt);

  // Scales all gradients by min(1, limit / norm) where norm is their global L2 norm, and returns norm. limit 0 only
  // measures. A parameter that took no part in the loss counts as zero.
  double clip_gradients(double limit);

  // One update from the gradients that the parameters hold.
  void step(double learning_rate);

  void clear_gradients();

  // Updates done so far: t of the bias correction.
  std::int64_t steps() const { return steps_; }

  // From the flat shards of all processes, (count) each, the whole, (size · count): ProcessGroup::all_gather().
  using GatherShards = std::function<at::Tensor(const at::Tensor& part)>;
  // The moments whole, `first_moment.NAME` and `second_moment.NAME`, fp32, in the order of the file. A sharded
  // optimizer needs `gather`, and all processes call this together.
  std::vector<std::pair<std::string, at::Tensor>> moments(const GatherShards& gather = {}) const;

  // moments() as safetensors; load() takes its part of them. Throws Error naming file and tensor when one is missing or
  // has another shape.
  void save(const std::filesystem::path& file, const GatherShards& gather = {}) const;
  void load(const std::filesystem::path& file, std::int64_t steps);

 private:
  // One parameter, and what of it is updated: all, or the elements of the shard, flat.
  struct Piece {
    std::string name;
    at::Tensor parameter;
    std::int64_t place = 0;             // of the parameter among the trainable ones laid end to end
    std::int64_t first = 0, count = 0;  // elements of the parameter
    at::Tensor values, first_moment, second_moment, step;
    bool is_whole() const { return count == parameter.numel(); }
    at::Tensor of(const at::Tensor& tensor) const;  // the piece of a tensor that has the parameter's shape
  };
  struct Group {
    std::vector<Piece> pieces;
    double weight_decay = 0.0;
  };
  Piece make_piece(const NamedParameter& parameter, std::int64_t place) const;
  static at::Tensor gradient(const Piece& piece);
  at::Tensor gather_flat(at::Tensor Piece::*moment, const GatherShards& gather) const;

  AdamWOptions options_;
  std::optional<Shard> shard_;
  std::vector<Group> groups_;  // with decay, without
  std::int64_t steps_ = 0;
};

}  // namespace tda
