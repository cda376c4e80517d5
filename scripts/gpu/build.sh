#!/usr/bin/env bash
# Builds the operator with its CUDA kernels into build/cuda: the PyTorch library, and the tests that need a GPU
# (cuda_test, lm_cuda_test).
# TDA_GPU_TARGETS names other targets, such as tda. Needs nvcc 12.3 or newer (13.0 is what is tested), what
# scripts/setup installs, and a Python with PyTorch (TDA_PYTHON, else .venv of `make`, else python3). TDA_PARALLEL:
# compilers at once.
set -euo pipefail
cd "$(dirname "$0")/../.."

export TDA_PYTHON="${TDA_PYTHON:-$(command -v "$PWD/.venv/bin/python" || command -v python3)}"
read -ra targets <<<"${TDA_GPU_TARGETS:-threshold_attention cuda_test lm_cuda_test}"
cmake --preset cuda -DTDA_PYTHON="$TDA_PYTHON" "$@"
cmake --build --preset cuda --target "${targets[@]}" -j"${TDA_PARALLEL:-$(nproc)}"
