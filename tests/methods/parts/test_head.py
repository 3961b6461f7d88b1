"""A last layer that starts at zero, or with one vector for all classes, knows neither the classes' order nor their number."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import ANIL, MAML, MAMLPlusPlus, MetaSGD, Method
from mamllit.methods.parts.head import HeadStart, made
from mamllit.objectives import Classification

METHODS: dict[str, Callable[[nn.Module, HeadStart], Method]] = {
    "MAML": lambda net, head: MAML(net, Classification(), 0.3, 2, "sum_over_shots", head=head),
    "first-order MAML": lambda net, head: MAML(net, Classification(), 0.3, 2, "sum_over_shots", True, head=head),
    "ANIL": lambda net, head: ANIL(net, Classification(), 0.3, 2, "sum_over_shots", head=head),
    "MAML++": lambda net, head: MAMLPlusPlus(net, Classification(), 0.3, 2, "sum_over_shots", 0, True, False, head=head),
    "Meta-SGD": lambda net, head: MetaSGD(net, Classification(), "sum_over_shots", inner_steps=2, head=head),
}


def method(name: str, head: HeadStart) -> Method:
    torch.manual_seed(0)
    return METHODS[name](MLP(4, [6], None, activation="tanh"), head).double()


def episodes(ways: int, tasks: int = 2) -> Episode:
    def part(per_class: int) -> Examples:
        x = torch.randn(tasks, ways * per_class, 4, dtype=torch.float64)
        return Examples(x, torch.arange(ways).repeat_interleave(per_class).expand(tasks, -1), ways)

    torch.manual_seed(1)
    return Episode(part(2), part(3))


def task(batch: Episode, support_y: Tensor | None = None) -> Episode:
    support, query = (Examples(part.x[0], part.y[0], part.ways) for part in batch)
    return Episode(support if support_y is None else Examples(support.x, support_y, support.ways), query)


@pytest.mark.parametrize("head", ["zero", "shared"])
@pytest.mark.parametrize("name", METHODS)
def test_other_labels_and_numbers_of_classes(name: str, head: HeadStart) -> None:
    trained = method(name, head)
    for ways in (3, 7, 20):
        episode, order = task(episodes(ways)), torch.randperm(ways)
        output = trained.predict(trained.adapt(episode.support), episode.query.x)
        assert output.shape == (3 * ways, ways)
        assert output.std() > 1e-3
        relabelled = task(episodes(ways), order[episode.support.y])
        other = trained.predict(trained.adapt(relabelled.support), episode.query.x)
        torch.testing.assert_close(other[:, order], output)
        start = trained.predict(trained.trajectory(episode.support, 0)[0], episode.query.x)
        torch.testing.assert_close(start, start[:, :1].expand(-1, ways))  # no class is preferred before the first step


@pytest.mark.parametrize("head", ["zero", "shared"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "first-order MAML"])
def test_the_meta_gradient_is_the_slope(name: str, head: HeadStart, assert_meta_gradient_is_the_slope) -> None:
    assert_meta_gradient_is_the_slope(method(name, head), episodes(3))


def test_one_step_from_zero_by_hand() -> None:
    # features are the inputs; 2 ways, 1 shot at e1 and e2: p = 1/2, so row c moves by alpha N / 2 (mean over N = 2 examples,
    # times N by the reduction): W = alpha / 2 [[1, -1], [-1, 1]], and no bias
    net = nn.Linear(2, 2, bias=False).double()
    net.feature_size = 2
    nn.init.eye_(net.weight)
    support = Examples(torch.eye(2, dtype=torch.float64), torch.arange(2), 2)
    state = ANIL(net, Classification(), 0.3, 1, "sum_over_shots", head="zero").adapt(support)
    torch.testing.assert_close(state["head.weight"], 0.15 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))
    assert not state["head.bias"].any()


def test_one_module_runs_batches_of_different_ways() -> None:
    trained = method("MAML", "shared")
    gradient = MetaGradient(trained)
    for ways in (2, 5, 2):
        step = gradient(episodes(ways))
        alone = MetaGradient(trained, "loop")(episodes(ways))
        for key, value in step.gradient.items():
            torch.testing.assert_close(value, alone.gradient[key])
        assert step.gradient["method.head.vector"].norm() > 0


@pytest.mark.parametrize(
    ("start", "net", "text"),
    [
        ("nought", MLP(4, [6], None), "head is 'nought'; it must be one of ['learned', 'zero', 'shared']"),
        ("zero", MLP(4, [6], 3), "head is 'zero', but MLP has its own last layer; set out_features: null, or use head: "),
        ("shared", nn.Sequential(nn.Linear(4, 3)), "Sequential has no attribute `feature_size`, the D of its features"),
    ],
)
def test_heads_that_are_refused(start: str, net: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        made(start, net)  # type: ignore[arg-type]


def test_a_network_without_any_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden is empty and out_features None, so no layer is left"):
        MLP(4, [], None)
