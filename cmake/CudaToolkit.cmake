# Sets TDA_WITH_CUDA, and enables the language CUDA when it is on.
#
# Machine code is built for sm_80 and sm_90, and PTX for compute_80 so that every later device can run the portable
# kernels; kernels that use instructions of one architecture only are compiled for that one (src/attention).
# The CUDA run-time library is linked statically: it looks for the driver when first used, so programs start on machines
# without a GPU, a driver or a toolkit.

set(TDA_WITH_CUDA OFF)
if(TDA_CUDA STREQUAL "OFF")
  return()
endif()
if(NOT TDA_CUDA MATCHES "^(AUTO|ON)$")
  message(FATAL_ERROR "TDA_CUDA is '${TDA_CUDA}', expected AUTO, ON or OFF")
endif()

include(CheckLanguage)
set(CMAKE_CUDA_ARCHITECTURES 80 CACHE STRING "Default architecture of CUDA targets that name none")
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(TDA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TDA_CUDA is ON but no CUDA compiler was found.\n"
      "HINT: put nvcc on the PATH, or name it: cmake -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  message(STATUS "CUDA: no compiler found, building without the CUDA kernels")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.3)
  if(TDA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TDA_CUDA is ON but CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.3.\n"
      "HINT: put a newer nvcc on the PATH, or name it: cmake -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  message(WARNING "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.3: building without the CUDA kernels")
  return()
endif()
set(TDA_WITH_CUDA ON)
set(CMAKE_CUDA_STANDARD 20)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # CMake 3.25 does not know yet that nvcc speaks C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(TDA_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${TDA_CCACHE}")
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}")
