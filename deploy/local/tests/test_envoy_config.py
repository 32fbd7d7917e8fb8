"""The translation: the most specific match first, no default timeout, and Envoy takes it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tinsmith_local.certificates import OwnCertificate
from tinsmith_local.gateway import Endpoint, GatewayOptions, ManifestError, bootstrap
from tinsmith_local.gateway.manifests import load_manifests
from tinsmith_local.gateway.routes import Route, routing_table
from tinsmith_local.parts import envoy_path

LONGEST_POLL_S = 45.0


@pytest.fixture
def options(tmp_path: Path) -> GatewayOptions:
    own = OwnCertificate(tmp_path / "tls", "127.0.0.1")
    own.ensure()
    return GatewayOptions(
        listeners={"http": Endpoint("127.0.0.1", 20000), "https": Endpoint("127.0.0.1", 20005)},
        admin=Endpoint("127.0.0.1", 20001),
        services={
            "tinsmith-train": [Endpoint("127.0.0.1", 20002)],
            "tinsmith-sample": [Endpoint("127.0.0.1", 20003), Endpoint("localhost", 20004)],
        },
        certificate=own.certificate,
        access_log=tmp_path / "access.log",
    )


@pytest.fixture
def routes(manifests: Path) -> tuple[Route, ...]:
    return routing_table(load_manifests(manifests)).routes


def test_envoy_accepts_the_configuration(manifests: Path, options: GatewayOptions, tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(bootstrap(manifests, options)))
    run = subprocess.run([envoy_path(), "--mode", "validate", "-c", path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_envoy_would_refuse_an_unknown_field(
    manifests: Path, options: GatewayOptions, tmp_path: Path
) -> None:
    config = bootstrap(manifests, options)
    config["static_resources"]["listeners"][0]["no_such_field"] = 1
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))
    assert (
        subprocess.run([envoy_path(), "--mode", "validate", "-c", path], capture_output=True).returncode != 0
    )


def test_every_route_outlasts_the_longest_poll(routes: tuple[Route, ...]) -> None:
    for route in routes:
        assert route.policy.timeouts.request >= LONGEST_POLL_S, route.name
        assert (route.policy.timeouts.stream_idle or 0) >= LONGEST_POLL_S, route.name


def test_more_specific_matches_are_tried_first(routes: tuple[Route, ...]) -> None:
    polls = [route for route in routes if route.match.path.value == "/api/v1/retrieve_future"]
    assert [len(route.match.headers) for route in polls] == [1, 0]
    kinds = [route.match.path.type for route in routes]
    assert kinds == sorted(kinds), "exact paths come before prefixes"
    prefixes = [len(route.match.path.value) for route in routes if route.match.path.type == "PathPrefix"]
    assert prefixes == sorted(prefixes, reverse=True)


def test_nothing_sent_to_the_train_service_is_retried_but_polls(routes: tuple[Route, ...]) -> None:
    retried = {
        route.match.path.value for route in routes if route.service == "tinsmith-train" and route.policy.retry
    }
    assert retried == {"/api/v1/retrieve_future"}


def test_every_replica_becomes_an_endpoint(manifests: Path, options: GatewayOptions) -> None:
    clusters = {
        cluster["name"]: cluster for cluster in bootstrap(manifests, options)["static_resources"]["clusters"]
    }
    assert len(clusters["tinsmith-sample"]["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    assert clusters["tinsmith-sample"]["type"] == "STRICT_DNS", "one of its replicas is given by name"
    assert clusters["tinsmith-train"]["type"] == "STATIC"


def test_a_service_without_an_address_is_an_error(manifests: Path, options: GatewayOptions) -> None:
    incomplete = replace(options, services={"tinsmith-train": options.services["tinsmith-train"]})
    with pytest.raises(ManifestError, match="tinsmith-sample"):
        bootstrap(manifests, incomplete)


def test_both_listeners_have_the_same_routes(manifests: Path, options: GatewayOptions) -> None:
    listeners = bootstrap(manifests, options)["static_resources"]["listeners"]
    assert [listener["name"] for listener in listeners] == ["http", "https"]
    managers = [listener["filter_chains"][0]["filters"][0]["typed_config"] for listener in listeners]
    hosts = [manager["route_config"]["virtual_hosts"] for manager in managers]
    assert hosts[0] == hosts[1]


def test_an_https_listener_without_a_certificate_is_an_error(
    manifests: Path, options: GatewayOptions
) -> None:
    with pytest.raises(ManifestError, match="No certificate was given for the listener https"):
        bootstrap(manifests, replace(options, certificate=None))


def test_a_listener_that_the_gateway_does_not_have_is_an_error(
    manifests: Path, options: GatewayOptions
) -> None:
    with pytest.raises(ManifestError, match="no listener other"):
        bootstrap(manifests, replace(options, listeners={"other": Endpoint("127.0.0.1", 20000)}))
