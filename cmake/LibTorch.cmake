# The imported target `tda::libtorch`: headers and libraries of the PyTorch wheel that belongs to TDA_PYTHON.
#
# The wheel's own TorchConfig.cmake is not used: for a CUDA build of PyTorch it insists on a full CUDA toolkit even when
# nothing here compiles CUDA, and it overrides the architecture flags of the project. Only the CPU libraries are linked;
# a program that meets a GPU opens libtorch_cuda.so then (src/lm/training/training_device.cpp).

if(NOT TDA_PYTHON)
  if(SKBUILD AND Python_EXECUTABLE)
    # pip decides which interpreter a package is built for.
    set(TDA_PYTHON "${Python_EXECUTABLE}")
  elseif(DEFINED ENV{TDA_PYTHON} AND NOT "$ENV{TDA_PYTHON}" STREQUAL "")
    set(TDA_PYTHON "$ENV{TDA_PYTHON}")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
    set(TDA_PYTHON "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  else()
    message(FATAL_ERROR "No Python with PyTorch is known.\n"
      "HINT: run 'make setup', or name an interpreter that can import torch: cmake -DTDA_PYTHON=/path/to/python")
  endif()
endif()

# find_spec locates the package without the seconds that importing torch would take.
execute_process(
  COMMAND "${TDA_PYTHON}" -c
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
  OUTPUT_VARIABLE TDA_TORCH_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _torch_query)
if(NOT _torch_query EQUAL 0 OR NOT EXISTS "${TDA_TORCH_ROOT}/lib/libtorch_cpu.so")
  if(SKBUILD)
    # An isolated build environment has no PyTorch, and one of its own would not be the one that loads the library.
    message(FATAL_ERROR "threshold_attention is built against the PyTorch that will load it, and ${TDA_PYTHON} has none.\n"
      "HINT: in the environment that has torch: pip install scikit-build-core && pip install --no-build-isolation .")
  endif()
  message(FATAL_ERROR "${TDA_PYTHON} cannot import torch.\n"
    "HINT: install it with '${TDA_PYTHON} -m pip install torch==2.11.0', or pass -DTDA_PYTHON=/path/to/python")
endif()
message(STATUS "LibTorch: ${TDA_TORCH_ROOT}")

# Whether floors 2 and 3 can serve CUDA tensors: our kernels and those of PyTorch are there.
set(TDA_TORCH_CUDA OFF)
if(TDA_WITH_CUDA AND EXISTS "${TDA_TORCH_ROOT}/lib/libtorch_cuda.so")
  set(TDA_TORCH_CUDA ON)
endif()

add_library(tda_libtorch INTERFACE)
add_library(tda::libtorch ALIAS tda_libtorch)
target_include_directories(tda_libtorch SYSTEM INTERFACE
  "${TDA_TORCH_ROOT}/include" "${TDA_TORCH_ROOT}/include/torch/csrc/api/include")
# libtorch.so exports broken copies of std::filesystem functions (calling remove_all through it crashes), so the C++
# run-time library has to come first in the order in which symbols are looked up.
target_link_libraries(tda_libtorch INTERFACE stdc++
  "${TDA_TORCH_ROOT}/lib/libtorch.so" "${TDA_TORCH_ROOT}/lib/libtorch_cpu.so" "${TDA_TORCH_ROOT}/lib/libc10.so")
# libtorch_cpu finds its own CUDA run-time libraries through its RPATH; the linker need not resolve them again.
target_link_options(tda_libtorch INTERFACE
  "LINKER:--allow-shlib-undefined" "LINKER:-rpath,${TDA_TORCH_ROOT}/lib")
