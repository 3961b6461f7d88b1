"""learn2learn's task sets as a DataModule: the tasks are learn2learn's, can be had again, and are shared by ranks."""

import logging
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mamllit.data.pool import ClassPool

l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed (tests/requirements-oracle.txt)")
bridge = pytest.importorskip("mamllit.bridges.learn2learn")

CLASSES, IMAGES, SIDE, WAYS, SHOTS, QUERIES = 8, 6, 8, 3, 1, 2


def pool(first: int, classes: int = CLASSES) -> ClassPool:
    """Class c, image i: all pixels the byte of c, but the first, which is i. So an image tells where it is from."""
    images = torch.zeros(classes, IMAGES, 1, SIDE, SIDE, dtype=torch.uint8)
    images += (torch.arange(first, first + classes, dtype=torch.uint8)).view(-1, 1, 1, 1, 1)
    images[..., 0, 0] = torch.arange(IMAGES, dtype=torch.uint8).view(1, -1, 1)
    offsets = np.arange(classes + 1, dtype=np.int64) * IMAGES
    return ClassPool(images.flatten(0, 1), offsets, tuple(f"c{first + c}" for c in range(classes)))


POOLS = {"train": pool(0), "val": pool(50), "test": pool(100)}


def tasksets(num_tasks: int = -1, rotate: bool = False, samples: int = SHOTS + QUERIES):
    return bridge.pool_tasksets(POOLS, WAYS, samples, samples, num_tasks, rotate)


def module(sets=None, **changes):
    right = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "meta_batch_size": 4, "seed": 0, "test_episodes": 5}
    return bridge.TasksetDataModule(tasksets() if sets is None else sets, **{**right, **changes})


def batch(data, split: str = "train", first: int = 0, count: int = 4, seed: int = 0):
    return data.build(data.draw(seed, split, SHOTS, QUERIES, first, count))


def test_an_episode_is_a_task_by_class_support_first() -> None:
    drawn = batch(module())
    assert drawn.number.tolist() == [0, 1, 2, 3]
    support, query = drawn.episodes
    assert support.x.shape == (4, WAYS * SHOTS, 1, SIDE, SIDE)
    assert query.x.shape == (4, WAYS * QUERIES, 1, SIDE, SIDE)
    assert support.y.tolist() == [[0, 1, 2]] * 4
    assert query.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 4
    kind = [(part.x[:, :, 0, 1, 1] * 255).round().int() for part in (support, query)]
    assert torch.equal(kind[0].repeat_interleave(QUERIES, 1), kind[1])  # a label is the same class in both
    assert all(len(set(row)) == WAYS for row in kind[0].tolist())
    for task in range(4):  # no image twice
        images = torch.cat([support.x[task], query.x[task]]).flatten(1)
        assert len(images.unique(dim=0)) == WAYS * (SHOTS + QUERIES)


@pytest.mark.parametrize("num_tasks", [-1, 7])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_is_a_function_of_seed_split_and_number(split: str, num_tasks: int) -> None:
    """Whoever draws it, in whatever order, and whatever the global generators are at; rotations included."""
    first, second = module(tasksets(num_tasks, True)), module(tasksets(num_tasks, True))
    whole = batch(first, split, 0, 6)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for number in (4, 1, 3):
        alone = batch(second, split, number, 1)
        assert torch.equal(alone.episodes.query.x[0], whole.episodes.query.x[number])
        assert torch.equal(alone.episodes.support.x[0], whole.episodes.support.x[number])
    other = batch(second, "train", 0, 6, seed=1).episodes.support.x
    assert not torch.equal(other, batch(first, "train", 0, 6).episodes.support.x)


def test_drawing_leaves_the_global_generators_where_they_were() -> None:
    expected = []
    for draw in (False, True):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        if draw:
            batch(module(tasksets(rotate=True)))
        expected.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert expected[0] == expected[1]


def test_a_test_goes_through_a_fixed_number_of_tasks_in_order() -> None:
    data = module(tasksets(5), test_episodes=5)
    data.setup("test")
    x = batch(data, "test", 0, 5).episodes.support.x
    assert len(x.flatten(1).unique(dim=0)) == 5
    with pytest.raises(ValueError, match=r"the test task set has 4 tasks, fewer than the 5 evaluation episodes; set test_epi"):
        module(tasksets(4), test_episodes=5).setup("test")


