// The operator beside PyTorch's scaled_dot_product_attention on the CPU, in one process, at the same data type and
// thread count.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace tda::bench {

struct BenchmarkOptions {
  std::vector<std::int64_t> lengths{1024, 4096};
  std::vector<std::string> regimes;  // empty: all
  std::vector<std::string> types{"fp32", "bf16"};
  std::int64_t heads = 12;  // batch times heads
  std::int64_t dim = 64;
  int threads = 0;       // 0: as many as PyTorch chose
  double seconds = 1.0;  // time to spend on the peer in one row; ours runs as often
  std::filesystem::path data;
};

// One comparison. Times are medians of interleaved runs.
struct BenchmarkRow {
  std::string mechanism;  // "TRA" (one view) or "TDA" (two views, compared with one attention of the peer)
  std::string pass;       // "forward" or "backward"
  std::string regime;
  std::string type;
  std::int64_t length = 0;
  int runs = 0;
  double ours_ms = 0.0, peer_ms = 0.0;
  // Work of dense causal attention per second, B H T^2 D per matrix product (2 per multiply-add, half of all pairs).
  // Products forward: 2 (one view, peer), 3 (two views). Backward: 5 and 8. What is skipped counts as done.
  double ours_gflops = 0.0, peer_gflops = 0.0;
  // Peak beyond inputs, output and gradients; a backward row counts what its forward saved for it.
  std::int64_t ours_extra_bytes = 0, peer_extra_bytes = 0;
  double survivors_percent = 0.0;  // share of causal pairs with a non-zero weight
  std::optional<double> goal;      // wanted ratio

  double ratio() const { return peer_ms / ours_ms; }
};

// Runs every combination and hands each finished row to `report`. Returns notes on what was left out.
std::vector<std::string> run_attention_benchmark(const BenchmarkOptions& options,
                                                 const std::function<void(const BenchmarkRow&)>& report);

}  // namespace tda::bench
