"""Uploaded losses, on real stores."""

from datetime import UTC, datetime

import pytest

from tinsmith_common.catalog import CustomLossRecord, SessionRecord
from tinsmith_common.errors import InvalidInput
from tinsmith_common.stores import Stores
from tinsmith_common.wire.custom_losses import CreateCustomLossRequest
from tinsmith_train.services.custom_losses import CustomLossService

NOW = datetime.now(UTC)


async def test_losses_go_with_their_session(stores: Stores) -> None:
    for session_id in ("open", "ended"):
        await stores.catalog.sessions.create(SessionRecord(session_id, "ann", NOW, NOW))
        loss = CustomLossRecord(f"{session_id}:loss:0", session_id, "ann", "loss", NOW, {})
        await stores.catalog.custom_losses.create(loss)
    losses = CustomLossService(stores.futures, stores.catalog)
    assert await losses.delete_expired() == 0
    await stores.catalog.sessions.update("ended", closed_at=NOW)
    assert await losses.delete_expired() == 1
    assert await stores.catalog.custom_losses.get("ended:loss:0") is None
    assert await stores.catalog.custom_losses.get("open:loss:0") is not None


async def test_no_loss_is_taken_for_a_session_that_has_ended(stores: Stores) -> None:
    await stores.catalog.sessions.create(SessionRecord("s", "ann", NOW, NOW, closed_at=NOW))
    body = CreateCustomLossRequest.model_validate(
        {
            "session_id": "s",
            "custom_loss_seq_id": 0,
            "name": "l",
            "inputs": [],
            "graph": {"format": 1, "nodes": []},
        }
    )
    with pytest.raises(InvalidInput, match="has ended"):
        await CustomLossService(stores.futures, stores.catalog).create("ann", body)
