"""Finds the account behind a credential."""

import hmac
import time
from datetime import UTC, datetime, timedelta

from tinsmith_common.auth.keys import DEFAULT_OWNER, Principal, digest
from tinsmith_common.auth.repository import ApiKey, ApiKeys
from tinsmith_common.auth.tokens import TOKEN_PREFIX, Tokens
from tinsmith_common.errors import InvalidToken, Unauthorized

KEY_AGE_S = 5.0
"""A key that was found is believed this long: so long can it outlive its revocation."""

_NOTE_USE_EVERY = timedelta(minutes=1)


class Authenticator:
    """Checks the configured key, the keys of the store and, where they are switched on, tokens."""

    def __init__(
        self, key: str, keys: ApiKeys, tokens: Tokens | None = None, owner: str = DEFAULT_OWNER
    ) -> None:
        self._configured_digest = digest(key)
        self._configured = Principal(owner)
        self._keys = keys
        self._tokens = tokens
        # By digest and by id, with the time of reading. Only keys that exist are kept: a new one works at once.
        self._found: dict[str | int, tuple[ApiKey, float]] = {}

    @property
    def tokens(self) -> Tokens | None:
        """What issues tokens, None where they are switched off."""
        return self._tokens

    async def authenticate(self, credential: str | None) -> Principal:
        """The principal of a key or a token. Raises `Unauthorized` when it is missing, unknown or revoked."""
        if not credential:
            raise Unauthorized(
                "no API key: send it as X-API-Key or as Authorization: Bearer (the SDK reads TINKER_API_KEY)"
            )
        sent = digest(credential)
        if hmac.compare_digest(sent, self._configured_digest):
            return self._configured
        if credential.startswith(TOKEN_PREFIX):
            return await self._of_token(credential)
        key = await self._alive(sent)
        return Principal(key.owner, key.id)

    async def key_of(self, caller: Principal) -> ApiKey | None:
        """The caller's key, None for the configured one. Raises `Unauthorized`."""
        return None if caller.key_id == self._configured.key_id else await self._alive(caller.key_id)

    async def revoke(self, key_id: int) -> None:
        """End a key of the store: here at once, in other processes after `KEY_AGE_S`."""
        await self._keys.revoke(key_id)
        self._found.clear()

    async def _of_token(self, token: str) -> Principal:
        if self._tokens is None:
            raise Unauthorized("tokens are not accepted here: send an API key, or set PJWT_AUTH_ENABLED")
        caller = await self._tokens.read(token)
        try:
            await self.key_of(caller)
        except Unauthorized as error:
            raise InvalidToken(error.message) from error
        return caller

    async def _alive(self, key: str | int) -> ApiKey:
        found, read_at = self._found.get(key, (None, 0.0))
        now = time.monotonic()
        if found is None or now - read_at > KEY_AGE_S:
            found = await self._keys.find(key)
            if found is None:
                raise Unauthorized("this API key is not known here: check TINKER_API_KEY")
            self._found[key] = found, now
            await self._note_use(found)
        if found.revoked_at is not None:
            raise Unauthorized("this API key was revoked: use another one")
        return found

    async def _note_use(self, key: ApiKey) -> None:
        last = key.last_used_at
        if key.revoked_at is None and (last is None or datetime.now(UTC) - last > _NOTE_USE_EVERY):
            await self._keys.note_use(key.id)
