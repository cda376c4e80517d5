#include "lm/analysis/run_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>
#include <utility>

#include "lm/analysis/attention_measurement.h"
#include "lm/analysis/attention_report.h"
#include "lm/analysis/example_sentence.h"
#include "lm/analysis/run_history.h"
#include "lm/error.h"
#include "lm/evaluation/score.h"
#include "lm/generation/generate.h"
#include "lm/model/model_files.h"
#include "lm/training/checkpoint.h"

namespace tda {
namespace {

// More tokens than this make a picture that nobody can read.
constexpr std::size_t kLongestSentence = 64;

at::Tensor id_tensor(std::span<const std::int32_t> ids) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), tensor.mutable_data_ptr<std::int64_t>());
  return tensor;
}

// `bits` turns nats per token into bits per byte.
nlohmann::json history_json(const std::vector<HistoryEntry>& history, double bits) {
  nlohmann::json rows = nlohmann::json::array();
  for (const HistoryEntry& entry : history) {
    nlohmann::json row = {{"step", entry.step}, {"tokens", entry.tokens}};
    if (entry.train_loss) row["train_bits_per_byte"] = bits * *entry.train_loss;
    if (entry.val_loss) row["val_bits_per_byte"] = bits * *entry.val_loss;
    if (entry.sparsity) row["sparsity"] = *entry.sparsity;
    if (entry.empty_rows) row["empty_rows"] = *entry.empty_rows;
    rows.push_back(std::move(row));
  }
  return rows;
}

nlohmann::json parameter_table(const Gpt& model, std::string_view suffix) {
  nlohmann::json layers = nlohmann::json::array();
  for (const NamedParameter& parameter : model.parameters()) {
    if (!parameter.name.ends_with(suffix)) continue;
    const at::Tensor values = parameter.tensor.detach().to(at::kCPU, at::kDouble).contiguous();
    layers.push_back(
        std::vector<double>(values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()));
  }
  return layers.empty() ? nlohmann::json(nullptr) : layers;
}

// The first three words, so that the model has something to go on from.
std::string opening(const std::string& sentence) {
  std::size_t end = 0;
  for (int word = 0; word < 3 && end != std::string::npos; ++word) end = sentence.find(' ', end + 1);
  return sentence.substr(0, end);
}

nlohmann::json sentence_json(const AnalyzedRun& run, const std::string& sentence) {
  std::vector<std::int32_t> ids = run.tokenizer->encode(sentence);
  const std::size_t context = static_cast<std::size_t>(run.model->config().context);
  ids.resize(std::min({ids.size(), kLongestSentence, context}));
  return {{"text", run.tokenizer->decode(ids)},
          {"tokens", token_labels(*run.tokenizer, ids)},
          {"views", maps_json(attention_maps(*run.model, id_tensor(ids)))}};
}

nlohmann::json sample_json(const AnalyzedRun& run, const std::string& prompt, const ReportOptions& options) {
  GenerationOptions generation;
  generation.sampling.temperature = options.temperature;
  generation.sampling.seed = options.seed;
  generation.vocabulary = run.tokenizer->vocabulary_size();
  generation.end_of_text = run.tokenizer->end_of_text();
  std::vector<std::int32_t> ids{run.tokenizer->end_of_text()};
  const std::vector<std::int32_t> words = run.tokenizer->encode(prompt);
  ids.insert(ids.end(), words.begin(), words.end());
  generation.max_tokens =
      std::max<std::int64_t>(0, run.model->config().context - static_cast<std::int64_t>(ids.size()));
  const std::vector<std::int32_t> continuation = generate(*run.model, ids, generation);
  return {{"prompt", prompt},
          {"text", run.tokenizer->decode(continuation)},
          {"temperature", options.temperature},
          {"seed", options.seed}};
}

}  // namespace

AnalyzedRun open_run(const std::filesystem::path& checkpoint) {
  AnalyzedRun run;
  run.step_folder = resolve_checkpoint(checkpoint);
  run.tokenizer = load_tokenizer(run.step_folder);
  run.model = load_model(run.step_folder);
  const auto directory = run_directory_of(run.step_folder);
  run.name = directory ? directory->filename().string() : run.model->config().mechanism;
  return run;
}

at::Tensor text_windows(const AnalyzedRun& run, std::string_view text, std::int64_t count) {
  const std::vector<std::int32_t> ids = run.tokenizer->encode(text);
  const auto total = static_cast<std::int64_t>(ids.size());
  if (total < 2) throw Error(fmt::format("the text holds {} tokens, expected at least 2", total));
  const std::int64_t length = std::min(total, run.model->config().context);
  const std::int64_t windows = std::clamp<std::int64_t>(total / length, 1, count);
  const at::Tensor all = id_tensor(ids);
  std::vector<at::Tensor> rows;
  for (std::int64_t window = 0; window < windows; ++window) {
    const std::int64_t first = windows == 1 ? 0 : (total - length) * window / (windows - 1);
    rows.push_back(all.slice(0, first, first + length));
  }
  return at::stack(rows);
}

nlohmann::json run_report(const AnalyzedRun& run, std::string_view text, const ReportOptions& options) {
  Gpt& model = *run.model;
  const std::string sentence = options.sentence.empty() ? find_sentence(text) : options.sentence;
  const at::Tensor windows = text_windows(run, text, options.windows);
  const auto bytes = static_cast<std::int64_t>(text.size());
  const ScoreSummary summary = score(model, run.tokenizer->encode(text), run.tokenizer->end_of_text());
  // Nats per token to bits per byte, by the tokens that this text has for a byte.
  const double bits = static_cast<double>(summary.tokens) / static_cast<double>(bytes) / std::numbers::ln2;

  nlohmann::json report = {
      {"name", run.name},
      {"mechanism", model.config().mechanism},
      {"checkpoint", run.step_folder.string()},
      {"tokenizer", run.tokenizer->name()},
      {"parameters", model.parameter_count().total},
      {"config", model.config().to_json()},
      {"score",
       {{"tokens", summary.tokens},
        {"bytes", bytes},
        {"loss", summary.loss()},
        {"perplexity", summary.perplexity()},
        {"bits_per_byte", summary.bits_per_byte(bytes)}}},
      {"statistics",
       {{"windows", windows.size(0)},
        {"context", windows.size(1)},
        {"views", statistics_json(measure_attention(model, windows))}}},
      {"beta", parameter_table(model, ".attention.beta")},
      {"lambda", parameter_table(model, ".attention.lambda")},
      {"sentence", sentence_json(run, sentence)},
      {"sample", sample_json(run, options.prompt.empty() ? opening(sentence) : options.prompt, options)},
  };
  const auto step = step_of(run.step_folder);
  std::vector<HistoryEntry> history;
  if (const auto directory = run_directory_of(run.step_folder)) history = read_run_history(*directory, step.value());
  const auto timed = std::find_if(history.rbegin(), history.rend(), [](const auto& entry) { return entry.seconds; });
  report["step"] = step ? nlohmann::json(*step) : nlohmann::json(nullptr);
  report["training_seconds"] = timed == history.rend() ? nlohmann::json(nullptr) : nlohmann::json(*timed->seconds);
  report["training_tokens"] = history.empty() ? nlohmann::json(nullptr) : nlohmann::json(history.back().tokens);
  report["history"] = history_json(history, bits);
  return report;
}

}  // namespace tda
