# tda_use_torch_headers(TARGET) gives TARGET the one precompiled header of the project (ATen, fmt and JSON).
#
# <torch/torch.h> is kept out of it and of every file: g++ instantiates the templates that a precompiled header left
# pending in each file that uses it, which costs 5 s a file with torch/torch.h and 1.5 s with ATen/ATen.h.
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)

# The torch wheel carries headers of its own fmt, without its library, and they would be found before the system's, whose
# folder the compiler searches last. A link in the build folder puts the system's first: compiled once, in libfmt,
# instead of header-only in each file (3 s a file).
find_path(TDA_FMT_INCLUDE fmt/format.h REQUIRED)
file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/system-headers")
file(CREATE_LINK "${TDA_FMT_INCLUDE}/fmt" "${PROJECT_BINARY_DIR}/system-headers/fmt" SYMBOLIC)

add_library(tda_torch_headers OBJECT "${CMAKE_CURRENT_LIST_DIR}/torch_headers.cpp")
target_link_libraries(tda_torch_headers PRIVATE tda::settings tda::libtorch nlohmann_json::nlohmann_json)

# Who uses the header has to define what it was compiled with.
function(tda_compile_with_system_fmt target)
  target_include_directories(${target} PRIVATE "${PROJECT_BINARY_DIR}/system-headers")
  target_compile_definitions(${target} PRIVATE $<TARGET_PROPERTY:fmt::fmt,INTERFACE_COMPILE_DEFINITIONS>)
endfunction()

tda_compile_with_system_fmt(tda_torch_headers)
target_precompile_headers(tda_torch_headers PRIVATE <ATen/ATen.h> <fmt/format.h> <fmt/ranges.h> <nlohmann/json.hpp>)

function(tda_use_torch_headers target)
  tda_compile_with_system_fmt(${target})
  target_precompile_headers(${target} REUSE_FROM tda_torch_headers)
endfunction()
