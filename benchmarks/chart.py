"""docs/images/train-speed.svg: tokens/s against the number of tenants and against the length of sequences.

Reads the rows of benchmarks/results/*-train.json. Points of one line are of one commit and one
amount of work, so that they compare: the newest that make a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHAPES = {"qwen3-8b": "#1f77b4", "qwen3-0.6b": "#d62728"}
WIDTH, HEIGHT, MARGIN = 360, 260, 56

Row = dict[str, Any]
Points = list[tuple[float, float]]
"""Place on the horizontal axis, and tokens/s."""


def line(files: Iterable[list[Row]], shape: str, axis: str) -> Points:
    """The points of one shape from one code and one amount of work, the newest that makes a line.

    `files` are oldest first.
    """
    groups: dict[tuple[str, int], dict[float, float]] = {}
    for row in (row for rows in files for row in rows):
        mixed = row["lengths"] == "mixed"
        if row["shape"] == shape and row["backend"] == "tinsmith" and mixed == (axis == "tenants"):
            place = row["tenants"] if mixed else row["lengths"]
            group = groups.setdefault((row["commit"], row["tokens"]), {})
            group[float(place)] = row["tokens_per_s"]
    lines = [sorted(points.items()) for points in groups.values() if len(points) > 1]
    return lines[-1] if lines else []


def panel(lines: dict[str, Points], title: str, left: int) -> str:
    """One chart with the first line's highest value at the top; the places are evenly spaced."""
    places = sorted({x for points in lines.values() for x, _ in points})
    top = max(y for points in lines.values() for _, y in points)
    bottom, step = HEIGHT - MARGIN, (WIDTH - 2 * MARGIN) / max(1, len(places) - 1)
    parts = [f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>']
    axis = f"M{left + MARGIN} {MARGIN - 20}V{bottom}H{left + WIDTH - MARGIN + 20}"
    parts.append(f'<path d="{axis}" fill="none" stroke="#888"/>')
    for place, x in enumerate(places):
        parts.append(
            f'<text x="{left + MARGIN + place * step}" y="{bottom + 18}" text-anchor="middle">{x:,.0f}</text>'
        )
    for shape, points in lines.items():
        at = [
            (
                left + MARGIN + places.index(x) * step,
                bottom - y / top * (HEIGHT - 2 * MARGIN),
                y,
            )
            for x, y in points
        ]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{SHAPES[shape]}" stroke-width="2"/>')
        for x, y, value in at:
            label = f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:,.0f}</text>'
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{SHAPES[shape]}"/>{label}')
    names = ", ".join(shape for shape in lines)
    parts.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{names}</text>')
    return "".join(parts)


def main() -> None:
    """Draw it."""
    paths = sorted((ROOT / "benchmarks/results").glob("*-train.json"))
    files = [json.loads(path.read_text()) for path in paths]
    panels: list[str] = []
    for axis, title in (("tenants", "tokens/s by tenants, lengths mixed"), ("lengths", "tokens/s by length")):
        for shape in SHAPES:
            points = line(files, shape, axis)
            if points:
                panels.append(panel({shape: points}, title, len(panels) * WIDTH))
    size = f'width="{len(panels) * WIDTH}" height="{HEIGHT}" viewBox="0 0 {len(panels) * WIDTH} {HEIGHT}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    out = ROOT / "docs/images/train-speed.svg"
    out.write_text(f'{svg}<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n')
    print(out)


if __name__ == "__main__":
    main()
