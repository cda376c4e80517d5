#include "lm/data/document_splitter.h"

#include <utility>

#include "lm/data/tokenizer.h"

namespace tda {

DocumentSplitter::DocumentSplitter(TextSink text, EndSink end) : text_(std::move(text)), end_(std::move(end)) {}

void DocumentSplitter::append(std::string_view part) {
  while (!part.empty()) {
    if (at_line_start_) {
      if (matched_ < kEndOfText.size() && part.front() == kEndOfText[matched_]) {
        ++matched_;
        part.remove_prefix(1);
        continue;
      }
      if (matched_ == kEndOfText.size() && part.front() == '\n') {
        matched_ = 0;
        part.remove_prefix(1);
        end_document();
        continue;
      }
      emit(kEndOfText.substr(0, std::exchange(matched_, 0)));
      at_line_start_ = false;
    }
    const size_t newline = part.find('\n');
    const size_t line = newline == std::string_view::npos ? part.size() : newline + 1;
    emit(part.substr(0, line));
    at_line_start_ = newline != std::string_view::npos;
    part.remove_prefix(line);
  }
}

void DocumentSplitter::finish() {
  if (matched_ < kEndOfText.size()) emit(kEndOfText.substr(0, matched_));
  matched_ = 0;
  at_line_start_ = true;
  end_document();
}

void DocumentSplitter::emit(std::string_view text) {
  if (text.empty()) return;
  in_document_ = true;
  text_(text);
}

void DocumentSplitter::end_document() {
  if (std::exchange(in_document_, false)) end_();
}

}  // namespace tda
