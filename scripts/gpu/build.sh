#!/usr/bin/env bash
# Builds the operator with its CUDA kernels into build/cuda: the PyTorch library, and cuda_test.
# Needs nvcc 12.3 or newer and a Python with PyTorch (TDA_PYTHON, or python3). TDA_PARALLEL: compilers at once.
set -euo pipefail
cd "$(dirname "$0")/../.."

export TDA_PYTHON="${TDA_PYTHON:-$(command -v python3)}"
cmake --preset cuda -DTDA_PYTHON="$TDA_PYTHON" "$@"
cmake --build --preset cuda --target threshold_attention cuda_test -j"${TDA_PARALLEL:-$(nproc)}"
