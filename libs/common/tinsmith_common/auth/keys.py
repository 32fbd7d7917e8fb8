"""API keys. Only their hashes are kept in memory."""

import hashlib
import hmac
from dataclasses import dataclass

from tinsmith_common.errors import Unauthorized

KEY_PREFIX = "tml-"
"""The SDK sends no key that does not begin with this."""


@dataclass(frozen=True)
class Principal:
    """The account a request acts for. Everything it creates carries `owner`."""

    owner: str


class Authenticator:
    """Checks the `X-API-Key` header against the configured key.

    A key and the same key with the `tml-` prefix are one credential, because the SDK refuses to send
    anything without that prefix.
    """

    def __init__(self, key: str, owner: str = "local") -> None:
        self._digest = _digest(key)
        self._principal = Principal(owner)

    def authenticate(self, key: str | None) -> Principal:
        """The principal of `key`. Raises `Unauthorized` when it is missing or unknown."""
        if not key:
            raise Unauthorized(
                "no API key: send it as X-API-Key or as Authorization: Bearer (the SDK reads TINKER_API_KEY)"
            )
        if not hmac.compare_digest(_digest(key), self._digest):
            raise Unauthorized("this API key is not known here: check TINKER_API_KEY")
        return self._principal


def client_key(key: str) -> str:
    """The form of a key that the SDK is willing to send."""
    return key if key.startswith(KEY_PREFIX) else KEY_PREFIX + key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.removeprefix(KEY_PREFIX).encode()).digest()
