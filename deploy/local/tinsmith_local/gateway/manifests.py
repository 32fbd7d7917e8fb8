"""The manifests that the local gateway understands, as frozen dataclasses, and their loading from a kustomization.

Field by field these are the parts of Gateway API v1 and kgateway 2.4 that `deploy/kgateway` uses. To use another field
there, add it here and give it its meaning in `routes` or `envoy`.
"""

# ruff: noqa: D101 - the APIs whose names the classes carry describe them

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import yaml

from tinsmith_local.gateway.decode import ManifestError, Seconds, decode


@dataclass(frozen=True, kw_only=True)
class Metadata:
    name: str
    namespace: str | None = None
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Namespace:
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    metadata: Metadata


@dataclass(frozen=True, kw_only=True)
class ServicePort:
    port: int
    name: str | None = None
    target_port: str | None = None
    app_protocol: Literal["http"] | None = None
    """Only HTTP/1.1 towards the services."""


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Service:
    api_version: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


@dataclass(frozen=True, kw_only=True)
class RouteNamespaces:
    from_: Literal["Same"]


@dataclass(frozen=True, kw_only=True)
class AllowedRoutes:
    namespaces: RouteNamespaces


@dataclass(frozen=True, kw_only=True)
class CertificateRef:
    kind: Literal["Secret"]
    name: str


@dataclass(frozen=True, kw_only=True)
class ListenerTLS:
    mode: Literal["Terminate"]
    certificate_refs: tuple[CertificateRef, ...]


@dataclass(frozen=True, kw_only=True)
class Listener:
    name: str
    protocol: Literal["HTTP", "HTTPS"]
    port: int
    tls: ListenerTLS | None = None
    allowed_routes: AllowedRoutes | None = None


@dataclass(frozen=True, kw_only=True)
class GatewaySpec:
    gateway_class_name: Literal["kgateway"]
    listeners: tuple[Listener, ...]


@dataclass(frozen=True, kw_only=True)
class Gateway:
    api_version: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["Gateway"]
    metadata: Metadata
    spec: GatewaySpec


@dataclass(frozen=True, kw_only=True)
class ParentRef:
    name: str
    section_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class PathMatch:
    type: Literal["Exact", "PathPrefix"]
    value: str


@dataclass(frozen=True, kw_only=True)
class HeaderMatch:
    name: str
    value: str
    type: Literal["Exact"] = "Exact"


