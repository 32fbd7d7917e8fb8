"""Settings of the train service."""

import json
from pathlib import Path

import pytest

from tinsmith_train.config import TrainingConfig

NAMES = {
    "TRAINING_HOST": "127.0.0.1",
    "TRAINING_PORT": "9000",
    "KGATEWAY_LOG_LEVEL": "DEBUG",
    "TINKER_API_KEY": "secret",
    "SUPPORTED_MODELS": '["a/b"]',
    "METADATA_DIR": "/data",
    "FUTURES_DB_NAME": "other.db",
    "RAY_ADDRESS": "ray:6379",
    "RAY_NAMESPACE": "mine",
    "ALLOW_PARTIAL_BATCHES": "true",
}


def check(config: TrainingConfig) -> None:
    assert (config.training_host, config.training_port) == ("127.0.0.1", 9000)
    assert config.kgateway_log_level == "DEBUG"
    assert config.tinker_api_key.get_secret_value() == "secret"
    assert [model.name for model in config.supported_models] == ["a/b"]
    assert config.store_url.endswith("/data/other.db")
    assert (config.ray_address, config.ray_namespace) == ("ray:6379", "mine")
    assert config.allow_partial_batches


def test_the_documented_names_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    check(TrainingConfig())


def test_the_documented_names_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    path.write_text(json.dumps({**NAMES, "SUPPORTED_MODELS": ["a/b"]}))
    check(TrainingConfig.from_file(path))


def test_the_defaults_are_the_documented_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    config = TrainingConfig()
    assert (config.training_host, config.training_port) == ("0.0.0.0", 8000)
    assert config.kgateway_log_level == "INFO"
    assert config.tinker_api_key.get_secret_value() == "slime-dev-key"
    assert [model.name for model in config.supported_models] == ["tinsmith/tiny-qwen3"]
    assert not config.allow_partial_batches


def test_every_setting_is_documented() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    assert [name for name in TrainingConfig.model_fields if f"`{name.upper()}`" not in documented] == []
