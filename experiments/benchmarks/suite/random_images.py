"""A data set of random pictures, as large as the real one: for timing a whole image run where the images are not at hand."""

import numpy as np
import torch

from mamllit.data.images import ImageDataModule
from mamllit.data.pool import ClassPool


class RandomImages(ImageDataModule):
    """Episodes of random uint8 pictures; nothing can be learned from them, but a step costs what it costs.

    Args:
        ways, shots, queries, meta_batch_size, rotate: see `ImageDataModule`.
        channels, side: of a picture.
        classes: of the meta-train split; a fourth as many in the other two, and at least `ways`.
        per_class: pictures of each class.
    """

    def __init__(
        self,
        ways: int,
        shots: int,
        queries: int,
        meta_batch_size: int,
        rotate: bool,
        channels: int,
        side: int,
        classes: int,
        per_class: int,
        val_episodes: int = 200,
        eval_batch_size: int = 50,
    ) -> None:
        super().__init__(
            ways, shots, queries, meta_batch_size, rotate, 15, None, 0, ("paper",), val_episodes, None, eval_batch_size, 0
        )
        self.channels, self.side, self.classes, self.per_class = channels, side, classes, per_class

    def load(self) -> dict[str, ClassPool]:
        fewer = max(self.classes // 4, self.ways)
        return {split: self._pool(n) for split, n in (("train", self.classes), ("val", fewer), ("test", fewer))}

    def _pool(self, classes: int) -> ClassPool:
        generator = torch.Generator().manual_seed(classes)
        size = (classes * self.per_class, self.channels, self.side, self.side)
        images = torch.randint(256, size, dtype=torch.uint8, generator=generator)
        offsets = np.arange(classes + 1, dtype=np.int64) * self.per_class
        return ClassPool(images, offsets, tuple(f"class {i}" for i in range(classes)))
