#include "lm/interchange/huggingface.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lm/data/tokenizer.h"
#include "lm/durable_file.h"
#include "lm/interchange/huggingface_tokenizer.h"
#include "lm/interchange/modelling_code.h"
#include "lm/model/model_files.h"
#include "lm/staged_folder.h"
#include "lm/training/checkpoint.h"

namespace tda {
namespace {

using nlohmann::ordered_json;

ordered_json config_json(const ModelConfig& config, const Tokenizer& tokenizer) {
  ordered_json json = {
      {"architectures", ordered_json::array({"TdaForCausalLM"})},
      {"auto_map",
       {{"AutoConfig", "configuration_tda.TdaConfig"}, {"AutoModelForCausalLM", "modeling_tda.TdaForCausalLM"}}}};
  json.update(ordered_json(config.to_json()));
  // transformers takes a dictionary `rope_scaling` for one of its own kinds, among which ours is not.
  json.erase("rope_scaling");
  json["rope_ntk_factor"] = config.rope_scaling;
  json["bos_token_id"] = tokenizer.end_of_text();
  json["eos_token_id"] = tokenizer.end_of_text();
  json["dtype"] = "float32";
  return json;
}

// Padded ids have logits but no text: they are never generated, as in `tda generate`.
ordered_json generation_config_json(const ModelConfig& config, const Tokenizer& tokenizer) {
  std::vector<std::int64_t> padded;
  for (std::int64_t id = tokenizer.vocabulary_size(); id < config.vocabulary; ++id) padded.push_back(id);
  ordered_json json = {{"bos_token_id", tokenizer.end_of_text()},
                       {"eos_token_id", tokenizer.end_of_text()},
                       {"pad_token_id", tokenizer.end_of_text()},
                       {"do_sample", false}};
  if (!padded.empty()) json["suppress_tokens"] = padded;
  return json;
}

}  // namespace

void export_to_huggingface(const std::filesystem::path& checkpoint, const std::filesystem::path& folder) {
  const std::filesystem::path step = resolve_checkpoint(checkpoint);
  const auto tokenizer = load_tokenizer(step);
  const auto model = load_model(step);  // refuses weights that do not fit their configuration
  const ModelConfig& config = model->config();
  StagedFolder staged(folder);
  const auto write = [&](std::string_view name, std::string_view content) {
    write_file_durably(staged.directory() / name, content);
  };
  write("config.json", config_json(config, *tokenizer).dump(2) + "\n");
  write("generation_config.json", generation_config_json(config, *tokenizer).dump(2) + "\n");
  write("tokenizer.json", huggingface_tokenizer(*tokenizer).dump(1) + "\n");
  write("tokenizer_config.json", huggingface_tokenizer_config(config.context).dump(2) + "\n");
  for (const ModellingFile& file : modelling_code()) write(file.name, file.content);
  write("model.safetensors", read_file(step / "model.safetensors"));
  staged.commit();
}

}  // namespace tda
