"""From the routing table to a static Envoy 1.38 bootstrap, field by field what kgateway's control plane would send."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tinsmith_local.gateway.decode import ManifestError, Seconds
from tinsmith_local.gateway.manifests import BackendConfigPolicySpec, Listener, RouteMatch, load_manifests
from tinsmith_local.gateway.routes import Route, RoutingTable, routing_table

Json: TypeAlias = dict[str, Any]

_TYPE = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class Endpoint:
    """Where one replica of a service, or the gateway itself, listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Certificate:
    """PEM files: the server's certificate followed by its intermediates, and its private key."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class GatewayOptions:
    """What the manifests cannot say because it belongs to this machine."""

    listeners: Mapping[str, Endpoint]
    """Listener name in the manifests → where it listens here; those left out do not."""
    admin: Endpoint
    services: Mapping[str, Sequence[Endpoint]]
    """Service name in the manifests → its replicas."""
    certificate: Certificate | None = None
    """What a cluster takes from the Secret of an HTTPS listener."""
    access_log: Path | None = None


def bootstrap(manifests: Path, options: GatewayOptions) -> Json:
    """Translate the kustomization in the folder `manifests` into an Envoy bootstrap, ready to be written as JSON.

    Raises ManifestError for anything in the manifests that is not understood, for a service without an address, and
    for a listener that is asked for and not there.
    """
    table = routing_table(load_manifests(manifests))
    listeners = {listener.name: listener for listener in table.listeners}
    if unknown := sorted(options.listeners.keys() - listeners.keys()):
        raise ManifestError(f"The Gateway has no listener {', '.join(unknown)}")
    missing = sorted(
        set(table.backends) - {name for name, endpoints in options.services.items() if endpoints}
    )
    if missing:
        raise ManifestError(f"No address was given for the services {', '.join(missing)}")
    return {
        "admin": {"address": _address(options.admin)},
        "static_resources": {
            "listeners": [
                _listener(listeners[name], endpoint, table, options)
                for name, endpoint in sorted(options.listeners.items())
            ],
            "clusters": [
                _cluster(name, policy, options.services[name])
                for name, policy in sorted(table.backends.items())
            ],
        },
    }


def _listener(listener: Listener, endpoint: Endpoint, table: RoutingTable, options: GatewayOptions) -> Json:
    manager = _hcm(listener.name, table, options)
    chain: Json = {"filters": [_typed("envoy.filters.network.http_connection_manager", manager)]}
    if listener.protocol == "HTTPS":
        chain["transport_socket"] = _tls(listener.name, options.certificate)
    return {
        "name": listener.name,
        "address": _address(endpoint),
        # With it a second gateway could share the port without an error.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": table.settings.per_connection_buffer_limit_bytes,
        "filter_chains": [chain],
    }


def _tls(listener: str, certificate: Certificate | None) -> Json:
    if certificate is None:
        raise ManifestError(f"No certificate was given for the listener {listener}")
    context = {
        "@type": f"{_TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate.chain)},
                    "private_key": {"filename": str(certificate.key)},
                }
            ],
            # kgateway's default for HTTPS listeners too.
            "alpn_protocols": ["h2", "http/1.1"],
        },
    }
    return _typed("envoy.transport_sockets.tls", context)


def _hcm(name: str, table: RoutingTable, options: GatewayOptions) -> Json:
    settings = table.settings.http_settings
    manager: Json = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        # What ALPN chose; without TLS HTTP/1.1, and HTTP/2 with prior knowledge.
        "codec_type": "AUTO",
        "stat_prefix": name,
        "normalize_path": True,
        "generate_request_id": settings.generate_request_id,
        "preserve_external_request_id": settings.preserve_external_request_id,
        "use_remote_address": settings.use_remote_address,
        "stream_idle_timeout": _duration(settings.stream_idle_timeout),
        "common_http_protocol_options": {"idle_timeout": _duration(settings.idle_timeout)},
        "http_filters": [
            _typed(
                "envoy.filters.http.router", {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}
            )
        ],
        "route_config": {
            "name": name,
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [_route(route) for route in table.routes]}
            ],
        },
    }
    if options.access_log is not None:
        log = {
            "@type": f"{_TYPE}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(options.access_log),
        }
        manager["access_log"] = [_typed("envoy.access_loggers.file", log)]
    return manager


def _route(route: Route) -> Json:
    timeouts = route.policy.timeouts
    action: Json = {"cluster": route.service, "timeout": _duration(timeouts.request)}
    if timeouts.stream_idle is not None:
        action["idle_timeout"] = _duration(timeouts.stream_idle)
    if route.policy.retry is not None:
        retry = route.policy.retry
        policy: Json = {"retry_on": ",".join(retry.retry_on), "num_retries": retry.attempts}
        if retry.backoff_base_interval is not None:
            policy["retry_back_off"] = {"base_interval": _duration(retry.backoff_base_interval)}
        action["retry_policy"] = policy
    return {"name": route.name, "match": _match(route.match), "route": action}


def _match(match: RouteMatch) -> Json:
    headers = [{"name": ":method", "string_match": {"exact": match.method}}] if match.method else []
    headers += [
        {"name": header.name.lower(), "string_match": {"exact": header.value}} for header in match.headers
    ]
    if match.path.type == "Exact":
        path = {"path": match.path.value}
    elif match.path.value == "/":
        path = {"prefix": "/"}
    else:
        # `/samplers` matches itself and `/samplers/…`, never `/samplersX`.
        path = {"path_separated_prefix": match.path.value.rstrip("/")}
    return {**path, **({"headers": headers} if headers else {})}


def _cluster(name: str, policy: BackendConfigPolicySpec, endpoints: Sequence[Endpoint]) -> Json:
    lb_endpoints = [{"endpoint": {"address": _address(endpoint)}} for endpoint in endpoints]
    cluster: Json = {
        "name": name,
        "type": "STATIC" if all(_is_ip(endpoint.host) for endpoint in endpoints) else "STRICT_DNS",
        "connect_timeout": _duration(policy.connect_timeout),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": lb_endpoints}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _upstream_http(policy)
        },
        **_load_balancer(policy),
        **_health(policy),
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": policy.circuit_breakers.max_connections,
                    "max_pending_requests": policy.circuit_breakers.max_pending_requests,
                    "max_requests": policy.circuit_breakers.max_requests,
                    "max_retries": policy.circuit_breakers.max_retries,
                }
            ]
        },
    }
    return cluster


def _upstream_http(policy: BackendConfigPolicySpec) -> Json:
    return {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {
            "idle_timeout": _duration(policy.common_http_protocol_options.idle_timeout)
        },
        "explicit_http_config": {"http_protocol_options": {}},
    }


def _load_balancer(policy: BackendConfigPolicySpec) -> Json:
    balancer: Json = {
        "lb_policy": "LEAST_REQUEST",
        "least_request_lb_config": {"choice_count": policy.load_balancer.least_request.choice_count},
    }
    if policy.load_balancer.healthy_panic_threshold is not None:
        balancer["common_lb_config"] = {
            "healthy_panic_threshold": {"value": policy.load_balancer.healthy_panic_threshold}
        }
    return balancer


def _health(policy: BackendConfigPolicySpec) -> Json:
    check, outlier = policy.health_check, policy.outlier_detection
    return {
        "health_checks": [
            {
                "interval": _duration(check.interval),
                "timeout": _duration(check.timeout),
                "unhealthy_threshold": check.unhealthy_threshold,
                "healthy_threshold": check.healthy_threshold,
                "http_health_check": {"path": check.http.path},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": outlier.consecutive_5xx,
            "interval": _duration(outlier.interval),
            "base_ejection_time": _duration(outlier.base_ejection_time),
            "max_ejection_percent": outlier.max_ejection_percent,
        },
    }


def _typed(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def _address(endpoint: Endpoint) -> Json:
    return {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _duration(seconds: Seconds) -> str:
    return f"{seconds:.3f}s"
