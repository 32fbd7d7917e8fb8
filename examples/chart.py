"""Line charts as SVG text, without a library: one curve, its goal, and the figures at its ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from examples.results import Point

WIDTH, HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 58, 46
_PLOT_RIGHT, _PLOT_BOTTOM = WIDTH - _RIGHT, HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Palette:
    """The colours of a chart."""

    paper: str
    ink: str
    soft: str
    grid: str
    line: str
    goal: str

    def rules(self) -> str:
        """The colours as style rules. Written out, because not every SVG renderer knows variables."""
        return (
            f".chart .paper{{fill:{self.paper}}}.chart text{{fill:{self.soft}}}.chart .title{{fill:{self.ink}}}"
            f".chart .grid{{stroke:{self.grid}}}.chart .curve{{stroke:{self.line}}}.chart .goal{{stroke:{self.goal}}}"
            f".chart .dot,.chart .figure{{fill:{self.line}}}.chart .goal-label{{fill:{self.goal}}}"
        )


_LIGHT = _Palette("#ffffff", "#1b1f24", "#6a737d", "#e3e6ea", "#c2410c", "#15803d")
_DARK = _Palette("#161b22", "#e8eaed", "#9aa4af", "#2d333b", "#fb923c", "#4ade80")
_SHAPES = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
.chart .title{font-size:15px;font-weight:600}
.chart .figure{font-size:13px;font-weight:600}
.chart .goal{stroke-width:1.5;stroke-dasharray:5 4}
.chart .curve{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}
"""
STYLE = f"{_SHAPES}{_LIGHT.rules()}\n@media(prefers-color-scheme:dark){{{_DARK.rules()}}}\n"
"""The style rules of all charts, for the page that holds them."""


@dataclass(frozen=True)
class Chart:
    """One curve. `low` and `high` bound the vertical axis; `goal` is a level to be reached, if there is one."""

    title: str
    subtitle: str
    x_label: str
    points: Sequence[Point]
    low: float
    high: float
    goal: float | None = None

    def x(self, step: float) -> float:
        """Horizontal position of a step."""
        first, last = self.points[0].step, self.points[-1].step
        return _LEFT + (step - first) / max(last - first, 1) * (_PLOT_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        return _PLOT_BOTTOM - (value - self.low) / (self.high - self.low) * (_PLOT_BOTTOM - _TOP)


def inline(chart: Chart) -> str:
    """The chart as an `<svg>` element for a page that holds `STYLE`."""
    label = escape(f"{chart.title}: {chart.subtitle}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{_body(chart)}</svg>'


def standalone(charts: Sequence[Chart]) -> str:
    """The charts side by side as one SVG file with its own background, for light and dark readers."""
    gap = 16
    width = len(charts) * (WIDTH + gap) + gap
    height = HEIGHT + 2 * gap
    panels = "".join(
        f'<g transform="translate({gap + index * (WIDTH + gap)} {gap})">{_body(chart)}</g>'
        for index, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}" rx="10"/>{panels}</svg>\n'
    )


def _body(chart: Chart) -> str:
    return "".join((_heading(chart), _axes(chart), _goal(chart), _curve(chart)))


def _heading(chart: Chart) -> str:
    return _text(_LEFT, 22, chart.title, "title") + _text(_LEFT, 40, chart.subtitle)


def _axes(chart: Chart) -> str:
    parts: list[str] = []
    for index in range(5):
        value = chart.low + (chart.high - chart.low) * index / 4
        y = chart.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_PLOT_RIGHT}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:.3g}", anchor="end"))
    for step in _ticks(chart):
        parts.append(_text(chart.x(step), _PLOT_BOTTOM + 18, str(step), anchor="middle"))
    parts.append(_text((_LEFT + _PLOT_RIGHT) / 2, HEIGHT - 8, chart.x_label, anchor="middle"))
    return "".join(parts)


def _ticks(chart: Chart) -> list[int]:
    """At most eight whole steps, the first and the last among them."""
    first, last = chart.points[0].step, chart.points[-1].step
    stride = max(1, -(-(last - first) // 7))
    steps = [step for step in range(first, last, stride) if last - step >= stride / 2]
    return [*steps, last]


def _goal(chart: Chart) -> str:
    if chart.goal is None:
        return ""
    y = chart.y(chart.goal)
    line = f'<line class="goal" x1="{_LEFT}" y1="{y:.1f}" x2="{_PLOT_RIGHT}" y2="{y:.1f}"/>'
    return line + _text(_LEFT + 6, y - 6, f"goal {chart.goal:g}", "goal-label")


def _curve(chart: Chart) -> str:
    places = [(chart.x(point.step), chart.y(point.value)) for point in chart.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{point.step}: {point.value:.3f}</title></circle>'
        for (x, y), point in zip(places, chart.points, strict=True)
    )
    return f'<polyline class="curve" points="{path}"/>{dots}{_end(chart, 0, "start")}{_end(chart, -1, "end")}'


def _end(chart: Chart, index: int, anchor: str) -> str:
    """The figure at one end of the curve, on the side that the curve does not go to."""
    point = chart.points[index]
    rises = chart.points[-1].value > chart.points[0].value
    offset = 22 if index == 0 and rises else -10
    return _text(chart.x(point.step), chart.y(point.value) + offset, f"{point.value:.2f}", "figure", anchor)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    attributes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'
