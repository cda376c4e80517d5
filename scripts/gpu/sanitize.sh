#!/usr/bin/env bash
# Runs compute-sanitizer over every kernel family (tests/cuda/sanitizer_cases.py) on what scripts/gpu/build.sh built, or
# on TDA_GPU_BUILD: memcheck and synccheck on all, racecheck and initcheck on fp32. Exit code 1 if there is a finding.
# The 16-bit kernels for sm_90 hand words from producers to consumers under mbarriers, which racecheck does not order and
# reports (docs/decisions/080): TDA_RACECHECK="half fused packed pairs fp32" shows them.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/gpu/built-package.sh
source scripts/gpu/built-package.sh

export PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}"
logs="$(mktemp -d)"
trap 'rm -rf "$package" "$logs"' EXIT

# Checks run beside each other, a process a tool and family; what they print follows in this order.
pids=()
check() {  # tool, families
  for family in "${@:2}"; do
    compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 "$python" tests/cuda/sanitizer_cases.py "$family" \
      >"$logs/$(printf %02d "${#pids[@]}") $1: $family" 2>&1 &
    pids+=($!)
  done
}
check memcheck half fused packed pairs fp32
check synccheck half fused packed pairs fp32
read -ra raced <<<"${TDA_RACECHECK:-fp32}"
check racecheck "${raced[@]}"
check initcheck fp32
result=0
for pid in "${pids[@]}"; do wait "$pid" || result=1; done
for log in "$logs"/*; do
  echo "== ${log#"$logs"/?? }"
  cat "$log"
done
exit "$result"
