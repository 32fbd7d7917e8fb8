"""API keys of the accounts that may use this server: `python -m tinsmith_common.keys`.

Works on the store that the services use, found through the same settings: METADATA_DIR or DATABASE_URL from the
environment, or the services' settings file. Running services follow within seconds.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from tinsmith_common.auth import KEY_AGE_S, ApiKey, ApiKeys, digest, new_key
from tinsmith_common.database import Database
from tinsmith_common.errors import InvalidInput, NotFound, TinsmithError
from tinsmith_common.observability import configure_logging
from tinsmith_common.settings import CommonSettings

_COLUMNS = ("ID", "OWNER", "NAME", "CREATED", "LAST USED", "REVOKED", "NOTE")


class KeySettings(CommonSettings):
    """The shared settings. Those of one service may stand in the same file."""

    model_config = SettingsConfigDict(extra="ignore")


async def create(keys: ApiKeys, owner: str, name: str, note: str) -> tuple[int, str]:
    """Make a key. Answers its id and the key itself, which cannot be found out again."""
    if not owner.strip() or not owner.isprintable():
        raise InvalidInput("an owner is a name, such as ann or ann@example.org")
    key = new_key()
    return await keys.add(digest(key), owner.strip(), name, note), key


async def revoke(keys: ApiKeys, key_id: int) -> ApiKey:
    """End a key for good. Raises `NotFound` and, when that was done before, `InvalidInput`."""
    key = await keys.find(key_id)
    if key is None:
        raise NotFound(f"there is no key {key_id}; `list` shows those that there are")
    if not await keys.revoke(key_id):
        raise InvalidInput(f"key {key_id} was revoked before")
    return key


def as_table(keys: Sequence[ApiKey]) -> str:
    """One line a key, below a heading."""
    rows = [_COLUMNS, *map(_row, keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args()
    # On standard error, away from the key.
    configure_logging("WARNING", json_lines=False)
    try:
        settings = KeySettings.load(options.config)
        asyncio.run(_run(options, settings))
    except (TinsmithError, ValidationError) as error:
        print(f"tinsmith keys: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace, settings: CommonSettings) -> None:
    database = Database(settings.store_url)
    if options.command != "create" and not database.exists:
        raise NotFound(f"there is no store {database.name}: check METADATA_DIR and DATABASE_URL")
    try:
        await database.migrate()
        await _act(options, ApiKeys(database), database.name)
    finally:
        await database.close()


async def _act(options: argparse.Namespace, keys: ApiKeys, store: str) -> None:
    match options.command:
        case "create":
            key_id, key = await create(keys, options.owner, options.name, options.note)
            # Apart from the key, so that `KEY=$(… create ann)` takes it and nothing else.
            print(f"key {key_id} of {options.owner}, shown only now; store: {store}", file=sys.stderr)
            print(key)
        case "revoke":
            key = await revoke(keys, options.id)
            print(f"key {key.id} of {key.owner} is revoked; services refuse it within {KEY_AGE_S:.0f} s")
        case _:
            found = [key for key in await keys.all() if options.owner in (None, key.owner)]
            print(as_table(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinsmith_common.keys", description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="the services' settings file; the environment wins over it"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it, this once")
    create.add_argument("owner", help="the account it acts for: a name or an email address")
    create.add_argument("--name", default="", help="what to call it, e.g. laptop")
    create.add_argument("--note", default="", help="anything worth remembering")
    listing = commands.add_parser("list", help="show the keys, without their secrets")
    listing.add_argument("--owner", help="of this account only")
    revoke = commands.add_parser("revoke", help="end a key for good")
    revoke.add_argument("id", type=int, help="its number in the list")
    return parser


def _row(key: ApiKey) -> tuple[str, ...]:
    times = map(_time, (key.created_at, key.last_used_at, key.revoked_at))
    return (str(key.id), key.owner, key.name, *times, key.note)


def _time(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M}"


if __name__ == "__main__":
    sys.exit(main())
