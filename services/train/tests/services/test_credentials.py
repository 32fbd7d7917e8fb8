"""What callers do with their own credential, on real stores."""

from pathlib import Path

import pytest

from tinsmith_common.auth import ApiKeys, Authenticator, Principal, Tokens, digest, new_key
from tinsmith_common.errors import Forbidden, NotFound, Unauthorized
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.stores import Stores
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.credentials import CredentialService


def make(stores: Stores, tokens: Tokens | None = None) -> tuple[CredentialService, Authenticator]:
    authenticator = Authenticator("configured", ApiKeys(stores.database), tokens)
    return CredentialService(authenticator, AuditLog(stores.catalog), "apples"), authenticator


async def test_a_key_describes_itself(stores: Stores) -> None:
    key = new_key()
    key_id = await ApiKeys(stores.database).add(digest(key), "ann", "laptop", "a note")
    credentials, authenticator = make(stores)
    found = await credentials.describe(await authenticator.authenticate(key))
    assert (found.key_id, found.name, found.note) == (key_id, "laptop", "a note")
    assert (found.details.org_details.name, found.details.user_details.email) == ("apples", "ann")


async def test_the_configured_key_describes_itself_and_cannot_be_revoked(stores: Stores) -> None:
    credentials, authenticator = make(stores)
    caller = await authenticator.authenticate("tml-configured")
    found = await credentials.describe(caller)
    assert (found.key_id, found.name) == (0, "TINKER_API_KEY")
    with pytest.raises(Forbidden, match="TINKER_API_KEY"):
        await credentials.revoke(caller)


async def test_a_key_revokes_itself_and_the_audit_log_tells(stores: Stores) -> None:
    key, other = new_key(), new_key()
    for each in (key, other):
        await ApiKeys(stores.database).add(digest(each), "ann", "", "")
    credentials, authenticator = make(stores)
    await credentials.revoke(await authenticator.authenticate(key))
    with pytest.raises(Unauthorized, match="revoked"):
        await authenticator.authenticate(key)
    assert (await authenticator.authenticate(other)).owner == "ann"
    (entry,) = (await AuditLog(stores.catalog).of_day("ann", "organizations", None)).entries
    assert (entry.event, entry.event_details["key_id"]) == ("organization_key_revoke", 1)


async def test_no_tokens_are_given_unless_they_are_switched_on(stores: Stores, tmp_path: Path) -> None:
    caller = Principal("ann")
    with pytest.raises(NotFound, match="PJWT_AUTH_ENABLED"):
        await make(stores)[0].exchange(caller)
    tokens = Tokens(SecretFile(tmp_path / "token.key"), digest("configured"), "apples", 600)
    credentials, authenticator = make(stores, tokens)
    token = (await credentials.exchange(caller)).jwt
    assert (await authenticator.authenticate(token)).owner == "ann"