@dataclass(frozen=True, kw_only=True)
class RouteMatch:
    path: PathMatch
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] | None = None
    headers: tuple[HeaderMatch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BackendRef:
    name: str
    port: int


@dataclass(frozen=True, kw_only=True)
class RouteRule:
    matches: tuple[RouteMatch, ...]
    backend_refs: tuple[BackendRef, ...]


@dataclass(frozen=True, kw_only=True)
class HTTPRouteSpec:
    parent_refs: tuple[ParentRef, ...]
    rules: tuple[RouteRule, ...]


@dataclass(frozen=True, kw_only=True)
class HTTPRoute:
    api_version: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: Metadata
    spec: HTTPRouteSpec


@dataclass(frozen=True, kw_only=True)
class TargetRef:
    group: str
    kind: str
    name: str


@dataclass(frozen=True, kw_only=True)
class HTTPSettings:
    generate_request_id: bool
    preserve_external_request_id: bool
    use_remote_address: bool
    idle_timeout: Seconds
    stream_idle_timeout: Seconds


@dataclass(frozen=True, kw_only=True)
class ListenerDefaults:
    per_connection_buffer_limit_bytes: int
    http_settings: HTTPSettings


@dataclass(frozen=True, kw_only=True)
class ListenerPolicySpec:
    target_refs: tuple[TargetRef, ...]
    default: ListenerDefaults


@dataclass(frozen=True, kw_only=True)
class ListenerPolicy:
    api_version: Literal["gateway.kgateway.dev/v1alpha1"]
    kind: Literal["ListenerPolicy"]
    metadata: Metadata
    spec: ListenerPolicySpec


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    request: Seconds
    stream_idle: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class Retry:
    retry_on: tuple[Literal["connect-failure", "reset", "reset-before-request", "refused-stream"], ...]
    attempts: int
    backoff_base_interval: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class TrafficPolicySpec:
    target_refs: tuple[TargetRef, ...]
    timeouts: Timeouts
    retry: Retry | None = None


@dataclass(frozen=True, kw_only=True)
class TrafficPolicy:
    api_version: Literal["gateway.kgateway.dev/v1alpha1"]
    kind: Literal["TrafficPolicy"]
    metadata: Metadata
    spec: TrafficPolicySpec


@dataclass(frozen=True, kw_only=True)
class CommonHttpOptions:
    idle_timeout: Seconds


@dataclass(frozen=True, kw_only=True)
class LeastRequest:
    choice_count: int


@dataclass(frozen=True, kw_only=True)
class LoadBalancer:
    least_request: LeastRequest
    healthy_panic_threshold: int | None = None


@dataclass(frozen=True, kw_only=True)
class HealthCheckHttp:
    path: str


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    interval: Seconds
    timeout: Seconds
    unhealthy_threshold: int
    healthy_threshold: int
    http: HealthCheckHttp


@dataclass(frozen=True, kw_only=True)
class OutlierDetection:
    consecutive_5xx: int
    interval: Seconds
    base_ejection_time: Seconds
    max_ejection_percent: int


@dataclass(frozen=True, kw_only=True)
class CircuitBreakers:
    max_connections: int
    max_pending_requests: int
    max_requests: int
    max_retries: int


@dataclass(frozen=True, kw_only=True)
class BackendConfigPolicySpec:
    target_refs: tuple[TargetRef, ...]
    connect_timeout: Seconds
    common_http_protocol_options: CommonHttpOptions
    load_balancer: LoadBalancer
    health_check: HealthCheck
    outlier_detection: OutlierDetection
    circuit_breakers: CircuitBreakers


@dataclass(frozen=True, kw_only=True)
class BackendConfigPolicy:
    api_version: Literal["gateway.kgateway.dev/v1alpha1"]
    kind: Literal["BackendConfigPolicy"]
    metadata: Metadata
    spec: BackendConfigPolicySpec


@dataclass(frozen=True, kw_only=True)
class Kustomization:
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    resources: tuple[str, ...]
    namespace: str


Manifest: TypeAlias = (
    Namespace | Service | Gateway | HTTPRoute | ListenerPolicy | TrafficPolicy | BackendConfigPolicy
)

_KINDS: dict[str, type[Manifest]] = {
    "Namespace": Namespace,
    "Service": Service,
    "Gateway": Gateway,
    "HTTPRoute": HTTPRoute,
    "ListenerPolicy": ListenerPolicy,
    "TrafficPolicy": TrafficPolicy,
    "BackendConfigPolicy": BackendConfigPolicy,
}


def load_manifests(folder: Path) -> tuple[Manifest, ...]:
    """Read the kustomization in `folder` and every resource that it lists.

    Raises ManifestError for an unknown kind or field, and for an object outside the kustomization's namespace: the
    gateway would ignore a policy there without a word.
    """
    path = folder / "kustomization.yaml"
    try:
        kustomization = decode(Kustomization, yaml.safe_load(path.read_text()), path.name)
        documents = [
            (name, document)
            for name in kustomization.resources
            for document in yaml.safe_load_all((folder / name).read_text())
        ]
    except OSError as error:
        raise ManifestError(f"Cannot read the gateway's manifests: {error}") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"{folder} holds a file that is not YAML: {error}") from error
    return tuple(parse_manifest(document, name, kustomization.namespace) for name, document in documents)


def parse_manifest(document: object, where: str, namespace: str) -> Manifest:
    """Decode one manifest, which must live in `namespace` (or be that namespace)."""
    if not isinstance(document, dict):
        raise ManifestError(f"{where}: expected a manifest, got {document!r}")
    kind = cast(dict[str, object], document).get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ManifestError(f"{where}: the local gateway does not understand the kind {kind!r}")
    manifest = decode(_KINDS[kind], cast(dict[str, object], document), f"{where} {kind}")
    home = manifest.metadata.name if isinstance(manifest, Namespace) else manifest.metadata.namespace
    if home != namespace:
        raise ManifestError(
            f"{where} {kind} {manifest.metadata.name}: is in namespace {home!r}, not {namespace!r}"
        )
    return manifest
