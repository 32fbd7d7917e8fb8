"""The stores a service opens at start-up and closes at its end, wired from its settings."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from tinsmith_common.auth import ApiKeys, Authenticator, Tokens, digest
from tinsmith_common.blobs import BlobStore
from tinsmith_common.catalog import Catalog
from tinsmith_common.checkpoints import CheckpointStore
from tinsmith_common.database import Database
from tinsmith_common.futures import FutureStore
from tinsmith_common.futures.leases import Leases
from tinsmith_common.futures.metrics import WorkMetrics
from tinsmith_common.futures.notices import Notices
from tinsmith_common.futures.types import Service
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.settings import CommonSettings
from tinsmith_common.watch import RecentFailures, ReplicaReports, RunHistory


@dataclass(frozen=True)
class Stores:
    """Everything durable that a service works with."""

    database: Database
    of_leases: Database
    """The same store by a connection that never waits for the others, lest a busy process be taken for dead."""
    futures: FutureStore
    catalog: Catalog
    checkpoints: CheckpointStore
    authenticator: Authenticator
    history: RunHistory
    replicas: ReplicaReports
    failures: RecentFailures

    @classmethod
    def build(
        cls,
        settings: CommonSettings,
        service: Service,
        registry: CollectorRegistry | None = None,
        holder: str | None = None,
    ) -> Self:
        """Wire the stores. Nothing is opened before `open`, except the SQLite folder being made.

        `registry` gets their metrics; without one they go nowhere. `holder` is the name under which this process
        holds leases on what is submitted to it, if the service may have several.
        """
        database = Database(settings.store_url)
        # On SQLite writers of one process queue anyway, and had better do so in one queue.
        of_leases = Database(settings.store_url, connections=1) if database.is_postgres else database
        metrics, notices = WorkMetrics(registry or CollectorRegistry()), Notices(database)
        blobs = BlobStore(settings.blob_dir)
        leases = Leases(of_leases, blobs, service, notices)
        return cls(
            database=database,
            of_leases=of_leases,
            futures=FutureStore(database, blobs, service, metrics, notices, leases, holder),
            catalog=Catalog(database),
            checkpoints=CheckpointStore(settings.checkpoint_dir),
            authenticator=_authenticator(settings, database),
            history=RunHistory(database),
            replicas=ReplicaReports(database),
            failures=RecentFailures(database, service),
        )

    async def open(self) -> None:
        """Bring the store up to this version. Raises `StoreUnusable`."""
        await self.database.migrate()
        self.futures.notices.open()

    async def close(self) -> None:
        """Give back connections."""
        await self.futures.notices.close()
        await self.of_leases.close()
        await self.database.close()


def _authenticator(settings: CommonSettings, database: Database) -> Authenticator:
    key, tokens = settings.tinker_api_key.get_secret_value(), None
    if settings.pjwt_auth_enabled:
        secret = SecretFile(settings.metadata_dir / "token.key")
        tokens = Tokens(secret, digest(key), settings.organization, settings.jwt_lifetime_s)
    return Authenticator(key, ApiKeys(database), tokens)
