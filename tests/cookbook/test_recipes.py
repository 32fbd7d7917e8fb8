"""The cookbook's recipes as their users start them, against a real server: what each leaves is checked.

The quick ones are part of the end-to-end tests; `make test-cookbook` runs all of them.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from tinker_cookbook import weights

from tests.cookbook import reference
from tests.cookbook.recipes import RECIPES, WARM, Kind, Recipe, named
from tests.cookbook.runs import Run, Runner, Server
from tests.data import logprobs_of, some_tokens, supervised


def _scores(sampler: tinker.SamplingClient, prompt: tinker.ModelInput) -> Any:
    """Log-probabilities of a prompt's tokens from the second on."""
    return np.array(sampler.compute_logprobs(prompt).result()[1:])


def recipes(*kinds: Kind) -> Any:
    """Parametrize `run` with the recipes of these kinds (of all, without any)."""
    return _parametrized(recipe for recipe in RECIPES if not kinds or recipe.kind in kinds)


def _parametrized(chosen: Iterable[Recipe]) -> Any:
    def marks(recipe: Recipe) -> tuple[pytest.MarkDecorator, ...]:
        return (pytest.mark.e2e,) if recipe.quick else (pytest.mark.cookbook,)

    cases = [pytest.param(recipe, id=recipe.name, marks=marks(recipe)) for recipe in chosen]
    return pytest.mark.parametrize("run", cases, indirect=True)


@recipes()
def test_a_recipe_logs_each_step_once_with_finite_values_and_its_figure_moves(run: Run) -> None:
    assert [row["step"] for row in run.metrics] == list(range(run.recipe.steps))
    numbers = [value for row in run.metrics for value in row.values() if isinstance(value, int | float)]
    assert all(math.isfinite(value) for value in numbers)
    assert len(set(run.series(run.recipe.figure))) > 1


@recipes()
def test_its_last_checkpoints_load_again_and_hold_the_same_changed_weights(
    run: Run, client: tinker.ServiceClient, server: Server
) -> None:
    tokens = some_tokens(3)
    base = client.create_sampling_client(base_model=server.model).result()
    sampler = client.create_sampling_client(model_path=run.final["sampler_path"]).result()
    trainer = client.create_training_client_from_state_with_optimizer(run.final["state_path"]).result()
    prompt = tinker.ModelInput.from_ints(tokens)
    sampled = _scores(sampler, prompt)
    (trained,) = logprobs_of(trainer.forward([supervised(tokens)], "cross_entropy").result())
    # Two implementations of the same fp32 network: as in test_sampling_e2e.py, far below a change of weights.
    np.testing.assert_allclose(trained, sampled, atol=1e-4)
    assert np.abs(sampled - _scores(base, prompt)).max() > 1e-3


@recipes("supervised")
def test_supervised_recipes_lower_the_loss_by_a_third(run: Run) -> None:
    losses = run.series("train_mean_nll")
    assert losses[-1] < losses[0] * 2 / 3


@_parametrized([named("chat_sl"), named("sl_loop"), named("prompt_distillation")])
def test_the_first_loss_is_that_of_the_base_model_in_transformers(run: Run, runner: Runner) -> None:
    # Mean over a batch of 8 of fp32 sums in another order: the parity tests allow 1e-4 per token.
    data = reference.batch(runner.folder, run.recipe, 0)
    expected = reference.mean_nll(data, reference.base_logprobs(data))
    assert run.series("train_mean_nll")[0] == pytest.approx(expected, abs=1e-3)


