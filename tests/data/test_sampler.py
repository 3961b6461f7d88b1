"""Random episodes: pure functions of (seed, split, number), without repetition inside an episode, and uniform."""

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest

from mamllit.data.sampler import SORTED, ImageEpisodes, _without_replacement, draw_image_episodes, uniform

EVEN = np.arange(0, 8 * 6 + 1, 6)  # 8 classes of 6 images
UNEVEN = np.array([0, 4, 9, 12, 20, 23])  # 5 classes of 4, 5, 3, 8 and 3 images
LARGE = np.array([0, 4, 4 + SORTED + 1, SORTED + 8, SORTED + 28, SORTED + 31])  # the second class is too large to be sorted
MANY = np.arange(0, 4 * (SORTED + 1) + 1, 4)  # the classes are too many


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


@pytest.mark.parametrize(
    ("classes", "each", "ways", "per_class", "rotate", "split", "digest"),
    [
        (1028, 20, 5, 2, True, "train", "0977db1ea6dc954e"),  # Omniglot in the split of Vinyals ...
        (172, 20, 5, 2, True, "val", "82d0bd436cfb6938"),
        (423, 20, 20, 6, True, "test", "8a242d4d444dd818"),
        (423, 20, 5, 16, True, "test", "784430fc995b655b"),
        (1100, 20, 5, 2, True, "train", "f70299d70169a03d"),  # ... and of the MAML code
        (100, 20, 5, 2, True, "val", "dff3807164045100"),
        (64, 600, 5, 16, False, "train", "53496b619022a231"),  # mini-ImageNet
        (16, 600, 5, 2, False, "val", "89d6e288c3bd2c7f"),
        (20, 600, 5, 16, False, "test", "2fef56f305ad0b75"),
    ],
)
def test_the_episodes_of_published_results_stay(
    classes: int, each: int, ways: int, per_class: int, rotate: bool, split: str, digest: str
) -> None:
    """Written down before larger pools got a draw of their own: the first 64 episodes, bit for bit."""
    offsets = np.arange(0, classes * each + 1, each)
    drawn = draw_image_episodes(offsets, ways, per_class, seed=0, split=split, first=0, count=64, rotate=rotate)
    assert hashlib.sha256(b"".join(part.tobytes() for part in drawn)).hexdigest()[:16] == digest


@pytest.mark.parametrize("width", [1, 3, 4, 5, 9])
def test_any_partition_of_a_range_gives_the_same_numbers(width: int) -> None:
    whole = uniform(5, "val", 2, 20, width)
    assert whole.shape == (20, width)
    parts = [uniform(5, "val", 2 + first, count, width) for first, count in ((0, 1), (1, 7), (8, 0), (8, 12))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN, LARGE, MANY], ids=["even", "uneven", "large", "many"])
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


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN, LARGE, MANY], ids=["even", "uneven", "large", "many"])
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


@pytest.mark.parametrize("offsets", [EVEN, np.array([0, 6, 12, 20, SORTED + 30])], ids=["even", "large"])
def test_support_of_an_episode_is_the_same_for_any_number_of_queries(offsets: np.ndarray) -> None:
    """So 5 and 15 queries per class judge the same adapted models."""
    few, many = (draw_image_episodes(offsets, 4, n, seed=0, split="test", first=0, count=9, rotate=False).image for n in (2, 6))
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


def test_a_choice_without_replacement_is_uniform_over_all_ordered_choices() -> None:
    """24 ordered choices of 3 of 4 places; chi-square at most 4 standard deviations above its mean."""
    drawn = _without_replacement(uniform(0, "train", 0, 12_000, 3), np.full(12_000, 4))
    seen, counts = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(row) for row in seen.tolist()] == list(itertools.permutations(range(4), 3))
    assert float(((counts - 500) ** 2 / 500).sum()) < 23 + 4 * np.sqrt(2 * 23)


def test_a_choice_without_replacement_may_take_all_of_sets_of_different_size() -> None:
    numbers = uniform(1, "train", 0, 200, 9)
    for size in (9, 10, 500):
        drawn = _without_replacement(numbers, np.full(200, size))
        assert drawn.min() >= 0
        assert drawn.max() < size
        assert all(len(set(row)) == 9 for row in drawn.tolist())
    mixed = np.tile([9, 500], 100)
    both = [_without_replacement(numbers, np.full(200, size)) for size in (9, 500)]
    np.testing.assert_array_equal(_without_replacement(numbers, mixed), np.where(mixed[:, None] == 9, *both))


def test_images_of_a_large_class_and_ways_of_many_classes_are_uniform() -> None:
    owner = classes(draw(0, 4000, MANY), MANY)[:, 0, 0]
    assert chi_square(owner * 8 // (SORTED + 1), 8) < 7 + 4 * np.sqrt(14)
    episodes = draw(0, 3000, LARGE)
    place = (episodes.image - 4)[classes(episodes, LARGE) == 1]  # in the class of SORTED + 1 images
    assert chi_square(place * 8 // (SORTED + 1), 8) < 7 + 4 * np.sqrt(14)
    assert chi_square(episodes.turns, 4) < 3 + 4 * np.sqrt(6)


@pytest.mark.parametrize(("classes", "each"), [(5, 100_000), (5, 20_000), (100_000, 20), (20_000, 3_000)])
def test_the_memory_of_a_draw_does_not_go_by_the_size_of_the_pool(classes: int, each: int) -> None:
    offsets = np.arange(0, classes * each + 1, each)
    tracemalloc.start()
    try:
        drawn = draw_image_episodes(offsets, 5, 16, seed=0, split="test", first=0, count=128, rotate=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert drawn.image.shape == (128, 5, 16)
    assert peak < 4 * 2**20  # sorted, it took 2.5 GB for classes of 100,000


def test_up_to_a_stated_size_a_pool_keeps_its_episodes() -> None:
    """One image or one class more than SORTED, and the other draw is made."""
    for offsets, larger in (
        (np.array([0, SORTED, SORTED + 9, SORTED + 18]), np.array([0, SORTED + 1, SORTED + 10, SORTED + 19])),
        (np.arange(0, 4 * SORTED + 1, 4), MANY),
    ):
        sizes = np.diff(offsets)
        numbers = uniform(0, "val", 7, 1, len(sizes) + 3 * (sizes.max() + 1))[0]
        expected = offsets[np.argsort(numbers[: len(sizes)])[:3]]
        drawn = [draw_image_episodes(o, 3, 1, seed=0, split="val", first=7, count=1, rotate=False) for o in (offsets, larger)]
        assert (np.searchsorted(offsets, drawn[0].image[0, :, 0], side="right") - 1).tolist() == np.searchsorted(
            offsets, expected
        ).tolist()
        assert drawn[0].image.tolist() != drawn[1].image.tolist()


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split is 'meta-train'; it must be one of \('train', 'val', 'test'\)"):
        uniform(0, "meta-train", 0, 1, 1)


@pytest.mark.parametrize(("seed", "first", "text"), [(-1, 0, "seed is -1"), (0, -3, "the first episode is -3")])
def test_negative_numbers_are_refused(seed: int, first: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}; it must be >= 0$"):
        uniform(seed, "train", first, 1, 1)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"an episode needs 9 ways, but the val split has only 8 classes"):
        draw_image_episodes(EVEN, 9, 1, seed=0, split="val", first=0, count=1, rotate=False)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 4 images of each class \(shots \+ queries\), but .* test split has 3;"):
        draw_image_episodes(UNEVEN, 2, 4, seed=0, split="test", first=0, count=1, rotate=False)
