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
    with pytest.raises(ValueError, match=r"the pool of 3 classes does not contain t, u, v, w, x and 2 more"):
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


# ---- from labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_labels_in_any_order_make_a_pool(kind: type) -> None:
    images = torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)
    pool = ClassPool.from_labels(images, kind([7, 10, 7, 2, 10, 7]))
    assert pool.names == ("2", "7", "10")  # as numbers are sorted
    assert pool.offsets.tolist() == [0, 1, 4, 6]
    assert torch.equal(pool.images, images[[3, 0, 2, 5, 1, 4]])


def test_names_are_labels_and_numpy_images_of_one_channel_are_taken() -> None:
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    pool = ClassPool.from_labels(images, ["b", "a", "b", "a"])
    assert pool.names == ("a", "b")
    assert pool.images.shape == (4, 1, 2, 3)
    assert pool.images[:, 0].numpy().tolist() == images[[1, 3, 0, 2]].tolist()


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0, 1], "there are 3 images and 2 labels; each image needs one"),
        (torch.zeros(2, 1, 2, 2), [0, 1], r"images must be uint8 \[M, C, H, W\], got torch.float32"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), [1, "1"], r"labels are equal as text \(1 and '1'\); make all of them"),
    ],
)
def test_labels_that_do_not_fit_are_refused(images: torch.Tensor, labels: list, problem: str) -> None:
    with pytest.raises(ValueError, match=f"ClassPool: .*{problem}"):
        ClassPool.from_labels(images, labels)


def test_repeated_names_are_told_in_short() -> None:
    names = tuple(f"n{i // 2}" for i in range(40))
    with pytest.raises(ValueError, match=r"class names must be distinct; repeated: n0, n1, n10, n11, n12 and 15 more$"):
        ClassPool(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), np.arange(41), names)
