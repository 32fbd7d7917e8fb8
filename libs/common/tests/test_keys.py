"""The command line of keys, on both kinds of store."""

import asyncio
import sys
from pathlib import Path

import pytest

from tinsmith_common.auth import ApiKeys, Authenticator
from tinsmith_common.database import Database
from tinsmith_common.errors import Unauthorized
from tinsmith_common.keys import main


class Keys:
    """Runs commands as a user does, on one store."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._patch = monkeypatch
        self._capsys = capsys
        monkeypatch.setenv("DATABASE_URL", url)

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What a command printed; of one that fails, its error."""
        self._patch.setattr(sys, "argv", ["keys", *arguments])
        assert main() == status
        printed = self._capsys.readouterr()
        return printed.err if status else printed.out

    def owner_of(self, key: str) -> str:
        """The account that services take this key for."""

        async def find() -> str:
            database = Database(self.url)
            try:
                return (await Authenticator("configured", ApiKeys(database)).authenticate(key)).owner
            finally:
                await database.close()

        return asyncio.run(find())


@pytest.fixture
def keys(store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(store_url, monkeypatch, capsys)


def test_a_created_key_is_all_that_is_printed_and_opens_its_account(keys: Keys) -> None:
    key = keys("create", "ann", "--name", "laptop").removesuffix("\n")
    assert key.startswith("tml-")
    assert keys.owner_of(key) == "ann"


def test_the_list_shows_keys_without_their_secrets(keys: Keys) -> None:
    key = keys("create", "ann", "--name", "laptop", "--note", "lent to bob").strip()
    keys("create", "bob")
    heading, first, second = keys("list").splitlines()
    assert heading.split()[:3] == ["ID", "OWNER", "NAME"]
    assert first.split()[:3] == ["1", "ann", "laptop"]
    assert first.endswith("lent to bob")
    assert second.split()[1] == "bob"
    assert key.removeprefix("tml-")[:8] not in first
    assert len(keys("list", "--owner", "bob").splitlines()) == 2


def test_a_revoked_key_is_refused_and_stays_in_the_list(keys: Keys) -> None:
    key = keys("create", "ann").strip()
    assert "within 5 s" in keys("revoke", "1")
    with pytest.raises(Unauthorized, match="revoked"):
        keys.owner_of(key)
    assert "revoked before" in keys("revoke", "1", status=1)
    assert "no key 2" in keys("revoke", "2", status=1)
    assert "ann" in keys("list")


def test_an_owner_without_a_name_is_refused(keys: Keys) -> None:
    assert "an owner is a name" in keys("create", " ", status=1)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_store_is_made_for_a_new_key_only(keys: Keys, tmp_path: Path) -> None:
    assert "no store sqlite" in keys("list", status=1)
    assert not (tmp_path / "store.db").exists()
    keys("create", "ann")
    assert (tmp_path / "store.db").exists()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_the_settings_file_of_a_service_will_do(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / "train.yaml").write_text(f"TRAINING_PORT: 9000\nMETADATA_DIR: {tmp_path / 'mine'}\n")
    keys("--config", str(tmp_path / "train.yaml"), "create", "ann")
    assert (tmp_path / "mine" / "futures.db").exists()
    assert "cannot read the settings file" in keys("--config", "/none.yaml", "list", status=1)


def test_the_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", "--help"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("create", "list", "revoke", "--config"))
