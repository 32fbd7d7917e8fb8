"""Which recipes of the cookbook run here, with which arguments, and what the others need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["supervised", "preference", "reinforcement", "distillation", "self-distillation"]

HUB_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
"""The name under which the full run serves the tiny model. Recipes without a `renderer_name` ask the cookbook for
the one that it recommends for the model's name, and for this name that is the one whose template the model has."""

RENDERER = "qwen3_instruct"
WARM = "chat_sl"
"""The recipe whose weights others begin with or learn from: a model that is never right is never reinforced."""


@dataclass(frozen=True)
class Recipe:
    """One recipe as a user starts it.

    `arguments` are those beside server, model and log folder; `{state}` and `{sampler}` in them are the checkpoints
    of `WARM`. `figure` is the metric that shows what the recipe is for.
    """

    name: str
    module: str
    kind: Kind
    steps: int
    figure: str
    arguments: tuple[str, ...]
    data: str = "none"
    needs: str = ""
    model_key: str = "model_name"
    takes_base_url: bool = True
    takes_renderer: bool = True
    log_path: str = "log_path={log}"
    logs: str = "{log}"
    """Where it writes its metrics, for recipes that choose the folder themselves."""
    starts_warm: bool = False
    """It has no argument for starting weights, and is resumed from `WARM`'s final state instead."""
    extra: bool = False
    """It imports the cookbook's extra `math-rl`."""
    quick: bool = False

    @property
    def uses_warm(self) -> bool:
        """Whether `WARM` has to have run."""
        return self.starts_warm or any("{state}" in text or "{sampler}" in text for text in self.arguments)

    def command(self, base_url: str, model: str, log: str, places: Mapping[str, str]) -> list[str]:
        """The arguments of the interpreter."""
        server = [f"base_url={base_url}"] if self.takes_base_url else []
        renderer = [f"renderer_name={RENDERER}"] if self.takes_renderer else []
        given = [text.format(model=model, **places) for text in self.arguments]
        where = [self.log_path.format(log=log)] if self.log_path else []
        return ["-m", self.module, f"{self.model_key}={model}", *renderer, *server, *where, *given]


_R = "tinker_cookbook.recipes."

