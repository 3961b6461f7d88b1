"""Streams: each is a function of its number, in the order that is asked for, and the jitter moves images as it says."""

import math
import os
import re
from typing import Any

import numpy as np
import pytest
import torch

from mamllit.core.stream import Stream
from mamllit.core.tree import item
from mamllit.data import ClassPool, OmniglotStreamDataModule
from mamllit.data.streams import draw_streams, moved

SIZES = np.array([6, 7, 6, 9, 6, 6, 8])
OFFSETS = np.concatenate([[0], SIZES.cumsum()]).astype(np.int64)


def draw(order: Any = "free", first: int = 0, count: int = 40, length: int = 12, seed: int = 0, split: str = "train") -> Any:
    return draw_streams(OFFSETS, 3, length, order, seed=seed, split=split, first=first, count=count)


class Streams(OmniglotStreamDataModule):
    """Random drawings, each with its class and place in two corners."""

    def load(self) -> dict[str, ClassPool]:
        side = 35 if self.jitter else self.image_size
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (int(OFFSETS[-1]), 1, side, side), dtype=torch.uint8, generator=random)
        pool = ClassPool(images, OFFSETS, tuple("abcdefg"))
        return dict.fromkeys(("train", "val", "test"), pool)

    prepare_data = None  # type: ignore[assignment]


@pytest.mark.parametrize("order", ["free", "shuffled", "rounds"])
def test_a_stream_is_a_function_of_its_number(order: str) -> None:
    whole = draw(order)
    for i in (0, 7, 39):
        for field, rows in zip(draw(order, i, 1), whole, strict=True):
            assert torch.equal(field, rows[i : i + 1] if rows.dim() else rows)
    for other in (draw(order, seed=1), draw(order, split="val"), draw(order, first=40)):
        assert not torch.equal(other.image, whole.image)


@pytest.mark.parametrize("order", ["free", "shuffled", "rounds"])
def test_labels_stand_for_classes_in_the_order_asked_for(order: str) -> None:
    drawn = draw(order)
    of_class = torch.from_numpy(np.searchsorted(OFFSETS, drawn.image.numpy(), side="right") - 1)
    for label, found, turns in zip(drawn.label, of_class, drawn.turns, strict=True):
        named = {int(n): set(found[label == n].tolist()) for n in label.unique()}
        assert all(len(classes) == 1 for classes in named.values())  # one class a label, and one turn
        assert len(set.union(*named.values())) == len(named)
        assert all(len(turns[label == n].unique()) == 1 for n in label.unique())
    counts = torch.stack([(drawn.label == n).sum(1) for n in range(3)])
    assert bool((counts == 4).all()) == (order != "free")
    in_rounds = (drawn.label.unflatten(1, (4, 3)).sort(-1).values == torch.arange(3)).all()
    assert bool(in_rounds) == (order == "rounds")
    assert len({tuple(row) for row in drawn.label.tolist()}) > 30
    share = (of_class[:, 0, None] == torch.arange(7)).float().mean(0)
    assert share.min() > 0.02  # every class comes


def test_a_drawing_comes_back_after_all_others_of_its_class() -> None:
    drawn = draw(length=60, count=5)
    for label, image in zip(drawn.label, drawn.image, strict=True):
        for n in range(3):
            shown = image[label == n].tolist()
            size = SIZES[np.searchsorted(OFFSETS, shown[0], side="right") - 1]
            for start in range(0, len(shown) - size, size):
                assert len(set(shown[start : start + size])) == size


def test_jitter_turns_and_shifts_as_it_says() -> None:
    image = torch.rand(1, 1, 21, 21)
    for quarter in range(4):
        turned = moved(image, torch.tensor([quarter * math.pi / 2]), torch.zeros(1, 2), 21)
        torch.testing.assert_close(turned, torch.rot90(image, quarter, (2, 3)), rtol=0, atol=1e-5)
    shifted = moved(image, torch.zeros(1), torch.tensor([[0.5, -1.0]]), 21)  # 10 of 105 pixels are 2 of 21
    torch.testing.assert_close(shifted[..., :19, 1:], image[..., 2:, :20], rtol=0, atol=1e-5)
    assert (shifted[..., 19:, :] == 0).all()


@pytest.mark.parametrize("jitter", [False, True])
def test_the_data_module_gives_streams_and_episodes_of_one_kind(jitter: bool) -> None:
    data = Streams(
        root="", ways=3, length=12, image_size=20, jitter=jitter, meta_batch_size=4, standard_queries=2, test_streams=5, seed=0
    )
    data.setup("fit")
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert isinstance(batch.episodes, Stream)
    assert batch.episodes.query.x.shape == (4, 12, 1, 20, 20)
    assert 0 <= batch.episodes.query.x.min() < batch.episodes.query.x.max() <= 1
    validation, (stream, standard) = data.evaluation_sets("val"), data.evaluation_sets("test")
    assert [(e.name, e.stream, e.shots, e.queries) for e in (*validation, stream)] == [
        ("val", 12, 0, 4),
        ("stream[5]", 12, 0, 4),
    ]
    episodes = data.episodes(standard, 0, 2).episodes
    assert not isinstance(episodes, Stream)
    assert (episodes.support.x.shape, episodes.query.x.shape) == ((2, 3, 1, 20, 20), (2, 6, 1, 20, 20))
    assert data.preparation.image_size == 20


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"length": 4}, "length is 4 and ways is 5; a stream shows each class at least once: length >= ways"),
        ({"order": "any"}, "order is 'any'; it must be one of ['free', 'shuffled', 'rounds']"),
        ({"test_streams": 1}, "test_streams is 1; it must be >= 2"),
        ({"image_size": 0}, "image_size is 0; it must be >= 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        OmniglotStreamDataModule("nowhere", **wrong)


def test_more_classes_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="a stream needs 8 classes, but the val split has only 7"):
        draw_streams(OFFSETS, 8, 12, "free", seed=0, split="val", first=0, count=1)


@pytest.mark.slow
@pytest.mark.real_data
def test_nearest_pixels_do_as_in_the_paper() -> None:
    """Santoro et al. 2016, table 2, nearest neighbour of the pixels at the 1st, 2nd, 3rd, 4th, 5th, 10th image of a class.

    Theirs with labels of five characters, on a test set that is not published.
    """
    if not (images := os.environ.get("MAMLLIT_OMNIGLOT")):
        pytest.skip("MAMLLIT_OMNIGLOT is not set: the folder of the Omniglot zips or of the extracted folders")
    data = OmniglotStreamDataModule(images, image_size=20, jitter=True, seed=0)
    data.setup("test")
    streams = data.episodes(data.evaluation_sets("test")[0], 0, 300).episodes
    hits, shown = torch.zeros(10), torch.zeros(10)
    for i in range(300):
        stream = item(streams, i)
        x, y, seen = stream.query.x.flatten(1), stream.query.y, stream.presentations()
        distance = torch.cdist(x, x).masked_fill(torch.ones(50, 50).triu().bool(), torch.inf)
        right = (y[distance.argmin(1)] == y).float()
        right[0] = 1 / 5  # nothing is known
        for k in range(10):
            hits[k] += right[seen == k].sum()
            shown[k] += (seen == k).sum()
    found = (hits / shown)[[0, 1, 2, 3, 4, 9]]
    print("nearest pixels:", [round(float(value), 3) for value in found])
    torch.testing.assert_close(found, torch.tensor([0.04, 0.367, 0.419, 0.457, 0.481, 0.570]), rtol=0, atol=0.06)
