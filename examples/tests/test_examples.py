"""What the examples do without a server: their splits, their verdicts and the report."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tinker import ModelInput
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition

from examples import demo, resume, rl, sft
from examples.chart import standalone
from examples.report import Report, charts, read, to_page, write
from examples.results import Answer, Point, Reply, ResumeResult, RlResult, Sample, SftResult


def answer(text: str, score: float) -> Answer:
    return Answer([Reply(text, right=score == 1.0)], score)


@pytest.fixture
def report() -> Report:
    sample = Sample("What is 1 + 1?", "2", answer("<b>3</b>", 0.0), answer("2", 1.0))
    return Report(
        sft=SftResult([Point(0, 9.5), Point(1, 5.25)], [sample], "tinker://a/weights/sft", 10.0),
        rl=RlResult([Point(1, 0.25), Point(2, 0.75)], 0.25, 0.875, [sample], "tinker://a/weights/rl", 20.0),
        resume=ResumeResult(max_abs_diff=0.0, step_size=0.5, seconds=1.0),
        versions={"python": "3.11"},
    )


def test_no_conversation_is_both_trained_on_and_measured() -> None:
    training, held_out = sft.split(sft.SftConfig())
    assert (len(training), len(held_out)) == (100, 28)
    assert not [conversation for conversation in held_out if conversation in training]


def test_no_sum_is_both_trained_on_and_measured() -> None:
    training, held_out = rl.split(rl.RlConfig())
    assert len(set(training) | set(held_out)) == len(training) + len(held_out) == 441


def rewarded(rewards: list[float]) -> TrajectoryGroup:
    def trajectory(reward: float) -> Trajectory:
        action = TokensWithLogprobs(tokens=[7, 8], maybe_logprobs=[-0.5, -0.25])
        return Trajectory(
            [Transition(ModelInput.from_ints([1, 2, 3]), action, reward, True)], ModelInput.empty()
        )

    return TrajectoryGroup(
        [trajectory(reward) for reward in rewards], [0.0] * len(rewards), [{} for _ in rewards]
    )


def test_a_group_of_equal_rewards_is_not_learned_from() -> None:
    assert len(rl.to_datums([rewarded([1.0, 1.0]), rewarded([1.0, 0.0])])) == 2


def test_only_sampled_tokens_carry_the_advantage_over_the_groups_mean() -> None:
    first, _ = rl.to_datums([rewarded([1.0, 0.0])])
    assert first.loss_fn_inputs["advantages"].tolist() == [0.0, 0.0, 0.5, 0.5]
    assert first.loss_fn_inputs["target_tokens"].tolist() == [2, 3, 7, 8]
    assert first.loss_fn_inputs["logprobs"].tolist() == [0.0, 0.0, -0.5, -0.25]
    assert "mask" not in first.loss_fn_inputs


def test_a_run_that_shows_everything_misses_no_goal(report: Report) -> None:
    assert demo.missed_goals(report) == []


def test_each_missed_goal_is_told_with_its_figures(report: Report) -> None:
    poor = replace(
        report,
        sft=replace(report.sft, curve=[Point(0, 9.5), Point(1, 9.0)]),
        rl=replace(report.rl, reward_last=0.75),
        resume=replace(report.resume, max_abs_diff=1e-3),
    )
    sentences = demo.missed_goals(poor)
    assert [re.findall(r"9\.000|0\.750|1\.0e-03", sentence) for sentence in sentences] == [
        ["9.000"], ["0.750"], ["1.0e-03"]
    ]  # fmt: skip


def test_a_step_that_changes_nothing_proves_nothing_about_resuming(report: Report) -> None:
    assert resume.missed_goal(replace(report.resume, step_size=0.0)) is not None


def test_a_report_is_read_back_as_it_was_written(report: Report, tmp_path: Path) -> None:
    write(report, tmp_path)
    assert read(tmp_path / "report.json") == report


def test_the_page_needs_nothing_from_outside(report: Report) -> None:
    assert not re.search(r"https?://|src=|<script|<link|url\(|@import", to_page(report))


def test_what_the_model_wrote_stays_text_in_the_page(report: Report) -> None:
    page = to_page(report)
    assert "<b>3</b>" not in page
    assert "&lt;b&gt;3&lt;/b&gt;" in page


def test_the_picture_is_well_formed_and_holds_both_curves(report: Report) -> None:
    picture = ElementTree.fromstring(standalone(charts(report)))
    curves = picture.iter("{http://www.w3.org/2000/svg}polyline")
    assert [len((curve.get("points") or "").split()) for curve in curves] == [2, 2]
