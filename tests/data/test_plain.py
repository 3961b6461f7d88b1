"""Plain batches: every image once an epoch, the right label, the same whatever the batches and the workers; crops and flips."""

import re

import numpy as np
import pytest
import torch
from toy_images import CLASSES, DRAWINGS, ToyImages

from mamllit.data.plain import PlainBatches, PlainDraw, augment, draw_plain

OFFSETS = np.array([0, 3, 4, 9], dtype=np.int64)


@pytest.mark.parametrize("turned", [False, True])
def test_an_epoch_holds_each_image_once_with_its_label(turned: bool) -> None:
    plain = PlainBatches(4, rotated_classes=turned)
    size = 9 * (4 if turned else 1)
    orders = []
    for epoch in (0, 1):
        draw = draw_plain(OFFSETS, plain, 5, epoch * size, size)
        assert draw.number.tolist() == list(range(epoch * size, (epoch + 1) * size))
        pairs = list(zip(draw.image.tolist(), draw.turns.tolist(), strict=True))
        assert sorted(pairs) == [(i, k) for i in range(9) for k in range(4 if turned else 1)]
        classes = [0, 0, 0, 1, 2, 2, 2, 2, 2]
        assert draw.label.tolist() == [classes[i] * (4 if turned else 1) + k for i, k in pairs]
        orders.append(pairs)
    assert orders[0] != orders[1]


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    plain = PlainBatches(4, crop=2, flip=True, rotated_classes=True)
    whole = draw_plain(OFFSETS, plain, 0, 30, 24)  # over the end of an epoch
    parts = [draw_plain(OFFSETS, plain, 0, first, 8) for first in (30, 38, 46)]
    for name in PlainDraw._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    assert not torch.equal(whole.image, draw_plain(OFFSETS, plain, 1, 30, 24).image)
    many = draw_plain(OFFSETS, plain, 0, 0, 400)
    assert set(many.window.flatten().tolist()) == set(range(5))
    assert 150 < int(many.flip.sum()) < 250
    assert not draw_plain(OFFSETS, PlainBatches(4), 0, 0, 400).flip.any()


def test_a_crop_is_a_window_of_the_image_within_its_border() -> None:
    images = torch.randint(1, 255, (3, 2, 5, 5), dtype=torch.uint8)
    window, flip = torch.tensor([[0, 0], [2, 2], [4, 1]]), torch.tensor([False, True, False])
    out = augment(images, window, flip, 2)
    assert torch.equal(out[1], images[1].flip(-1))  # the middle
    expected = torch.zeros_like(images)
    expected[0, :, 2:, 2:] = images[0, :, :3, :3]
    expected[2, :, :3, 1:] = images[2, :, 2:, :4]
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert torch.equal(augment(images, window, flip & False, 0), images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_batches_are_the_images_of_the_pool(workers: int) -> None:
    data = ToyImages(plain=PlainBatches(16, rotated_classes=True))
    data.num_workers, data._seed = workers, 3
    data.setup("fit")
    assert data.plain_classes == CLASSES * 4
    loader = iter(data.train_dataloader())
    for _ in range(3):
        draw = next(loader)
        examples = data.build_plain(draw).examples
        x, y = examples.x, examples.y
        for i in range(16):
            image = data.pools["train"].images[draw.image[i]]
            assert torch.equal(x[i], torch.rot90(image, int(draw.turns[i]), (1, 2)) / 255)
            assert int(y[i]) == int(draw.image[i]) // DRAWINGS * 4 + int(draw.turns[i])
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(draw.number, torch.arange(32, 48))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1; batch norm needs at least 2 images"),
        ({"batch_size": 8, "crop": -1}, "crop is -1; the border must be >= 0 pixels (0: no crop)"),
    ],
)
def test_settings_out_of_bounds_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PlainBatches(**arguments)


# ---- other numbers of classes in meta-training ---------------------------------------------------------------------------


def test_meta_training_may_have_more_ways_than_a_test() -> None:
    data = ToyImages(ways=3, train_ways=6)
    data.setup("fit")
    drawn = next(iter(data.train_dataloader()))
    assert data.build(drawn).episodes.ways == 6
    (evaluation,) = data.evaluation_sets("val")
    assert data.episodes(evaluation).episodes.ways == 3


def test_too_many_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="an episode needs 9 ways, but the train split has only 8 classes"):
        ToyImages(train_ways=9).setup("fit")
    with pytest.raises(ValueError, match="train_ways is 1; an episode needs at least 2 classes"):
        ToyImages(train_ways=1)
