"""The report as one HTML file: no scripts, nothing from the network, light or dark as the reader prefers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from examples.chart import STYLE, Chart, inline
from examples.results import Answer, Sample


@dataclass(frozen=True)
class Section:
    """Samples under a heading; `score` names what their answers are scored by."""

    heading: str
    score: str
    samples: Sequence[Sample]


_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#626b75;--rule:#e3e6ea;--right:#15803d}
@media(prefers-color-scheme:dark){
:root{--page:#0d1117;--card:#161b22;--ink:#e8eaed;--soft:#9aa4af;--rule:#2d333b;--right:#4ade80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 60px}
h1{margin:0;font-size:30px;letter-spacing:-.02em}
h2{margin:0 0 8px;font-size:15px}
p{margin:6px 0 0;color:var(--soft)}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px;margin-top:24px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:16px;margin-top:28px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:18px 20px;min-width:0}
.figures b{display:block;font-size:25px;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.figures span{color:var(--soft)}
svg.chart{display:block;width:100%;height:auto}
table{width:100%;border-collapse:collapse;font-size:14px}
th{text-align:left;font-weight:500;color:var(--soft)}
th,td{padding:7px 12px 7px 0;border-top:1px solid var(--rule);vertical-align:top;overflow-wrap:anywhere}
tr:first-child th{border-top:0}
.right{color:var(--right);font-weight:600}
.score{font-variant-numeric:tabular-nums;color:var(--soft);white-space:nowrap}
.scroll{overflow-x:auto}
footer{margin-top:28px;color:var(--soft);font-size:13px}
"""


def page(
    figures: Mapping[str, float],
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
    charts: Sequence[Chart],
    sections: Sequence[Section],
) -> str:
    """The whole page: the figures, both curves, the samples, and what it was measured with."""
    curves = "".join(f'<div class="card">{inline(chart)}</div>' for chart in charts)
    samples = "".join(_samples(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Tinsmith: what the demo measured</title>
<style>{_STYLE}{STYLE}</style>
<main>
<h1>Tinsmith</h1>
<p>A tiny model, fine-tuned and then reinforced through the Tinker API on this machine.</p>
<div class="figures">{_figures(figures)}</div>
<div class="row">{curves}</div>
{samples}
<footer>{_footer(seconds, versions)}</footer>
</main>
</html>
"""


def _figures(figures: Mapping[str, float]) -> str:
    tiles = (
        (f"{figures['sft_nll_first']:.2f} → {figures['sft_nll_last']:.2f}", "NLL of held-out replies"),
        (
            f"{figures['rl_reward_first']:.2f} → {figures['rl_reward_last']:.2f}",
            "mean reward on held-out sums",
        ),
        (f"{figures['resume_max_abs_diff']:.1e}", "largest difference after resuming"),
    )
    return "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)


def _samples(section: Section) -> str:
    rows = "".join(
        f"<tr><td>{escape(sample.question)}</td><td>{escape(sample.reference)}</td>"
        f"{_answer(sample.before)}{_answer(sample.after)}</tr>"
        for sample in section.samples
    )
    score = f'<th class="score">{section.score}'
    head = f"<tr><th>Question<th>Reference<th>Before{score}<th>After{score}</tr>"
    return (
        f'<div class="row"><div class="card"><h2>{escape(section.heading)}</h2>'
        f'<div class="scroll"><table>{head}{rows}</table></div></div></div>'
    )


def _answer(answer: Answer) -> str:
    """Two cells: the replies one below the other, right ones marked, and their score."""
    replies = "<br>".join(
        f'<span class="right">{escape(reply.text)}</span>' if reply.right else escape(reply.text)
        for reply in answer.replies
    )
    return f'<td>{replies}</td><td class="score">{answer.score:.2f}</td>'


def _footer(seconds: Mapping[str, float], versions: Mapping[str, str]) -> str:
    times = ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items())
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"Time: {escape(times)}. Versions: {escape(packages)}."
