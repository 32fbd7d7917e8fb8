"""A CA and a certificate from it, for a gateway that was given none."""

import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import trustme

from tinsmith_local.gateway import Certificate

# Apple's verifier refuses server certificates that are valid for longer.
_VALID_FOR = timedelta(days=825)
_RENEWED_AFTER_S = 365 * 86400.0


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate for `host` and this machine's names, in a folder that nobody else can read.

    A CA and a leaf, because rustls refuses a CA's own certificate as a server's. The CA's key is never written down.
    """

    folder: Path
    host: str

    @property
    def certificate(self) -> Certificate:
        """What the gateway shows."""
        return Certificate(self.folder / "certificate.pem", self.folder / "key.pem")

    @property
    def ca_bundle(self) -> Path:
        """What clients must trust: the CA, and the public ones, so that they reach other servers as before."""
        return self.folder / "ca-bundle.pem"

    def ensure(self) -> None:
        """Make the files, unless there are some younger than a year: clients go on trusting them after a restart."""
        try:
            if time.time() - self.ca_bundle.stat().st_mtime < _RENEWED_AFTER_S:
                return
        except FileNotFoundError:
            pass
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = trustme.CA(
            organization_name="Tinsmith", organization_unit_name=f"made on {socket.gethostname()}"
        )
        names = dict.fromkeys([self.host, "localhost", "127.0.0.1", "::1", socket.gethostname()])
        leaf = ca.issue_cert(
            *names,
            organization_name="Tinsmith",
            not_after=datetime.now(UTC).replace(tzinfo=None) + _VALID_FOR,
        )
        self.certificate.key.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(self.certificate.key)
        self.certificate.chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        # Last, as the sign that all are there.
        self.ca_bundle.write_bytes(ca.cert_pem.bytes() + Path(certifi.where()).read_bytes())