def test_meta_training_draws_from_a_fixed_number_of_tasks() -> None:
    x = batch(module(tasksets(3)), "train", 0, 40).episodes.support.x
    assert len(x.flatten(1).unique(dim=0)) == 3


def test_the_ranks_shares_are_the_single_process_meta_batch() -> None:
    def first(rank: int, world: int):
        data = module()
        progress = SimpleNamespace(total=SimpleNamespace(processed=3))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, fit_loop=loop, overfit_batches=0.0)
        return data.build(next(iter(data.train_dataloader())))

    together = [first(rank, 2) for rank in (0, 1)]
    alone = first(0, 1)
    assert alone.number.tolist() == [12, 13, 14, 15]  # resumed at step 3
    assert torch.equal(torch.cat([part.episodes.query.x for part in together]), alone.episodes.query.x)


def test_the_evaluation_sets_say_what_they_are() -> None:
    (test,) = module(test_episodes=None, test_queries=5).evaluation_sets("test")
    assert (test.name, test.episodes, test.shots, test.queries) == ("taskset", 600, SHOTS, 5)
    assert module().evaluation_sets("test")[0].name == "taskset[5]"
    assert module().evaluation_sets("val")[0].episodes == 200


@pytest.mark.filterwarnings("ignore")
def test_a_task_set_trains_and_tests_through_lightning(tmp_path: Path) -> None:
    import lightning as L

    from mamllit.backbones import MLP
    from mamllit.objectives import Classification
    from mamllit.systems import MetaLearner

    algorithm = l2l.algorithms.GBML(MLP(SIDE * SIDE, [16], WAYS), transform=l2l.optim.MetaCurvatureTransform, lr=0.1)
    learner = MetaLearner(bridge.Learn2Learn(algorithm, Classification(), 1), eval_steps=2)
    trainer = L.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=5, check_val_every_n_epoch=None, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(learner, datamodule=module(tasksets, val_episodes=3, num_workers=1))  # made by a function, in a worker
    trainer.test(learner, datamodule=module(), verbose=False)
    assert learner.summaries["taskset[5]"].episodes == 5


# ---- what is wrong with a task set ---------------------------------------------------------------------------------


def test_shared_images_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mamllit"):
        module().prepare_data()
        assert not caplog.records
        same = bridge.pool_tasksets({**POOLS, "test": POOLS["train"]}, WAYS, 3, 3)
        module(same, check_overlap=False).prepare_data()
        assert not caplog.records
        module(same).prepare_data()
    assert f"share images: {CLASSES * IMAGES} of those in 100 tasks of each are the same" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ways": 4},
            r"^a task of the train task set has 3 classes of 3 examples, but .* need 4 classes of 3 \(shots \+ queries\)",
        ),
        ({"queries": 3}, r"^a task of the train task set has 3 classes of 3 examples, but .* need 3 classes of 4"),
    ],
)
def test_tasks_of_another_shape_are_refused(changes: dict, message: str) -> None:
    data = module(**changes)
    with pytest.raises(ValueError, match=message):
        data.draw(0, "train", data.shots, data.queries, 0, 1)


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learn2learn has no benchmark 'cifar'; it has cifarfs, fc100, mini-imagenet, "):
        bridge.BenchmarkDataModule("cifar", "data")


def test_a_benchmark_is_made_with_shots_and_queries_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """get_tasksets downloads; what it is asked for is seen here."""
    asked = {}

    def get_tasksets(name: str, **arguments: object):
        asked.update(arguments, name=name, drawn=random.random())
        return tasksets()

    monkeypatch.setattr(l2l.vision.benchmarks, "get_tasksets", get_tasksets)
    data = bridge.BenchmarkDataModule("fc100", "somewhere", ways=3, shots=1, queries=2, test_queries=4, num_tasks=20)
    data.prepare_data()
    drawn = asked.pop("drawn")
    assert asked == {
        "name": "fc100", "train_ways": 3, "train_samples": 3, "test_ways": 3, "test_samples": 5, "num_tasks": 20,
        "root": "somewhere",
    }  # fmt: skip
    bridge.BenchmarkDataModule("fc100", "somewhere", check_overlap=False).prepare_data()
    assert asked["drawn"] == drawn  # the split that learn2learn makes of Omniglot at random is the same on all ranks
