#include "lm/analysis/embedded_page.h"

#include "lm/embedded_file.h"

TDA_EMBED_FILE(html, TDA_PAGE_FOLDER "/report.html")
TDA_EMBED_FILE(style, TDA_PAGE_FOLDER "/report.css")
TDA_EMBED_FILE(script, TDA_PAGE_FOLDER "/report.js")
TDA_EMBED_FILE(plotly, TDA_PLOTLY_JS)

namespace tda {

EmbeddedPage embedded_page() {
  return {TDA_EMBEDDED(html), TDA_EMBEDDED(style), TDA_EMBEDDED(script), TDA_EMBEDDED(plotly)};
}

}  // namespace tda
