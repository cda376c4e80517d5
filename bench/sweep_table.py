"""Prints a table of a sweep as Markdown: one key of the grid down, one across, the mean over all others in the cells.

    .venv/bin/python bench/sweep_table.py runs/my-sweep/results.csv --rows model.power --columns model.beta

Behind each mean stand the smallest and the largest value, where there are several. Runs that are not finished are
refused, since a mean over some of them would compare unequal things. --digits 3 is the number of decimals.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path


def read_finished(path: Path, needed: list[str]) -> list[dict[str, str]]:
    """The rows of results.csv; exits with one line and code 2 when a column is missing or a run is not finished."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        sys.exit(complain(f"cannot read {path}: {error.strerror}"))
    if not rows:
        sys.exit(complain(f"{path} holds no run"))
    for name in needed:
        if name not in rows[0]:
            sys.exit(complain(f"{path} has no column {name}, expected one of {', '.join(rows[0])}"))
    for row in rows:
        if row["status"] != "finished":
            sys.exit(complain(f"{path}: run {row['run']} is {row['status']}, expected finished"))
    return rows


def complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(rows: list[dict[str, str]], down: str, across: str, value: str, digits: int) -> str:
    """Markdown; values of both keys in the order of the file."""
    columns = list(dict.fromkeys(row[across] for row in rows))
    lines = [f"| {down} | " + " | ".join(f"{across} = {column}" for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for key in dict.fromkeys(row[down] for row in rows):
        cells = []
        for column in columns:
            values = [float(row[value]) for row in rows if row[down] == key and row[across] == column]
            cells.append(cell(values, digits))
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.csv of a sweep")
    parser.add_argument("--rows", required=True, help="key of the grid, e.g. model.power")
    parser.add_argument("--columns", required=True, help="key of the grid, e.g. model.beta")
    parser.add_argument("--value", default="val_loss", help="column of results.csv")
    parser.add_argument("--digits", type=int, default=3)
    options = parser.parse_args()
    rows = read_finished(options.results, [options.rows, options.columns, options.value])
    print(table(rows, options.rows, options.columns, options.value, options.digits))


if __name__ == "__main__":
    main()
