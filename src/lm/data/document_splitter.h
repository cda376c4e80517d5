#pragma once

#include <cstddef>
#include <functional>
#include <string_view>

namespace tda {

/// Finds the documents of a text that arrives in parts. A line that is exactly `<|endoftext|>` ends a document, and so
/// does the end of the text; that line and its newline belong to no document. Everything else is the documents' bytes,
/// `<|endoftext|>` within a line included. A document without a byte is none.
class DocumentSplitter {
 public:
  /// Receives the bytes of the present document; no part goes beyond the end of a line.
  using TextSink = std::function<void(std::string_view)>;
  using EndSink = std::function<void()>;

  DocumentSplitter(TextSink text, EndSink end);

  void append(std::string_view part);
  /// The text ends here. A new text may follow.
  void finish();

 private:
  void emit(std::string_view text);
  void end_document();

  TextSink text_;
  EndSink end_;
  bool at_line_start_ = true;  // all of the line so far is the first `matched_` bytes of the marker, held back
  size_t matched_ = 0;
  bool in_document_ = false;
};

}  // namespace tda
