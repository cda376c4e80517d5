#!/usr/bin/env bash
# Runs every test that needs a GPU on what scripts/gpu/build.sh built, or on TDA_GPU_BUILD. Arguments go to pytest.
# TDA_GRID_CASES random cases (6,700 by default: a quarter is fp64, which is skipped), TDA_REPETITIONS of the backward.
# Exit code 1 when a test fails; five fp32 cases of the default grid are known to
# (docs/experiments/2026-11-22-cuda-tests-on-h200.md).
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=scripts/gpu/built-package.sh
source scripts/gpu/built-package.sh
shards="${TDA_PARALLEL:-$(nproc)}"
export TDA_GRID_CASES="${TDA_GRID_CASES:-6700}" TDA_REPETITIONS="${TDA_REPETITIONS:-1000}"
logs="$(mktemp -d)"
trap 'rm -rf "$package" "$logs"' EXIT

result=0
pids=()
for ((i = 0; i < shards; ++i)); do
  GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i "$build/cuda_test" --gtest_brief=1 >"$logs/$i" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || result=1; done
cat "$logs"/* | grep -vE '^Running main|^\[=====|^\[  PASSED|^$' || true
echo "cuda_test: $(cat "$logs"/* | grep -oE 'PASSED  \] [0-9]+' | awk '{n += $3} END {print n}') passed in $shards shards"

# The language model's kernels. The program may have been built elsewhere and brought here.
if [[ -x $build/lm_cuda_test ]]; then
  torch="$("$python" -c 'import torch; print(torch.__path__[0])')"
  LD_LIBRARY_PATH="$build:$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$build/lm_cuda_test" --gtest_brief=1 || result=1
else
  echo "lm_cuda_test: not built, so not run (TDA_GPU_TARGETS=lm_cuda_test scripts/gpu/build.sh)"
fi

PYTHONPATH="$package:tests/torch" "$python" -m pytest -q -p no:cacheprovider -rfE tests/cuda "$@" || result=1
exit "$result"
