"""Keys of the store and tokens."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from joserfc import jws, jwt
from joserfc.jwk import OctKey, RSAKey
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from tinsmith_common.auth import ApiKeys, Authenticator, Principal, Tokens, authenticator, digest, new_key
from tinsmith_common.errors import InvalidToken, Unauthorized
from tinsmith_common.http import Caller, install_http
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

CLAIMS = {"iss": "passport-tinsmith", "sub": "ann", "iat": 0, "exp": 2**40, "key_id": 0}


@pytest.fixture
def keys(stores: Stores) -> ApiKeys:
    return ApiKeys(stores.database)


async def add(keys: ApiKeys, owner: str) -> tuple[int, str]:
    key = new_key()
    return await keys.add(digest(key), owner, "laptop", "a note"), key


def make_tokens(folder: Path, key: str = "configured", lifetime_s: float = 3600) -> Tokens:
    return Tokens(SecretFile(folder / "token.key"), digest(key), "apples", lifetime_s)


async def test_a_key_of_the_store_is_its_owners(keys: ApiKeys) -> None:
    key_id, key = await add(keys, "ann")
    services = Authenticator("configured", keys)
    assert await services.authenticate(key) == Principal("ann", key_id)
    assert await services.authenticate("tml-configured") == Principal("local")


async def test_a_key_works_at_once_also_where_it_was_tried_before(keys: ApiKeys) -> None:
    services, key = Authenticator("configured", keys), new_key()
    with pytest.raises(Unauthorized, match="not known"):
        await services.authenticate(key)
    await keys.add(digest(key), "ann", "", "")
    assert (await services.authenticate(key)).owner == "ann"


async def test_a_revoked_key_is_refused_at_once_here_and_when_its_age_is_up_elsewhere(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, key = await add(keys, "ann")
    here, elsewhere = Authenticator("configured", keys), Authenticator("configured", keys)
    await here.authenticate(key)
    await elsewhere.authenticate(key)
    await here.revoke(key_id)
    with pytest.raises(Unauthorized, match="revoked"):
        await here.authenticate(key)
    assert (await elsewhere.authenticate(key)).owner == "ann"
    monkeypatch.setattr(authenticator, "KEY_AGE_S", 0)
    with pytest.raises(Unauthorized, match="revoked"):
        await elsewhere.authenticate(key)


async def test_no_key_is_in_the_store(keys: ApiKeys, stores: Stores) -> None:
    _, key = await add(keys, "ann")
    async with stores.database.read() as connection:
        (row,) = (await connection.execute(text("SELECT * FROM api_keys"))).all()
    assert digest(key) in row
    assert key.removeprefix("tml-") not in repr(row)


async def test_the_last_use_is_noted_within_a_minute(keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, key = await add(keys, "ann")
    monkeypatch.setattr(authenticator, "KEY_AGE_S", 0)
    services, noted = Authenticator("configured", keys), list[datetime | None]()
    for _ in range(2):
        await services.authenticate(key)
        found = await keys.find(key_id)
        noted.append(found and found.last_used_at)
    assert noted[0] is not None
    assert datetime.now(UTC) - noted[0] < timedelta(minutes=1)
    assert noted[1] == noted[0]  # one write a minute is enough


async def test_a_token_stands_for_its_key_in_every_process(keys: ApiKeys, tmp_path: Path) -> None:
    key_id, key = await add(keys, "ann@example.org")
    one, other = (Authenticator("configured", keys, make_tokens(tmp_path)) for _ in "12")
    tokens = one.tokens
    assert tokens is not None
    token = await tokens.issue(await one.authenticate(key))
    caller = await other.authenticate(token)
    assert (caller.owner, caller.key_id) == ("ann@example.org", key_id)


async def test_a_token_tells_what_clients_read_from_it(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, lifetime_s=120)
    claims: list[dict[str, Any]] = []
    for owner in ("ann@example.org", "bob"):
        token = await tokens.issue(Principal(owner))
        claims.append(jwt.decode(token, await tokens._signing_key()).claims)  # pyright: ignore[reportPrivateUsage]
    ann, bob = claims
    assert (ann["sub"], ann["email"], ann["org_id"]) == ("ann@example.org", "ann@example.org", "apples")
    assert ann["iss"].startswith("passport-")
    assert ann["exp"] - ann["iat"] == 120
    assert "email" not in bob


async def test_a_token_of_a_revoked_key_is_refused(keys: ApiKeys, tmp_path: Path) -> None:
    key_id, key = await add(keys, "ann")
    services = Authenticator("configured", keys, tokens := make_tokens(tmp_path))
    token = await tokens.issue(await services.authenticate(key))
    await services.revoke(key_id)
    with pytest.raises(InvalidToken, match="revoked"):
        await services.authenticate(token)


async def test_a_token_gets_no_longer_life_from_a_token(tmp_path: Path) -> None:
    expires_at = int(time.time()) + 60
    tokens = make_tokens(tmp_path)
    caller = await tokens.read(await tokens.issue(Principal("ann", 0, expires_at)))
    assert caller.expires_at == expires_at


async def test_an_expired_token_is_refused(tmp_path: Path) -> None:
    token = await make_tokens(tmp_path, lifetime_s=-1).issue(Principal("ann"))
    with pytest.raises(InvalidToken, match="expired"):
        await make_tokens(tmp_path).read(token)


@pytest.mark.parametrize("replaced", ["secret", "configured key"])
async def test_replacing_what_signs_ends_all_tokens(tmp_path: Path, replaced: str) -> None:
    token = await make_tokens(tmp_path).issue(Principal("ann"))
    assert (await make_tokens(tmp_path).read(token)).owner == "ann"
    if replaced == "secret":
        (tmp_path / "token.key").unlink()
    later = make_tokens(tmp_path, key="another" if replaced == "configured key" else "configured")
    with pytest.raises(InvalidToken, match="not made here"):
        await later.read(token)


async def test_a_secret_that_another_process_replaced_is_taken_up_at_once(tmp_path: Path) -> None:
    reader = make_tokens(tmp_path)
    await reader.read(await reader.issue(Principal("ann")))
    (tmp_path / "token.key").unlink()
    token = await make_tokens(tmp_path).issue(Principal("bob"))
    assert (await reader.read(token)).owner == "bob"


async def forged(tmp_path: Path, kind: str) -> str:
    """A token of the right claims that nobody but its forger signed."""
    mine = await make_tokens(tmp_path).issue(Principal("ann"))
    header, claims, signature = mine.split(".")
    match kind:
        case "unsigned":
            registry = jws.JWSRegistry(algorithms=["none"])
            return jwt.encode({"alg": "none"}, CLAIMS, OctKey.generate_key(), registry=registry)
        case "unsigned with a signature":
            return (
                jws.serialize_compact({"alg": "none"}, "{}", None, ["none"]).split(".")[0]
                + f".{claims}.{signature}"
            )
        case "another key":
            return jwt.encode({"alg": "HS256"}, CLAIMS, OctKey.generate_key())
        case "the secret itself":
            return jwt.encode(
                {"alg": "HS256"}, CLAIMS, OctKey.import_key((tmp_path / "token.key").read_bytes())
            )
        case "another algorithm":
            return jwt.encode({"alg": "RS256"}, CLAIMS, RSAKey.generate_key(2048))
        case "other claims":
            other = await make_tokens(tmp_path).issue(Principal("bob"))
            return f"{header}.{other.split('.')[1]}.{signature}"
        case _:
            return kind


@pytest.mark.parametrize(
    "kind",
    [
        "unsigned",
        "unsigned with a signature",
        "another key",
        "the secret itself",
        "another algorithm",
        "other claims",
        "eyJ",
        "eyJ.eyJ.eyJ",
        "eyJhbGciOiJIUzI1NiJ9.é.x",
        "eyJ" + "A" * 20_000 + ".e30.x",
    ],
)
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # that is what is being tested
async def test_a_forged_token_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidToken, match="not made here"):
        await make_tokens(tmp_path).read(await forged(tmp_path, kind))


async def test_tokens_are_refused_where_they_are_switched_off(keys: ApiKeys, tmp_path: Path) -> None:
    token = await make_tokens(tmp_path).issue(Principal("local"))
    with pytest.raises(Unauthorized, match="PJWT_AUTH_ENABLED") as error:
        await Authenticator("configured", keys).authenticate(token)
    # Nothing that would make a client exchange its key again.
    assert not isinstance(error.value, InvalidToken)


@pytest_asyncio.fixture
async def client(settings: CommonSettings) -> AsyncIterator[httpx.AsyncClient]:
    """A service that takes tokens."""
    settings = settings.model_copy(update={"pjwt_auth_enabled": True})
    stores = Stores.build(settings, "train")
    await stores.open()
    app = FastAPI()
    install_http(app, settings, stores, CollectorRegistry())

    @app.get("/owner")
    async def owner(caller: Caller) -> str:
        return caller.owner

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client
    await stores.close()


async def test_only_a_bad_token_tells_the_client_to_fetch_another(
    client: httpx.AsyncClient, settings: CommonSettings
) -> None:
    configured = settings.tinker_api_key.get_secret_value()
    good = await make_tokens(settings.metadata_dir, configured).issue(Principal("local"))
    expired = await make_tokens(settings.metadata_dir, configured, -1).issue(Principal("local"))
    assert (await client.get("/owner", headers={"X-API-Key": good})).json() == "local"
    assert (await client.get("/owner", headers={"Authorization": f"Bearer {good}"})).json() == "local"
    answers = [await client.get("/owner", headers={"X-API-Key": sent}) for sent in (expired, new_key())]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert [answer.headers["www-authenticate"] for answer in answers] == [
        'Bearer error="invalid_token"',
        "Bearer",
    ]
