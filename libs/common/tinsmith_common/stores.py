"""The stores a service opens at start-up and closes at its end, wired from its settings."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from tinsmith_common.auth import Authenticator
from tinsmith_common.blobs import BlobStore
from tinsmith_common.catalog import Catalog
from tinsmith_common.checkpoints import CheckpointStore
from tinsmith_common.database import Database
from tinsmith_common.futures import FutureStore
from tinsmith_common.futures.metrics import WorkMetrics
from tinsmith_common.futures.types import Service
from tinsmith_common.settings import CommonSettings


@dataclass(frozen=True)
class Stores:
    """Everything durable that a service works with."""

    database: Database
    futures: FutureStore
    catalog: Catalog
    checkpoints: CheckpointStore
    authenticator: Authenticator

    @classmethod
    def build(
        cls, settings: CommonSettings, service: Service, registry: CollectorRegistry | None = None
    ) -> Self:
        """Wire the stores. Nothing is opened before `open`, except the SQLite folder being made.

        `registry` gets their metrics; without one they go nowhere.
        """
        database = Database(settings.store_url)
        metrics = WorkMetrics(registry or CollectorRegistry())
        return cls(
            database=database,
            futures=FutureStore(database, BlobStore(settings.blob_dir), service, metrics),
            catalog=Catalog(database),
            checkpoints=CheckpointStore(settings.checkpoint_dir),
            authenticator=Authenticator(settings.tinker_api_key.get_secret_value()),
        )

    async def open(self) -> None:
        """Create missing tables."""
        await self.database.create_tables()

    async def close(self) -> None:
        """Give back connections."""
        await self.database.close()
