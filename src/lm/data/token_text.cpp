#include "lm/data/token_text.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <istream>
#include <iterator>
#include <ostream>

#include "lm/data/text_encoder.h"
#include "lm/error.h"

namespace tda {
namespace {

constexpr size_t kChunkBytes = 1 << 16;

void expect_written(std::ostream& out) {
  if (!out.flush()) throw Error("cannot write the output: is the disk full?");
}

std::vector<int32_t> parse_ids(std::string_view text) {
  std::vector<int32_t> ids;
  const auto is_blank = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  for (size_t begin = 0; begin < text.size();) {
    if (is_blank(text[begin])) {
      ++begin;
      continue;
    }
    size_t end = begin;
    while (end < text.size() && !is_blank(text[end])) ++end;
    int32_t id = 0;
    const auto parsed = std::from_chars(text.data() + begin, text.data() + end, id);
    if (parsed.ec != std::errc{} || parsed.ptr != text.data() + end) {
      throw Error(
          fmt::format("input {} is '{}', expected a token id", ids.size() + 1, text.substr(begin, end - begin)));
    }
    ids.push_back(id);
    begin = end;
  }
  return ids;
}

}  // namespace

void encode_stream(const Tokenizer& tokenizer, std::istream& in, std::ostream& out) {
  bool any = false;
  TextEncoder encoder(tokenizer, [&](std::span<const int32_t> ids) {
    fmt::memory_buffer line;
    for (const int32_t id : ids) {
      if (any) line.push_back(' ');
      any = true;
      fmt::format_to(std::back_inserter(line), "{}", id);
    }
    out.write(line.data(), static_cast<std::streamsize>(line.size()));
  });
  std::string chunk(kChunkBytes, '\0');
  while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || in.gcount() > 0) {
    encoder.append(std::string_view(chunk.data(), static_cast<size_t>(in.gcount())));
  }
  if (in.bad()) throw Error("cannot read the input");
  encoder.finish();
  if (any) out.put('\n');
  expect_written(out);
}

void decode_stream(const Tokenizer& tokenizer, std::istream& in, std::ostream& out) {
  const std::string text(std::istreambuf_iterator<char>(in), {});
  const std::string bytes = tokenizer.decode(parse_ids(text));
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  expect_written(out);
}

}  // namespace tda
