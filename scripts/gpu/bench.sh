#!/usr/bin/env bash
# Times the operator beside its peers on a GPU, on what scripts/gpu/build.sh built, or on TDA_GPU_BUILD: one table per
# claim on stdout, the numbers as bench/results/<date>-<device>-<what>.json. Arguments go to `python -m bench.gpu`, e.g.
# --claims forward,backward --output FILE; --help lists them. Inputs of a trained model: --trained DIR, or TDA_DATA.
# Exit code 1 if a measurement crashed. Missed goals are results, not failures.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${TDA_PYTHON:-$(command -v "$PWD/.venv/bin/python" || command -v python3)}"
build="${TDA_GPU_BUILD:-$PWD/build/cuda}"
[[ -f $build/libthreshold_attention.so ]] || {
  echo "error: $build/libthreshold_attention.so is missing" >&2
  echo "HINT: scripts/gpu/build.sh builds it; TDA_GPU_BUILD names another folder" >&2
  exit 2
}

# The package from the checkout, with the library of this build beside it.
package="$(mktemp -d)"
trap 'rm -rf "$package"' EXIT
cp -r python/threshold_attention "$package"
cp "$build/libthreshold_attention.so" "$package/threshold_attention"
PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}" "$python" -m bench.gpu "$@"
