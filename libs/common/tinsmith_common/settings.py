"""Settings that both services share: where things live, who may call, what is served.

Names are those of the environment variables in lower case. A file given to `from_file` uses the same names
(any case); the environment wins over the file, so that a secret never has to be written into one.
"""

import json
import os
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tinsmith_common.errors import InvalidInput

DEFAULT_API_KEY = "slime-dev-key"
TINY_MODEL = "tinsmith/tiny-qwen3"


class SupportedModel(BaseModel):
    """One base model that is served.

    `path` is a local folder in Hugging Face layout; without it the name is looked up in `MODELS_DIR`, then
    taken as a hub id (`HF_HUB_OFFLINE` is respected). `tokenizer` is what clients are told to load the tokenizer
    from, a hub id or a folder on their machines; without it they get the place that the model was loaded from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    path: Path | None = None
    tokenizer: str | None = Field(default=None, min_length=1)
    max_context_length: int | None = Field(default=None, ge=8, description="tokens; default: the model's own")


class CommonSettings(BaseSettings):
    """Settings of every Tinsmith service."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_ignore_empty=True)

    kgateway_log_level: str = "INFO"
    log_json: bool = False
    tinker_api_key: SecretStr = SecretStr(DEFAULT_API_KEY)
    pjwt_auth_enabled: bool = Field(
        default=False, description="clients exchange their key for short-lived tokens"
    )
    jwt_lifetime_s: float = Field(
        default=3600.0, ge=120, description="clients renew a token at half its life"
    )
    organization: str = Field(
        default="tinsmith", min_length=1, description="what clients are told they are in"
    )
    supported_models: tuple[SupportedModel, ...] = (SupportedModel(name=TINY_MODEL),)
    models_dir: Path | None = None
    metadata_dir: Path = Path(".tinsmith/metadata")
    futures_db_name: str = "futures.db"
    database_url: str | None = Field(default=None, description="SQLAlchemy async URL; default: SQLite file")
    long_poll_s: float = Field(default=30.0, gt=0, le=40)
    future_retention_s: float = Field(default=6 * 3600.0, ge=600)
    max_body_mib: float = Field(default=64.0, gt=0)
    metadata_only_over_bytes: int = Field(
        default=2**20, ge=0, description="larger results are announced by their size before they are sent"
    )
    max_lora_rank: int = Field(default=128, ge=1, le=1024)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments win, then the environment; files come in through `from_file` only."""
        return init_settings, env_settings

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a JSON or YAML file; environment variables win over its values.

        Raises `InvalidInput` when the file cannot be read; pydantic's `ValidationError` names bad keys.
        """
        values = _read_mapping(path)
        overridden = cls.from_environment()
        return cls(**{key: value for key, value in values.items() if key not in overridden})

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """The settings of a process: from a file if one is named, and from the environment."""
        return cls() if path is None else cls.from_file(path)

    @classmethod
    def from_environment(cls) -> frozenset[str]:
        """Names of the settings that the environment sets."""
        present = {key.lower() for key, value in os.environ.items() if value}
        return frozenset(present & set(cls.model_fields))

    @field_validator("supported_models", mode="before")
    @classmethod
    def _names_are_models(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, list | tuple):
            # ValueError, because pydantic reports only those as problems of the field.
            raise ValueError('SUPPORTED_MODELS must be a JSON list, e.g. ["tinsmith/tiny-qwen3"]')
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @field_validator("supported_models")
    @classmethod
    def _models_are_distinct(cls, value: tuple[SupportedModel, ...]) -> tuple[SupportedModel, ...]:
        names = [model.name for model in value]
        if not names or len(set(names)) != len(names):
            raise ValueError("SUPPORTED_MODELS must name at least one model, each once")
        return value

    @field_validator("kgateway_log_level")
    @classmethod
    def _level_is_known(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
            raise ValueError("KGATEWAY_LOG_LEVEL must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @property
    def max_body_bytes(self) -> int:
        """`MAX_BODY_MIB` in bytes."""
        return int(self.max_body_mib * 2**20)

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the shared store: `DATABASE_URL`, or SQLite in `METADATA_DIR`."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite+aiosqlite:///{(self.metadata_dir / self.futures_db_name).absolute()}"

    @property
    def blob_dir(self) -> Path:
        """Folder of large request and result bodies."""
        return self.metadata_dir / "blobs"

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of checkpoints and sampler weights."""
        return self.metadata_dir / "checkpoints"

    def locate(self, model: SupportedModel) -> str:
        """What a loader is given: a local folder if there is one, else the hub id."""
        return str(model.path) if model.path else locate_model(model.name, self.models_dir)


def locate_model(name: str, models_dir: Path | None = None) -> str:
    """Local folder of a model by name, or the name itself where no folder holds it.

    Looked up in `models_dir` (default: the `models` folder of the checkout), under the whole name and
    under its last part.
    """
    root = models_dir if models_dir is not None else _checkout_models_dir()
    if root is not None:
        for candidate in (root / name, root / name.rsplit("/", 1)[-1]):
            if (candidate / "config.json").is_file():
                return str(candidate.resolve())
    return name


def _checkout_models_dir() -> Path | None:
    for parent in Path(__file__).resolve().parents:
        if (parent / "models").is_dir() and (parent / "services").is_dir():
            return parent / "models"
    return None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInput(f"cannot read the settings file {path}: {error.strerror}") from error
    try:
        values: Any = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path} is neither JSON nor YAML: {error}") from error
    if not isinstance(values, dict):
        raise InvalidInput(f"{path} must hold one mapping of setting names to values")
    return {str(key).lower(): value for key, value in values.items()}
