"""The result file: its shape, checked when it is written and when it is read.

A result is one object: what, date, device, driver, cuda, cudnn, torch, commit, command, seconds, matrix_tflops,
copy_gbps, and claims. A claim has name, title, seconds and rows. A row has case, regime, operator, heads (B·H), dim,
length, dtype, run, quantity, peers, goal, quoted, ratio, results, and once measured beta and density; or error, or
skipped. ``results`` holds for each contender either median_ms, low_ms, high_ms, spread_percent, bursts_ms,
runs_per_burst and launch, or total_bytes and beyond_bytes, or the reason why it is unavailable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

NUMBER = (int, float)
TOP = {
    "what": str,
    "date": str,
    "device": str,
    "driver": str,
    "cuda": str,
    "torch": str,
    "commit": str,
    "command": str,
    "seconds": NUMBER,
    "matrix_tflops": list,
    "copy_gbps": NUMBER,
    "claims": list,
}
CLAIM = {"name": str, "title": str, "seconds": NUMBER, "rows": list}
ROW = {
    "case": str,
    "regime": str,
    "operator": str,
    "heads": int,
    "dim": int,
    "length": int,
    "dtype": str,
    "run": str,
    "quantity": str,
    "peers": list,
    "goal": (dict, type(None)),
    "quoted": (*NUMBER, type(None)),
    "ratio": (*NUMBER, str, type(None)),
    "results": dict,
}
TIMING = {
    "median_ms": NUMBER,
    "low_ms": NUMBER,
    "high_ms": NUMBER,
    "spread_percent": NUMBER,
    "bursts_ms": list,
    "runs_per_burst": int,
    "launch": str,
}
MEMORY = {"total_bytes": int, "beyond_bytes": int}


def _check(value: object, fields: dict[str, object], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{where}.{name} is missing")
        if not isinstance(value[name], kind):
            raise ValueError(f"{where}.{name}: unexpected {type(value[name]).__name__}")


def check_result(result: object) -> None:
    """Raises ValueError with the path of the first field that is missing or of the wrong kind."""
    _check(result, TOP, "result")
    for c, claim in enumerate(result["claims"]):
        _check(claim, CLAIM, f"claims[{c}]")
        for r, row in enumerate(claim["rows"]):
            where = f"claims[{c}].rows[{r}]"
            _check(row, ROW, where)
            fields = TIMING if row["quantity"] == "time" else MEMORY
            for name, found in row["results"].items():
                unavailable = isinstance(found, dict) and "unavailable" in found
                _check(found, {"unavailable": str} if unavailable else fields, f"{where}.results.{name}")


def write_result(result: dict[str, object], path: Path) -> None:
    """Replaces ``path`` in one step, so that an interrupted run leaves the claims before it."""
    check_result(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(draft, path)


def read_result(path: Path) -> dict[str, object]:
    """Raises ValueError naming the file if it is no result."""
    try:
        result = json.loads(path.read_text())
        check_result(result)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return result


def crashed(result: dict[str, object]) -> list[str]:
    """The rows that have an error, one line each."""
    return [
        f"{claim['name']}, {row['case']}, T = {row['length']}, {row['run']}: {row['error']}"
        for claim in result["claims"]
        for row in claim["rows"]
        if "error" in row
    ]
