"""Settings from environment and file."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tinsmith_common.errors import InvalidInput
from tinsmith_common.settings import TINY_MODEL, CommonSettings, locate_model


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_sets_values_by_either_case(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"settings.{suffix}"
    values = {"KGATEWAY_LOG_LEVEL": "debug", "supported_models": ["a/b", {"name": "c", "path": "x"}]}
    path.write_text(json.dumps(values))
    settings = CommonSettings.from_file(path)
    assert settings.kgateway_log_level == "DEBUG"
    assert [model.name for model in settings.supported_models] == ["a/b", "c"]


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("futures_db_name: file.db\nlong_poll_s: 7\n")
    monkeypatch.setenv("FUTURES_DB_NAME", "env.db")
    settings = CommonSettings.from_file(path)
    assert (settings.futures_db_name, settings.long_poll_s) == ("env.db", 7)


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("long_pol_s: 7\n")
    with pytest.raises(ValidationError, match="long_pol_s"):
        CommonSettings.from_file(path)


@pytest.mark.parametrize("content", ["[1, 2]", "{a: [}"])
def test_a_file_that_is_no_mapping_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"settings\.yaml"):
        CommonSettings.from_file(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read"):
        CommonSettings.from_file(tmp_path / "none.yaml")


def test_supported_models_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPPORTED_MODELS", '["Qwen/Qwen3-8B"]')
    assert [model.name for model in CommonSettings().supported_models] == ["Qwen/Qwen3-8B"]


@pytest.mark.parametrize("value", ['["a", "a"]', "[]", '{"a": 1}'])
def test_impossible_model_lists_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SUPPORTED_MODELS", value)
    with pytest.raises(ValidationError, match="SUPPORTED_MODELS"):
        CommonSettings()


def test_the_shipped_model_is_the_default_and_is_found() -> None:
    assert [model.name for model in CommonSettings().supported_models] == [TINY_MODEL]
    assert (Path(locate_model(TINY_MODEL)) / "model.safetensors").is_file()


def test_a_model_without_a_folder_stays_a_hub_id(tmp_path: Path) -> None:
    assert locate_model("Qwen/Qwen3-8B", tmp_path) == "Qwen/Qwen3-8B"


def test_secrets_do_not_show_in_a_printed_configuration() -> None:
    assert "hidden-key" not in repr(CommonSettings(tinker_api_key="hidden-key"))  # pyright: ignore[reportArgumentType]