RECIPES = (
    Recipe(
        "chat_sl", _R + "chat_sl.train", "supervised", 32, "train_mean_nll",
        ("dataset=conversations.jsonl", "batch_size=8", "max_steps=32", "learning_rate=0.003", "save_every=10",
         "eval_every=8", "rolling_save_every=4"),
        data="a JSONL file", quick=True,
    ),
    Recipe(
        "sl_loop", _R + "sl_loop", "supervised", 6, "train_mean_nll",
        ("batch_size=8", "max_steps=6", "learning_rate=0.003", "save_every=3"),
        data="HuggingFaceH4/no_robots", takes_renderer=False,
    ),
    Recipe(
        "sl_basic", _R + "sl_basic", "supervised", 3, "train_mean_nll",
        ("max_steps=3", "learning_rate=0.003", "eval_every=2", "save_every=2"),
        data="HuggingFaceH4/no_robots", takes_renderer=False,
    ),
    Recipe(
        "prompt_distillation", _R + "prompt_distillation.train", "supervised", 6, "train_mean_nll",
        ("file_path=conversations.jsonl", "batch_size=8", "max_steps=6", "learning_rate=0.003"),
        data="a JSONL file",
    ),
    Recipe(
        "off_policy_reasoning", _R + "distillation.off_policy_reasoning", "supervised", 4, "train_mean_nll",
        ("batch_size=16", "max_steps=4", "learning_rate=0.003", "buffer_size=64", "eval_every=0", "save_every=2"),
        data="open-thoughts/OpenThoughts3-1.2M",
    ),
    Recipe(
        "dpo", _R + "preference.dpo.train", "preference", 4, "dpo_loss",
        ("batch_size=4", "max_steps=4", "learning_rate=0.001"),
        data="Anthropic/hh-rlhf", quick=True,
    ),
    Recipe(
        "shorter", _R + "preference.shorter.train", "reinforcement", 2, "optim/entropy",
        ("batch_size=4", "group_size=4", "max_steps=2", "max_tokens=16", "eval_every=0", "learning_rate=0.001",
         "behavior_if_log_dir_exists=resume"),
        takes_base_url=False, starts_warm=True, quick=True,
    ),
    Recipe(
        "guess_number", _R + "multiplayer_rl.guess_number.train", "reinforcement", 2, "optim/entropy",
        ("batch_size=1", "group_size=4", "max_tokens=8", "max_steps=2", "eval_every=0", "learning_rate=0.001",
         "behavior_if_log_dir_exists=resume"),
        takes_base_url=False, starts_warm=True,
    ),
    Recipe(
        "rl_loop", _R + "rl_loop", "reinforcement", 3, "reward/total",
        ("batch_size=8", "group_size=16", "max_steps=3", "max_tokens=12", "save_every=2", "learning_rate=0.0005"),
        data="openai/gsm8k", takes_renderer=False, starts_warm=True, extra=True,
    ),
    Recipe(
        "rl_basic", _R + "rl_basic", "reinforcement", 2, "env/all/reward/total",
        ("num_epochs=2", "max_tokens=12", "learning_rate=0.0005", "load_checkpoint_path={state}"),
        data="openai/gsm8k", takes_renderer=False, extra=True,
    ),
    Recipe(
        "math_rl", _R + "math_rl.train", "reinforcement", 3, "env/all/reward/total",
        ("env=arithmetic", "groups_per_batch=8", "group_size=4", "max_steps=3", "save_every=2", "learning_rate=0.001"),
        extra=True,
    ),
    Recipe(
        "math_rl_off_policy", _R + "math_rl.train", "reinforcement", 3, "env/all/reward/total",
        ("env=arithmetic", "groups_per_batch=4", "group_size=4", "max_steps=3", "max_steps_off_policy=2",
         "learning_rate=0.001"),
        extra=True,
    ),
    Recipe(
        "on_policy_distillation", _R + "distillation.on_policy_distillation", "distillation", 6, "teacher_kl",
        ("dataset=deepmath", "teacher_model={model}", "teacher_checkpoint={sampler}", "groups_per_batch=32",
         "group_size=2", "max_tokens=12", "max_steps=6", "learning_rate=0.002", "eval_every=0", "save_every=2"),
        data="zwhe99/DeepMath-103K",
    ),
    Recipe(
        "on_policy_multi_teacher", _R + "distillation.on_policy_multi_teacher", "distillation", 6, "teacher_kl",
        ("deepmath_teacher_model={model}", "deepmath_teacher_checkpoint={sampler}", "tulu3_teacher_model={model}",
         "tulu3_teacher_checkpoint={sampler}", "deepmath_groups_per_batch=16", "tulu3_groups_per_batch=16",
         "group_size=2", "max_tokens=12", "max_steps=6", "learning_rate=0.002", "eval_every=0"),
        data="zwhe99/DeepMath-103K, allenai/tulu-3-sft-mixture",
    ),
    Recipe(
        "sdft", _R + "sdft.train", "self-distillation", 3, "sdft/mean_teacher_entropy",
        ("dataset=toolalpaca", "groups_per_batch=8", "max_tokens=12", "max_steps=3", "learning_rate=0.001",
         "eval_every=0"),
        data="tangqiaoyu/ToolAlpaca",
    ),
    Recipe(
        "rlhf_pipeline", _R + "preference.rlhf.rlhf_pipeline", "reinforcement", 2, "optim/entropy",
        ("short_name=tiny", "batch_size=4", "max_steps=2", "sft_learning_rate=0.003", "rm_learning_rate=0.003",
         "rl_learning_rate=0.001", "rl_max_tokens=12", "eval_every=0"),
        data="HuggingFaceH4/no_robots, Anthropic/hh-rlhf", model_key="base_model", takes_base_url=False,
        takes_renderer=False, log_path="", logs="runs/rlhf-tiny/rl",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class NotRun:
    """Recipes that the harness leaves out, and what running them takes."""

    modules: tuple[str, ...]
    needs: str


NOT_RUN = (
    NotRun(
        ("prompt_distillation.create_data",), "a model served as `Qwen/Qwen3.6-35B-A3B`, which its code names"
    ),
    NotRun(
        ("multiplayer_rl.twenty_questions.train",), "a second model served as `Qwen/Qwen3.5-9B`, its answerer"
    ),
    NotRun(
        ("true_thinking_score.run_small_experiment", "true_thinking_score.analyze"),
        "a model that reasons in steps; `analyze` also datasets of a hub",
    ),
    NotRun(("decisions.demo",), "a person who types; and a model whose answers are single tokens"),
    NotRun(
        ("rubric.generate_data", "rubric.train", "rubric.prometheus_experimental", "rubric.debug_env"),
        "a grader that follows instructions; `prometheus_experimental` also a dataset of a hub",
    ),
    NotRun(
        ("sdft.benchmark", "sdft.run_continual_learning"),
        "datasets of a hub, and hours: they repeat `sdft.train` over methods and learning rates",
    ),
    NotRun(
        ("chat_sl.sweep.cli", "chat_sl.sweep.launch_all", "chat_sl.sweep.runner", "chat_sl.sweep.analyze"),
        "nothing more than `chat_sl.train`, which they repeat over settings; hours",
    ),
    NotRun(("rl_numerics_check.train",), "a dataset of a hub, and a context of tens of thousands of tokens"),
    NotRun(
        ("forecasting.data", "forecasting.train", "decisions.forecasting"),
        "the network: they download markets and their outcomes",
    ),
    NotRun(
        ("search_tool.train", "search_tool.offline_eval"),
        "the network: a vector database and an embedding service",
    ),
    NotRun(
        ("code_rl.train", "code_rl.lcb_utils"),
        "a sandbox that runs code (SandboxFusion or Modal), and a dataset of a hub",
    ),
    NotRun(
        (
            "harbor_rl.scripts.train_terminal_bench",
            "harbor_rl.scripts.eval_harbor_rl",
            "distillation.on_policy_distillation_harbor_multi_turn",
        ),
        "a sandbox (Modal), and tasks from the network",
    ),
    NotRun(
        ("verifiers_rl.train", "verifiers_rl.evaluate"),
        "the cookbook's extra `verifiers`, and its environments",
    ),
    NotRun(
        ("multiplayer_rl.text_arena.train", "multiplayer_rl.text_arena.play"),
        "the cookbook's extra `multiplayer-rl`",
    ),
    NotRun(
        ("vlm_classifier.train", "vlm_classifier.sweep", "vlm_classifier.eval", "vlm_classifier.eval_sweep"),
        "a model that sees: this server takes text only",
    ),
    NotRun(
        (
            "audio.asr.rl_train",
            "audio.asr.sl_train",
            "audio.medical_asr.train",
            "audio.emotion.prepare_data",
            "audio.emotion.evaluate",
            "audio.emotion.rl_train",
            "audio.emotion.sl_train",
        ),
        "a model that hears: this server takes text only",
    ),
)
"""Of each, the modules below `tinker_cookbook.recipes`."""


def named(name: str) -> Recipe:
    """The recipe of that name."""
    return next(recipe for recipe in RECIPES if recipe.name == name)
