"""What callers can do with their own credential: exchange it, look at it, revoke it."""

from tinsmith_common.auth import CONFIGURED_KEY, Authenticator, Principal
from tinsmith_common.errors import Forbidden, NotFound
from tinsmith_common.wire.auth import ApiKeyResponse, KeyDetails, Organization, TokenResponse, User
from tinsmith_train.services.audit import AuditLog


class CredentialService:
    """Acts on the key that a request came with, and on no other."""

    def __init__(self, authenticator: Authenticator, audit: AuditLog, organization: str) -> None:
        self._authenticator = authenticator
        self._audit = audit
        self._organization = organization

    async def exchange(self, caller: Principal) -> TokenResponse:
        """A token for the caller. Raises `NotFound` where tokens are switched off."""
        tokens = self._authenticator.tokens
        if tokens is None:
            raise NotFound(
                "no tokens are given here: use the API key, or set PJWT_AUTH_ENABLED on the server"
            )
        return TokenResponse(jwt=await tokens.issue(caller))

    async def describe(self, caller: Principal) -> ApiKeyResponse:
        """What is known of the caller's key."""
        key = await self._authenticator.key_of(caller)
        return ApiKeyResponse(
            key_id=caller.key_id,
            name=key.name if key else "TINKER_API_KEY",
            note=key.note if key else "configured on the server",
            details=KeyDetails(
                org_details=Organization(name=self._organization), user_details=User(email=caller.owner)
            ),
        )

    async def revoke(self, caller: Principal) -> None:
        """End the caller's key. Raises `Forbidden` for the configured one, which lives in the settings."""
        if caller.key_id == CONFIGURED_KEY:
            raise Forbidden("the configured key cannot be revoked: set another TINKER_API_KEY on the server")
        await self._authenticator.revoke(caller.key_id)
        await self._audit.note(caller.owner, "organization_key_revoke", key_id=caller.key_id)
