#include "lm/training/trainer.h"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "lm/data/dataset.h"
#include "lm/data/window_sampler.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/generation/generate.h"
#include "lm/model/gpt.h"
#include "lm/model/model_files.h"
#include "lm/model/safetensors.h"
#include "lm/training/adamw.h"
#include "lm/training/checkpoint.h"
#include "lm/training/cosine_schedule.h"
#include "lm/training/gradient_buckets.h"
#include "lm/training/launch_environment.h"
#include "lm/training/line_log.h"
#include "lm/training/parameter_shards.h"
#include "lm/training/process_group.h"
#include "lm/training/progress.h"
#include "lm/training/recipe_fit.h"
#include "lm/training/recipe_text.h"
#include "lm/training/resume_rules.h"
#include "lm/training/run_directory.h"
#include "lm/training/start_weights.h"
#include "lm/training/stop_signal.h"
#include "lm/training/tensorboard_log.h"
#include "lm/training/throughput.h"
#include "lm/training/training_device.h"
#include "lm/training/training_state.h"
#include "lm/training/validation.h"
#include "lm/utf8.h"

namespace tda {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What lives as long as a run. run() is the loop, its phases follow in the order in which it calls them.
class Trainer {
 public:
  // Writes nothing into `run`, the run directory, before it is taken. Only the first process of `group` ever writes.
  Trainer(ResolvedRecipe resolved, const Dataset& dataset, at::Device device, std::filesystem::path run,
          ProcessGroup& group);

  // `weights`: a step folder of another run; empty: random weights.
  void start(const std::filesystem::path& weights);
  void resume_from(const std::filesystem::path& step_directory);
  // Returns the exit code. An Error that it throws says how the run goes on.
  int run();

 private:
  const Recipe& recipe() const { return resolved_.values; }
  int run_to_the_end();
  void describe() const;
  bool due(std::int64_t every) const;
  void open_files();
  void continue_training(Progress& progress, bool& checkpoint_is_current);
  StepReport train_step();
  double accumulate_gradients(bool reduce);
  void blame_gradients(const std::string& where);
  void agree_on_stop();
  int stop_signal() const { return group_.size() == 1 ? StopSignal::requested() : agreed_signal_; }
  std::string hint_to_resume(const std::string& remedy) const;
  void require_finite(double value, const std::string& what, const std::string& where) const;
  void validate_into(ordered_json& line, Progress& progress);
  void log(const ordered_json& line);
  void sample(Progress& progress);
  void write_checkpoint(Progress& progress);
  void summarize() const;
  double seconds() const { return state_.seconds + seconds_since(process_start_); }

