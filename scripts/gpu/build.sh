#!/usr/bin/env bash
# Builds the operator with its CUDA kernels into build/cuda: the PyTorch library, and cuda_test.
# TDA_GPU_TARGETS names other targets: tda, the program, wants everything that scripts/setup installs.
# Needs nvcc 12.3 or newer and a Python with PyTorch (TDA_PYTHON, or python3). TDA_PARALLEL: compilers at once.
set -euo pipefail
cd "$(dirname "$0")/../.."

export TDA_PYTHON="${TDA_PYTHON:-$(command -v python3)}"
read -ra targets <<<"${TDA_GPU_TARGETS:-threshold_attention cuda_test}"
cmake --preset cuda -DTDA_PYTHON="$TDA_PYTHON" "$@"
cmake --build --preset cuda --target "${targets[@]}" -j"${TDA_PARALLEL:-$(nproc)}"
