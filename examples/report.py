"""What a run leaves behind: report.json with the figures, report.html with the curves and samples.

`python -m examples.report out/demo/report.json` writes the page again, and `--svg FILE` the picture of the curves.
"""

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.chart import Chart, standalone
from examples.page import Section, page
from examples.results import Answer, Point, Reply, ResumeResult, RlResult, Sample, SftResult

PACKAGES = ("tinker", "tinker-cookbook", "torch", "transformers")


@dataclass(frozen=True)
class Report:
    """The results of all phases and what they were measured with."""

    sft: SftResult
    rl: RlResult
    resume: ResumeResult
    versions: dict[str, str]

    @property
    def figures(self) -> dict[str, float]:
        """What a run is judged by."""
        return {
            "sft_nll_first": self.sft.curve[0].value,
            "sft_nll_last": self.sft.curve[-1].value,
            "rl_reward_first": self.rl.reward_first,
            "rl_reward_last": self.rl.reward_last,
            "resume_max_abs_diff": self.resume.max_abs_diff,
        }

    @property
    def seconds(self) -> dict[str, float]:
        """How long each phase took, and all of them."""
        phases = {"sft": self.sft.seconds, "rl": self.rl.seconds, "resume": self.resume.seconds}
        return {name: round(taken, 1) for name, taken in (phases | {"total": sum(phases.values())}).items()}


def current_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter to the figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.html into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**report.figures, "seconds": report.seconds, **asdict(report)}
    (folder / "report.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "report.html").write_text(to_page(report), "utf-8")


def read(path: Path) -> Report:
    """The report that `write` has written."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    sft, rl = (_with_points(content[name]) for name in ("sft", "rl"))
    resume = ResumeResult(**content["resume"])
    return Report(SftResult(**sft), RlResult(**rl), resume, content["versions"])


def _with_points(values: dict[str, Any]) -> dict[str, Any]:
    curve = [Point(**point) for point in values["curve"]]
    return values | {"curve": curve, "samples": [_sample(**sample) for sample in values["samples"]]}


def _sample(before: dict[str, Any], after: dict[str, Any], **values: Any) -> Sample:
    return Sample(before=_answer(**before), after=_answer(**after), **values)


def _answer(replies: list[dict[str, Any]], score: float) -> Answer:
    return Answer([Reply(**reply) for reply in replies], score)


def charts(report: Report) -> list[Chart]:
    """The two curves of a run."""
    highest = max(point.value for point in report.sft.curve)
    sft = Chart(
        title="Supervised fine-tuning",
        subtitle="NLL of held-out replies, nats per token",
        x_label="epoch",
        points=report.sft.curve,
        low=0.0,
        high=float(-(-highest // 2) * 2),
    )
    rl = Chart(
        title="Reinforcement learning",
        subtitle="mean reward of the sampled answers",
        x_label="iteration",
        points=report.rl.curve,
        low=0.0,
        high=1.0,
        goal=0.8,
    )
    return [sft, rl]


def to_page(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    sections = [
        Section(
            "Held-out questions: the most probable reply, and the NLL of the reference",
            "NLL",
            report.sft.samples,
        ),
        Section(
            "Held-out sums: answers sampled at temperature 1, and their mean reward",
            "reward",
            report.rl.samples,
        ),
    ]
    return page(report.figures, report.seconds, report.versions, charts(report), sections)


def main() -> None:
    """Write the page, and if asked the picture, from the figures of an earlier run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="a report.json")
    parser.add_argument("--svg", type=Path, help="where to write the curves as one picture")
    options = parser.parse_args()
    report = read(options.report)
    options.report.with_name("report.html").write_text(to_page(report), "utf-8")
    if options.svg:
        options.svg.write_text(standalone(charts(report)), "utf-8")


if __name__ == "__main__":
    main()
