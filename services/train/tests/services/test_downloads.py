"""Signatures of download URLs."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.errors import Forbidden, NotFound
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_train.services import downloads
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.downloads import DownloadService, UrlSigner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXPORT = CheckpointRecord(
    path="tinker://s:train:0/external_weights/e",
    run_id="s:train:0",
    owner="ann",
    kind="external_weights",
    name="e",
    key="s:train:0/external_weights/e",
    size_bytes=1,
    created_at=NOW,
    base_model="base",
    rank=8,
    alpha=32.0,
    train_attn=True,
    train_mlp=True,
    train_unembed=False,
)


def test_a_signature_belongs_to_one_key_and_one_list_of_parts(tmp_path: Path) -> None:
    signer = UrlSigner(SecretFile(tmp_path / "key"))
    signature = signer.sign("a", "b")
    assert UrlSigner(SecretFile(tmp_path / "key")).verify(signature, "a", "b")
    assert not signer.verify(signature, "ab")
    assert not UrlSigner(SecretFile(tmp_path / "other")).verify(signature, "a", "b")


def test_the_key_is_made_once_however_many_ask_and_is_private(tmp_path: Path) -> None:
    def sign(_: int) -> str:
        return UrlSigner(SecretFile(tmp_path / "key")).sign("a")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(sign, range(32)))) == 1
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


async def service(tmp_path: Path, public_url: str | None = None) -> tuple[DownloadService, Stores]:
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "train")
    await stores.open()
    await stores.catalog.checkpoints.create(EXPORT)
    with stores.checkpoints.write(EXPORT.key) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a b.bin").write_bytes(b"x")
    checkpoints = CheckpointService(
        stores.catalog, stores.checkpoints, stores.authenticator, AuditLog(stores.catalog)
    )
    return DownloadService(checkpoints, UrlSigner(SecretFile(tmp_path / "key")), public_url), stores


async def follow(service: DownloadService, url: str) -> Path:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    run_id, name, file = parts.path.removeprefix("/api/v1/external_weights/").split("/", 2)
    return await service.file(
        unquote(run_id), name, unquote(file), int(query["expires"][0]), query["signature"][0]
    )


async def test_a_url_leads_to_its_file_also_in_a_folder(tmp_path: Path) -> None:
    exports, stores = await service(tmp_path, "https://tinker.example/")
    answer = await exports.urls("ann", EXPORT.run_id, "external_weights/e", "http://inside:1/")
    (file, url), *none = answer.urls.items()
    assert (file, none) == ("sub/a b.bin", [])
    assert url.startswith("https://tinker.example/api/v1/")
    assert (await follow(exports, url)).read_bytes() == b"x"
    await stores.close()


async def test_an_expired_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports, stores = await service(tmp_path)
    monkeypatch.setattr(downloads, "URL_LIFETIME", timedelta(seconds=-1))
    answer = await exports.urls("ann", EXPORT.run_id, "external_weights/e", "http://here/")
    with pytest.raises(Forbidden, match="expired"):
        await follow(exports, answer.urls["sub/a b.bin"])
    await stores.close()


async def test_nobody_else_gets_urls_of_a_private_export(tmp_path: Path) -> None:
    exports, stores = await service(tmp_path)
    with pytest.raises(NotFound):
        await exports.urls("bob", EXPORT.run_id, "external_weights/e", "http://here/")
    await stores.close()


async def test_a_url_does_not_open_a_later_export_of_the_same_name(tmp_path: Path) -> None:
    exports, stores = await service(tmp_path)
    answer = await exports.urls("ann", EXPORT.run_id, "external_weights/e", "http://here/")
    await stores.catalog.checkpoints.update(EXPORT.path, created_at=NOW + timedelta(seconds=1))
    with pytest.raises(Forbidden, match="altered"):
        await follow(exports, answer.urls["sub/a b.bin"])
    await stores.close()
