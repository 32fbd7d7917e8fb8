"""The grammar `tinker://<run id>/<kind>/<name>`."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from tinsmith_common.errors import InvalidInput

_SCHEME = "tinker://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


class CheckpointKind(StrEnum):
    """What a checkpoint is for; the value is the path segment."""

    TRAINING = "weights"
    SAMPLER = "sampler_weights"
    EXTERNAL = "external_weights"

    @property
    def checkpoint_type(self) -> str:
        """The word that listings use."""
        return self.name.lower()


@dataclass(frozen=True)
class TinkerPath:
    """One checkpoint's name in the world. `str()` gives the URI back."""

    run_id: str
    kind: CheckpointKind
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URI. Raises `InvalidInput` saying what a path looks like."""
        parts = text.removeprefix(_SCHEME).split("/")
        if not text.startswith(_SCHEME) or len(parts) != 3 or not _RUN.fullmatch(parts[0]):
            raise InvalidInput(
                f"{text!r} is no checkpoint path; one looks like tinker://<run id>/weights/<name>"
            )
        try:
            kind = CheckpointKind(parts[1])
        except ValueError:
            kinds = ", ".join(kind.value for kind in CheckpointKind)
            raise InvalidInput(f"{text!r} names the kind {parts[1]!r}; known are {kinds}") from None
        return cls(parts[0], kind, check_name(parts[2]))

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.kind.value}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """`<kind>/<name>`, unique in the run."""
        return f"{self.kind.value}/{self.name}"

    @property
    def key(self) -> str:
        """Where the checkpoint store keeps it."""
        return f"{self.run_id}/{self.checkpoint_id}"


def check_name(name: str) -> str:
    """The name, if it can be a checkpoint's; otherwise `InvalidInput`."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot name a checkpoint: use 1 to 200 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name
