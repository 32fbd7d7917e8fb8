"""The services of the inference routes, put together."""

from dataclasses import dataclass

from tinsmith_sample.services.inference.anthropic import Anthropic
from tinsmith_sample.services.inference.generation import Inference
from tinsmith_sample.services.inference.models import Models
from tinsmith_sample.services.inference.openai import OpenAI
from tinsmith_sample.services.inference.vocabulary import Vocabularies


@dataclass(frozen=True)
class InferenceServices:
    """One of each."""

    models: Models
    inference: Inference
    openai: OpenAI
    anthropic: Anthropic

    @classmethod
    def build(cls, models: Models, vocabularies: Vocabularies, inference: Inference) -> "InferenceServices":
        """Both protocols on the same models."""
        return cls(models, inference, OpenAI(models, vocabularies), Anthropic(models, vocabularies))