@recipes("preference")
def test_dpo_begins_undecided_and_then_prefers_what_was_chosen(run: Run) -> None:
    # Policy and reference are the same model at first: every margin is 0 and the loss is −log σ(0) = log 2.
    assert run.series("dpo_loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    margins = run.series("margin")
    assert margins[-1] > margins[0] + 0.5
    assert run.series("accuracy")[-1] == 1.0


def rollout_recipes() -> Any:
    """Those that write down what each sampled episode was rewarded."""
    return _parametrized(
        recipe for recipe in RECIPES if recipe.kind == "reinforcement" and recipe.name != "rl_loop"
    )


@rollout_recipes()
def test_the_reward_of_a_step_is_the_mean_of_its_episodes(run: Run) -> None:
    for row in run.metrics:
        rewards = [episode["total_reward"] for episode in run.rollouts(row["step"])]
        assert row["env/all/reward/total"] == pytest.approx(np.mean(rewards), abs=1e-9)


@recipes("reinforcement")
def test_some_episodes_of_a_group_are_rewarded_otherwise_than_others(run: Run) -> None:
    # Without a difference in some group there is no advantage, no gradient, and nothing was trained.
    assert max(run.series("grad_norm"), default=0.0) > 0.0


@recipes("reinforcement", "distillation")
def test_the_trainer_gives_sampled_tokens_the_samplers_probabilities(run: Run) -> None:
    if run.recipe.name in {"rl_loop", "math_rl_off_policy"}:
        pytest.skip("measures nothing, or deliberately trains on older samples")
    # Mean of log-probability differences over a batch; per token the two agree within 1e-4 (docs/architecture.md).
    assert max(abs(value) for value in run.series("optim/kl_sample_train_v1")) < 1e-4


@recipes("distillation")
def test_distillation_brings_the_student_nearer_to_its_teacher(run: Run) -> None:
    divergence = run.series("teacher_kl")
    assert divergence[-1] < divergence[0]


@_parametrized([named(WARM)])
def test_rolling_checkpoints_are_gone_and_periodic_ones_are_there(run: Run, server: Server) -> None:
    rest = tinker.RestClient(base_url=server.stack.base_url, api_key=server.stack.api_key)
    run_id = run.final["state_path"].removeprefix("tinker://").split("/")[0]
    kept = {item.tinker_path for item in rest.list_checkpoints(run_id).result().checkpoints}
    rolling = {row["state_path"] for row in run.checkpoints if row.get("rolling")}
    periodic = {row[key] for row in run.checkpoints if not row.get("rolling") for key in row if "path" in key}
    assert len(rolling) >= 2
    assert kept == periodic


@_parametrized([named(WARM)])
def test_only_the_final_checkpoint_is_kept_for_ever(run: Run, server: Server) -> None:
    rest = tinker.RestClient(base_url=server.stack.base_url, api_key=server.stack.api_key)
    run_id = run.final["state_path"].removeprefix("tinker://").split("/")[0]
    checkpoints = rest.list_checkpoints(run_id).result().checkpoints
    lasting = {item.checkpoint_id for item in checkpoints if item.expires_at is None}
    assert lasting == {"weights/final", "sampler_weights/final"}


@_parametrized([named(WARM)])
def test_an_interrupted_run_goes_on_from_the_weights_it_saved(
    run: Run, runner: Runner, client: tinker.ServiceClient
) -> None:
    resumed = runner.resume(run, "000020")
    assert [row["step"] for row in resumed.metrics] == list(range(20, run.recipe.steps))
    # Not the uninterrupted run's losses: the cookbook saves after it has submitted this batch and the next, so that
    # the weights have seen both, and then repeats them. What they make of the batch is what the row must say.
    saved = next(row for row in run.checkpoints if row["name"] == "000020")
    data = reference.batch(runner.folder, run.recipe, 20)
    trainer = client.create_training_client_from_state(saved["state_path"]).result()
    logprobs = logprobs_of(trainer.forward(data, "cross_entropy").result())
    assert resumed.series("train_mean_nll")[0] == pytest.approx(reference.mean_nll(data, logprobs), abs=1e-5)
    assert resumed.series("optimizer_step")[0] == run.series("optimizer_step")[20] + 2


@_parametrized([named(WARM)])
def test_the_downloaded_weights_merge_into_a_model_that_scores_the_same(
    run: Run, runner: Runner, client: tinker.ServiceClient, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", runner.server.stack.api_key)
    adapter, untied, merged = str(out / "adapter"), str(out / "untied"), str(out / "merged")
    reference.save_untied(out / "untied")
    weights.download(
        tinker_path=run.final["state_path"], output_dir=adapter, base_url=runner.server.stack.base_url
    )
    merge = "tinker_cookbook.scripts.merge_tinker_adapter_to_hf_model"
    folders = ("--tinker-adapter-path", adapter, "--hf-model", untied, "--output-path", merged)
    runner.module(merge, *folders)
    tokens = some_tokens(4)
    sampler = client.create_sampling_client(model_path=run.final["sampler_path"]).result()
    # Two fp32 implementations of the same four layers: the bound of test_exports_e2e.py.
    expected = _scores(sampler, tinker.ModelInput.from_ints(tokens))
    np.testing.assert_allclose(reference.prompt_logprobs(out / "merged", tokens), expected, atol=2e-4)
