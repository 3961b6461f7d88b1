"""Image episodes and the loaders of every data module: the right images, on every rank, worker and after a resume."""

import inspect
import textwrap
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mamllit.core.episode import EpisodeBatch
from mamllit.core.tree import flatten
from mamllit.data.episodic import EpisodicDataModule
from mamllit.data.images import ImageDataModule, rotate
from mamllit.data.mini_imagenet import MiniImagenetDataModule
from mamllit.data.pool import ClassPool
from mamllit.data.regression.sine import SineDataModule

COUNTS = {"train": (6, 7, 6, 9, 6, 6, 8), "val": (6,) * 5, "test": (6, 8, 7, 6)}
SIDE = 3


def make_pool(split: str) -> ClassPool:
    """Three channels: the class, the image's place in its class, and 9 different pixels to tell rotations by."""
    counts = COUNTS[split]
    base = 50 * list(COUNTS).index(split)  # so that the splits' classes differ too
    images = torch.empty(sum(counts), 3, SIDE, SIDE, dtype=torch.uint8)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    for c, count in enumerate(counts):
        for i in range(count):
            images[offsets[c] + i, 0] = base + c
            images[offsets[c] + i, 1] = i
            images[offsets[c] + i, 2] = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 28
    return ClassPool(images, offsets, tuple(f"{split}{c}" for c in range(len(counts))))


class Tiny(ImageDataModule):
    """Made pools of 7, 5 and 4 classes; counts how often they are loaded."""

    def __init__(self, **changes: Any) -> None:
        arguments = {
            "ways": 3,
            "shots": 2,
            "queries": 4,
            "meta_batch_size": 6,
            "rotate": False,
            "standard_queries": 4,
            "seed": 0,
            "eval_seed": 0,
            "protocols": ("paper", "standard"),
            "val_episodes": 10,
            "test_episodes": None,
            "eval_batch_size": 4,
            "num_workers": 0,
        }
        super().__init__(**{**arguments, **changes})
        self.loaded = 0

    def load(self) -> dict[str, ClassPool]:
        self.loaded += 1
        return {split: make_pool(split) for split in COUNTS}


def tiny(stage: str = "fit", trainer: Any = None, **changes: Any) -> Tiny:
    data = Tiny(**changes)
    data.trainer = trainer
    data.setup(stage)
    return data


def fake_trainer(rank: int = 0, world: int = 1, step: int = 0, accumulate: int = 1) -> SimpleNamespace:
    progress = SimpleNamespace(total=SimpleNamespace(processed=step * accumulate))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(global_rank=rank, world_size=world, fit_loop=loop, overfit_batches=0.0)


def meta_batches(data: EpisodicDataModule, count: int) -> list[EpisodeBatch]:
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(data.train_dataloader(), count)]


def tensors(batch: EpisodeBatch) -> list[Tensor]:
    return flatten(batch)[0]


def assert_same(one: EpisodeBatch, other: EpisodeBatch) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(a, b)


# ---- one episode ---------------------------------------------------------------------------------------------------


def test_shapes_labels_and_types() -> None:
    (batch,) = meta_batches(tiny(), 1)
    support, query = batch.episodes
    assert batch.number.tolist() == [0, 1, 2, 3, 4, 5]
    assert support.x.shape == (6, 6, 3, SIDE, SIDE)
    assert query.x.shape == (6, 12, 3, SIDE, SIDE)
    assert support.x.dtype == query.x.dtype == torch.float32
    assert support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 6
    assert query.y.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 6


def test_the_images_drawn_are_the_images_gathered() -> None:
    data = tiny()
    drawn = data.draw(0, "train", 2, 4, 0, 50)
    support, query = data.build(drawn).episodes
    pool = data.pools["train"]
    for t in range(50):
        for n in range(3):
            positions = drawn.image[t, n].tolist()
            images = torch.cat([support.x[t, 2 * n : 2 * n + 2], query.x[t, 4 * n : 4 * n + 4]])
            assert torch.equal(images, pool.images[positions].float() / 255)


def test_an_episode_has_distinct_classes_and_no_image_twice() -> None:
    data = tiny()
    support, query = data.build(data.draw(0, "train", 2, 4, 0, 50)).episodes
    for t in range(50):
        decoded = torch.cat([support.x[t], query.x[t]]).mul(255).round().long()[:, :2, 0, 0].tolist()
        labels = torch.cat([support.y[t], query.y[t]]).tolist()
        class_of = dict(zip(labels, (c for c, _ in decoded), strict=True))
        assert len(set(class_of.values())) == 3
        assert all(class_of[label] == c for label, (c, _) in zip(labels, decoded, strict=True))
        assert len({tuple(image) for image in decoded}) == 18


def test_pixels_are_divided_by_255() -> None:
    (batch,) = meta_batches(tiny(), 1)
    assert batch.episodes.support.x[0, 0, 2].flatten().tolist() == pytest.approx([28 * i / 255 for i in range(9)])


