"""A line chart as SVG text: logarithmic or categorical x, logarithmic y, a legend. Enough for the plots of a claim."""

from __future__ import annotations

import dataclasses
import math
from html import escape

WIDTH, HEIGHT = 800, 440
LEFT, RIGHT, TOP, BOTTOM = 76, 216, 46, 56
COLOURS = ("#1f6fb4", "#d1495b", "#5a9a3c", "#8e5aa8", "#e08e1b", "#4d4d4d")


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y) with y > 0, drawn in their order; a limit is drawn dashed and without dots."""

    name: str
    points: list[tuple[float, float]]
    limit: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_ticks: list[tuple[float, str]]  # in the order of the axis; a categorical axis has equal steps
    categorical: bool = False

    def svg(self) -> str:
        """Raises ValueError if there is no point, or one that a logarithm does not take."""
        values = [y for series in self.series for _, y in series.points]
        if not values or min(values) <= 0.0:
            raise ValueError(f"chart {self.title!r}: expected points with y > 0")
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="13">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(LEFT, 26, self.title, size=15),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, self.x_label, anchor="middle"),
            f'<g transform="rotate(-90 18 {(TOP + HEIGHT - BOTTOM) / 2})">'
            + _text(18, (TOP + HEIGHT - BOTTOM) / 2, self.y_label, anchor="middle")
            + "</g>",
        ]

        def y_of(value: float) -> float:
            return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

        for decade in range(low, high + 1):
            y = y_of(10.0**decade)
            parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#dddddd"), _text(LEFT - 8, y + 4, f"{10.0**decade:g}", "end")]
            if decade < high and high - low <= 3:
                for step in (2, 5):
                    y = y_of(step * 10.0**decade)
                    parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#f0f0f0")]
                    parts += [_text(LEFT - 8, y + 4, f"{step * 10.0**decade:g}", "end")]
        for value, label in self.x_ticks:
            x = self._x_of(value)
            parts += [_line(x, TOP, x, HEIGHT - BOTTOM, "#eeeeee")]
            parts += [_text(x, HEIGHT - BOTTOM + 20, label, anchor="middle")]
        for n, series in enumerate(self.series):
            parts += self._drawn(n, series, y_of)
        return "\n".join([*parts, "</svg>", ""])

    def _x_of(self, value: float) -> float:
        ticks = [tick for tick, _ in self.x_ticks]
        if self.categorical:
            share = (ticks.index(value) + 0.5) / len(ticks)
        else:
            first, last = math.log(ticks[0]), math.log(ticks[-1])
            share = (math.log(value) - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - RIGHT - LEFT)

    def _drawn(self, n: int, series: Series, y_of) -> list[str]:
        colour = COLOURS[n % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if series.limit else ""
        spots = [(self._x_of(x), y_of(y)) for x, y in series.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        y = TOP + 14 + 22 * n
        parts = [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
            f'<line x1="{WIDTH - RIGHT + 12}" y1="{y - 4}" x2="{WIDTH - RIGHT + 36}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="2"{dash}/>',
            _text(WIDTH - RIGHT + 42, y, series.name),
        ]
        if not series.limit:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in spots]
        return parts


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
