#!/usr/bin/env bash
# Runs compute-sanitizer over every kernel family (tests/cuda/sanitizer_cases.py) on what scripts/gpu/build.sh built, or
# on TDA_GPU_BUILD: memcheck and synccheck on all, racecheck and initcheck on fp32. Exit code 1 if there is a finding.
# The 16-bit kernels for sm_90 hand words from producers to consumers under mbarriers, which racecheck does not order and
# reports (docs/decisions/080): TDA_RACECHECK="half pairs fp32" shows them.
set -euo pipefail
cd "$(dirname "$0")/../.."

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
export PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}"

result=0
check() {  # tool, families
  echo "== $1: ${*:2}"
  compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 "$python" tests/cuda/sanitizer_cases.py "${@:2}" || result=1
}
check memcheck half pairs fp32
check synccheck half pairs fp32
read -ra raced <<<"${TDA_RACECHECK:-fp32}"
check racecheck "${raced[@]}"
check initcheck fp32
exit "$result"
