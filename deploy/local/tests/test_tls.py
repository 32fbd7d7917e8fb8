"""HTTPS at the gateway: what certificate it shows, what it speaks, and what is made when no certificate is given."""

import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from tinsmith_local import Stack, StackConfig, StackError
from tinsmith_local.certificates import OwnCertificate


def handshake(url: str, ca_file: Path, name: str, offered: list[str]) -> str | None:
    """The protocol that ALPN chooses, under a certificate that must be valid for `name`."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(offered)
    address = httpx.URL(url)
    with (
        socket.create_connection((address.host, address.port or 443), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        return wrapped.selected_alpn_protocol()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h2"], "h2")]
)
def test_alpn_chooses_http2_where_the_client_can(stack: Stack, offered: list[str], chosen: str) -> None:
    assert stack.ca_bundle is not None
    assert handshake(stack.tls_url, stack.ca_bundle, "127.0.0.1", offered) == chosen


@pytest.mark.integration
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", socket.gethostname()])
def test_the_certificate_made_here_is_for_this_machine(stack: Stack, name: str) -> None:
    assert stack.ca_bundle is not None
    assert handshake(stack.tls_url, stack.ca_bundle, name, ["h2"]) == "h2"


@pytest.mark.integration
def test_another_name_is_refused_by_clients(stack: Stack) -> None:
    assert stack.ca_bundle is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stack.tls_url, stack.ca_bundle, "example.org", ["h2"])


@pytest.mark.integration
def test_both_listeners_lead_to_the_same_services(stack: Stack) -> None:
    context = ssl.create_default_context(cafile=stack.ca_bundle)
    with httpx.Client(verify=context, http2=True, trust_env=False) as client:
        for path, service in (("/api/v1/asample", "sample"), ("/api/v1/forward_backward", "train")):
            answers = [client.post(url + path) for url in (stack.base_url, stack.tls_url)]
            assert [answer.http_version for answer in answers] == ["HTTP/1.1", "HTTP/2"]
            assert [answer.json()["service"] for answer in answers] == [service, service]
            assert answers[1].json()["headers"]["x-forwarded-proto"] == "https"


@pytest.mark.integration
def test_a_given_certificate_is_shown_and_cleartext_is_off(
    tmp_path: Path, new_config: Callable[..., StackConfig]
) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("tinker.example")
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for blob, path in zip((leaf.cert_chain_pems[0], leaf.private_key_pem), files.values(), strict=True):
        blob.write_to_path(path)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Stack(new_config(port=None, tls_port=0, tls_name="tinker.example", **files)) as stack:
        assert stack.client_environment.keys() == {"TINKER_BASE_URL", "TINKER_API_KEY"}
        address = httpx.URL(stack.base_url)
        assert (address.scheme, address.host) == ("https", "tinker.example")
        local = f"https://127.0.0.1:{address.port}"
        assert handshake(local, tmp_path / "ca.pem", "tinker.example", ["h2"]) == "h2"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{address.port}/healthz", trust_env=False)


def test_the_same_certificate_is_shown_after_a_restart(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path / "tls", "tinker.lan")
    own.ensure()
    made = own.ca_bundle.read_bytes(), own.certificate.chain.read_bytes()
    own.ensure()
    assert (own.ca_bundle.read_bytes(), own.certificate.chain.read_bytes()) == made


def test_a_certificate_older_than_a_year_is_made_anew(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path / "tls", "tinker.lan")
    own.ensure()
    made = own.certificate.chain.read_bytes()
    os.utime(own.ca_bundle, (0, 0))
    own.ensure()
    assert own.certificate.chain.read_bytes() != made


def test_nobody_else_can_read_the_key(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path / "tls", "127.0.0.1")
    own.ensure()
    assert stat.S_IMODE(own.certificate.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(own.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls_cert": Path(sys.executable)}, "give both --tls-cert and --tls-key"),
        ({"tls_cert": Path("no.pem"), "tls_key": Path("no.key")}, "Cannot read no.pem"),
        ({"port": None, "tls_port": None}, "needs a port"),
        ({"tls_port": 70000}, "PORT is 70000"),
    ],
)
def test_impossible_options_are_one_sentence(options: dict[str, int | Path | None], said: str) -> None:
    with pytest.raises(StackError, match=said):
        StackConfig(**{"tls_port": 0, **options})  # pyright: ignore[reportArgumentType]
