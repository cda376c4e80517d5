"""A claim as a Markdown table: the ratio first, the goal beside it, then whether it is met."""

from __future__ import annotations

import math

from bench.gpu.contenders import FORWARD, OURS, TITLES
from bench.gpu.goals import Goal, shown
from bench.gpu.inputs import Shape

Record = dict[str, object]
MEBIBYTE = 1 << 20
SCALING_CLAIMS = ("length", "density")  # these show the time of a score


def shape_of(row: Record) -> Shape:
    return Shape(row["heads"], row["dim"], row["length"])


def ratio_value(row: Record) -> float | None:
    return math.inf if row["ratio"] == "infinite" else row["ratio"]


def milliseconds(found: Record | None) -> str:
    """The median and how far bursts lie apart; a star where replays of a graph were timed."""
    if found is None:
        return "-"
    if "unavailable" in found:
        return "not available"
    star = {"graph": "\\*", "stream, host-bound": "†"}.get(found["launch"], "")
    return f"{significant(found['median_ms'])}{star} ±{0.5 * found['spread_percent']:.1f} %"


def significant(value: float, digits: int = 4) -> str:
    """``digits`` significant digits, plain notation."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def mebibytes(size: int) -> str:
    """One decimal; of less than that two significant digits, since some peers get by with a kilobyte."""
    value = size / MEBIBYTE
    return f"{value:.1f}" if value == 0 or value >= 0.05 else significant(value, 2)


def density(row: Record) -> str:
    share = row.get("density")
    if share is None:
        return "-"
    return "< 0.0001 %" if 0 < share < 1e-6 else f"{100 * share:.3g} %"


def speed_cells(row: Record, tflops: float, with_scores: bool) -> dict[str, str]:
    """The columns of a row of times. TFLOP/s: of the products QKᵀ that a call without skipping needs; GB/s: inputs
    read and outputs written once; limit: QKᵀ at the measured rate of matrix products (bf16 forward)."""
    results, shape, views = row["results"], shape_of(row), OURS[row["operator"]]
    ours = results.get(row["operator"])
    cells = {TITLES[row["operator"]] + " ms": milliseconds(ours)}
    for name in row["peers"]:
        cells[TITLES[name] + " ms"] = milliseconds(results.get(name))
    ms = ours.get("median_ms") if ours else None
    for name in row["peers"][1:]:
        peer = results.get(name, {}).get("median_ms")
        cells[f"over {TITLES[name]}"] = shown(peer / ms if peer and ms else None)
    if with_scores:
        cells["ps a score"] = significant(1e9 * ms / (views * shape.pairs), 3) if ms else "-"
        return cells
    flops = 2.0 * views * shape.pairs * shape.dim
    forward = row["run"] == FORWARD
    item = 4 if row["dtype"] == "float32" else 2
    tensors = 2 * views + 2 if forward else 4 * views + 3
    cells["TFLOP/s"] = f"{1e-9 * flops / ms:.0f}" if ms and forward else "-"
    cells["GB/s"] = f"{1e-6 * tensors * item * shape.heads * shape.length * shape.dim / ms:.0f}" if ms else "-"
    limited = forward and row["dtype"] != "float32"
    cells["limit ms"] = significant(1e-9 * flops / tflops, 3) if limited else "-"
    return cells


def memory_cells(row: Record) -> dict[str, str]:
    key = "total_bytes" if row["quantity"] == "total memory" else "beyond_bytes"
    counted = "in all" if row["quantity"] == "total memory" else "beyond"
    cells = {"counted": counted}
    for name in (row["operator"], *row["peers"]):
        found = row["results"].get(name, {})
        title = "ours MiB" if name in OURS else f"{TITLES[name]} MiB"
        cells[title] = mebibytes(found[key]) if key in found else "not available" if found else "-"
    return cells


def row_cells(row: Record, tflops: float, claim: str) -> dict[str, str]:
    goal, ratio, time = Goal.from_json(row["goal"]), ratio_value(row), row["quantity"] == "time"
    broken = next((f"{word}: {row[word]}" for word in ("error", "skipped") if word in row), None)
    cells = {"ratio": shown(ratio, at_most=not time)}
    if row["quoted"] is not None:
        cells["paper"] = shown(row["quoted"])
    if goal is not None:
        cells["goal"], cells["verdict"] = str(goal), goal.verdict(ratio)
    cells["case"] = row["case"] if time or row["operator"] == "tra" else row["case"].replace("two views", "TDA")
    cells["run"] = row["run"].replace("forward+backward", "both")
    cells["B·H, D, T"] = f"{row['heads']}, {row['dim']}, {row['length']}"
    cells["live pairs"] = density(row)
    if broken:
        return cells | {"note": broken}
    if claim == "density" and "beta" in row:
        cells["β"] = f"{row['beta']:.3f}"
    cells |= speed_cells(row, tflops, claim in SCALING_CLAIMS) if time else memory_cells(row)
    notes = [f"{TITLES[n]}: {f['unavailable']}" for n, f in row["results"].items() if "unavailable" in f]
    notes += [f"{TITLES[name]} within {value:.1e} of ours" for name, value in row.get("agreement", {}).items()]
    if notes:
        cells["note"] = "; ".join(notes)
    return cells


def markdown(rows: list[dict[str, str]]) -> str:
    """A table with the union of the rows' columns in the order of their first appearance, ``note`` last."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "note"))
    columns += ["note"] if any("note" in row for row in rows) else []
    lines = [columns, *([row.get(name, "-" if name != "note" else "") for name in columns] for row in rows)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]

    def drawn(line: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    return "\n".join([drawn(lines[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(drawn, lines[1:])])


def best_rate(result: Record) -> float:
    """TFLOP/s of matrix products, the best of the run."""
    return max(result["matrix_tflops"])


def claim_table(claim: Record, tflops: float) -> str:
    """Title, table, and how many goals are met."""
    rows = [row_cells(row, tflops, claim["name"]) for row in claim["rows"]]
    # A claim without a goal, or with one in some rows only, has the columns where they belong: behind the ratio.
    lead = [name for name in ("ratio", "paper", "goal", "verdict") if any(name in row for row in rows)]
    rows = [{name: row.get(name, "-") for name in lead} | row for row in rows]
    verdicts = [row["verdict"] for row in rows if row.get("verdict", "-") != "-"]
    title = f"### {claim['name']}: {claim['title']}"
    text = [title, "", markdown(rows) if rows else "No row measured."]
    if verdicts:
        text += ["", f"{verdicts.count('met')} of {len(verdicts)} goals met."]
    return "\n".join(text)


def heading(result: Record) -> str:
    rates = " and ".join(f"{rate:.0f}" for rate in result["matrix_tflops"])
    return (
        f"{result['device']}, driver {result['driver']}, CUDA {result['cuda']}, torch {result['torch']}, commit "
        f"{result['commit']}, {result['date']}: `{result['command']}`. Measured in the same run: {rates} TFLOP/s (bf16 "
        f"product of 8192 x 8192 matrices, before and after), {result['copy_gbps']:.0f} GB/s (copy, read and written)."
    )
