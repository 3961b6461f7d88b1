"""ClassPool: its checks and selection."""

import numpy as np
import pytest
import torch

from mamllit.data.pool import ClassPool


def make_pool(counts: tuple[int, ...] = (2, 3, 1), seed: int = 0) -> ClassPool:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(counts), 1, 4, 5), generator=generator, dtype=torch.uint8)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ClassPool(images, offsets, tuple("abcdef"[: len(counts)]))


def test_a_pool_tells_its_classes_and_counts() -> None:
    pool = make_pool()
    assert pool.num_classes == 3
    assert pool.counts.tolist() == [2, 3, 1]


def test_select_keeps_the_order_asked_for() -> None:
    pool = make_pool()
    chosen = pool.select(["c", "a"])
    assert chosen.names == ("c", "a")
    assert chosen.offsets.tolist() == [0, 1, 3]
    assert torch.equal(chosen.images, torch.cat([pool.images[5:6], pool.images[0:2]]))


def test_select_names_the_unknown_classes() -> None:
    with pytest.raises(ValueError, match=r"the pool of 3 classes does not hold t, u, v, w, x and 2 more"):
        make_pool().select([*"atuvwxyz"])


def test_a_pool_that_does_not_fit_together_names_all_that_is_wrong() -> None:
    with pytest.raises(ValueError) as caught:
        ClassPool(torch.zeros(3, 4), np.array([0, 1]), ("a", "a"))
    assert str(caught.value) == (
        "ClassPool: images must be uint8 [M, C, H, W], got torch.float32 [3, 4]; "
        "offsets must be int64 [3] (classes + 1), got int64 [2]; class names must be distinct; repeated: a"
    )


@pytest.mark.parametrize("offsets", [[0, 3, 3], [1, 2, 3], [0, 1, 2], [0, 4, 3]])
def test_offsets_must_cover_the_images(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"offsets must rise from 0 to the number of images \(3\), every class holding"):
        ClassPool(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), np.array(offsets, np.int64), ("a", "b"))
