"""Measures the rows of a claim. A peer that fails leaves its reason in the row; our own failure is the row's error."""

from __future__ import annotations

import dataclasses
import gc
import math
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench.gpu.claims import DENSITIES, LONGEST_QUICK, Case
from bench.gpu.contenders import FORWARD, OURS, backend_of, function_of, make_contender
from bench.gpu.density import find_beta, measured_density
from bench.gpu.inputs import Inputs, Shape, make_inputs
from bench.gpu.peak_memory import peak_memory
from bench.gpu.timing import QUICK, SCALING, STANDARD, DeviceStopwatch, Stopwatch, Timing, first_line, measure

Record = dict[str, object]


@dataclasses.dataclass
class Bench:
    """What all rows share: where trained inputs are, how long to measure, and the last row's inputs."""

    trained: Path | None = None
    quick: bool = False
    device: str = "cuda"
    stopwatch: Stopwatch = dataclasses.field(default_factory=DeviceStopwatch)
    _key: object = None
    _inputs: Inputs | None = None

    def inputs(self, case: Case) -> Inputs:
        """The inputs of a row, with the beta that gives its density."""
        key = (case.regime, case.shape, case.dtype, case.density)
        if self._inputs is None or key != self._key:
            self._inputs = None
            gc.collect()
            torch.cuda.empty_cache()
            dtype = getattr(torch, case.dtype)
            views = 2 if case.regime == "trained" else OURS[case.operator]
            made = make_inputs(case.regime, case.shape, dtype, self.device, views=views, trained=self.trained)
            if case.density is not None:
                made.beta.fill_(search_beta(made, case.shape, case.density))
            self._key, self._inputs = key, made
        views = OURS[case.operator]
        if len(self._inputs.q) < views:
            self._key = None
            return self.inputs(case)
        return self._inputs if views == 2 else self._inputs.of_view(case.view)


def search_beta(inputs: Inputs, shape: Shape, target: float) -> float:
    """The beta for a density, found on one batch of heads."""
    if target == max(DENSITIES):
        return 0.0
    part = dataclasses.replace(inputs, q=[inputs.q[0][:1]], k=[inputs.k[0][:1]], v=inputs.v[:1])
    one_batch = dataclasses.replace(shape, heads=part.v.shape[1])

    def density(beta: float) -> float:
        return measured_density(dataclasses.replace(part, beta=torch.full_like(part.beta, beta)), one_batch)

    return find_beta(density, target)


def agreement(name: str, inputs: Inputs) -> float:
    """The largest difference between a TRA peer's output and ours over our largest value."""
    with torch.no_grad():
        (peer, tensors), (ours, our_tensors) = function_of(name, inputs), function_of("tra", inputs)
        expected = ours(*our_tensors).float()
        return ((peer(*tensors).float() - expected).abs().max() / expected.abs().max()).item()


def _times(case: Case, inputs: Inputs, bench: Bench) -> dict[str, Record]:
    plan = QUICK if bench.quick else SCALING if case.scaling else STANDARD
    contenders = [make_contender(name, inputs, case.run) for name in (case.operator, *case.peers)]
    found = measure(contenders, plan, bench.stopwatch)
    return {
        name: value.to_json() if isinstance(value, Timing) else {"unavailable": value} for name, value in found.items()
    }


def _memory(case: Case, inputs: Inputs) -> dict[str, Record]:
    results: dict[str, Record] = {}
    for name in (case.operator, *case.peers):
        try:
            with backend_of(name)():
                results[name] = dict(peak_memory(*function_of(name, inputs), case.run).to_json())
        except Exception as error:
            if name in OURS:
                raise
            results[name] = {"unavailable": first_line(error)}
    return results


def ratio_of(case: Case, results: dict[str, Record]) -> float | None:
    """Times as fast as the first peer, or our memory over its; nothing without both. No memory over none is 1."""
    ours, peer = results.get(case.operator, {}), results.get(case.peers[0], {})
    key = {"time": "median_ms", "memory": "beyond_bytes", "total memory": "total_bytes"}[case.quantity]
    if key not in ours or key not in peer:
        return None
    top, bottom = (peer[key], ours[key]) if case.quantity == "time" else (ours[key], peer[key])
    if bottom == 0:
        return 1.0 if top == 0 else math.inf
    return top / bottom


def measure_row(case: Case, bench: Bench) -> Record:
    """A row of the result file; see ``bench.gpu.result``."""
    row: Record = {
        "case": case.title,
        "regime": case.regime,
        "operator": case.operator,
        "heads": case.shape.heads,
        "dim": case.shape.dim,
        "length": case.shape.length,
        "dtype": case.dtype,
        "run": case.run,
        "quantity": case.quantity,
        "peers": list(case.peers),
        "goal": case.goal.to_json() if case.goal else None,
        "quoted": case.quoted,
        "ratio": None,
        "results": {},
    }
    try:
        inputs = bench.inputs(case)
        row["beta"] = inputs.beta[0].item()
        row["results"] = _times(case, inputs, bench) if case.quantity == "time" else _memory(case, inputs)
        row["density"] = measured_density(inputs, case.shape)
        row["agreement"] = {
            name: agreement(name, inputs)
            for name in case.peers
            if name in ("flex", "naive") and case.run == FORWARD and "median_ms" in row["results"][name]
        }
        ratio = ratio_of(case, row["results"])
        # JSON has no infinity.
        row["ratio"] = "infinite" if ratio is not None and math.isinf(ratio) else ratio
    except FileNotFoundError as error:
        row["skipped"] = first_line(error)
    except Exception as error:
        row["error"] = first_line(error)
        traceback.print_exc()
        bench._key = bench._inputs = None
    return row


def measure_rows(cases: Iterable[Case], bench: Bench, done: Callable[[Record], None]) -> list[Record]:
    """The rows in their order; ``done`` is told each at once. ``quick`` leaves the longest sequences out."""
    rows = []
    for case in cases:
        if bench.quick and case.shape.length > LONGEST_QUICK:
            continue
        rows.append(measure_row(case, bench))
        done(rows[-1])
    return rows
