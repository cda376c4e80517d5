"""The program: measures claims, or renders what was measured."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from bench.gpu.built_package import built_package
from bench.gpu.claims import CLAIMS, Case, Claim
from bench.gpu.contenders import BACKWARD, FORWARD
from bench.gpu.inputs import REGIMES, Shape
from bench.gpu.machine import ROOT, commit_of_checkout, copy_rate, describe_machine, matrix_rate, own_stream
from bench.gpu.measuring import Bench, measure_rows
from bench.gpu.performance_page import IMAGES, rendered, with_tables
from bench.gpu.plots import plots
from bench.gpu.result import crashed, read_result, write_result
from bench.gpu.tables import claim_table, heading
from bench.gpu.timing import QUICK, STANDARD


class UsageError(Exception):
    """Wrong usage or bad input: one line, exit code 2."""


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    out.add_argument("--claims", help=f"comma-separated, of {', '.join(CLAIMS)}; all by default")
    out.add_argument("--cases", nargs="+", metavar="REGIME:DTYPE:B·H:D:T", help="rows of your own instead of claims")
    out.add_argument("--trained", type=Path, metavar="DIR", help="folder of layer4_*.bf16 (default: in TDA_DATA)")
    out.add_argument("--quick", action="store_true", help="short bursts, no T above 16384: to see that all runs")
    out.add_argument("--output", type=Path, help="result file (default: bench/results/DATE-DEVICE-WHAT.json)")
    out.add_argument("--commit", help="what was measured, where there is no git")
    out.add_argument("--render", nargs="+", type=Path, metavar="FILE", help="print the tables of these results")
    out.add_argument("--into", type=Path, metavar="PAGE", help="with --render: put tables and plots into this page")
    return out


def chosen_claims(options: argparse.Namespace) -> dict[str, Claim]:
    if options.cases:
        return {"cases": Claim("Chosen cases", tuple(case for text in options.cases for case in parse_case(text)))}
    names = options.claims.split(",") if options.claims else list(CLAIMS)
    for name in names:
        if name not in CLAIMS:
            raise UsageError(f"--claims: expected some of {', '.join(CLAIMS)}, got {name!r}")
    return {name: CLAIMS[name] for name in names}


def parse_case(text: str) -> list[Case]:
    """TRA forward and backward, and TDA's, for ``regime:dtype:heads:dim:length``."""
    try:
        regime, dtype, *numbers = text.split(":")
        heads, dim, length = (int(number) for number in numbers)
    except ValueError:
        raise UsageError(f"--cases: expected regime:dtype:B·H:D:T, got {text!r}") from None
    if regime not in REGIMES or dtype not in ("float32", "bfloat16", "float16") or min(heads, dim, length) < 1:
        raise UsageError(f"--cases: expected a regime of {', '.join(REGIMES)}, a dtype and sizes, got {text!r}")
    peers = ("efficient",) if dtype == "float32" else ("cudnn", "flash")
    return [
        Case(regime, Shape(heads, dim, length), run, operator=operator, dtype=dtype, peers=peers)
        for operator in ("tra", "tda")
        for run in (FORWARD, BACKWARD)
    ]


def trained_folder(given: Path | None) -> Path | None:
    """The folder of trained inputs: as given, else where the large real data lies, if it does."""
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"--trained: no folder {given}")
        return given
    folder = Path(os.environ.get("TDA_DATA") or ROOT.parent / "shared" / "data") / "trained_qkv"
    return folder if folder.is_dir() else None


def command(options: argparse.Namespace) -> str:
    """What decides on the numbers; where files lie does not."""
    words = ["scripts/gpu/bench.sh"]
    words += ["--claims", options.claims] if options.claims else []
    words += ["--cases", *options.cases] if options.cases else []
    return shlex.join(words + (["--quick"] if options.quick else []))


def measure_claims(options: argparse.Namespace) -> int:
    claims, trained = chosen_claims(options), trained_folder(options.trained)
    if not torch.cuda.is_available():
        raise UsageError("no CUDA device: this benchmark needs one (--render FILE does not)")
    try:
        built_package()
    except ImportError as error:
        raise UsageError(f"{error} (scripts/gpu/bench.sh uses what scripts/gpu/build.sh built)") from None
    with own_stream():
        return measure_and_write(options, claims, trained)


def measure_and_write(options: argparse.Namespace, claims: dict[str, Claim], trained: Path | None) -> int:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    start, plan = time.monotonic(), QUICK if options.quick else STANDARD
    what = "attention" if len(claims) == len(CLAIMS) else "attention-" + "-".join(claims)
    result = {
        "what": what + ("-quick" if options.quick else ""),
        **describe_machine(),
        "commit": options.commit or commit_of_checkout(),
        "command": command(options),
        "seconds": 0.0,
        "matrix_tflops": [matrix_rate(plan)],
        "copy_gbps": copy_rate(plan),
        "claims": [],
    }
    device = str(result["device"]).lower().removeprefix("nvidia ").split()[0]
    default = ROOT / "bench" / "results" / f"{result['date']}-{device}-{result['what']}.json"
    output = options.output or default
    print(heading(result), flush=True)
    bench = Bench(trained, options.quick)
    for name, claim in claims.items():
        begun = time.monotonic()
        rows = measure_rows(claim.cases, bench, lambda row: print(".", end="", file=sys.stderr, flush=True))
        print(file=sys.stderr)
        measured = {"name": name, "title": claim.title, "seconds": time.monotonic() - begun, "rows": rows}
        result["claims"].append(measured)
        result["seconds"] = time.monotonic() - start
        print(f"\n{claim_table(measured, result['matrix_tflops'][0])}\n({measured['seconds']:.1f} s)", flush=True)
        write_result(result, output)
    result["matrix_tflops"].append(matrix_rate(plan))
    result["seconds"] = time.monotonic() - start
    write_result(result, output)
    print(f"\nwritten: {output} after {result['seconds']:.0f} s")
    print(f"matrix products before and after: {' and '.join(f'{x:.0f}' for x in result['matrix_tflops'])} TFLOP/s")
    skipped = sum("skipped" in row for claim in result["claims"] for row in claim["rows"])
    if skipped:
        print(f"{skipped} rows skipped for want of trained inputs: --trained DIR or TDA_DATA names them")
    for line in crashed(result):
        print(f"crashed: {line}", file=sys.stderr)
    return 1 if crashed(result) else 0


def render(options: argparse.Namespace) -> int:
    results = [read_result(path) for path in options.render]
    if options.into is None:
        print(rendered(results))
        return 0
    names = [os.path.relpath(path, ROOT) for path in options.render]
    try:
        page = with_tables(options.into.read_text(), names, rendered(results, IMAGES))
    except (OSError, ValueError) as error:
        raise UsageError(f"--into {options.into}: {error}") from None
    options.into.write_text(page)
    images = options.into.parent / IMAGES
    for result in results:
        for name, svg in plots(result).items():
            images.mkdir(exist_ok=True)
            (images / name).write_text(svg)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measures or renders as the arguments (of the command line by default) say, and returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.render:
            return render(options)
        if options.into:
            raise UsageError("--into belongs to --render")
        return measure_claims(options)
    except (UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
