"""What the tests of the inference routes share: trained weights, the model's tokenizer, and what Tinker samples."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import tinker
from transformers import AutoTokenizer

from tests.data import some_tokens, supervised
from tinsmith_common.settings import locate_model
from tinsmith_local import Stack

MODEL = "tinsmith/tiny-qwen3"
CHAT = [{"role": "user", "content": "What is 3 + 4?"}]


@dataclass(frozen=True)
class Reference:
    """The Tinker SDK, and the tokenizer that the inference routes must agree with."""

    service: tinker.ServiceClient
    weights: str
    tokenizer: Any

    def chat_tokens(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def sampler(self, model: str) -> tinker.SamplingClient:
        if model.startswith("tinker://"):
            return self.service.create_sampling_client(model_path=model).result()
        return self.service.create_sampling_client(base_model=model).result()

    def sample(
        self, model: str, prompt: list[int], params: tinker.SamplingParams, count: int = 1
    ) -> list[tinker.SampledSequence]:
        prompted = tinker.ModelInput.from_ints(prompt)
        return list(self.sampler(model).sample(prompted, count, params).result().sequences)


def make_reference(stack: Stack) -> Reference:
    """Saves weights that are far from the base model's."""
    service = tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key)
    trainer = service.create_lora_training_client(MODEL, rank=8, seed=1).result()
    data = [supervised(some_tokens(seed)) for seed in range(4)]
    for _ in range(3):
        trainer.forward_backward(data, "cross_entropy")
        trainer.optim_step(tinker.AdamParams(learning_rate=3e-3)).result()
    path = trainer.save_weights_for_sampler("answering").result().path
    return Reference(service, path, AutoTokenizer.from_pretrained(locate_model(MODEL)))


def figure(stack: Stack, name: str) -> float:
    """One figure of the sample service, summed over its labels; 0 where there is none yet."""
    text = httpx.get(f"{stack.service_url('sample')}/metrics", timeout=30).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.M))


def wait_until(reached: Callable[[], bool]) -> None:
    """For what happens soon after what the test did; a test that waits here for ever has failed."""
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
