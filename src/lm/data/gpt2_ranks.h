#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace tda {

/// The byte sequences of GPT-2's ordinary tokens; the index is both the id and the rank (a lower rank merges first).
/// Always kGpt2Ranks of them, distinct and not empty, with every single byte among them.
using Gpt2Ranks = std::vector<std::string>;

inline constexpr int kGpt2Ranks = 50256;
inline constexpr const char* kGpt2RankFile = "gpt2.tiktoken";

/// Reads ranks from a `.tiktoken` file (lines of base64, blank, rank), from a folder that holds `gpt2.tiktoken` or
/// `vocab.bpe` and `encoder.json`, or from either of these two with the other beside it. Throws Error naming the file
/// and line that is missing or wrong.
Gpt2Ranks read_gpt2_ranks(const std::filesystem::path& path);

/// `vocabulary`, else TDA_GPT2_VOCABULARY, else the project's data folder. Throws Error when there are none.
std::filesystem::path find_gpt2_ranks(const std::optional<std::filesystem::path>& vocabulary);

/// Writes a `.tiktoken` file. Throws Error when it cannot.
void write_gpt2_ranks(const std::filesystem::path& path, const Gpt2Ranks& ranks);

}  // namespace tda
