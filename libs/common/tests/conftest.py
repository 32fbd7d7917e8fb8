"""Real stores: SQLite in a temporary folder, and Postgres where its server is installed."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this session's own, on loopback. Answers the address that databases hang on."""
    found = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
    if found is None:
        pytest.skip(
            "NOT TESTED on Postgres: its server is not installed (initdb is neither on the PATH nor known)"
        )
    # It refuses to run as root, who in turn may become anybody.
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tinsmith-postgres-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        data = folder / "data"
        init = [found, "-D", data, "-U", "tinsmith", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(init, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        binaries = Path(found).resolve().parent
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([binaries / "postgres", *options], user=user, cwd=folder, stderr=log)
        cleanup.callback(server.wait)
        cleanup.callback(server.send_signal, signal.SIGINT)  # without waiting for clients to leave
        while subprocess.run([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
            assert server.poll() is None, (folder / "log").read_text()
        yield f"tinsmith@127.0.0.1:{port}"


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, once on either kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'store.db'}"
    address = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(f"postgresql://{address}/postgres")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"postgresql+asyncpg://{address}/{name}"


@pytest.fixture
def settings(store_url: str, tmp_path: Path) -> CommonSettings:
    return CommonSettings(metadata_dir=tmp_path, database_url=store_url)


@pytest_asyncio.fixture
async def stores(settings: CommonSettings) -> AsyncIterator[Stores]:
    stores = Stores.build(settings, "train")
    await stores.open()
    yield stores
    await stores.close()
