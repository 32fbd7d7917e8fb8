"""From manifests to one flat routing table: references checked, policies attached, the most specific match first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tinsmith_local.gateway.decode import ManifestError
from tinsmith_local.gateway.manifests import (
    BackendConfigPolicy,
    BackendConfigPolicySpec,
    Gateway,
    HTTPRoute,
    Listener,
    ListenerDefaults,
    ListenerPolicy,
    Manifest,
    RouteMatch,
    RouteRule,
    Service,
    TargetRef,
    TrafficPolicy,
    TrafficPolicySpec,
)

M = TypeVar("M")

_GATEWAY_API = "gateway.networking.k8s.io"


@dataclass(frozen=True)
class Route:
    """One match, the service it leads to, and the policy of the HTTPRoute that it came from."""

    name: str
    match: RouteMatch
    service: str
    policy: TrafficPolicySpec


@dataclass(frozen=True)
class RoutingTable:
    """What every listener does: `routes` in the order in which they are tried, and each service's backend policy."""

    listeners: tuple[Listener, ...]
    settings: ListenerDefaults
    routes: tuple[Route, ...]
    backends: dict[str, BackendConfigPolicySpec]


def routing_table(manifests: Sequence[Manifest]) -> RoutingTable:
    """Resolve every reference between the manifests of one gateway.

    Raises ManifestError for a reference to nothing, a policy that attaches to nothing, a route without a policy, and
    two routes with the same match.
    """
    gateway = _only(manifests, Gateway)
    for listener in gateway.spec.listeners:
        _check_listener(listener)
    services = {service.metadata.name: service for service in _all(manifests, Service)}
    listener_policy = _only(manifests, ListenerPolicy)
    _check_targets(listener_policy.spec.target_refs, _GATEWAY_API, "Gateway", {gateway.metadata.name})
    return RoutingTable(
        listeners=gateway.spec.listeners,
        settings=listener_policy.spec.default,
        routes=_routes(manifests, gateway, services),
        backends=_backends(manifests, services),
    )


def _routes(
    manifests: Sequence[Manifest], gateway: Gateway, services: dict[str, Service]
) -> tuple[Route, ...]:
    http_routes = {route.metadata.name: route for route in _all(manifests, HTTPRoute)}
    policies: dict[str, TrafficPolicySpec] = {}
    for policy in _all(manifests, TrafficPolicy):
        _check_targets(policy.spec.target_refs, _GATEWAY_API, "HTTPRoute", set(http_routes))
        for target in policy.spec.target_refs:
            if target.name in policies:
                raise ManifestError(f"HTTPRoute {target.name} has more than one TrafficPolicy")
            policies[target.name] = policy.spec
    flat: list[Route] = []
    for name, http_route in sorted(http_routes.items()):
        _check_parents(http_route, gateway)
        if name not in policies:
            raise ManifestError(f"HTTPRoute {name} has no TrafficPolicy: Envoy would cut it off after 15 s")
        for rule in http_route.spec.rules:
            service = _backend(name, rule, services)
            flat += [Route(name, match, service, policies[name]) for match in rule.matches]
    _check_distinct(flat)
    return tuple(sorted(flat, key=lambda route: _precedence(route.match)))


def _precedence(match: RouteMatch) -> tuple[bool, int, bool, int]:
    """Gateway API's order between matches; the sort is stable, so that ties go to the first route by name."""
    return (match.path.type != "Exact", -len(match.path.value), match.method is None, -len(match.headers))


def _check_distinct(routes: Sequence[Route]) -> None:
    seen: set[RouteMatch] = set()
    for route in routes:
        if route.match in seen:
            raise ManifestError(
                f"HTTPRoute {route.name}: {route.match.path.value} is matched twice in the same way"
            )
        seen.add(route.match)


def _backend(route: str, rule: RouteRule, services: dict[str, Service]) -> str:
    if len(rule.backend_refs) != 1:
        raise ManifestError(f"HTTPRoute {route}: the local gateway sends each rule to exactly one service")
    ref = rule.backend_refs[0]
    if ref.name not in services or ref.port not in {port.port for port in services[ref.name].spec.ports}:
        raise ManifestError(f"HTTPRoute {route}: there is no Service {ref.name} with port {ref.port}")
    return ref.name


def _backends(
    manifests: Sequence[Manifest], services: dict[str, Service]
) -> dict[str, BackendConfigPolicySpec]:
    backends: dict[str, BackendConfigPolicySpec] = {}
    for policy in _all(manifests, BackendConfigPolicy):
        _check_targets(policy.spec.target_refs, "", "Service", set(services))
        for target in policy.spec.target_refs:
            if target.name in backends:
                raise ManifestError(f"Service {target.name} has more than one BackendConfigPolicy")
            backends[target.name] = policy.spec
    for name in services:
        if name not in backends:
            raise ManifestError(f"Service {name} has no BackendConfigPolicy")
    return backends


def _check_listener(listener: Listener) -> None:
    certificates = len(listener.tls.certificate_refs) if listener.tls is not None else 0
    if certificates != (1 if listener.protocol == "HTTPS" else 0):
        raise ManifestError(
            f"Listener {listener.name}: an HTTPS listener has one certificate, an HTTP listener none"
        )


def _check_parents(route: HTTPRoute, gateway: Gateway) -> None:
    listeners = {listener.name for listener in gateway.spec.listeners}
    for parent in route.spec.parent_refs:
        if parent.name != gateway.metadata.name:
            raise ManifestError(
                f"HTTPRoute {route.metadata.name}: its parent is not Gateway {gateway.metadata.name}"
            )
    attached = {parent.section_name for parent in route.spec.parent_refs}
    if None not in attached and attached != listeners:
        raise ManifestError(
            f"HTTPRoute {route.metadata.name}: its parents must be all listeners of the Gateway, "
            f"{', '.join(sorted(listeners))}; the local gateway has the same routes on each"
        )


def _check_targets(targets: Sequence[TargetRef], group: str, kind: str, names: set[str]) -> None:
    for target in targets:
        if (target.group, target.kind) != (group, kind) or target.name not in names:
            raise ManifestError(f"A policy is attached to {target.kind} {target.name}, which is not there")


def _all(manifests: Sequence[Manifest], kind: type[M]) -> list[M]:
    return [manifest for manifest in manifests if isinstance(manifest, kind)]


def _only(manifests: Sequence[Manifest], kind: type[M]) -> M:
    found = _all(manifests, kind)
    if len(found) != 1:
        raise ManifestError(f"The local gateway needs exactly one {kind.__name__}, not {len(found)}")
    return found[0]
