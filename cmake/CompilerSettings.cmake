# The target `tda::settings` that every target of the project links: warnings, sanitizers, and the compiler cache.

# Programs are compiled with -fPIC as libraries are (CMake would say -fPIE), so that all can share one precompiled header.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fPIC>)

add_library(tda_settings INTERFACE)
add_library(tda::settings ALIAS tda_settings)
target_include_directories(tda_settings INTERFACE "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/include")
target_compile_options(tda_settings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor $<$<BOOL:${TDA_WERROR}>:-Werror>)
if(TDA_SANITIZE)
  target_compile_options(tda_settings INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined
    -fno-omit-frame-pointer)
  target_link_options(tda_settings INTERFACE -fsanitize=address,undefined)
endif()

if(TDA_FUZZ)
  target_compile_options(tda_settings INTERFACE -fsanitize=fuzzer-no-link)
endif()

find_program(TDA_CCACHE ccache)
if(TDA_CCACHE)
  # The sloppiness is what ccache asks for to cache files that use a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime "${TDA_CCACHE}")
  add_compile_options($<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
endif()
