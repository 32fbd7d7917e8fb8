"""What a local stack is made of."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinsmith_local.errors import StackError

_REPOSITORY = Path(__file__).resolve().parents[3]
_KEY_PREFIX = "tml-"


def default_sample_python() -> str:
    """TINSMITH_SAMPLE_PYTHON, else the interpreter of `.venv-sample` in the repository."""
    return os.environ.get("TINSMITH_SAMPLE_PYTHON") or str(_REPOSITORY / ".venv-sample" / "bin" / "python")


def default_api_key() -> str:
    """TINKER_API_KEY, else the development key that the services accept by default."""
    return os.environ.get("TINKER_API_KEY") or "slime-dev-key"


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Ports, places and commands of one stack. A port 0 takes a free one; times are in seconds."""

    host: str = "127.0.0.1"
    port: int | None = 8000
    """Of the gateway, for cleartext HTTP; None: no such listener."""
    tls_port: int | None = None
    """Of the gateway, for HTTPS with HTTP/2; None: no such listener."""
    tls_cert: Path | None = None
    """PEM file of the server's certificate and its intermediates. Without one, one is made with a CA of its own."""
    tls_key: Path | None = None
    tls_name: str | None = None
    """The name by which clients call the gateway, if it is not `host`."""
    data_dir: Path = Path(".tinsmith")
    api_key: str = field(default_factory=default_api_key, repr=False)
    log_level: str = field(default_factory=lambda: os.environ.get("KGATEWAY_LOG_LEVEL") or "INFO")
    supported_models: str | None = None
    """JSON list for SUPPORTED_MODELS; None leaves the services' own default or the environment's value."""
    train_python: str = sys.executable
    sample_python: str = field(default_factory=default_sample_python)
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the environment of every part."""
    manifests: Path = _REPOSITORY / "deploy" / "kgateway"
    access_log: bool = False
    ray_namespace: str = field(default_factory=lambda: os.environ.get("RAY_NAMESPACE") or "tinsmith")
    ray_object_store_mib: int = 256
    sample_replicas: int = 1
    """Sample services behind the gateway, each with engines of its own."""
    ready_timeout_s: float = 600.0
    stop_grace_s: float = 5.0
    drain_grace_s: float = field(default_factory=lambda: float(os.environ.get("DRAIN_GRACE_S") or 2))
    """For samples that still run when the stack is stopped: those of a laptop need not be waited for as long."""

    def __post_init__(self) -> None:
        for port in (self.port, self.tls_port):
            if port is not None and not 0 <= port <= 65535:
                raise StackError(f"PORT is {port}: choose a number from 1 to 65535, or 0 for any free port.")
        if self.sample_replicas < 1:
            raise StackError(f"There must be at least one sample replica, not {self.sample_replicas}.")
        if self.port is None and self.tls_port is None:
            raise StackError("The gateway needs a port: give port, tls_port or both.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StackError("A certificate and its key belong together: give both --tls-cert and --tls-key.")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not os.access(path, os.R_OK):
                raise StackError(f"Cannot read {path}: --tls-cert and --tls-key name PEM files.")

    @property
    def sdk_api_key(self) -> str:
        """The same credential in the only form that the SDK sends."""
        return self.api_key if self.api_key.startswith((_KEY_PREFIX, "eyJ")) else _KEY_PREFIX + self.api_key
