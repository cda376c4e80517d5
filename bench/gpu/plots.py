"""The plots of a result: time against T, and ratio against density, with QKᵀ at the measured matrix rate drawn in."""

from __future__ import annotations

from bench.gpu.claims import HEADS
from bench.gpu.contenders import BACKWARD, FORWARD, TITLES
from bench.gpu.inputs import Shape
from bench.gpu.svg_chart import Chart, Series
from bench.gpu.tables import Record, best_rate, shape_of


def limit_ms(shape: Shape, tflops: float) -> float:
    """Milliseconds of the causal half of QKᵀ of one view at that rate."""
    return 2e-9 * shape.pairs * shape.dim / tflops


def _measured(row: Record, name: str) -> float | None:
    return row["results"].get(name, {}).get("median_ms")


def length_chart(rows: list[Record], tflops: float) -> Chart:
    """Milliseconds of 48 heads against T; rows with other numbers of heads are scaled."""
    series = []
    for run in (FORWARD, BACKWARD):
        for name in ("tra", "cudnn"):
            points = [
                (row["length"], _measured(row, name) * HEADS / row["heads"])
                for row in rows
                if row["run"] == run and _measured(row, name)
            ]
            series.append(Series(f"{TITLES[name]} {run}", sorted(points)))
    shapes = sorted({(row["length"], row["dim"]) for row in rows})
    limit = [(length, limit_ms(Shape(HEADS, dim, length), tflops)) for length, dim in shapes]
    series.append(Series("limit: QKᵀ alone", limit, limit=True))
    ticks = [(length, f"{length // 1024}k") for length, _ in shapes]
    return Chart(
        f"Time against T: random, bf16, D = {shapes[0][1]}, causal",
        "T",
        f"milliseconds for {HEADS} heads",
        [s for s in series if s.points],
        ticks,
    )


def density_chart(rows: list[Record], tflops: float) -> Chart:
    """Times as fast as cuDNN against the measured density; the limit is cuDNN's forward over QKᵀ alone."""
    targets = sorted({round(100 * row["density"], 2) for row in rows if row.get("density") is not None})
    series = []
    for run in (FORWARD, BACKWARD):
        points = [
            (round(100 * row["density"], 2), row["ratio"])
            for row in rows
            if row["run"] == run and isinstance(row["ratio"], float) and row.get("density") is not None
        ]
        series.append(Series(f"TRA {run}", sorted(points)))
    limits = [
        (round(100 * row["density"], 2), _measured(row, "cudnn") / limit_ms(shape_of(row), tflops))
        for row in rows
        if row["run"] == FORWARD and _measured(row, "cudnn") and row.get("density") is not None
    ]
    series.append(Series("limit: QKᵀ alone, fwd", sorted(limits), limit=True))
    series.append(Series("SDPA cuDNN", [(target, 1.0) for target in targets], limit=True))
    return Chart(
        f"Times as fast as SDPA cuDNN against density: bf16, D = 64, T = {rows[0]['length']}",
        "pairs that survive (random inputs, spread evenly)",
        "ratio",
        [s for s in series if s.points],
        [(target, f"{target:g} %") for target in targets],
        categorical=True,
    )


CHARTS = {"length": length_chart, "density": density_chart}


def measured_rows(claim: Record) -> list[Record]:
    """The rows that a plot can be drawn of; none if the claim has no plot."""
    if claim["name"] not in CHARTS:
        return []
    return [row for row in claim["rows"] if "median_ms" in row["results"].get("tra", {})]


def plot_name(claim: Record) -> str:
    return f"performance-{claim['name']}.svg"


def plots(result: Record) -> dict[str, str]:
    """SVG text by file name, of the claims that have a plot and at least one row that was measured."""
    return {
        plot_name(claim): CHARTS[claim["name"]](rows, best_rate(result)).svg()
        for claim in result["claims"]
        if (rows := measured_rows(claim))
    }
