# The files of the report page, embedded in the program so that the page it writes opens offline anywhere.
#
# Plotly's script is part of the Python package plotly, pinned in requirements.txt. An interpreter given as TDA_PYTHON may
# lack it; then exactly that package is unpacked into the build folder. -DTDA_PLOTLY_JS=/path/to/plotly.min.js skips both.

function(tda_find_plotly)
  if(TDA_PLOTLY_JS AND EXISTS "${TDA_PLOTLY_JS}")
    return()
  endif()
  file(STRINGS "${PROJECT_SOURCE_DIR}/requirements.txt" requirement REGEX "^plotly==")
  set(unpacked "${PROJECT_BINARY_DIR}/plotly")
  set(locate "import importlib.util as u, sys; sys.path.insert(0, sys.argv[1]); s = u.find_spec('plotly'); print(s.submodule_search_locations[0] if s else '')")
  foreach(attempt RANGE 1)
    execute_process(COMMAND "${TDA_PYTHON}" -c "${locate}" "${unpacked}"
      OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(EXISTS "${package}/package_data/plotly.min.js")
      set(TDA_PLOTLY_JS "${package}/package_data/plotly.min.js" CACHE FILEPATH "Plotly's script for the report page" FORCE)
      message(STATUS "Plotly: ${TDA_PLOTLY_JS}")
      return()
    endif()
    message(STATUS "Unpacking ${requirement} into ${unpacked}")
    execute_process(COMMAND "${TDA_PYTHON}" -m pip install --quiet --disable-pip-version-check --no-deps
      --target "${unpacked}" "${requirement}" RESULT_VARIABLE result)
  endforeach()
  message(FATAL_ERROR "Plotly's script for the report page was not found.\n"
    "HINT: '${TDA_PYTHON}' -m pip install ${requirement}, or pass -DTDA_PLOTLY_JS=/path/to/plotly.min.js")
endfunction()

# tda_embed_report_page(SOURCE) tells SOURCE (embedded_page.cpp) where the files are and rebuilds it when one changes.
function(tda_embed_report_page source)
  tda_find_plotly()
  set(page "${CMAKE_CURRENT_SOURCE_DIR}/analysis/page")
  set_source_files_properties("${source}" PROPERTIES
    SKIP_PRECOMPILE_HEADERS ON
    COMPILE_DEFINITIONS "TDA_PAGE_FOLDER=\"${page}\";TDA_PLOTLY_JS=\"${TDA_PLOTLY_JS}\""
    OBJECT_DEPENDS "${page}/report.html;${page}/report.css;${page}/report.js;${TDA_PLOTLY_JS}")
endfunction()
