"""A data set of random images for tests that need classification but no files; `class_path: toy_images.ToyImages`."""

import numpy as np
import torch

from mamllit.data.images import ImageDataModule
from mamllit.data.plain import PlainBatches
from mamllit.data.pool import ClassPool

CLASSES, DRAWINGS, SIDE = 8, 6, 8


class ToyImages(ImageDataModule):
    """Eight classes per split, six 8x8 images each: a random pattern per class, and noise."""

    def __init__(
        self,
        ways: int = 3,
        shots: int = 1,
        queries: int = 2,
        meta_batch_size: int = 4,
        test_episodes: int = 5,
        plain: PlainBatches | None = None,
        train_ways: int | None = None,
    ) -> None:
        super().__init__(
            ways, shots, queries, meta_batch_size, rotate=False, standard_queries=3, seed=None, eval_seed=0,
            protocols=("standard",), val_episodes=4, test_episodes=test_episodes, eval_batch_size=2, num_workers=0,
            plain=plain, train_ways=train_ways,
        )  # fmt: skip

    def load(self) -> dict[str, ClassPool]:
        random = torch.Generator().manual_seed(0)
        pools = {}
        for split in ("train", "val", "test"):
            pattern = torch.rand(CLASSES, 1, 1, SIDE, SIDE, generator=random)
            noise = torch.rand(CLASSES, DRAWINGS, 1, SIDE, SIDE, generator=random)
            images = ((pattern + noise) * 127).to(torch.uint8).flatten(0, 1)
            offsets = np.arange(CLASSES + 1, dtype=np.int64) * DRAWINGS
            pools[split] = ClassPool(images, offsets, tuple(f"{split}{i}" for i in range(CLASSES)))
        return pools
