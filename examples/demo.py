"""The whole demo: fine-tune, reinforce, resume, and a report in out/demo."""

import argparse
import sys
from pathlib import Path

from examples import resume, rl, sft
from examples.client import connect
from examples.progress import say
from examples.report import Report, current_versions, write

FOLDER = Path("out/demo")
INTERRUPTED = 130


def run() -> Report:
    """All three phases, one after the other."""
    with connect() as service:
        tuned = sft.run(service, sft.SftConfig())
        say()
        config = rl.RlConfig()
        reinforced = rl.run(service, config)
        say()
        step = resume.Step(reinforced.datums, "importance_sampling", rl.adam(config))
        resumed = resume.run(reinforced.trainer, reinforced.result.state_path, step)
    return Report(tuned, reinforced.result, resumed, current_versions())


def missed_goals(report: Report) -> list[str]:
    """One sentence for each phase that did not show what it is there to show."""
    verdicts = (
        sft.missed_goal(report.sft),
        rl.missed_goal(report.rl),
        resume.missed_goal(report.resume),
    )
    return [verdict for verdict in verdicts if verdict]


def summary(report: Report, folder: Path) -> str:
    """What came of it, in a few lines."""
    figures, seconds = report.figures, report.seconds
    return (
        f"held-out NLL   {figures['sft_nll_first']:.3f} -> {figures['sft_nll_last']:.3f}   {seconds['sft']:5.0f} s\n"
        f"mean reward    {figures['rl_reward_first']:.3f} -> {figures['rl_reward_last']:.3f}   {seconds['rl']:5.0f} s\n"
        f"after resuming {figures['resume_max_abs_diff']:.1e} apart   {seconds['resume']:5.0f} s\n"
        f"\nThe report is {folder / 'report.html'}"
    )


def main() -> None:
    """Run the demo; exits with 1, and a sentence for each, if goals are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the report goes [%(default)s]")
    folder: Path = parser.parse_args().out
    try:
        report = run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    write(report, folder)
    say("\n" + summary(report, folder))
    if missed := missed_goals(report):
        sys.exit(" ".join(missed))


if __name__ == "__main__":
    main()
