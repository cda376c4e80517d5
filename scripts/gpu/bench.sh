#!/usr/bin/env bash
# Times the operator beside its peers on a GPU, on what scripts/gpu/build.sh built, or on TDA_GPU_BUILD: one table per
# claim on stdout, the numbers as bench/results/<date>-<device>-<what>.json. Arguments go to `python -m bench.gpu`, e.g.
# --claims forward,backward --output FILE; --help lists them. Inputs of a trained model: --trained DIR, or TDA_DATA.
# Exit code 1 if a measurement crashed. Missed goals are results, not failures.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/gpu/built-package.sh
source scripts/gpu/built-package.sh

PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}" "$python" -m bench.gpu "$@"
