"""Images in a packed row: pixels to features by the model's own vision tower, and positions in three dimensions.

One family is taken, Qwen2.5-VL as Hugging Face builds it. The tower is frozen and runs without a graph; its features
take the places of their tokens among the embeddings.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.decoder import ModuleDecoder, Owner
from tinsmith_train.engine.types import Image

MAX_PIXELS = 2**26
"""Of an image as it is sent, before it is scaled down: 64 megapixels, 200 MB as bytes."""


@dataclass(frozen=True)
class SeenImage:
    """An image ready for the tower: `pixels` fp32 `[patches, values]`, `grid` int64 `[3]` of patches, `tokens` of it
    from `start` on in its datum."""

    start: int
    tokens: int
    pixels: Tensor
    grid: Tensor


class Vision:
    """The vision side of a base model.

    model:     the conditional-generation model, whose `model` has `visual` and `get_rope_index`.
    processor: the image processor that belongs to it.
    """

    def __init__(self, model: Any, processor: Any, decoder: ModuleDecoder) -> None:
        self._model = model.model
        self._processor = processor
        self._decoder = decoder
        self._merged = int(model.config.vision_config.spatial_merge_size) ** 2
        self.image_token = int(model.config.image_token_id)

    def see(self, where: str, image: Image) -> SeenImage:
        """Decode and scale an image. Raises `InvalidInput` when it is none, or has not as many tokens as said."""
        seen = self._processor(images=[_decode(where, image)], return_tensors="pt")
        grid: Tensor = seen["image_grid_thw"][0]
        tokens = int(grid.prod()) // self._merged
        if tokens != image.tokens:
            raise InvalidInput(
                f"{where}: the image takes {tokens} tokens and expected_tokens is {image.tokens}: set it to {tokens}"
            )
        return SeenImage(image.start, tokens, seen["pixel_values"], grid)

    def placed(self, tokens: NDArray[np.int64], images: Sequence[SeenImage]) -> NDArray[np.int64]:
        """The tokens with the model's own placeholder where images lie."""
        placed = tokens.copy()
        for image in images:
            placed[image.start : image.start + image.tokens] = self.image_token
        return placed

    def hidden(
        self,
        tokens: Tensor,
        lengths: tuple[int, ...],
        images: Sequence[Sequence[SeenImage]],
        owners: Sequence[Owner],
    ) -> Tensor:
        """`[T, hidden]` of a packed row; `images` of each of its sequences."""
        starts = np.cumsum((0, *lengths)).tolist()
        with torch.no_grad():
            embedded = self._model.get_input_embeddings()(tokens)
            for start, seen in zip(starts, images, strict=False):
                for image in seen:
                    place = start + image.start
                    embedded[place : place + image.tokens] = self._features(image, tokens.device)
        positions = [
            self._positions(tokens[start : start + length], seen)
            for start, length, seen in zip(starts, lengths, images, strict=False)
        ]
        return self._decoder.hidden_of(embedded, torch.cat(positions, dim=1), lengths, owners)

    def _features(self, image: SeenImage, device: torch.device) -> Tensor:
        """`[tokens, hidden]`. One image at a time, so that none depends on its neighbours."""
        found: Any = self._model.get_image_features(image.pixels.to(device), image.grid[None].to(device))
        features: Tensor = found.pooler_output[0]
        return features

    def _positions(self, tokens: Tensor, images: Sequence[SeenImage]) -> Tensor:
        """int64 `[3, length]` by time, height and width."""
        if not images:
            return torch.arange(len(tokens), device=tokens.device).expand(3, -1)
        kinds = torch.zeros_like(tokens)
        for image in images:
            kinds[image.start : image.start + image.tokens] = 1
        grids = torch.stack([image.grid for image in images]).to(tokens.device)
        positions, _ = self._model.get_rope_index(tokens[None], kinds[None], grids)
        return positions[:, 0]


def _decode(where: str, image: Image) -> PIL.Image.Image:
    try:
        picture = PIL.Image.open(io.BytesIO(image.data), formats=[image.format])
        if picture.width * picture.height > MAX_PIXELS:
            raise InvalidInput(
                f"{where}: the image has {picture.width} x {picture.height} pixels: scale it to {MAX_PIXELS} at most"
            )
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InvalidInput(f"{where}: the image is not a readable {image.format} file: {error}") from error
