"""Options that are not supported, told apart from those that may be ignored."""

from collections.abc import Mapping
from typing import Any

from tinsmith_sample.services.inference.errors import WrongParameter

# Options that change what is sampled, with a value that does not. Empty values, 0 and null never do.
OPENAI_OPTIONS: Mapping[str, Any] = {
    "audio": None,
    "best_of": 1,
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": None,
    "logit_bias": None,
    "modalities": ["text"],
    "prediction": None,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "suffix": None,
    "tool_choice": "none",
    "tools": None,
    "web_search_options": None,
    # Extensions of other servers.
    "chat_template_kwargs": None,
    "guided_choice": None,
    "guided_grammar": None,
    "guided_json": None,
    "guided_regex": None,
    "ignore_eos": False,
    "min_p": 0,
    "min_tokens": 0,
    "repetition_penalty": 1,
    "stop_token_ids": None,
    "structured_outputs": None,
}
OPENAI_MESSAGE_OPTIONS: Mapping[str, Any] = {"audio": None, "function_call": None, "tool_calls": None}
ANTHROPIC_OPTIONS: Mapping[str, Any] = {
    "container": None,
    "mcp_servers": None,
    "output_format": None,
    "thinking": {"type": "disabled"},
    "tool_choice": {"type": "none"},
    "tools": None,
}


def refuse_unsupported(given: Mapping[str, Any] | None, options: Mapping[str, Any], where: str = "") -> None:
    """Raise `WrongParameter` for the first of `options` that is given a value that cannot be honoured."""
    for name, value in (given or {}).items():
        if name in options and value and value != options[name]:
            raise WrongParameter(
                f"{where}{name} is not supported here; leave it out", where + name, "unsupported_parameter"
            )
