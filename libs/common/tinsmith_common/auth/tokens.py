"""Short-lived tokens (JWTs) that stand for an API key."""

import asyncio
import hashlib
import hmac
import time

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import OctKey

from tinsmith_common.auth.keys import Principal
from tinsmith_common.errors import InvalidToken
from tinsmith_common.secret_file import SecretFile

TOKEN_PREFIX = "eyJ"
"""How every JWT begins, and no key that was made here."""

_ALGORITHM = "HS256"
# The SDK takes identities only from issuers of this prefix.
_ISSUER = "passport-tinsmith"
_SECRET_AGE_S = 5.0


class Tokens:
    """Signs tokens and reads them again.

    The key of the signature comes from a secret file that all processes of the deployment share, and from the
    configured API key: when either is replaced, no earlier token is valid, and clients exchange their keys anew.
    """

    def __init__(
        self, secret: SecretFile, configured_digest: str, organization: str, lifetime_s: float
    ) -> None:
        self._secret = secret
        self._salt = configured_digest.encode()
        self._organization = organization
        self._lifetime_s = lifetime_s
        self._key: OctKey | None = None
        self._read_at = 0.0

    async def issue(self, caller: Principal) -> str:
        """A token for the caller. One that came with a token gets no longer life by it."""
        now = int(time.time())
        expires_at = int(now + self._lifetime_s)
        claims: dict[str, str | int] = {
            "iss": _ISSUER,
            "sub": caller.owner,
            "org_id": self._organization,
            "iat": now,
            "exp": expires_at if caller.expires_at is None else min(expires_at, caller.expires_at),
            "key_id": caller.key_id,
        }
        if "@" in caller.owner:
            claims["email"] = caller.owner
        return jwt.encode({"alg": _ALGORITHM}, claims, await self._signing_key())

    async def read(self, token: str) -> Principal:
        """Whom a token stands for. Raises `InvalidToken`. Whether its key was revoked is not asked here."""
        try:
            return _principal(token, await self._signing_key())
        except InvalidToken:
            # Another process may have replaced the secret a moment ago, and have signed with the new one.
            return _principal(token, await self._signing_key(max_age_s=0))

    async def _signing_key(self, max_age_s: float = _SECRET_AGE_S) -> OctKey:
        now = time.monotonic()
        if self._key is None or now - self._read_at > max_age_s:
            secret = await asyncio.to_thread(self._secret.read)
            self._key = OctKey.import_key(hmac.new(secret, self._salt, hashlib.sha256).digest())
            self._read_at = now
        return self._key


_CLAIMS = jwt.JWTClaimsRegistry(
    iss={"essential": True, "value": _ISSUER},
    sub={"essential": True},
    iat={"essential": True},
    exp={"essential": True},
    key_id={"essential": True},
)


def _principal(token: str, key: OctKey) -> Principal:
    try:
        claims = jwt.decode(token, key, algorithms=[_ALGORITHM]).claims
        _CLAIMS.validate(claims)
    except ExpiredTokenError as error:
        raise InvalidToken("this token has expired; exchange the API key for a new one") from error
    except (JoseError, ValueError) as error:
        raise InvalidToken("this token was not made here; exchange the API key for a new one") from error
    return Principal(claims["sub"], claims["key_id"], claims["exp"])