@pytest.mark.parametrize(("split", "base"), [("train", 0), ("val", 50), ("test", 100)])
def test_each_split_draws_from_its_own_pool(split: str, base: int) -> None:
    data = tiny()
    batch = data.build(data.draw(0, split, 2, 4, 0, 40))
    classes = set(batch.episodes.query.x[:, :, 0].mul(255).round().long().flatten().tolist())
    assert classes == set(range(base, base + len(COUNTS[split])))


def test_rotation_equals_rot90() -> None:
    images = torch.randint(0, 256, (5, 4, 3, 2, 6, 6), dtype=torch.uint8)
    turns = torch.randint(0, 4, (5, 4))
    turns[0] = torch.arange(4)
    turned = rotate(images, turns)
    assert turned.dtype == torch.uint8
    for t in range(5):
        for n in range(4):
            assert torch.equal(turned[t, n], torch.rot90(images[t, n], int(turns[t, n]), (-2, -1)))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_image_of_a_class_is_turned_alike_in_every_split(split: str) -> None:
    data, plain = tiny(rotate=True), tiny()
    drawn = data.draw(0, split, 2, 4, 0, 20)
    assert set(drawn.turns.flatten().tolist()) == {0, 1, 2, 3}
    turned, straight = data.build(drawn).episodes, plain.build(drawn).episodes
    for t in range(20):
        for n in range(3):
            turns = int(drawn.turns[t, n])
            for part, original in zip(turned, straight, strict=True):
                mine = part.y[t] == n
                assert torch.equal(part.x[t][mine], torch.rot90(original.x[t][mine], turns, (-2, -1)))


def test_a_crop_is_the_same_whatever_else_is_in_the_batch_and_mini_imagenet_has_it_too() -> None:
    photographs = MiniImagenetDataModule("images", ways=3, shots=2, queries=2, image_size=SIDE, crop=1, flip=True, seed=4)
    photographs.pools = {split: make_pool(split) for split in COUNTS}
    whole = photographs.build(photographs.draw(4, "train", 2, 2, 0, 6)).episodes
    alone = photographs.build(photographs.draw(4, "train", 2, 2, 5, 1)).episodes
    assert torch.equal(whole.support.x[5:], alone.support.x) and torch.equal(whole.query.x[5:], alone.query.x)
    assert (whole.support.x[:, :, :2].flatten(3) == 0).any(-1).float().mean() > 0.3, "borders of zeros"
    with pytest.raises(ValueError, match=r"crop is -1; it must be >= 0"):
        MiniImagenetDataModule("images", crop=-1)


def test_the_pools_are_loaded_once() -> None:
    data = tiny()
    data.setup("validate")
    data.setup("test")
    assert data.loaded == 1


# ---- evaluation sets -----------------------------------------------------------------------------------------------


def test_evaluation_sets_are_600_with_k_queries_and_2000_with_15() -> None:
    sets = Tiny(shots=5, standard_queries=15).evaluation_sets("test")
    assert [(s.name, s.protocol, s.split, s.shots, s.queries, s.episodes) for s in sets] == [
        ("paper", "paper", "test", 5, 5, 600),
        ("standard", "standard", "test", 5, 15, 2000),
    ]
    (val,) = Tiny(shots=5, val_episodes=30).evaluation_sets("val")
    assert (val.name, val.split, val.shots, val.queries, val.episodes) == ("val", "val", 5, 5, 30)


def test_another_number_of_test_episodes_shows_in_the_name() -> None:
    sets = Tiny(test_episodes=50).evaluation_sets("test")
    assert [(s.name, s.episodes) for s in sets] == [("paper[50]", 50), ("standard[50]", 50)]


def test_one_protocol_can_have_another_number_of_test_episodes() -> None:
    sets = Tiny(test_episodes={"standard": 50}).evaluation_sets("test")
    assert [(s.name, s.episodes) for s in sets] == [("paper", 600), ("standard[50]", 50)]


def test_episodes_of_an_evaluation_set_without_a_trainer() -> None:
    data = tiny("test", test_episodes=7)
    paper, standard = data.evaluation_sets("test")
    whole = data.episodes(paper)
    assert whole.number.tolist() == list(range(7))
    assert whole.episodes.query.x.shape == (7, 3 * 2, 3, SIDE, SIDE)
    assert data.episodes(standard).episodes.query.x.shape == (7, 3 * 4, 3, SIDE, SIDE)
    assert torch.equal(data.episodes(paper, 3, 2).episodes.support.x, whole.episodes.support.x[3:5])
    assert data.episodes(paper, 5).number.tolist() == [5, 6]


# ---- training: workers, ranks, resume ------------------------------------------------------------------------------


