"""The reading "population": a test by the statistics of meta-train images, for methods whose papers used running ones."""

from collections.abc import Callable

import pytest
import torch
from cli_runs import QUIET
from short_fits import make_data, make_method, make_trainer
from torch import nn
from toy_images import ToyImages

from mamllit.backbones import Conv4
from mamllit.backbones.population import normalised_by_population
from mamllit.core.tree import item
from mamllit.engine.evaluation import evaluate
from mamllit.methods import LinearProbe, Method, PrototypicalNetworks
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

pytestmark = QUIET


def net() -> Conv4:
    torch.manual_seed(0)
    return Conv4(1, 8, None, 8, "stride", norm_scale=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PrototypicalNetworks(net(), Classification()),
        lambda: LinearProbe(net(), Classification(), 0.5, 3, "cosine"),
    ],
)
def test_a_test_has_it_beside_the_others_and_images_are_then_judged_alone(make: Callable[[], Method]) -> None:
    method, data = make(), ToyImages()
    system = MetaLearner(method, eval_steps=0, report_step=0, batch_norm=["transductive", "inductive", "population"])
    make_trainer().test(system, data, verbose=False)
    assert list(system.summaries) == ["standard[5]", "standard[5]/inductive", "standard[5]/population"]
    (evaluation,) = data.evaluation_sets("test")
    episodes = data.episodes(evaluation).episodes
    fixed = normalised_by_population(method, "backbone", data.population())
    torch.testing.assert_close(system.per_episode["standard[5]/population"][1], evaluate(fixed, episodes, 0).double())
    episode = item(episodes, 0)
    whole = fixed.predict(fixed.adapt(episode.support), episode.query.x)
    alone = fixed.predict(fixed.adapt(episode.support), episode.query.x[:1])
    torch.testing.assert_close(alone, whole[:1])
    assert not [name for name in system.state_dict() if name.startswith("_")]  # the copy is no part of a checkpoint
    only = MetaLearner(method, eval_steps=0, report_step=0, batch_norm=["population"])
    make_trainer().test(only, data, verbose=False)
    assert list(only.summaries) == ["standard[5]/population"]
    torch.testing.assert_close(only.per_episode["standard[5]/population"], system.per_episode["standard[5]/population"])


def test_the_images_are_the_same_ones_each_time_and_turned_where_episodes_are() -> None:
    data = ToyImages()
    data.setup("test")
    once = torch.cat(list(data.population(2, 7)))
    assert once.shape == (14, 1, 8, 8)
    assert torch.equal(once, torch.cat(list(data.population(2, 7))))
    pool = data.pools["train"].images / 255
    rows = [int((pool == image).flatten(1).all(1).nonzero()[0]) for image in once]
    assert len(set(rows)) == 14
    data.rotate = True
    turned = torch.cat(list(data.population(2, 7)))
    kinds = [
        next(k for k in range(4) if torch.equal(torch.rot90(pool[row], k, (1, 2)), image))
        for row, image in zip(rows, turned, strict=True)
    ]
    assert len(set(kinds)) > 1
    assert sum(len(batch) for batch in data.population()) == len(pool)  # all there are


def test_what_has_no_images_or_norms_of_another_kind_is_refused() -> None:
    system = MetaLearner(make_method(), eval_steps=1, batch_norm=["population"])
    make_trainer().test(system, make_data(test_shots=[5], protocols=["paper"]), verbose=False)
    assert list(system.summaries) == ["paper[12]"]  # no batch norm: one reading
    with pytest.raises(
        ValueError, match=r"'population' in batch_norm needs meta-train images, and SineDataModule has none; leave"
    ):
        system._measured(make_data())
    foreign = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    mixed = nn.Sequential(net().convs[0], net().norms[0], nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten())
    for network, text in (
        (foreign, "needs mamllit's BatchStatNorm, and the network has none"),
        (mixed, "the network has norms other than mamllit.backbones.BatchStatNorm; leave 'population' out"),
    ):
        method = PrototypicalNetworks(network, Classification())
        system = MetaLearner(method, eval_steps=0, report_step=0, batch_norm=["population"])
        with pytest.raises(ValueError) as refused:
            make_trainer().test(system, ToyImages(), verbose=False)
        assert text in str(refused.value)
