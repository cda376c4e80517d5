#include "lm/evaluation/score.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "lm/error.h"

namespace tda {
namespace {

// Logits of one forward pass, in values: 256 MB of fp32.
constexpr std::int64_t kLargestLogits = std::int64_t{1} << 26;
constexpr std::int64_t kLargestBatch = 16;

// Predicts stream[begin + 1 .. end], of which the last `scored` count. Input is stream[begin .. end - 1].
struct Window {
  std::int64_t begin, end, scored;
};

// `length` ids behind the end-of-text at index 0 of the stream.
std::vector<Window> rolling_windows(std::int64_t length, std::int64_t context) {
  std::vector<Window> windows;
  for (std::int64_t done = 0; done < length;) {
    const std::int64_t scored = std::min(length - done, context);
    const std::int64_t end = done + scored;
    windows.push_back({std::max<std::int64_t>(0, end - context), end, scored});
    done = end;
  }
  return windows;
}

class Scorer {
 public:
  Scorer(Gpt& model, const std::function<void(const TokenScore&)>& on_token)
      : model_(model), weights_(model.prepare()), on_token_(on_token) {}

  // `windows` have the same length. stream: (N) int64.
  void score(const at::Tensor& stream, std::span<const Window> windows) {
    std::vector<at::Tensor> inputs, targets;
    for (const auto& window : windows) {
      inputs.push_back(stream.slice(0, window.begin, window.end));
      targets.push_back(stream.slice(0, window.begin + 1, window.end + 1));
    }
    const auto ids = at::stack(inputs).to(model_.device()), wanted = at::stack(targets).to(model_.device());
    const auto log_probabilities = model_.forward(weights_, ids, {}).to(at::kFloat).log_softmax(-1);
    const auto chosen = log_probabilities.gather(-1, wanted.unsqueeze(-1)).squeeze(-1);
    const auto greedy = chosen.eq(log_probabilities.amax(-1)).to(at::kCPU).contiguous();
    const auto logprob = chosen.to(at::kCPU).contiguous();
    const std::int64_t length = ids.size(1);
    for (std::size_t row = 0; row < windows.size(); ++row) {
      for (std::int64_t t = length - windows[row].scored; t < length; ++t) {
        const std::int64_t at = static_cast<std::int64_t>(row) * length + t;
        const TokenScore token{static_cast<std::int32_t>(targets[row].const_data_ptr<std::int64_t>()[t]),
                               logprob.const_data_ptr<float>()[at], greedy.const_data_ptr<bool>()[at]};
        ++summary_.tokens;
        summary_.negative_log_likelihood -= token.logprob;
        if (on_token_) on_token_(token);
      }
    }
  }

  const ScoreSummary& summary() const { return summary_; }

 private:
  Gpt& model_;
  Gpt::PreparedWeights weights_;
  const std::function<void(const TokenScore&)>& on_token_;
  ScoreSummary summary_;
};

}  // namespace

double ScoreSummary::loss() const { return negative_log_likelihood / static_cast<double>(tokens); }

double ScoreSummary::perplexity() const { return std::exp(loss()); }

double ScoreSummary::bits_per_byte(std::int64_t bytes) const {
  return negative_log_likelihood / static_cast<double>(bytes) / std::numbers::ln2;
}

ScoreSummary score(Gpt& model, std::span<const std::int32_t> tokens, std::int32_t end_of_text,
                   const std::function<void(const TokenScore&)>& on_token) {
  if (tokens.empty()) throw Error("the text to score holds no token");
  at::NoGradGuard no_gradient;
  const auto stream = at::empty({static_cast<std::int64_t>(tokens.size()) + 1}, at::kLong);
  auto* ids = stream.mutable_data_ptr<std::int64_t>();
  ids[0] = end_of_text;
  std::copy(tokens.begin(), tokens.end(), ids + 1);

  const std::int64_t context = model.config().context;
  const auto windows = rolling_windows(static_cast<std::int64_t>(tokens.size()), context);
  const std::int64_t batch =
      std::clamp<std::int64_t>(kLargestLogits / (context * model.config().vocabulary), 1, kLargestBatch);
  Scorer scorer(model, on_token);
  // A text shorter than the context is one short window; otherwise all windows are of the context's length.
  for (std::size_t first = 0; first < windows.size(); first += static_cast<std::size_t>(batch)) {
    const auto count = std::min<std::size_t>(static_cast<std::size_t>(batch), windows.size() - first);
    scorer.score(stream, std::span(windows).subspan(first, count));
  }
  return scorer.summary();
}

}  // namespace tda
