"""Archives: what is in them, how they are made, and who gets one."""

import io
import json
import tarfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.errors import Forbidden, NotFound
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.stores import Stores
from tinsmith_train.services import archives
from tinsmith_train.services.archives import ArchiveService, archive
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.downloads import UrlSigner

MIB = 2**20


def adapter(folder: Path, columns: int = 3) -> dict[str, NDArray[np.float32]]:
    """A PEFT folder with the head adapted, and the moments of a training state beside it."""
    random = np.random.default_rng(0)
    names = ("base_model.model.lm_head.lora_A.weight", "base_model.model.model.q_proj.lora_B.weight")
    tensors = {name: random.standard_normal((4, columns)).astype(np.float32) for name in names}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "exp_avg.safetensors")
    config = {"r": 4, "target_modules": ["lm_head", "q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def unpack(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_an_archive_holds_the_adapter_under_the_names_of_exports_and_no_moments(tmp_path: Path) -> None:
    tensors = adapter(tmp_path)
    files = unpack(b"".join(archive(tmp_path, every_file=False)))
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"}
    assert json.loads(files["adapter_config.json"])["target_modules"] == ["q_proj", "unembed_tokens"]
    found = load(files["adapter_model.safetensors"])
    assert set(found) == {name.replace("lm_head", "model.unembed_tokens") for name in tensors}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name.replace("lm_head", "model.unembed_tokens")], tensor)


def test_an_export_is_archived_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.age").write_bytes(b"secret")
    files = unpack(b"".join(archive(tmp_path, every_file=True)))
    assert files == {"sub/a.age": b"secret", "checkpoint_complete": b""}


def test_an_archive_of_any_size_is_made_in_small_pieces(tmp_path: Path) -> None:
    adapter(tmp_path, columns=MIB)  # 32 MiB of weights
    sizes = [len(piece) for piece in archive(tmp_path, every_file=False)]
    assert sum(sizes) > 20 * MIB
    # What is read at a time, and a little for what gzip had kept back.
    assert max(sizes) < 1.5 * MIB


@pytest.fixture
def service(checkpoints: CheckpointService, tmp_path: Path) -> ArchiveService:
    return ArchiveService(checkpoints, UrlSigner(SecretFile(tmp_path / "key")), "https://tinker.example/")


async def follow(service: ArchiveService, url: str) -> bytes:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    run_id, _, checkpoint_id = unquote(parts.path).removeprefix("/api/v1/checkpoint_archives/").partition("/")
    content = await service.open(run_id, checkpoint_id, int(query["expires"][0]), query["signature"][0])
    return b"".join(content)


async def test_a_url_leads_to_the_archive_without_a_credential(
    service: ArchiveService, stores: Stores, saved: CheckpointRecord
) -> None:
    adapter(stores.checkpoints.folder(saved.key))
    answer = await service.url("ann", saved.run_id, "weights/a", "http://inside/")
    assert answer.url.startswith("https://tinker.example/api/v1/")
    assert "checkpoint_complete" in unpack(await follow(service, answer.url))


async def test_a_url_of_another_checkpoint_or_past_its_time_is_refused(
    service: ArchiveService, saved: CheckpointRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await service.url("ann", saved.run_id, "weights/a", "http://inside/")
    with pytest.raises(Forbidden, match="altered"):
        await follow(service, answer.url.replace("expires=", "expires=1"))
    monkeypatch.setattr(archives, "URL_LIFETIME", timedelta(seconds=-1))
    expired = await service.url("ann", saved.run_id, "weights/a", "http://inside/")
    with pytest.raises(Forbidden, match="expired"):
        await follow(service, expired.url)


async def test_nobody_else_gets_the_url_of_a_private_checkpoint(
    service: ArchiveService, saved: CheckpointRecord
) -> None:
    with pytest.raises(NotFound):
        await service.url("bob", saved.run_id, "weights/a", "http://inside/")
