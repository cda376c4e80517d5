#!/usr/bin/env bash
# Trains a recipe on this machine's GPUs with the program that scripts/gpu/build.sh built, or that of TDA_GPU_BUILD:
#
#   TDA_GPU_TARGETS=tda scripts/gpu/build.sh
#   scripts/gpu/train.sh configs/paper/tda-162m.toml --data.path data/edu_fineweb10B --output runs/tda-162m --resume
#
# Arguments go to `tda train` (docs/training.md, docs/recipes.md); paths are relative to the working directory. What it
# needs: the recipe, and a dataset that `tda data prepare` wrote (or llm.c shards, docs/data.md) at the recipe's
# data.path or --data.path. train.device is cuda unless an argument says otherwise. One process per GPU: all that
# CUDA_VISIBLE_DEVICES leaves, or the first TDA_GPUS; several are started by torchrun, for which tokens_per_step must be
# a multiple of GPUs x micro_batch x context. SIGINT and SIGTERM end a run after its step with a checkpoint.
# TDA_PYTHON: the Python whose PyTorch the program was built against (else .venv, else python3).
set -euo pipefail

fail() { printf 'error: %s\nHINT: %s\n' "$1" "$2" >&2; exit 2; }

root="$(cd "$(dirname "$0")/../.." && pwd)"
python="${TDA_PYTHON:-$(command -v "$root/.venv/bin/python" || command -v python3)}"
build="${TDA_GPU_BUILD:-$root/build/cuda}"
(($#)) || fail "no recipe" "scripts/gpu/train.sh RECIPE.toml [--section.key value ...] [--resume] [--output DIR]"
[[ -x $build/tda ]] || fail "$build/tda is missing" \
  "TDA_GPU_TARGETS=tda scripts/gpu/build.sh builds it; TDA_GPU_BUILD names another folder"

torch="$("$python" -c 'import torch; print(torch.__path__[0])')" ||
  fail "$python cannot import torch" "TDA_PYTHON names the Python that the program was built with"
found="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
((found > 0)) || fail "PyTorch finds no GPU" "nvidia-smi should list one"
gpus="${TDA_GPUS:-$found}"
[[ $gpus =~ ^[1-9][0-9]*$ ]] && ((gpus <= found)) ||
  fail "TDA_GPUS asks for $gpus GPUs, and PyTorch finds $found" "nvidia-smi lists them"

# For a program that was built elsewhere and brought here.
export LD_LIBRARY_PATH="$build:$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
device=(--train.device cuda)
for argument in "$@"; do
  [[ $argument != --train.device && $argument != --train.device=* ]] || device=()
done
train=("$build/tda" train "$@" "${device[@]}")
((gpus == 1)) && exec "${train[@]}"
exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" --no-python "${train[@]}"
