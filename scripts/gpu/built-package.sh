# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, in the root of the checkout. Sets `python` (TDA_PYTHON, else .venv, else python3),
# `build` (TDA_GPU_BUILD, else build/cuda) and `package`: a folder for PYTHONPATH with the package of the checkout and the
# library of that build beside it; removed at exit.
python="${TDA_PYTHON:-$(command -v "$PWD/.venv/bin/python" || command -v python3)}"
build="${TDA_GPU_BUILD:-$PWD/build/cuda}"
[[ -f $build/libthreshold_attention.so ]] || {
  echo "error: $build/libthreshold_attention.so is missing" >&2
  echo "HINT: scripts/gpu/build.sh builds it; TDA_GPU_BUILD names another folder" >&2
  exit 2
}
package="$(mktemp -d)"
trap 'rm -rf "$package"' EXIT
cp -r python/threshold_attention "$package"
cp "$build/libthreshold_attention.so" "$package/threshold_attention"
