"""What the `model` of a request names."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tinsmith_common.catalog import Catalog
from tinsmith_common.errors import InvalidInput, NotFound
from tinsmith_sample.engines.base import Adapter
from tinsmith_sample.services.adapters import AdapterLocator
from tinsmith_sample.services.inference.errors import UnknownModel
from tinsmith_sample.services.sessions import SamplingSessions

_UNDATED = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Target:
    """A base model, or saved weights on top of one. `name` is what the client called it."""

    name: str
    base_model: str
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Entry:
    """A model in a listing."""

    name: str
    created_at: datetime


class Models:
    """Finds models by name: the served base models, and sampler weights by their path."""

    def __init__(
        self,
        catalog: Catalog,
        sessions: SamplingSessions,
        adapters: AdapterLocator,
        served: Sequence[str],
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._adapters = adapters
        self._served = served

    async def resolve(self, owner: str, name: str) -> Target:
        """The model of that name. Raises `UnknownModel`, or `InvalidInput` for weights that cannot be sampled."""
        if name in self._served:
            return Target(name, name)
        if not name.startswith("tinker://"):
            raise UnknownModel(
                f"no model {name!r} is served here; served are {', '.join(self._served)}, and sampler weights "
                "by their path tinker://<run id>/sampler_weights/<name>"
            )
        try:
            base_model, key = await self._sessions.weights(owner, name)
        except NotFound as error:
            raise UnknownModel(error.message) from error
        if base_model not in self._served:
            raise InvalidInput(f"{name} belongs to {base_model}, which is not served here")
        return Target(name, base_model, await self._adapters.find(key))

    async def list(self, owner: str) -> Sequence[Entry]:
        """The base models, then the owner's sampler weights, newest first."""
        weights = await self._catalog.checkpoints.sampler_weights_of(owner)
        return [
            *(Entry(name, _UNDATED) for name in self._served),
            *(Entry(item.path, item.created_at) for item in weights),
        ]

    async def describe(self, owner: str, name: str) -> Entry:
        """The entry of one model. Raises what `resolve` raises."""
        await self.resolve(owner, name)
        found = [entry for entry in await self.list(owner) if entry.name == name]
        return found[0] if found else Entry(name, _UNDATED)  # somebody else's, published
