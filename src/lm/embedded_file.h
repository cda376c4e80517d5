// Files that become part of the program when it is built.
#pragma once

#include <string_view>

// TDA_EMBED_FILE(name, "path") at namespace scope, once for each name in the program; the path is read by the
// assembler, which copies the bytes (a string literal of 5 MB is beyond what compilers take gladly). Name the file in
// OBJECT_DEPENDS of the source, so that a change rebuilds it. TDA_EMBEDDED(name) is a std::string_view of it.
#define TDA_EMBED_FILE(name, path)                                                                               \
  __asm__(                                                                                                       \
      ".pushsection .rodata\n"                                                                                   \
      ".global tda_embedded_" #name "\n.hidden tda_embedded_" #name "\ntda_embedded_" #name ":\n.incbin \"" path \
      "\"\n.global tda_embedded_" #name "_end\n.hidden tda_embedded_" #name "_end\ntda_embedded_" #name          \
      "_end:\n.byte 0\n.popsection\n");                                                                          \
  extern "C" {                                                                                                   \
  extern const char tda_embedded_##name[];                                                                       \
  extern const char tda_embedded_##name##_end[];                                                                 \
  }

#define TDA_EMBEDDED(name) \
  std::string_view(tda_embedded_##name, static_cast<std::size_t>(tda_embedded_##name##_end - tda_embedded_##name))
