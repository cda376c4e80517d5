#include "lm/training/recipe_field.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <type_traits>

#include "lm/model/attention_mechanism.h"
#include "lm/model/mechanism_option.h"

namespace tda {
namespace {

template <typename T>
RecipeValue to_value(const T& member) {
  if constexpr (std::is_enum_v<T>) {
    return std::string(to_string(member));
  } else {
    return member;
  }
}

template <typename T>
void assign(T& member, const RecipeValue& value) {
  if constexpr (std::is_same_v<T, Precision>) {
    member = parse_precision(std::get<std::string>(value));
  } else if constexpr (std::is_same_v<T, ViewHeads>) {
    member = parse_view_heads(std::get<std::string>(value));
  } else {
    member = std::get<T>(value);
  }
}

// `access` maps a Recipe, const or not, to a reference to the member that the key stands for.
template <typename Access>
RecipeField field(const char* section, const char* key, Access access, const char* meaning, OnResume on_resume) {
  RecipeField result;
  result.section = section;
  result.key = key;
  result.get = [access](const Recipe& recipe) { return to_value(access(recipe)); };
  result.set = [access](Recipe& recipe, const RecipeValue& value) { assign(access(recipe), value); };
  result.on_resume = on_resume;
  result.meaning = meaning;
  return result;
}

RecipeField at_least(double minimum, RecipeField field) {
  field.range = {.minimum = minimum};
  return field;
}

RecipeField above(double minimum, RecipeField field) {
  field.range = {.minimum = minimum, .minimum_excluded = true};
  return field;
}

RecipeField between(double minimum, double maximum, RecipeField field) {
  field.range = {.minimum = minimum, .maximum = maximum};
  return field;
}

RecipeField one_of(std::vector<std::string> choices, RecipeField field) {
  field.choices = std::move(choices);
  return field;
}

std::vector<std::string> mechanisms() {
  std::vector<std::string> names;
  for (const std::string_view name : attention_mechanism_names()) names.emplace_back(name);
  return names;
}

// Names the member once for const and non-const recipes alike.
#define MEMBER(path) \
  [](auto& recipe) -> auto& { return recipe.path; }

std::vector<RecipeField> model_fields() {
  const auto model = [](const char* key, auto access, const char* meaning) {
    return field("model", key, access, meaning, OnResume::kFixed);
  };
  return {
      one_of(mechanisms(), model("mechanism", MEMBER(model.mechanism), "attention mechanism (docs/mechanisms.md)")),
      at_least(1, model("layers", MEMBER(model.layers), "number of blocks")),
      at_least(1, model("heads", MEMBER(model.heads), "attention heads of a layer; divides width")),
      at_least(1, model("width", MEMBER(model.width), "size of the residual stream")),
      at_least(1, model("context", MEMBER(model.context), "tokens of a training window")),
      at_least(0, model("vocabulary", MEMBER(model.vocabulary),
                        "rows of embedding and head; 0 takes the dataset's padded vocabulary")),
      above(0, model("rope_theta", MEMBER(model.rope_theta), "base of the rotary embedding")),
      at_least(1, model("rope_scaling", MEMBER(model.rope_scaling),
                        "NTK-aware factor for longer contexts; 1 leaves the base as it is")),
      one_of({"full", "halved"},
             model("view_heads", MEMBER(model.view_heads),
                   "tda, diff_rela: a full query and key matrix for each view, or half the heads so "
                   "that the parameter count is that of softmax")),
      model("beta", MEMBER(model.beta), "start value of the threshold's factor"),
      between(0, 1, model("lambda", MEMBER(model.lambda), "start value of the second view's factor")),
      model("learn_beta", MEMBER(model.learn_beta), "train beta"),
      model("learn_lambda", MEMBER(model.learn_lambda), "train lambda"),
      above(0, model("kappa", MEMBER(model.kappa), "rows before position kappa have threshold 0")),
      at_least(1, model("power", MEMBER(model.power), "exponent of the rectified excess over the threshold")),
      above(0, model("head_norm_eps", MEMBER(model.head_norm_eps), "epsilon of the norm of attention's output")),
  };
}

std::vector<RecipeField> mechanism_option_fields() {
  std::vector<RecipeField> fields;
  for (const MechanismOption& option : mechanism_options()) {
    auto result = std::visit(
        [&](auto member) {
          return field(
              "model", option.key, [member](auto& recipe) -> auto& { return recipe.model.*member; }, option.meaning,
              OnResume::kFixed);
        },
        option.member);
    result.range = option.range;
    result.choices = option.choices;
    fields.push_back(std::move(result));
  }
  return fields;
}

std::vector<RecipeField> train_fields() {
  const auto train = [](const char* key, auto access, const char* meaning, OnResume on_resume = OnResume::kFree) {
    return field("train", key, access, meaning, on_resume);
  };
  const OnResume fixed = OnResume::kFixed;
  return {
      at_least(1, train("steps", MEMBER(train.steps), "optimizer steps of the whole schedule", OnResume::kMayGrow)),
      at_least(1, train("tokens_per_step", MEMBER(train.tokens_per_step),
                        "tokens of one optimizer step; a multiple of micro_batch x context", fixed)),
      at_least(1, train("micro_batch", MEMBER(train.micro_batch),
                        "windows of one forward and backward pass; memory and speed depend on it, results only by "
                        "rounding")),
      above(0, train("learning_rate", MEMBER(train.learning_rate), "peak, reached after warm-up")),
      at_least(0, train("minimum_learning_rate", MEMBER(train.minimum_learning_rate), "end of the cosine")),
      at_least(0, train("warmup_steps", MEMBER(train.warmup_steps), "steps of linear warm-up")),
      at_least(0, train("weight_decay", MEMBER(train.weight_decay), "decoupled decay of matrices only")),
      between(0, 1, train("adam_beta1", MEMBER(train.adam_beta1), "decay of the first moment")),
      between(0, 1, train("adam_beta2", MEMBER(train.adam_beta2), "decay of the second moment")),
      above(0, train("adam_epsilon", MEMBER(train.adam_epsilon), "added to the root of the second moment")),
      at_least(0, train("gradient_clip", MEMBER(train.gradient_clip), "largest global norm; 0 does not clip")),
      at_least(0, train("seed", MEMBER(train.seed), "start weights, order of windows and samples", fixed)),
      one_of({"fp32", "bf16"},
             train("precision", MEMBER(train.precision), "arithmetic of forward and backward; weights stay fp32")),
      one_of({"auto", "cpu", "cuda"}, train("device", MEMBER(train.device), "auto takes a GPU when there is one")),
      at_least(0, train("threads", MEMBER(train.threads), "CPU threads; 0 leaves the choice to LibTorch")),
      at_least(0, train("stop_after", MEMBER(train.stop_after),
                        "end after this step with a checkpoint, the schedule unchanged; 0 runs to steps")),
  };
}

std::vector<RecipeField> other_fields() {
  const OnResume free = OnResume::kFree;
  return {
      at_least(0, field("validation", "every", MEMBER(validation.every),
                        "steps between validations; 0 validates after the last step only", free)),
      at_least(1, field("validation", "batches", MEMBER(validation.batches),
                        "tokens_per_step tokens' worth of validation windows each", free)),
      at_least(0, field("checkpoint", "every", MEMBER(checkpoint.every),
                        "steps between checkpoints; 0 writes one after the last step only", free)),
      at_least(0,
               field("checkpoint", "keep", MEMBER(checkpoint.keep), "newest checkpoints to keep; 0 keeps all", free)),
      at_least(0, field("sample", "every", MEMBER(sample.every), "steps between samples of text; 0 never", free)),
      field("sample", "prompt", MEMBER(sample.prompt), "what the samples continue", free),
      at_least(1, field("sample", "tokens", MEMBER(sample.tokens), "length of a sample", free)),
      at_least(0, field("sample", "temperature", MEMBER(sample.temperature), "of the samples; 0 is greedy", free)),
      field("log", "tensorboard", MEMBER(log.tensorboard), "also write metrics as event files of TensorBoard", free),
      one_of({"auto", "gloo", "nccl"}, field("distributed", "backend", MEMBER(distributed.backend),
                                             "collectives of many processes; auto: nccl on GPUs, gloo on CPUs", free)),
      above(0, field("distributed", "bucket_megabytes", MEMBER(distributed.bucket_megabytes),
                     "gradients that are reduced together while the backward pass goes on; results depend on it only "
                     "by rounding",
                     free)),
      field("distributed", "shard_optimizer", MEMBER(distributed.shard_optimizer),
            "split the optimizer's moments over the processes (ZeRO stage 1)", free),
      at_least(1, field("distributed", "timeout", MEMBER(distributed.timeout),
                        "seconds after which a process that the others wait for counts as hanging; a third of it "
                        "without a sign of life counts as death",
                        free)),
  };
}

#undef MEMBER

template <typename T>
std::optional<RecipeValue> parse_number(const std::string& text) {
  T value{};
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(begin, end, value);
  if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
  return value;
}

}  // namespace

std::string RecipeField::expected() const {
  const RecipeValue type = get(Recipe());
  if (std::holds_alternative<bool>(type)) return "true or false";
  if (std::holds_alternative<std::int64_t>(type)) return range.text("an integer");
  if (std::holds_alternative<double>(type)) return range.text("a number");
  return choices.empty() ? "a string" : fmt::format("one of {}", fmt::join(choices, ", "));
}

bool RecipeField::accepts(const RecipeValue& value) const {
  if (value.index() != get(Recipe()).index()) return false;
  if (const auto* text = std::get_if<std::string>(&value)) {
    return choices.empty() || std::find(choices.begin(), choices.end(), *text) != choices.end();
  }
  if (std::holds_alternative<bool>(value)) return true;
  const double number = std::holds_alternative<double>(value) ? std::get<double>(value)
                                                              : static_cast<double>(std::get<std::int64_t>(value));
  return range.contains(number);
}

std::optional<RecipeValue> RecipeField::parse(const std::string& text) const {
  const RecipeValue type = get(Recipe());
  if (std::holds_alternative<std::string>(type)) return text;
  if (std::holds_alternative<std::int64_t>(type)) return parse_number<std::int64_t>(text);
  if (std::holds_alternative<double>(type)) return parse_number<double>(text);
  if (text == "true" || text == "false") return text == "true";
  return std::nullopt;
}

const std::vector<RecipeField>& recipe_fields() {
  static const std::vector<RecipeField> fields = [] {
    std::vector<RecipeField> all = model_fields();
    for (auto& option : mechanism_option_fields()) all.push_back(std::move(option));
    all.push_back(field(
        "data", "path", [](auto& recipe) -> auto& { return recipe.data.path; },
        "folder that `tda data prepare` wrote, relative to the working directory", OnResume::kFree));
    for (const auto& more : {train_fields(), other_fields()}) all.insert(all.end(), more.begin(), more.end());
    return all;
  }();
  return fields;
}

const RecipeField* find_recipe_field(const std::string& name) {
  for (const RecipeField& field : recipe_fields()) {
    if (field.name() == name) return &field;
  }
  return nullptr;
}

}  // namespace tda
