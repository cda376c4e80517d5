#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tda {

/// How end-of-text is written: a line of its own that is exactly this ends a document of input text.
inline constexpr std::string_view kEndOfText = "<|endoftext|>";

/// Text to token ids and back. Text is bytes: nothing is normalised, nothing has to be valid UTF-8, and
/// decode(encode(text)) == text for every sequence of bytes. encode() never yields end-of-text: `<|endoftext|>` inside
/// `text` is ordinary text (lm/data/document_reader.h splits documents). Const members may run on several threads.
class Tokenizer {
 public:
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  /// A position p <= text.size(), as large as is quickly found, with encode(text + rest) == encode(text[0, p)) +
  /// encode(text[p, end) + rest) for every `rest`; 0 when there is none. Long text is encoded piecewise with it.
  virtual size_t split_point(std::string_view text) const = 0;

  /// The bytes of `ids`; end-of-text is written as `<|endoftext|>`. Throws Error for an id outside
  /// [0, vocabulary_size()), padded ids included.
  std::string decode(std::span<const int32_t> ids) const;
  std::string decode(std::initializer_list<int32_t> ids) const {
    return decode(std::span<const int32_t>(ids.begin(), ids.size()));
  }

  /// "byte" or "gpt2".
  virtual std::string name() const = 0;
  /// Ids that can occur in data: the text's own and end-of-text.
  virtual int vocabulary_size() const = 0;
  /// Rows of the model's embedding and head: vocabulary_size() rounded up for the sake of matrix shapes.
  virtual int padded_vocabulary_size() const = 0;
  virtual int end_of_text() const = 0;

  /// Writes what load_tokenizer() needs into the existing folder `directory`: `tokenizer.json`, and for gpt2
  /// `gpt2.tiktoken`. Throws Error when it cannot.
  virtual void save(const std::filesystem::path& directory) const = 0;

 protected:
  /// The bytes of one id of [0, vocabulary_size()) other than end-of-text.
  virtual std::string_view token_bytes(int32_t id) const = 0;
};

/// `name` is "byte" or "gpt2". The ranks of gpt2 are read from `vocabulary` (a `.tiktoken` file, or a folder that holds
/// `gpt2.tiktoken` or `vocab.bpe` and `encoder.json`, or either of these two with the other beside it), else from the
/// path in the environment variable TDA_GPT2_VOCABULARY, else from `gpt2.tiktoken` in the project's data folder. Throws
/// Error for an unknown name and for missing or damaged ranks.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name,
                                          const std::optional<std::filesystem::path>& vocabulary = std::nullopt);

/// The tokenizer that save() wrote into `directory`. Throws Error naming the file that is missing or damaged.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

}  // namespace tda
