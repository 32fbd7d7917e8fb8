"""API keys. They are shown once, when they are made; only their hashes are kept."""

import hashlib
import secrets
from dataclasses import dataclass

KEY_PREFIX = "tml-"
"""The SDK sends no key that does not begin with this."""

CONFIGURED_KEY = 0
"""The `key_id` of `TINKER_API_KEY`; keys of the store count from 1."""

DEFAULT_OWNER = "local"
"""The account of `TINKER_API_KEY`."""


@dataclass(frozen=True)
class Principal:
    """The account a request acts for. Everything it creates carries `owner`.

    key_id:     the API key that it came with, or that its token was given for.
    expires_at: the end of that token, in seconds since 1970; None for a key.
    """

    owner: str
    key_id: int = CONFIGURED_KEY
    expires_at: int | None = None

    @property
    def is_operator(self) -> bool:
        """Whether it came with the configured key, whose holder runs the services and may watch all of them."""
        return self.key_id == CONFIGURED_KEY


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def client_key(key: str) -> str:
    """The form of a key that the SDK is willing to send."""
    return key if key.startswith(KEY_PREFIX) else KEY_PREFIX + key


def digest(key: str) -> str:
    """What is kept of a key. With and without its prefix it is one credential.

    A plain hash, because there is nothing to guess in 256 random bits, and every request needs it.
    """
    return hashlib.sha256(key.removeprefix(KEY_PREFIX).encode()).hexdigest()
