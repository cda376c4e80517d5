#include "lm/interchange/huggingface_tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tda {
namespace {

using nlohmann::ordered_json;

// GPT-2's spelling of bytes: printable characters of Latin-1 stand for themselves, the other bytes, in order, for the
// characters from U+0100 on. As UTF-8.
std::array<std::string, 256> byte_spellings() {
  std::array<std::string, 256> spellings;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const unsigned character = printable ? byte : next++;
    if (character < 0x80) {
      spellings[byte] = static_cast<char>(character);
    } else {
      spellings[byte] = {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
    }
  }
  return spellings;
}

std::string spelled(std::string_view bytes) {
  static const std::array<std::string, 256> spellings = byte_spellings();
  std::string text;
  for (const char byte : bytes) text += spellings[static_cast<unsigned char>(byte)];
  return text;
}

using Ranks = std::unordered_map<std::string_view, std::int32_t>;

// The two tokens that training BPE joined into `token`: what is left of it when only older unions are made.
std::pair<std::string, std::string> parents(const std::string& token, std::int32_t rank, const Ranks& ranks) {
  std::vector<std::size_t> starts;  // of the parts, and the end
  for (std::size_t i = 0; i <= token.size(); ++i) starts.push_back(i);
  const auto part = [&](std::size_t first, std::size_t last) {
    return std::string_view(token).substr(starts[first], starts[last] - starts[first]);
  };
  while (starts.size() > 3) {
    std::int32_t lowest = rank;
    std::size_t where = 0;
    for (std::size_t i = 0; i + 2 < starts.size(); ++i) {
      const auto found = ranks.find(part(i, i + 2));
      if (found == ranks.end() || found->second >= lowest) continue;
      lowest = found->second;
      where = i;
    }
    if (lowest == rank) throw std::logic_error("token " + std::to_string(rank) + " is no union of two older tokens");
    starts.erase(starts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
  return {std::string(part(0, 1)), std::string(part(1, 2))};
}

ordered_json bpe_model(const Tokenizer& tokenizer) {
  std::vector<std::string> tokens;  // by id
  for (std::int32_t id = 0; id < tokenizer.vocabulary_size(); ++id) {
    tokens.push_back(id == tokenizer.end_of_text() ? std::string() : tokenizer.decode({id}));
  }
  Ranks ranks;
  ordered_json vocabulary = ordered_json::object(), merges = ordered_json::array();
  for (std::int32_t id = 0; id < tokenizer.vocabulary_size(); ++id) {
    if (id != tokenizer.end_of_text()) ranks.emplace(tokens[static_cast<std::size_t>(id)], id);
  }
  // Filled as an array of pairs: looking a key up before each insertion would be quadratic.
  auto& entries = vocabulary.get_ref<ordered_json::object_t&>();
  for (std::int32_t id = 0; id < tokenizer.vocabulary_size(); ++id) {
    const std::string& token = tokens[static_cast<std::size_t>(id)];
    if (id == tokenizer.end_of_text()) {
      entries.push_back({std::string(kEndOfText), id});
      continue;
    }
    entries.push_back({spelled(token), id});
    if (token.size() < 2) continue;
    const auto [left, right] = parents(token, id, ranks);
    merges.push_back(spelled(left) + " " + spelled(right));
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocabulary},
          {"merges", merges}};
}

// End-of-text before the text.
ordered_json post_processor(int end_of_text) {
  const ordered_json special = {{"SpecialToken", {{"id", kEndOfText}, {"type_id", 0}}}};
  const auto sequence = [](const char* name, int type) {
    return ordered_json{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  const ordered_json token = {
      {"id", kEndOfText}, {"ids", ordered_json::array({end_of_text})}, {"tokens", ordered_json::array({kEndOfText})}};
  ordered_json tokens = ordered_json::object();
  tokens[std::string(kEndOfText)] = token;
  return {{"type", "TemplateProcessing"},
          {"single", ordered_json::array({special, sequence("A", 0)})},
          {"pair", ordered_json::array({special, sequence("A", 0), sequence("B", 1)})},
          {"special_tokens", tokens}};
}

}  // namespace

ordered_json huggingface_tokenizer(const Tokenizer& tokenizer) {
  const ordered_json end_of_text = {{"id", tokenizer.end_of_text()},
                                    {"content", kEndOfText},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}};
  // GPT-2 divides text into words first; bytes need no words.
  const bool words = tokenizer.name() == "gpt2";
  const auto byte_level = [](bool use_regex) {
    return ordered_json{
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
  };
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", ordered_json::array({end_of_text})},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level(words)},
          {"post_processor", post_processor(tokenizer.end_of_text())},
          {"decoder", byte_level(words)},
          {"model", bpe_model(tokenizer)}};
}

ordered_json huggingface_tokenizer_config(std::int64_t context) {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"bos_token", kEndOfText},
          {"eos_token", kEndOfText},
          {"pad_token", kEndOfText},
          {"padding_side", "right"},
          {"model_max_length", context},
          {"clean_up_tokenization_spaces", false}};
}

}  // namespace tda
