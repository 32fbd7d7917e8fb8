"""Bodies that parse, and must not be taken all the same."""

import json
import re

import pytest
from pydantic import ValidationError

from tinsmith_common.wire.search import SearchSessionsRequest
from tinsmith_common.wire.sessions import CreateSessionRequest
from tinsmith_common.wire.training import LoraConfig


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ('{"a": NaN}', "finite"),
        ('{"a": [1, -Infinity]}', "finite"),
        ('{"\\ud800": 1}', "whole characters"),
        ('{"a": {"b": "\\udfff"}}', "whole characters"),
        ('{"a": "\\u0000"}', "U+0000"),
        (f'{{"a": {"[" * 900}{"]" * 900}}}', "nested"),
    ],
)
def test_metadata_that_a_store_could_not_give_back_is_refused(metadata: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        CreateSessionRequest.model_validate({"user_metadata": json.loads(metadata)})


def test_ordinary_metadata_is_taken_as_it_is() -> None:
    metadata = {"name": "Grüße 🙂", "nested": [{"a": [1, 2.5, None, True]}]}
    assert CreateSessionRequest(user_metadata=metadata).user_metadata == metadata


def test_a_moment_outside_utc_s_years_is_refused() -> None:
    cursor = {"last_created_at": "0001-01-01T00:00:00+23:00", "last_session_id": "s"}
    with pytest.raises(ValidationError, match="years 1 to 9999"):
        SearchSessionsRequest.model_validate({"cursor": cursor})


def test_a_seed_over_64_bits_is_refused() -> None:
    with pytest.raises(ValidationError, match="seed"):
        LoraConfig(seed=2**63)