def test_workers_give_the_same_meta_batches_in_the_same_order() -> None:
    alone = meta_batches(tiny(), 5)
    helped = meta_batches(tiny(num_workers=2), 5)
    assert alone[4].number.tolist() == list(range(24, 30))
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


def test_workers_give_all_evaluation_episodes_in_order() -> None:
    data = tiny(num_workers=2)
    (loader,) = data.val_dataloader()
    assert [batch.number.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("module", [tiny, lambda **k: sine(6, **k)], ids=["images", "sine"])
def test_the_ranks_shares_make_up_the_meta_batch(module: Any, world: int) -> None:
    whole = meta_batches(module(trainer=fake_trainer()), 3)
    shares = [meta_batches(module(trainer=fake_trainer(rank, world)), 3) for rank in range(world)]
    for step in range(3):
        parts = [tensors(share[step]) for share in shares]
        for i, expected in enumerate(tensors(whole[step])):
            assert len(parts[0][i]) == 6 // world
            assert torch.equal(torch.cat([part[i] for part in parts]), expected)


def sine(meta_batch_size: int, trainer: Any = None) -> SineDataModule:
    data = SineDataModule(meta_batch_size=meta_batch_size, seed=0)
    data.trainer = trainer
    data.setup("fit")
    return data


@pytest.mark.parametrize(("step", "accumulate", "first"), [(7, 1, 42), (7, 3, 126)])
def test_a_resumed_run_starts_at_the_episodes_it_had_reached(step: int, accumulate: int, first: int) -> None:
    """Meta-batch s holds the episodes 6 s to 6 s + 5; with accumulation an optimiser step takes several."""
    (resumed,) = meta_batches(tiny(trainer=fake_trainer(step=step, accumulate=accumulate)), 1)
    assert resumed.number.tolist() == list(range(first, first + 6))
    assert_same(resumed, meta_batches(tiny(), first // 6 + 1)[-1])


def test_training_and_evaluation_with_the_same_seed_differ() -> None:
    data = SineDataModule(seed=0, eval_seed=0)
    train, val, test = (data.draw(0, split, 10, 10, 0, 5).x for split in ("train", "val", "test"))
    assert not torch.equal(train, val)
    assert not torch.equal(val, test)


# ---- evaluation: ranks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_ranks_evaluate_every_episode_exactly_once(world: int) -> None:
    numbers: list[list[int]] = [[], []]
    for rank in range(world):
        data = tiny("test", trainer=fake_trainer(rank, world), test_episodes=21, meta_batch_size=12)
        loaders = data.test_dataloader()
        assert len(loaders) == 2
        for i, loader in enumerate(loaders):
            for batch in loader:
                assert 1 <= len(batch.number) <= 4
                numbers[i] += batch.number.tolist()
    assert numbers == [list(range(21))] * 2


def test_evaluation_batches_are_the_evaluation_sets_episodes() -> None:
    data = tiny("test", test_episodes=6)
    for loader, evaluation in zip(data.test_dataloader(), data.evaluation_sets("test"), strict=True):
        got = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        whole = [torch.cat(parts) for parts in zip(*map(tensors, got), strict=True)]
        for a, b in zip(whole, tensors(data.episodes(evaluation)), strict=True):
            assert torch.equal(a, b)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_a_meta_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"meta_batch_size is 6, .* cannot be split equally over 4 ranks"):
        tiny(trainer=fake_trainer(world=4))


def test_fewer_than_two_ways_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ways is 1; an episode needs at least 2 classes"):
        Tiny(ways=1)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("fit", {"ways": 8}, r"an episode needs 8 ways, but the train split has only 7 classes"),
        ("fit", {"ways": 6}, r"an episode needs 6 ways, but the val split has only 5 classes"),
        ("validate", {"ways": 6}, r"an episode needs 6 ways, but the val split has only 5 classes"),
        ("test", {"ways": 5}, r"an episode needs 5 ways, but the test split has only 4 classes"),
        (
            "fit",
            {"queries": 5},
            r"needs 7 images of each class \(shots \+ queries\), but a class of the train split has 6",
        ),
        ("fit", {"shots": 4, "queries": 1}, r"needs 8 images of each class .* of the val split has 6"),
        ("test", {"standard_queries": 5}, r"needs 7 images of each class .* of the test split has 6"),
    ],
)
def test_a_split_too_small_is_refused_at_setup(stage: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(stage, **changes)


def test_a_split_that_the_stage_does_not_use_may_be_too_small() -> None:
    tiny("fit", ways=5)  # the test split has 4 classes
    tiny("test", queries=50)


# ---- a module of one's own -------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect.cleandoc(ImageDataModule.__doc__ or "").split("the three pools:\n")[1].split("\nArgs:")[0]
    lines = [line for line in textwrap.dedent(text).splitlines() if line.strip()]
    assert len(lines) <= 15
    exec("\n".join(lines), {})
    assert capsys.readouterr().out == "torch.Size([4, 5, 1, 28, 28])\n"
