"""What the examples share: the way to the server, and how conversations become tokens."""

import os

import tinker
from tinker_cookbook import renderers

MODEL = "tinsmith/tiny-qwen3"
RENDERER = "qwen3_instruct"


def connect() -> tinker.ServiceClient:
    """A new session at `TINKER_BASE_URL` with `TINKER_API_KEY`.

    Raises SystemExit, in one sentence, when either is not set.
    """
    if missing := [name for name in ("TINKER_BASE_URL", "TINKER_API_KEY") if not os.environ.get(name)]:
        raise SystemExit(f"Set {' and '.join(missing)}: `make serve` starts a server and prints both.")
    return tinker.ServiceClient()


def new_model(service: tinker.ServiceClient, rank: int, seed: int) -> tinker.TrainingClient:
    """A LoRA model on the tiny base model; `seed` names its starting weights."""
    return service.create_lora_training_client(
        base_model=MODEL, rank=rank, seed=seed, user_metadata={"renderer_name": RENDERER}
    ).result()


def renderer_of(trainer: tinker.TrainingClient) -> renderers.Renderer:
    """The cookbook's renderer, with the tokenizer that the server names for the model."""
    return renderers.get_renderer(RENDERER, trainer.get_tokenizer())


def reply_text(renderer: renderers.Renderer, tokens: list[int]) -> str:
    """The text of a sampled reply, without its end of turn."""
    message, _ = renderer.parse_response(tokens)
    return renderers.get_text_content(message)
