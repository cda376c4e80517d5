#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "cli/command.h"
#include "lm/data/token_text.h"
#include "lm/data/tokenizer.h"

namespace tda {
namespace {

struct TokenizeOptions {
  std::string tokenizer = "byte";
  std::optional<std::filesystem::path> vocabulary;
  bool decode = false;
};

int run_tokenize(const TokenizeOptions& options) {
  const auto tokenizer = make_tokenizer(options.tokenizer, options.vocabulary);
  std::ios::sync_with_stdio(false);
  if (options.decode) {
    decode_stream(*tokenizer, std::cin, std::cout);
  } else {
    encode_stream(*tokenizer, std::cin, std::cout);
  }
  return 0;
}

}  // namespace

void add_tokenize_command(CLI::App& program, Invocation& invocation) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = program.add_subcommand("tokenize", "Turn text into token ids, or with --decode ids into text");
  command->description(
      "Reads standard input and writes standard output: text to token ids separated by white space, or with --decode "
      "ids "
      "to text, byte for byte. All input is ordinary text, <|endoftext|> included.");
  command->add_option("--tokenizer", options->tokenizer, "byte or gpt2")->capture_default_str();
  command->add_option("--vocabulary", options->vocabulary,
                      "Ranks of gpt2: a .tiktoken file, or a folder with vocab.bpe and encoder.json");
  command->add_flag("--decode", options->decode, "From ids to text");
  command->callback([options, &invocation] { invocation.run = [options] { return run_tokenize(*options); }; });
}

}  // namespace tda
