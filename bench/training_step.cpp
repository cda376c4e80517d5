// Times forward, backward and AdamW of one micro-batch: training_step CONFIG.json BATCH LENGTH fp32|bf16 STEPS
// Prints the median and the fastest milliseconds of a step, and tokens per second at the fastest.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lm/model/gpt.h"
#include "lm/training/adamw.h"

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: training_step CONFIG.json BATCH LENGTH fp32|bf16 STEPS\n");
    return 2;
  }
  std::ifstream file(argv[1]);
  tda::Gpt model(tda::ModelConfig::from_json(nlohmann::json::parse(file), argv[1]));
  model.initialize(1337);
  model.set_precision(tda::parse_precision(argv[4]));
  const auto tokens = at::randint(0, 256, {std::stoll(argv[2]), std::stoll(argv[3]) + 1}, at::kLong);
  const auto ids = tokens.slice(1, 0, -1).contiguous(), targets = tokens.slice(1, 1).contiguous();
  tda::AdamW optimizer(model.parameters(), {});
  std::vector<double> milliseconds;
  for (int step = 0; step < std::stoi(argv[5]) + 2; ++step) {
    const auto start = std::chrono::steady_clock::now();
    optimizer.clear_gradients();
    model.loss(ids, targets).backward();
    optimizer.step(1e-4);
    model.after_optimizer_step();
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    if (step >= 2) milliseconds.push_back(elapsed.count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::printf("{\"median_ms\": %.2f, \"fastest_ms\": %.2f, \"tokens_per_second\": %.0f, \"parameters\": %lld}\n",
              milliseconds[milliseconds.size() / 2], milliseconds.front(),
              static_cast<double>(ids.numel()) / milliseconds.front() * 1e3,
              static_cast<long long>(model.parameter_count().total));
  return 0;
}
