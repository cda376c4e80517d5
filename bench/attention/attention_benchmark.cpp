#include "attention/attention_benchmark.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <chrono>

#include "attention/input_regimes.h"
#include "attention/peak_memory.h"
#include "torch/threshold_attention.h"

namespace tda::bench {
namespace {

using torch::autograd::variable_list;

constexpr int kFewestRuns = 5, kMostRuns = 51;

// Wanted ratios at 4,096 tokens; nothing is wanted elsewhere.
std::optional<double> goal(const BenchmarkRow& row) {
  if (row.length != 4096) return std::nullopt;
  const bool sparse = row.regime == "random" || row.regime == "trained";
  if (row.mechanism == "TDA") {
    if (row.pass == "forward" && sparse && row.type == "fp32") return 2.2;
    return std::nullopt;
  }
  if (row.pass == "forward") {
    if (sparse) return row.type == "fp32" ? 4.5 : 8.0;
    return row.regime == "dense" ? std::optional(1.2) : std::nullopt;
  }
  if (row.regime == "trained") return 40.0;
  return row.regime == "dense" ? std::optional(1.0) : std::nullopt;
}

double milliseconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Interleaved runs, so that whatever else the machine does falls on both alike.
void time_both(const std::function<void()>& ours, const std::function<void()>& peer, double seconds,
               BenchmarkRow& row) {
  ours();
  peer();
  const double once = milliseconds(peer);
  row.runs = std::clamp(static_cast<int>(seconds * 1000.0 / once), kFewestRuns, kMostRuns);
  std::vector<double> ours_times, peer_times;
  for (int run = 0; run < row.runs; ++run) {
    ours_times.push_back(milliseconds(ours));
    peer_times.push_back(milliseconds(peer));
  }
  row.ours_ms = median(ours_times);
  row.peer_ms = median(peer_times);
}

// One attention function over leaves that can be differentiated.
struct Subject {
  variable_list leaves;
  std::function<at::Tensor()> forward;
  int products_forward = 2, products_backward = 5;  // matrix products of a dense causal computation
};

variable_list leaves_of(std::initializer_list<at::Tensor> tensors) {
  variable_list leaves;
  for (const at::Tensor& x : tensors) leaves.push_back(x.detach().requires_grad_(true));
  return leaves;
}

Subject make_peer(const RegimeInputs& inputs) {
  const variable_list x = leaves_of({inputs.q[0], inputs.k[0], inputs.v});
  return {x, [x] { return at::scaled_dot_product_attention(x[0], x[1], x[2], {}, 0.0, /*is_causal=*/true); }};
}

Subject make_ours(const RegimeInputs& inputs, int views) {
  const at::Tensor beta = at::full({inputs.v.size(1)}, inputs.beta), lambda = at::full_like(beta, inputs.lambda);
  if (views == 1) {
    const variable_list x = leaves_of({inputs.q[0], inputs.k[0], inputs.v, beta});
    return {x, [x] { return threshold_rela(x[0], x[1], x[2], x[3]); }};
  }
  const variable_list x = leaves_of({inputs.q[0], inputs.k[0], inputs.q[1], inputs.k[1], inputs.v, lambda, beta});
  // Both views share V: one PV product, one dP and one dV for two of everything else.
  return {x, [x] { return differential_threshold_rela(x[0], x[1], x[2], x[3], x[4], x[5], x[6]); }, 3, 8};
}

std::int64_t bytes_of(const variable_list& tensors) {
  std::int64_t bytes = 0;
  for (const at::Tensor& x : tensors) bytes += static_cast<std::int64_t>(x.nbytes());
  return bytes;
}

void measure_forward(const Subject& ours, const Subject& peer, double seconds, BenchmarkRow& row) {
  const at::NoGradGuard no_gradients;
  const auto extra = [](const Subject& subject) {
    at::Tensor output;
    const std::int64_t peak = peak_bytes([&] { output = subject.forward(); });
    return peak - static_cast<std::int64_t>(output.nbytes());
  };
  row.ours_extra_bytes = extra(ours);
  row.peer_extra_bytes = extra(peer);
  time_both([&] { ours.forward(); }, [&] { peer.forward(); }, seconds, row);
}

void measure_backward(const Subject& ours, const Subject& peer, double seconds, BenchmarkRow& row) {
  const auto gradients = [](const Subject& subject, const at::Tensor& output, const at::Tensor& cotangent) {
    return torch::autograd::grad({output}, subject.leaves, {cotangent}, /*retain_graph=*/true);
  };
  const auto extra = [&](const Subject& subject) {
    const at::Tensor cotangent = at::ones_like(subject.leaves[0]);
    at::Tensor output;
    variable_list results;
    const std::int64_t peak = peak_bytes([&] {
      output = subject.forward();
      results = gradients(subject, output, cotangent);
    });
    return peak - static_cast<std::int64_t>(output.nbytes()) - bytes_of(results);
  };
  row.ours_extra_bytes = extra(ours);
  row.peer_extra_bytes = extra(peer);
  const at::Tensor ours_output = ours.forward(), peer_output = peer.forward();
  const at::Tensor cotangent = at::randn(ours_output.sizes(), ours_output.options());
  time_both([&] { gradients(ours, ours_output, cotangent); }, [&] { gradients(peer, peer_output, cotangent); }, seconds,
            row);
}

double survivors_percent(const RegimeInputs& inputs, int views) {
  const at::NoGradGuard no_gradients;
  const at::Tensor beta = at::full({inputs.v.size(1)}, inputs.beta), lambda = at::full_like(beta, inputs.lambda);
  const OutputAndSurvivors result =
      views == 1 ? threshold_rela_with_survivors(inputs.q[0], inputs.k[0], inputs.v, beta)
                 : differential_threshold_rela_with_survivors(inputs.q[0], inputs.k[0], inputs.q[1], inputs.k[1],
                                                              inputs.v, lambda, beta);
  const auto heads = static_cast<double>(inputs.v.size(1)), length = static_cast<double>(inputs.v.size(2));
  return 100.0 * result.survivors.sum().item<double>() / (heads * length * (length + 1.0) / 2.0);
}

// The four rows of one input: both mechanisms, both passes.
void measure_input(const BenchmarkOptions& options, const RegimeInputs& inputs, BenchmarkRow row,
                   const std::function<void(const BenchmarkRow&)>& report) {
  const Subject peer = make_peer(inputs);
  for (int views = 1; views <= 2; ++views) {
    const Subject ours = make_ours(inputs, views);
    row.mechanism = views == 1 ? "TRA" : "TDA";
    row.survivors_percent = survivors_percent(inputs, views);
    for (const char* pass : {"forward", "backward"}) {
      row.pass = pass;
      row.goal = goal(row);
      const bool forward = row.pass == "forward";
      (forward ? measure_forward : measure_backward)(ours, peer, options.seconds, row);
      const double product = 1e-6 * static_cast<double>(options.heads * row.length * row.length * options.dim);
      row.ours_gflops = product * (forward ? ours.products_forward : ours.products_backward) / row.ours_ms;
      row.peer_gflops = product * (forward ? peer.products_forward : peer.products_backward) / row.peer_ms;
      report(row);
    }
  }
}

}  // namespace

std::vector<std::string> run_attention_benchmark(const BenchmarkOptions& options,
                                                 const std::function<void(const BenchmarkRow&)>& report) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  std::vector<std::string> notes;
  for (const std::int64_t length : options.lengths) {
    for (const std::string& type : options.types) {
      for (const std::string& regime : options.regimes.empty() ? regime_names() : options.regimes) {
        const auto inputs = make_inputs(regime, {options.heads, length, options.dim},
                                        type == "bf16" ? at::kBFloat16 : at::kFloat, options.data);
        if (!inputs) {
          notes.push_back("left out: " + regime + " at " + std::to_string(length) + " tokens: needs " +
                          (options.data / "trained_qkv").string() + ", 12 heads of 64, at most 4096 tokens");
          continue;
        }
        BenchmarkRow row;
        row.regime = regime;
        row.type = type;
        row.length = length;
        measure_input(options, *inputs, row, report);
      }
    }
  }
  return notes;
}

}  // namespace tda::bench
