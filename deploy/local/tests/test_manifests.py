"""The manifests are valid for kgateway, and nothing in them passes the translator unnoticed."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tinsmith_local.gateway import ManifestError
from tinsmith_local.gateway.manifests import load_manifests
from tinsmith_local.gateway.routes import routing_table

KGATEWAY_KINDS = ("TrafficPolicy", "BackendConfigPolicy", "ListenerPolicy")


def documents(folder: Path) -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


@pytest.fixture
def copy(manifests: Path, tmp_path: Path) -> Path:
    """A copy of the manifests that a test may spoil."""
    return shutil.copytree(manifests, tmp_path / "kgateway")


def replace(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("kind", KGATEWAY_KINDS)
def test_every_kgateway_object_is_valid_for_kgateway_2_4(manifests: Path, kind: str) -> None:
    schema = json.loads((manifests / "tests" / "kgateway-2.4.schema.json").read_text())
    found = [document for document in documents(manifests) if document["kind"] == kind]
    assert found
    for document in found:
        jsonschema.validate(document, {**schema, "$ref": f"#/$defs/{kind}"})


def test_the_schema_refuses_a_misspelt_field(manifests: Path) -> None:
    schema = json.loads((manifests / "tests" / "kgateway-2.4.schema.json").read_text())
    policy = {"kind": "TrafficPolicy", "spec": {"timeout": {"request": "1s"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(policy, {**schema, "$ref": "#/$defs/TrafficPolicy"})


def test_every_object_is_in_the_kustomization(manifests: Path) -> None:
    listed = yaml.safe_load((manifests / "kustomization.yaml").read_text())["resources"]
    present = {path.name for path in manifests.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == present


SPOILED = [
    # Each would change what a cluster does and be lost on the local gateway.
    pytest.param(
        "routes.yaml", "rules:", "hostnames: [a.example]\n  rules:", "hostnames", id="unknown-field"
    ),
    pytest.param("policies.yaml", "retry:", "rateLimit: {}\n  retry:", "rateLimit", id="unknown-policy"),
    pytest.param("policies.yaml", "request: 60s", "request: 60", "duration", id="wrong-type"),
    pytest.param(
        "routes.yaml", "type: PathPrefix", "type: RegularExpression", "RegularExpression", id="unknown-match"
    ),
    pytest.param(
        "policies.yaml", "namespace: tinsmith", "namespace: default", "namespace 'default'", id="namespace"
    ),
    pytest.param(
        "policies.yaml", "      name: tinsmith-polls", "      name: nobody", "nobody", id="policy-target"
    ),
    pytest.param("routes.yaml", "port: 8001", "port: 8002", "no Service tinsmith-sample", id="backend-port"),
    pytest.param("routes.yaml", "- name: tinsmith\n", "- name: other\n", "parent", id="parent"),
    pytest.param(
        "routes.yaml",
        "- name: tinsmith\n",
        "- {name: tinsmith, sectionName: http}\n",
        "listeners",
        id="listener",
    ),
    pytest.param("gateway.yaml", "mode: Terminate", "mode: Passthrough", "Passthrough", id="tls-mode"),
    pytest.param("gateway.yaml", "kind: Secret", "kind: ConfigMap", "ConfigMap", id="certificate-kind"),
    pytest.param(
        "gateway.yaml", "protocol: HTTPS", "protocol: HTTP", "Listener https", id="tls-without-https"
    ),
    pytest.param(
        "gateway.yaml",
        "          - {kind: Secret, name: tinsmith-tls}",
        "          - {kind: Secret, name: tinsmith-tls}\n      frontendValidation: {}",
        "frontendValidation",
        id="unknown-tls-field",
    ),
    pytest.param("gateway.yaml", "kind: Gateway", "kind: TLSRoute", "TLSRoute", id="unknown-kind"),
    pytest.param(
        "services.yaml", "appProtocol: http", "appProtocol: kubernetes.io/h2c", "h2c", id="upstream-protocol"
    ),
    pytest.param(
        "kustomization.yaml", "  - policies.yaml\n", "", "no TrafficPolicy", id="route-without-policy"
    ),
    pytest.param(
        "kustomization.yaml", "  - backends.yaml\n", "", "no BackendConfigPolicy", id="service-without-policy"
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "said"), SPOILED)
def test_what_the_translator_cannot_honour_is_an_error_that_names_it(
    copy: Path, file: str, old: str, new: str, said: str
) -> None:
    replace(copy, file, old, new)
    with pytest.raises(ManifestError, match=said):
        routing_table(load_manifests(copy))


def test_an_error_names_the_place_of_the_field(copy: Path) -> None:
    replace(copy, "routes.yaml", "backendRefs:", "filters: []\n      backendRefs:")
    with pytest.raises(ManifestError, match=r"routes.yaml HTTPRoute.spec.rules\[0\].filters"):
        load_manifests(copy)


def test_the_same_match_twice_is_an_error(copy: Path) -> None:
    replace(copy, "routes.yaml", "/api/v1/join_sampling_session", "/api/v1/asample")
    with pytest.raises(ManifestError, match="/api/v1/asample is matched twice"):
        routing_table(load_manifests(copy))
