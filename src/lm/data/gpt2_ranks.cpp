#include "lm/data/gpt2_ranks.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <unordered_set>

#include "lm/data/base64.h"
#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFetchHint =
    "`scripts/fetch-gpt2-vocabulary` gets the ranks; --vocabulary or TDA_GPT2_VOCABULARY names a file that is "
    "elsewhere";

Error damaged(const fs::path& path, size_t line, const std::string& what) {
  return Error(fmt::format("{}, line {}: {}", path.string(), line, what), kFetchHint);
}

void validate(const fs::path& path, const Gpt2Ranks& ranks) {
  if (ranks.size() != kGpt2Ranks) {
    throw Error(fmt::format("{} holds {} tokens, expected the {} of GPT-2", path.string(), ranks.size(), kGpt2Ranks),
                kFetchHint);
  }
  const std::unordered_set<std::string_view> distinct(ranks.begin(), ranks.end());
  bool complete = distinct.size() == ranks.size() && !distinct.contains("");
  for (int byte = 0; byte < 256; ++byte) complete &= distinct.contains(std::string(1, static_cast<char>(byte)));
  if (!complete) {
    throw Error(fmt::format("{}: a token is empty or there twice, or a single byte is missing", path.string()),
                kFetchHint);
  }
}

Gpt2Ranks read_tiktoken(const fs::path& path) {
  const std::string content = read_file(path);
  std::istringstream lines(content);
  Gpt2Ranks ranks;
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    const size_t blank = line.find(' ');
    const auto bytes = base64_decode(std::string_view(line).substr(0, blank));
    size_t rank = 0;
    const char* end = line.data() + line.size();
    const bool parsed = blank != std::string::npos && bytes.has_value() &&
                        std::from_chars(line.data() + blank + 1, end, rank) == std::from_chars_result{end, std::errc{}};
    if (!parsed) throw damaged(path, number, "expected a token in base64, a blank and its rank");
    if (rank != ranks.size()) throw damaged(path, number, fmt::format("rank {}, expected {}", rank, ranks.size()));
    ranks.push_back(*bytes);
  }
  return ranks;
}

// GPT-2's files show each byte as a printable character: itself where it is printable in Latin-1, else U+0100 + n for
// the n-th byte that is not. The printable bytes come first in the order of ids.
struct ByteAlphabet {
  std::array<int, 256> order{};              // the byte with id i
  std::map<std::string, char> byte_of_char;  // UTF-8 of the character -> byte

  ByteAlphabet() {
    const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
    size_t id = 0;
    for (int b = 0; b < 256; ++b) {
      if (printable(b)) add(id++, b, b);
    }
    int character = 256;
    for (int b = 0; b < 256; ++b) {
      if (!printable(b)) add(id++, b, character++);
    }
  }

  std::optional<std::string> bytes(std::string_view text) const {
    std::string result;
    for (size_t i = 0; i < text.size();) {
      const size_t length = static_cast<unsigned char>(text[i]) < 0x80 ? 1 : 2;
      const auto found = byte_of_char.find(std::string(text.substr(i, length)));
      if (found == byte_of_char.end()) return std::nullopt;
      result += found->second;
      i += length;
    }
    return result;
  }

 private:
  void add(size_t id, int byte, int character) {
    order[id] = byte;
    std::string utf8;
    if (character < 0x80) {
      utf8 = static_cast<char>(character);
    } else {
      utf8 = {static_cast<char>(0xc0 | character >> 6), static_cast<char>(0x80 | (character & 0x3f))};
    }
    byte_of_char[utf8] = static_cast<char>(byte);
  }
};

Gpt2Ranks read_merges(const fs::path& path, const ByteAlphabet& alphabet) {
  Gpt2Ranks ranks;
  for (const int byte : alphabet.order) ranks.emplace_back(1, static_cast<char>(byte));
  const std::string content = read_file(path);
  std::istringstream lines(content);
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    const size_t blank = line.find(' ');
    const auto left = alphabet.bytes(line.substr(0, blank));
    const auto right = blank == std::string::npos ? std::nullopt : alphabet.bytes(line.substr(blank + 1));
    if (!left || !right) throw damaged(path, number, "expected the two parts of a merge");
    ranks.push_back(*left + *right);
  }
  return ranks;
}

// The merges alone define ids and ranks; encoder.json must say the same.
void compare_with_encoder(const fs::path& path, const ByteAlphabet& alphabet, const Gpt2Ranks& ranks) {
  size_t agreeing = 0;
  try {
    const auto encoder = nlohmann::json::parse(read_file(path)).get<std::map<std::string, size_t>>();
    for (const auto& [text, id] : encoder) {
      if (text == "<|endoftext|>" && id == kGpt2Ranks) continue;
      const auto bytes = alphabet.bytes(text);
      if (!bytes || id >= ranks.size() || ranks[id] != *bytes) {
        throw Error(fmt::format("{}: id {} is not the token that vocab.bpe beside it gives", path.string(), id),
                    kFetchHint);
      }
      ++agreeing;
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error(fmt::format("{} is damaged: {}", path.string(), error.what()), kFetchHint);
  }
  if (agreeing != ranks.size()) {
    throw Error(fmt::format("{} holds {} tokens, vocab.bpe beside it {}", path.string(), agreeing, ranks.size()),
                kFetchHint);
  }
}

}  // namespace

Gpt2Ranks read_gpt2_ranks(const fs::path& path) {
  fs::path file = path;
  if (fs::is_directory(path)) file = path / (fs::exists(path / kGpt2RankFile) ? kGpt2RankFile : "vocab.bpe");
  if (!fs::exists(file)) throw Error(fmt::format("no ranks of GPT-2 at {}", file.string()), kFetchHint);
  Gpt2Ranks ranks;
  if (file.filename() == "vocab.bpe" || file.filename() == "encoder.json") {
    const fs::path directory = file.parent_path();
    const ByteAlphabet alphabet;
    ranks = read_merges(directory / "vocab.bpe", alphabet);
    compare_with_encoder(directory / "encoder.json", alphabet, ranks);
  } else {
    ranks = read_tiktoken(file);
  }
  validate(file, ranks);
  return ranks;
}

fs::path find_gpt2_ranks(const std::optional<fs::path>& vocabulary) {
  if (vocabulary) return *vocabulary;
  const char* variable = std::getenv("TDA_GPT2_VOCABULARY");
  if (variable != nullptr && *variable != '\0') return variable;
  return fs::path(TDA_DATA_FOLDER) / kGpt2RankFile;
}

void write_gpt2_ranks(const fs::path& path, const Gpt2Ranks& ranks) {
  std::string content;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    content += fmt::format("{} {}\n", base64_encode(ranks[rank]), rank);
  }
  write_file_durably(path, content);
}

}  // namespace tda
