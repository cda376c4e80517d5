#include "lm/data/document_splitter.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

namespace tda {
namespace {

using Documents = std::vector<std::string>;

Documents split(const std::vector<std::string>& parts) {
  Documents documents;
  std::string document;
  DocumentSplitter splitter(
      [&](std::string_view text) {
        EXPECT_FALSE(text.empty());
        EXPECT_EQ(text.substr(0, text.size() - 1).find('\n'), std::string_view::npos) << "a part crosses lines";
        document += text;
      },
      [&] {
        documents.push_back(document);
        document.clear();
      });
  for (const std::string& part : parts) splitter.append(part);
  splitter.finish();
  EXPECT_EQ(document, "");
  return documents;
}

TEST(DocumentSplitter, MarkerLinesEndDocuments) {
  EXPECT_EQ(split({"a\n<|endoftext|>\nb\n<|endoftext|>\n"}), (Documents{"a\n", "b\n"}));
  EXPECT_EQ(split({"a\n<|endoftext|>\nb"}), (Documents{"a\n", "b"}));
  EXPECT_EQ(split({"a\n<|endoftext|>"}), (Documents{"a\n"}));
  EXPECT_EQ(split({"<|endoftext|>\na\n"}), (Documents{"a\n"}));
}

TEST(DocumentSplitter, OnlyAWholeLineIsAMarker) {
  for (const std::string text : {"x<|endoftext|>\n", "<|endoftext|> \n", " <|endoftext|>\n", "<|endoftext|>\r\n",
                                 "<|endoftext|><|endoftext|>\n", "<|endoftext|", "<|endoftext|\n", "<\n<|\n", "\n\n"}) {
    EXPECT_EQ(split({text}), Documents{text});
  }
}

TEST(DocumentSplitter, DocumentsWithoutAByteAreNone) {
  EXPECT_EQ(split({}), Documents{});
  EXPECT_EQ(split({""}), Documents{});
  EXPECT_EQ(split({"<|endoftext|>\n<|endoftext|>\n<|endoftext|>"}), Documents{});
  EXPECT_EQ(split({"a\n<|endoftext|>\n<|endoftext|>\n\n"}), (Documents{"a\n", "\n"}));
}

TEST(DocumentSplitter, TextsDoNotTouch) {
  Documents documents;
  std::string document;
  DocumentSplitter splitter([&](std::string_view text) { document += text; },
                            [&] { documents.push_back(std::exchange(document, {})); });
  splitter.append("a<|endof");
  splitter.finish();
  splitter.append("<|endof");
  splitter.finish();
  splitter.append("text|>\n");
  splitter.finish();
  EXPECT_EQ(documents, (Documents{"a<|endof", "<|endof", "text|>\n"}));
}

TEST(DocumentSplitter, PartsChangeNothing) {
  std::mt19937 random(3);
  const std::vector<std::string> words = {
      "<|endoftext|>", "\n", "<|endoftext|>\n", "\n<|endoftext|>\n", "x", "<|", "é "};
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = 0; i < 12; ++i) text += words[random() % words.size()];
    std::vector<std::string> parts;
    for (size_t begin = 0; begin < text.size();) {
      const size_t size = 1 + random() % 9;
      parts.push_back(text.substr(begin, size));
      begin += size;
    }
    EXPECT_EQ(split(parts), split({text})) << text;
  }
}

}  // namespace
}  // namespace tda
