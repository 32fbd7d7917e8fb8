"""From the wire's submissions to the engine's."""

import numpy as np

from tinsmith_common.wire.codec import WireDatum, WireForwardBackward, WireImage
from tinsmith_train.engine.types import Image
from tinsmith_train.services.training import to_item


def test_images_reach_the_engine_where_they_stood() -> None:
    targets = {"target_tokens": np.zeros(4, np.int64)}
    datum = WireDatum(np.zeros(4, np.int64), targets, images=(WireImage(1, 2, b"file", "png"),))
    item = to_item(WireForwardBackward("m", 1, (datum,), "cross_entropy", {}, False))
    assert item.datums[0].images == (Image(1, 2, b"file", "png"),)
