#include "lm/analysis/embedded_page.h"

// The assembler copies the files: a string literal of 5 MB is beyond what compilers take gladly.
#define TDA_EMBED(name, path)                                                                                    \
  __asm__(                                                                                                       \
      ".pushsection .rodata\n"                                                                                   \
      ".global tda_embedded_" #name "\n.hidden tda_embedded_" #name "\ntda_embedded_" #name ":\n.incbin \"" path \
      "\"\n.global tda_embedded_" #name "_end\n.hidden tda_embedded_" #name "_end\ntda_embedded_" #name          \
      "_end:\n.byte 0\n.popsection\n");                                                                          \
  extern "C" {                                                                                                   \
  extern const char tda_embedded_##name[];                                                                       \
  extern const char tda_embedded_##name##_end[];                                                                 \
  }

TDA_EMBED(html, TDA_PAGE_FOLDER "/report.html")
TDA_EMBED(style, TDA_PAGE_FOLDER "/report.css")
TDA_EMBED(script, TDA_PAGE_FOLDER "/report.js")
TDA_EMBED(plotly, TDA_PLOTLY_JS)

namespace tda {

EmbeddedPage embedded_page() {
  const auto view = [](const char* first, const char* last) {
    return std::string_view(first, static_cast<std::size_t>(last - first));
  };
  return {view(tda_embedded_html, tda_embedded_html_end), view(tda_embedded_style, tda_embedded_style_end),
          view(tda_embedded_script, tda_embedded_script_end), view(tda_embedded_plotly, tda_embedded_plotly_end)};
}

}  // namespace tda
