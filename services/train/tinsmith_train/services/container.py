"""The services of one app, wired once."""

from dataclasses import dataclass
from typing import Self

from tinsmith_common.secret_file import SecretFile
from tinsmith_common.stores import Stores
from tinsmith_train.config import TrainingConfig
from tinsmith_train.scheduler.admission import Admission, Bound, Bounds
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.services.archives import ArchiveService
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.copies import CopyService
from tinsmith_train.services.credentials import CredentialService
from tinsmith_train.services.custom_losses import CustomLossService
from tinsmith_train.services.downloads import DownloadService, UrlSigner
from tinsmith_train.services.failures import SessionFailures
from tinsmith_train.services.history import HistoryService
from tinsmith_train.services.models import ModelService
from tinsmith_train.services.registry import ModelRegistry
from tinsmith_train.services.runs import RunService
from tinsmith_train.services.session_search import SessionSearch
from tinsmith_train.services.sessions import SessionService
from tinsmith_train.services.submission import Submissions
from tinsmith_train.services.tokenizers import TokenizerService
from tinsmith_train.services.trace_exports import TraceExports
from tinsmith_train.services.training import TrainingService
from tinsmith_train.services.usage import Prices, UsageService
from tinsmith_train.services.watching import WatchService
from tinsmith_train.services.weights import WeightsService


@dataclass(frozen=True)
class Services:
    """What routers delegate to."""

    sessions: SessionService
    search: SessionSearch
    failures: SessionFailures
    traces: TraceExports
    audit: AuditLog
    usage: UsageService
    credentials: CredentialService
    models: ModelService
    training: TrainingService
    custom_losses: CustomLossService
    weights: WeightsService
    checkpoints: CheckpointService
    runs: RunService
    copies: CopyService
    downloads: DownloadService
    archives: ArchiveService
    tokenizers: TokenizerService
    registry: ModelRegistry
    history: HistoryService
    watching: WatchService

    @classmethod
    def build(cls, config: TrainingConfig, stores: Stores, metrics: SchedulerMetrics) -> Self:
        """Wire the services on these stores. The registry is empty until the runtime has loaded models."""
        registry = ModelRegistry()
        audit = AuditLog(stores.catalog)
        checkpoints = CheckpointService(stores.catalog, stores.checkpoints, stores.authenticator, audit)
        models = ModelService(registry, stores.futures, stores.catalog, checkpoints, config.max_lora_rank)
        admission = Admission(_bounds(config), metrics)
        submissions = Submissions(registry, stores.futures, stores.catalog, admission)
        custom_losses = CustomLossService(stores.futures, stores.catalog)
        failures = SessionFailures(stores.catalog, stores.futures)
        history = HistoryService(stores.history, stores.catalog)
        signer = UrlSigner(SecretFile(config.metadata_dir / "download.key"))
        traces = config.metadata_dir / "traces"
        return cls(
            sessions=SessionService(stores.catalog, models, audit, failures),
            search=SessionSearch(stores.catalog),
            failures=failures,
            traces=TraceExports(stores.catalog, stores.futures, traces, signer, config.public_url),
            audit=audit,
            usage=UsageService(
                stores.catalog, Prices(config.token_prices, config.storage_price_usd_per_gb_month)
            ),
            credentials=CredentialService(stores.authenticator, audit, config.organization),
            models=models,
            training=TrainingService(submissions, custom_losses, history),
            custom_losses=custom_losses,
            weights=WeightsService(registry, submissions, stores.catalog, checkpoints),
            checkpoints=checkpoints,
            downloads=DownloadService(checkpoints, signer, config.public_url),
            archives=ArchiveService(checkpoints, signer, config.public_url),
            tokenizers=TokenizerService(registry, stores.catalog),
            copies=CopyService(stores.catalog, checkpoints),
            runs=RunService(stores.catalog, checkpoints),
            registry=registry,
            history=history,
            watching=WatchService(registry, stores),
        )


def _bounds(config: TrainingConfig) -> Bounds:
    return Bounds(
        model=Bound(config.max_queued_operations_per_model, config.max_queued_tokens_per_model),
        owner=Bound(config.max_queued_operations_per_account, config.max_queued_tokens_per_account),
        service=Bound(config.max_queued_operations_per_service, config.max_queued_tokens_per_service),
    )
