"""Random episodes: pure functions of (seed, split, number), without repetition inside an episode, and uniform."""

import numpy as np
import pytest

from mamllit.data.sampler import ImageEpisodes, draw_image_episodes, uniform

EVEN = np.arange(0, 8 * 6 + 1, 6)  # 8 classes of 6 images
UNEVEN = np.array([0, 4, 9, 12, 20, 23])  # 5 classes of 4, 5, 3, 8 and 3 images


def draw(
    first: int, count: int, offsets: np.ndarray = EVEN, seed: int = 3, split: str = "train", rotate: bool = True
) -> ImageEpisodes:
    return draw_image_episodes(offsets, 4, 3, seed=seed, split=split, first=first, count=count, rotate=rotate)


def classes(episodes: ImageEpisodes, offsets: np.ndarray) -> np.ndarray:
    """The class that each image position belongs to, [T, N, P]."""
    return np.searchsorted(offsets, episodes.image, side="right") - 1


def assert_same(one: ImageEpisodes, other: ImageEpisodes) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- a pure function of (seed, split, number) ----------------------------------------------------------------------


def test_golden_uniform_numbers() -> None:
    """Written down from numpy 1.26: a change here would silently change every run's episodes."""
    np.testing.assert_allclose(
        uniform(0, "train", 0, 2, 3),
        [[0.01154675, 0.2415492, 0.11142586], [0.5023796, 0.27760558, 0.94654429]],
        atol=1e-8,
    )
    np.testing.assert_allclose(
        uniform(7, "test", 1000, 1, 5), [[0.82381567, 0.65740229, 0.67359482, 0.05469788, 0.04010279]], atol=1e-8
    )


def test_golden_episodes() -> None:
    episodes = draw_image_episodes(UNEVEN, 3, 2, seed=3, split="val", first=11, count=2, rotate=True)
    assert episodes.number.tolist() == [11, 12]
    assert episodes.image.tolist() == [[[0, 1], [10, 11], [20, 21]], [[14, 18], [11, 9], [7, 4]]]
    assert episodes.turns.tolist() == [[0, 3, 2], [2, 0, 0]]


@pytest.mark.parametrize("width", [1, 3, 4, 5, 9])
def test_any_partition_of_a_range_gives_the_same_numbers(width: int) -> None:
    whole = uniform(5, "val", 2, 20, width)
    assert whole.shape == (20, width)
    parts = [uniform(5, "val", 2 + first, count, width) for first, count in ((0, 1), (1, 7), (8, 0), (8, 12))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_any_partition_of_a_range_gives_the_same_episodes(offsets: np.ndarray) -> None:
    whole = draw(10, 12, offsets)
    assert whole.number.tolist() == list(range(10, 22))
    parts = [draw(first, count, offsets) for first, count in ((10, 5), (15, 1), (16, 6))]
    assert_same(ImageEpisodes(*map(np.concatenate, zip(*parts, strict=True))), whole)


def test_seeds_splits_and_numbers_give_different_episodes() -> None:
    streams = [draw(0, 5), draw(0, 5, seed=4), draw(0, 5, split="val"), draw(0, 5, split="test"), draw(5, 5)]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert (one.image != other.image).any(axis=(1, 2)).all()


def test_uniform_numbers_are_at_least_0_and_below_1() -> None:
    numbers = uniform(1, "train", 0, 1000, 10)
    assert numbers.dtype == np.float64
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size


# ---- what an episode is made of ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_classes_and_images_do_not_repeat_and_images_belong_to_their_class(offsets: np.ndarray) -> None:
    """Support and query are different columns of the same rows, so they are disjoint."""
    episodes = draw(0, 200, offsets)
    assert episodes.image.shape == (200, 4, 3)
    assert episodes.image.min() >= 0
    assert episodes.image.max() < offsets[-1]
    owner = classes(episodes, offsets)
    assert (owner == owner[:, :, :1]).all()
    assert all(len(set(row)) == 4 for row in owner[:, :, 0])
    assert all(len(set(way)) == 3 for episode in episodes.image for way in episode)


def test_all_classes_and_all_images_can_be_asked_for() -> None:
    episodes = draw_image_episodes(EVEN, 8, 6, seed=0, split="test", first=0, count=3, rotate=False)
    for episode in episodes.image:
        assert sorted(episode.ravel()) == list(range(48))
    assert (episodes.image[0] != episodes.image[1]).any()


def test_support_of_an_episode_is_the_same_for_any_number_of_queries() -> None:
    """So 5 and 15 queries per class judge the same adapted models."""
    few, many = (draw_image_episodes(EVEN, 4, n, seed=0, split="test", first=0, count=9, rotate=False).image for n in (2, 6))
    np.testing.assert_array_equal(few, many[:, :, :2])


def test_without_rotation_there_are_no_turns() -> None:
    assert not draw(0, 50, rotate=False).turns.any()
    np.testing.assert_array_equal(draw(0, 50, rotate=False).image, draw(0, 50).image)


def chi_square(drawn: np.ndarray, outcomes: int) -> float:
    counts = np.bincount(drawn.ravel(), minlength=outcomes)
    assert len(counts) == outcomes
    expected = drawn.size / outcomes
    return float(((counts - expected) ** 2 / expected).sum())


def test_classes_images_and_turns_are_uniform() -> None:
    """Chi-square at most 4 standard deviations, sqrt(2 df), above its mean df."""
    episodes = draw(0, 3000)
    owner = classes(episodes, EVEN)[:, :, 0]
    samples = [(owner[:, way], 8) for way in range(4)]
    samples += [(episodes.image[:, :, place] - EVEN[owner], 6) for place in range(3)]
    samples += [(episodes.turns[:, way], 4) for way in range(4)]
    for drawn, outcomes in samples:
        df = outcomes - 1
        assert chi_square(drawn, outcomes) < df + 4 * np.sqrt(2 * df)


def test_images_of_unequal_classes_are_uniform_within_their_class() -> None:
    episodes = draw(0, 3000, UNEVEN)
    owner = classes(episodes, UNEVEN)[:, :, 0]
    for c, outcomes in enumerate(np.diff(UNEVEN)):
        drawn = (episodes.image[:, :, 0] - UNEVEN[owner])[owner == c]
        assert drawn.size > 2000
        assert chi_square(drawn, outcomes) < outcomes - 1 + 4 * np.sqrt(2 * (outcomes - 1))


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split is 'meta-train'; it must be one of \('train', 'val', 'test'\)"):
        uniform(0, "meta-train", 0, 1, 1)


@pytest.mark.parametrize(("seed", "first"), [(-1, 0), (0, -3)])
def test_negative_numbers_are_refused(seed: int, first: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed} and the first episode {first}; both must be >= 0"):
        uniform(seed, "train", first, 1, 1)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"an episode of 9 ways was asked for, but the val split has 8 classes"):
        draw_image_episodes(EVEN, 9, 1, seed=0, split="val", first=0, count=1, rotate=False)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 4 images of each class \(shots \+ queries\), but .* test split has 3;"):
        draw_image_episodes(UNEVEN, 2, 4, seed=0, split="test", first=0, count=1, rotate=False)
