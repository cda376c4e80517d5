#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention_benchmark.h"
#include "attention/input_regimes.h"
#include "cli/command.h"
#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {
namespace {

struct BenchOptions {
  bench::BenchmarkOptions benchmark;
  std::string device = "cpu";
  std::optional<std::filesystem::path> output;
  std::string commit;
};

void require_known(const std::string& option, const std::vector<std::string>& values,
                   const std::vector<std::string>& known) {
  for (const std::string& value : values) {
    if (std::find(known.begin(), known.end(), value) != known.end()) continue;
    throw Error(fmt::format("{} is {}, expected one of {}", option, value, fmt::join(known, ", ")));
  }
}

void check(const BenchOptions& options) {
  if (options.device != "cpu") {
    throw Error(fmt::format("--device is {}, expected cpu", options.device), "scripts/gpu/bench.sh measures on a GPU");
  }
  require_known("--regimes", options.benchmark.regimes, bench::regime_names());
  require_known("--types", options.benchmark.types, {"fp32", "bf16"});
  for (const std::int64_t length : options.benchmark.lengths) {
    if (length < 1) throw Error(fmt::format("--lengths holds {}, expected 1 or more", length));
  }
  if (options.benchmark.dim < 1 || options.benchmark.dim > 256) {
    throw Error(fmt::format("--dim is {}, expected 1 to 256", options.benchmark.dim));
  }
  if (options.benchmark.heads < 1) {
    throw Error(fmt::format("--heads is {}, expected 1 or more", options.benchmark.heads));
  }
  if (options.benchmark.threads < 0) {
    throw Error(fmt::format("--threads is {}, expected 0 or more", options.benchmark.threads));
  }
  if (!(options.benchmark.seconds > 0.0 && options.benchmark.seconds <= 3600.0)) {
    throw Error(fmt::format("--seconds is {}, expected more than 0 and at most 3600", options.benchmark.seconds));
  }
  // Found out now rather than after minutes of measuring.
  if (options.output && options.output->has_parent_path() && !is_directory(options.output->parent_path())) {
    throw Error(fmt::format("--output: there is no folder {}", options.output->parent_path().string()));
  }
  if (options.output) require_writable(*options.output);
}

std::string processor_name() {
  std::ifstream information("/proc/cpuinfo");
  for (std::string line; std::getline(information, line);) {
    const auto colon = line.find(':');
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

void print_header() {
  fmt::print("{:>7} {:>6}  {:<4} {:<8} {:<9} {:<4} {:>5} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>10}\n", "ratio",
             "goal", "", "pass", "regime", "type", "T", "ours ms", "SDPA ms", "ours GF/s", "SDPA GF/s", "ours MiB",
             "SDPA MiB", "survive %");
}

void print_row(const bench::BenchmarkRow& row) {
  constexpr double mebibyte = 1024.0 * 1024.0;
  const std::string goal = row.goal ? fmt::format("{:.1f}{}", *row.goal, row.ratio() >= *row.goal ? " " : "!") : "- ";
  fmt::print(
      "{:>6.2f}x {:>6}  {:<4} {:<8} {:<9} {:<4} {:>5} {:>10.3f} {:>10.3f} {:>9.0f} {:>9.0f} {:>9.2f} {:>9.2f} "
      "{:>10.3f}\n",
      row.ratio(), goal, row.mechanism, row.pass, row.regime, row.type, row.length, row.ours_ms, row.peer_ms,
      row.ours_gflops, row.peer_gflops, static_cast<double>(row.ours_extra_bytes) / mebibyte,
      static_cast<double>(row.peer_extra_bytes) / mebibyte, row.survivors_percent);
  std::fflush(stdout);
}

nlohmann::ordered_json to_json(const bench::BenchmarkRow& row) {
  nlohmann::ordered_json json;
  json["mechanism"] = row.mechanism;
  json["pass"] = row.pass;
  json["regime"] = row.regime;
  json["type"] = row.type;
  json["length"] = row.length;
  json["ratio"] = row.ratio();
  json["goal"] = row.goal ? nlohmann::ordered_json(*row.goal) : nlohmann::ordered_json(nullptr);
  json["ours_ms"] = row.ours_ms;
  json["sdpa_ms"] = row.peer_ms;
  json["ours_gflops"] = row.ours_gflops;
  json["sdpa_gflops"] = row.peer_gflops;
  json["ours_extra_bytes"] = row.ours_extra_bytes;
  json["sdpa_extra_bytes"] = row.peer_extra_bytes;
  json["survivors_percent"] = row.survivors_percent;
  json["runs"] = row.runs;
  return json;
}

int run_bench(const BenchOptions& options) {
  check(options);
  nlohmann::ordered_json document;
  print_header();
  const auto notes = bench::run_attention_benchmark(options.benchmark, [&](const bench::BenchmarkRow& row) {
    print_row(row);
    document["rows"].push_back(to_json(row));
  });
  for (const std::string& note : notes) fmt::print("{}\n", note);
  fmt::print(
      "ratio: SDPA time / ours, medians of interleaved runs, {} threads. SDPA is PyTorch {}'s, causal, one attention.\n"
      "GF/s: dense causal work done or skipped per second. MiB: peak beyond inputs, output and gradients (backward: "
      "with\n"
      "what the forward saved). goal !: missed.\n",
      at::get_num_threads(), TORCH_VERSION);
  if (!options.output) return 0;
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  document["date"] = date;
  document["processor"] = processor_name();
  document["threads"] = at::get_num_threads();
  document["torch"] = TORCH_VERSION;
  document["tda"] = TDA_VERSION;
  document["commit"] = options.commit;
  document["heads"] = options.benchmark.heads;
  document["dim"] = options.benchmark.dim;
  document["notes"] = notes;
  replace_file(*options.output, document.dump(1) + "\n");
  return 0;
}

}  // namespace

void add_bench_command(CLI::App& program, Invocation& invocation) {
  CLI::App* group = program.add_subcommand("bench", "Measure speed beside the best alternatives");
  group->require_subcommand(0, 1);
  auto options = std::make_shared<BenchOptions>();
  const char* data = std::getenv("TDA_DATA");
  options->benchmark.data = data ? data : "../shared/data";
  CLI::App* command = group->add_subcommand("attention", "The operator beside PyTorch's scaled_dot_product_attention");
  command->add_option("--device", options->device, "cpu")->capture_default_str();
  command->add_option("--lengths", options->benchmark.lengths, "Tokens")->delimiter(',')->capture_default_str();
  command->add_option("--regimes", options->benchmark.regimes, "Of random,trained,planted-8,dense; default: all")
      ->delimiter(',');
  command->add_option("--types", options->benchmark.types, "Of fp32,bf16")->delimiter(',')->capture_default_str();
  command->add_option("--heads", options->benchmark.heads, "Batch times heads")->capture_default_str();
  command->add_option("--dim", options->benchmark.dim, "Head dimension")->capture_default_str();
  command->add_option("--threads", options->benchmark.threads, "CPU threads; 0: PyTorch's choice")
      ->capture_default_str();
  command->add_option("--seconds", options->benchmark.seconds, "Seconds of the peer's time in one row")
      ->capture_default_str();
  command->add_option("--data", options->benchmark.data, "Folder with trained_qkv (default: TDA_DATA)");
  command->add_option("--commit", options->commit, "Noted in the output");
  command->add_option("--output", options->output, "JSON file with every row");
  command->callback([options, &invocation] { invocation.run = [options] { return run_bench(*options); }; });
}

}  // namespace tda