  ResolvedRecipe resolved_;
  const Dataset& dataset_;
  RunPaths run_;
  ProcessGroup& group_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Gpt model_;
  WindowSampler training_windows_;
  std::optional<WindowSampler> validation_windows_;
  CosineSchedule schedule_;
  std::optional<ParameterShards> shards_;   // ZeRO stage 1
  std::optional<GradientBuckets> buckets_;  // in a group of several
  std::optional<AdamW> optimizer_;
  TrainingState state_;                       // seconds: those of earlier processes
  std::optional<LineLog> metrics_, samples_;  // of the first process
  int agreed_signal_ = 0;                     // in a group of several: what stopped any of them
  std::optional<TensorBoardLog> tensorboard_;
  std::filesystem::path last_checkpoint_;
  double flops_per_token_ = 0.0;
  double peak_flops_ = 0.0;
  double step_seconds_ = 0.0;  // of all steps of this process but the first, which warms up
  std::int64_t first_step_ = 0;
  Clock::time_point process_start_ = Clock::now();
};

Trainer::Trainer(ResolvedRecipe resolved, const Dataset& dataset, at::Device device, std::filesystem::path run,
                 ProcessGroup& group)
    : resolved_(std::move(resolved)),
      dataset_(dataset),
      run_{std::move(run)},
      group_(group),
      tokenizer_(dataset.tokenizer()),
      model_(recipe().model),
      training_windows_(dataset.train(), recipe().model.context, static_cast<std::uint64_t>(recipe().train.seed)),
      schedule_{recipe().train.learning_rate, recipe().train.minimum_learning_rate, recipe().train.warmup_steps,
                recipe().train.steps} {
  if (dataset.validation().size() > 0) {
    validation_windows_.emplace(dataset.validation(), recipe().model.context, std::nullopt);
  }
  const TrainSettings& train = recipe().train;
  model_.to(device);
  model_.set_precision(train.precision);
  std::optional<Shard> shard;
  if (group.size() > 1) {
    const DistributedSettings& distributed = recipe().distributed;
    if (distributed.shard_optimizer) shard = shards_.emplace(model_.parameters(), group).own();
    buckets_.emplace(model_.parameters(), group, static_cast<std::int64_t>(distributed.bucket_megabytes * 1e6));
  }
  optimizer_.emplace(model_.parameters(),
                     AdamWOptions{train.adam_beta1, train.adam_beta2, train.adam_epsilon, train.weight_decay}, shard);
  flops_per_token_ = training_flops_per_token(model_);
  peak_flops_ = group.size() * measure_peak_flops(train.precision, device);
}

void Trainer::start(const std::filesystem::path& weights) {
  if (weights.empty()) {
    model_.initialize(static_cast<std::uint64_t>(recipe().train.seed));
  } else {
    load_parameters(weights / "model.safetensors", model_);
    state_.start_weights = printable(weights.string());
    if (group_.is_first()) fmt::print(stderr, "starting from the weights of {}\n", state_.start_weights);
  }
  open_files();
}

void Trainer::resume_from(const std::filesystem::path& step_directory) {
  state_ = load_training_state(step_directory / "state.json", dataset_.description());
  for (const std::string& line :
       check_resumable(load_recipe(step_directory / "recipe.toml").values, recipe(), state_.step)) {
    if (group_.is_first()) fmt::print(stderr, "{}\n", line);
  }
  load_parameters(step_directory / "model.safetensors", model_);
  optimizer_->load(step_directory / "optimizer.safetensors", state_.step);
  last_checkpoint_ = step_directory;
  open_files();
  first_step_ = state_.step;
  if (group_.is_first()) fmt::print(stderr, "resuming from {}\n", step_directory.string());
}

void Trainer::open_files() {
  if (!group_.is_first()) return;
  replace_file(run_.recipe(), recipe_toml(resolved_));
  metrics_.emplace(run_.metrics(), state_.metrics_bytes);
  samples_.emplace(run_.samples(), state_.samples_bytes);
  // Step 0 is logged before the first checkpoint, so a resumed run begins one step later.
  if (recipe().log.tensorboard) tensorboard_.emplace(run_.path, last_checkpoint_.empty() ? 0 : state_.step + 1);
}

int Trainer::run() {
  try {
    return run_to_the_end();
  } catch (const Error& error) {
    throw Error(error.what(), hint_to_resume(error.hint()));
  }
}

// Other ranks than the first know that a checkpoint was due, not that it is complete.
std::string Trainer::hint_to_resume(const std::string& remedy) const {
  const std::string begin = remedy.empty() ? "" : remedy + "; ";
  if (last_checkpoint_.empty()) return begin + "there is no checkpoint yet";
  return fmt::format("{}the same command with --resume goes on from {}", begin,
                     group_.is_first() ? last_checkpoint_.string() : "the last checkpoint");
}

int Trainer::run_to_the_end() {
  const StopSignal stop;
  if (group_.is_first()) describe();
  bool checkpoint_is_current = !last_checkpoint_.empty();
  {
    Progress progress(state_.step, recipe().last_step(), /*silent=*/!group_.is_first());
    if (!checkpoint_is_current) {
      ordered_json line = {{"step", 0}, {"tokens", 0}};
      validate_into(line, progress);
      log(line);
    }
    while (state_.step < recipe().last_step() && stop_signal() == 0) {
      continue_training(progress, checkpoint_is_current);
    }
    agree_on_stop();
    if (!checkpoint_is_current) write_checkpoint(progress);
  }
  if (group_.is_first()) summarize();
  const int signal = stop_signal();
  return signal == 0 ? 0 : 128 + signal;
}

// One step and what is due after it.
void Trainer::continue_training(Progress& progress, bool& checkpoint_is_current) {
  const StepReport report = train_step();
  progress.step(report);
  ordered_json line = {{"step", state_.step},
                       {"tokens", state_.tokens},
                       {"train_loss", report.loss},
                       {"learning_rate", report.learning_rate},
                       {"gradient_norm", report.gradient_norm},
                       {"tokens_per_second", report.tokens_per_second},
                       {"model_flops_utilization", report.model_flops_utilization},
                       {"seconds", seconds()}};
  if (due(recipe().validation.every)) validate_into(line, progress);
  log(line);
  if (group_.is_first() && recipe().sample.every > 0 && due(recipe().sample.every)) sample(progress);
  checkpoint_is_current = due(recipe().checkpoint.every);
  if (checkpoint_is_current) write_checkpoint(progress);
}

// The schedule's last step, not that of this process: stopping early leaves no trace in what is written.
bool Trainer::due(std::int64_t every) const {
  return (every > 0 && state_.step % every == 0) || state_.step == recipe().train.steps;
}

void Trainer::describe() const {
  const Recipe& r = recipe();
  const DatasetDescription& data = dataset_.description();
  const ParameterCount count = model_.parameter_count();
  const double epochs = static_cast<double>(r.train.steps * r.train.tokens_per_step) /
                        static_cast<double>(training_windows_.windows_per_epoch() * r.model.context);
  fmt::print(stderr, "{}\n", recipe_table(resolved_));
  fmt::print(stderr, "data        {} tokens to train on ({:.2f} epochs), {} held out, tokenizer {}\n",
             data.train_tokens, epochs, data.validation_tokens, data.tokenizer);
  fmt::print(stderr, "parameters  {} = embedding {} + attention {} + MLP {} + head {} + norms {} + mechanism {}\n",
             count.total, count.embedding, count.attention, count.mlp, count.head, count.norm, count.mechanism);
  fmt::print(stderr, "step        {} tokens = {} x {} windows of {}\n", r.train.tokens_per_step, r.micro_steps(),
             r.train.micro_batch, r.model.context);
  if (group_.size() > 1) {
    fmt::print(stderr, "processes   {}, {} passes a step each; gradients in {} buckets over {}; {} moments\n",
               group_.size(), r.micro_steps() / group_.size(), buckets_->bucket_count(),
               choose_backend(r.distributed.backend, model_.device()), shards_ ? "sharded" : "replicated");
  }
  fmt::print(stderr, "device      {}, {} CPU threads, {}\n", model_.device().str(),
             set_training_threads(r.train.threads), to_string(r.train.precision));
  fmt::print(stderr, "MFU         {:.4g} FLOP a token (6P + 3L(T+1)H(views*D + Dv)) of {:.1f} GFLOP/s, {}\n\n",
             flops_per_token_, peak_flops_ / 1e9, peak_description(model_.device()));
  if (!validation_windows_)
    fmt::print(stderr, "warning: the dataset holds no validation tokens; val_loss is left out\n");
}

// Gradients of this process's share of the windows of a step, with `reduce` summed over all processes. Returns its
// share of the mean loss.
double Trainer::accumulate_gradients(bool reduce) {
  const Recipe& r = recipe();
  const std::int64_t micro_steps = r.micro_steps();
  at::Tensor loss_sum;
  if (buckets_) buckets_->begin_step();
  for (std::int64_t i = group_.rank(); i < micro_steps; i += group_.size()) {
    const at::Tensor batch =
        training_windows_.batch(state_.next_window + i * r.train.micro_batch, r.train.micro_batch).to(model_.device());
    at::Tensor loss = model_.loss(batch.narrow(1, 0, r.model.context), batch.narrow(1, 1, r.model.context));
    loss = loss / static_cast<double>(micro_steps);
    if (reduce && buckets_ && i + group_.size() >= micro_steps) buckets_->reduce_in_next_backward();
    loss.backward();
    loss_sum = loss_sum.defined() ? loss_sum + loss.detach() : loss.detach();
    group_.advance();
  }
  if (reduce && buckets_) buckets_->finish_step();
  return loss_sum.item<double>();
}

// A sum that is not finite does not tell whose gradients spoiled it, so each process makes its own once more.
void Trainer::blame_gradients(const std::string& where) {
  if (group_.size() == 1) return;
  accumulate_gradients(/*reduce=*/false);
  const auto norms = group_.exchange({optimizer_->clip_gradients(/*limit=*/0.0)});
  for (std::size_t rank = 0; rank < norms.size(); ++rank) {
    require_finite(norms[rank][0], fmt::format("gradient norm of rank {}", rank), where);
  }
}

StepReport Trainer::train_step() {
  const Recipe& r = recipe();
  const Clock::time_point start = Clock::now();
  StepReport report;
  const double own_loss = accumulate_gradients(/*reduce=*/true);
  const std::string where = fmt::format("in step {}: stopped before the update", state_.step + 1);
  const auto shares = group_.exchange({own_loss, static_cast<double>(StopSignal::requested())});
  for (std::size_t rank = 0; rank < shares.size(); ++rank) {
    if (shares.size() > 1) require_finite(shares[rank][0], fmt::format("loss of rank {}", rank), where);
    report.loss += shares[rank][0];
    agreed_signal_ = std::max(agreed_signal_, static_cast<int>(shares[rank][1]));
  }
  require_finite(report.loss, "loss", where);
  report.gradient_norm = optimizer_->clip_gradients(r.train.gradient_clip);
  if (!std::isfinite(report.gradient_norm)) blame_gradients(where);
  require_finite(report.gradient_norm, "gradient norm", where);
  report.learning_rate = schedule_.at(state_.step);
  optimizer_->step(report.learning_rate);
  if (shards_) shards_->gather();
  model_.after_optimizer_step();
  optimizer_->clear_gradients();

  ++state_.step;
  state_.tokens += r.train.tokens_per_step;
  state_.next_window += r.micro_steps() * r.train.micro_batch;
  const double elapsed = seconds_since(start);
  if (state_.step > first_step_ + 1) step_seconds_ += elapsed;
  report.step = state_.step;
  report.tokens_per_second = static_cast<double>(r.train.tokens_per_step) / elapsed;
  report.model_flops_utilization = report.tokens_per_second * flops_per_token_ / peak_flops_;
  return report;
}

// A signal that came to any process stops all.
void Trainer::agree_on_stop() {
  for (const auto& signal : group_.exchange({static_cast<double>(StopSignal::requested())})) {
    agreed_signal_ = std::max(agreed_signal_, static_cast<int>(signal.front()));
  }
}

void Trainer::require_finite(double value, const std::string& what, const std::string& where) const {
  if (std::isfinite(value)) return;
  throw DivergenceError(fmt::format("the {} is {} {}; {}", what, value, where,
                                    last_checkpoint_.empty()
                                        ? "there is no checkpoint yet"
                                        : "the last good checkpoint is " + last_checkpoint_.string()));
}

void Trainer::validate_into(ordered_json& line, Progress& progress) {
  if (!validation_windows_) return;
  const std::int64_t wanted = recipe().validation.batches * recipe().train.tokens_per_step / recipe().model.context;
  const std::int64_t windows = std::min(wanted, validation_windows_->windows_per_epoch());
  const ValidationResult result = validate(model_, *validation_windows_, windows, recipe().train.micro_batch, group_);
  require_finite(result.loss, "validation loss", fmt::format("after step {}", state_.step));
  line["val_loss"] = result.loss;
  line["sparsity"] = result.statistics.sparsity();
  line["empty_rows"] = result.statistics.empty_row_share();
  progress.note(
      fmt::format("step {}  validation loss {:.4f} nats per token ({} windows)", state_.step, result.loss, windows));
}

void Trainer::log(const ordered_json& line) {
  if (metrics_) metrics_->append(line);
  if (tensorboard_) tensorboard_->append(line);
}

void Trainer::sample(Progress& progress) {
  const ProcessGroup::SlowPhase slow(group_);
  const SampleSettings& settings = recipe().sample;
  std::vector<std::int32_t> prompt = {tokenizer_->end_of_text()};
  const std::vector<std::int32_t> ids = tokenizer_->encode(settings.prompt);
  prompt.insert(prompt.end(), ids.begin(), ids.end());
  GenerationOptions options;
  options.sampling.temperature = settings.temperature;
  options.sampling.seed = static_cast<std::uint64_t>(recipe().train.seed + state_.step);
  options.max_tokens = settings.tokens;
  options.vocabulary = tokenizer_->vocabulary_size();
  options.end_of_text = tokenizer_->end_of_text();
  const std::string text = tokenizer_->decode(generate(model_, prompt, options));
  samples_->append({{"step", state_.step}, {"prompt", settings.prompt}, {"text", text}});
  // Escaped as JSON: whatever bytes a young model makes, the terminal sees one line of text.
  const std::string shown =
      ordered_json(settings.prompt + text).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  progress.note(fmt::format("step {}  sample {}", state_.step, shown));
}

void Trainer::write_checkpoint(Progress& progress) {
  const auto moments = optimizer_->moments([this](const at::Tensor& part) { return group_.all_gather(part); });
  if (!group_.is_first()) {
    last_checkpoint_ = checkpoint_directory(run_.path, state_.step);
    return;
  }
  const ProcessGroup::SlowPhase slow(group_);
  metrics_->sync();
  samples_->sync();
  if (tensorboard_) tensorboard_->sync();
  TrainingState state = state_;
  state.seconds = seconds();
  state.metrics_bytes = metrics_->size();
  state.samples_bytes = samples_->size();
  CheckpointWriter writer(run_.path, state_.step);
  save_model(writer.directory(), model_);
  tokenizer_->save(writer.directory());
  write_safetensors(writer.directory() / "optimizer.safetensors", moments);
  save_training_state(writer.directory() / "state.json", state, dataset_.description());
  write_file_durably(writer.directory() / "recipe.toml", recipe_toml(resolved_));
  writer.commit();
  last_checkpoint_ = checkpoint_directory(run_.path, state_.step);
  remove_old_checkpoints(run_.path, recipe().checkpoint.keep);
  progress.note(fmt::format("step {}  wrote {}", state_.step, last_checkpoint_.string()));
}

void Trainer::summarize() const {
  if (first_step_ == state_.step) fmt::print(stderr, "nothing to do: the run stands at step {}\n", state_.step);
  const std::int64_t timed_steps = state_.step - first_step_ - 1;
  if (timed_steps > 0) {
    const double mean = step_seconds_ / static_cast<double>(timed_steps);
    fmt::print(stderr, "{} steps, {:.1f} ms each ({:.0f} tokens/s) without the first; {} in all\n",
               state_.step - first_step_, 1e3 * mean, static_cast<double>(recipe().train.tokens_per_step) / mean,
               duration_text(seconds_since(process_start_)));
  }
  if (stop_signal() != 0) {
    fmt::print(stderr, "stopped at step {} of {}; the same command with --resume goes on\n", state_.step,
               recipe().train.steps);
  }
  fmt::print("{}\n", last_checkpoint_.string());
}

struct StartWeights {
  std::string directory;  // a step folder; empty: the run starts from random weights, or goes on
  std::vector<std::string> differences;
};

// Before anything is written, and before a model is made.
StartWeights find_start_weights(const TrainingRequest& request, const ModelConfig& model, const Dataset& dataset) {
  const bool goes_on = request.resume && !list_checkpoints(request.output).empty();
  if (!request.init_from || goes_on) return {};
  const std::filesystem::path directory = resolve_checkpoint(*request.init_from);
  return {directory.string(), check_start_weights(directory, model, *dataset.tokenizer())};
}

// Each phase fails in all processes or in none, and rank 0 says why: a bad recipe is one line, not one a process.
int train_in_group(const TrainingRequest& request, ProcessGroup& group) {
  ResolvedRecipe recipe;
  at::Device device = at::kCPU;
  std::string backend;
  group.together([&] {
    recipe = load_recipe(request.recipe, request.overrides);
    require_equal_shares(recipe.values, group.size());
    device = choose_training_device(recipe.values.train.device, group.local_rank());
    if (group.size() > 1) backend = choose_backend(recipe.values.distributed.backend, device);
    require_usable_output(request.output, request.resume);
  });
  if (group.size() > 1) {
    const std::chrono::duration<double> timeout(recipe.values.distributed.timeout);
    group.connect(backend, device, std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
  }

  std::optional<Dataset> dataset;
  std::optional<Trainer> trainer;
  StartWeights weights;
  group.together([&] {
    const ProcessGroup::SlowPhase slow(group);
    dataset.emplace(recipe.values.data.path);
    resolve_vocabulary(recipe, *dataset);
    if (group.is_first()) weights = find_start_weights(request, recipe.values.model, *dataset);
    set_training_threads(recipe.values.train.threads);
    trainer.emplace(std::move(recipe), *dataset, device, request.output, group);
  });

  std::optional<RunDirectory> run;
  std::string checkpoint;
  group.together([&] {
    if (!group.is_first()) return;
    const ProcessGroup::SlowPhase slow(group);
    run.emplace(request.output, request.resume);
    remove_unfinished_checkpoints(run->path());
    checkpoint = run->newest_checkpoint().value_or("").string();
  });
  checkpoint = group.from_first(checkpoint);
  weights.directory = group.from_first(weights.directory);
  group.together([&] {
    const ProcessGroup::SlowPhase slow(group);
    if (checkpoint.empty()) {
      for (const std::string& line : weights.differences) fmt::print(stderr, "{}\n", line);
      trainer->start(weights.directory);
    } else {
      trainer->resume_from(checkpoint);
    }
  });
  try {
    return trainer->run();
  } catch (const DivergenceError&) {
    if (group.size() == 1) throw;
    throw CommonFailure{std::current_exception(), 1};
  }
}

}  // namespace

int train(const TrainingRequest& request) {
  use_huge_pages();
  ProcessGroup group(read_launch_environment());
  return group.run([&] { return train_in_group(request, group); });
}

}  // namespace tda
