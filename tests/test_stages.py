"""The staged meta-gradient equals the whole one and plain autograd: kept or recomputed, compiled or not, first order or not."""

import itertools
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mamllit import engine
from mamllit.backbones import MLP, Conv4
from mamllit.engine import MetaGradient
from mamllit.episode import Episode, Examples
from mamllit.methods import MAML, Method
from mamllit.objectives import Classification, Regression
from mamllit.stages import Whole

COMPILERS = ("g++", "c++", "clang++", "cl")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def conv_method(downsample: str, steps: int, first_order: bool = False) -> MAML:
    net = Conv4(1, 4, 3, 16, downsample).double()  # type: ignore[arg-type]
    return MAML(net, Classification(), 0.1, steps, "sum_over_shots", first_order)


def plain(method: Method, episodes: Episode) -> tuple[torch.Tensor, ...]:
    """The gradient of the mean meta-loss by torch.autograd, one episode after another."""
    each = [Episode(*(Examples(part.x[i], part.y[i]) for part in episodes)) for i in range(len(episodes.support.x))]
    loss = torch.stack([method.meta_loss(episode)[0] for episode in each]).mean()
    return torch.autograd.grad(loss, list(method.parameters()), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_equals_plain_autograd(
    downsample: str, steps: int, first_order: bool, memory: Any, image_episodes: Callable[..., Episode]
) -> None:
    method, episodes = conv_method(downsample, steps, first_order), image_episodes(3, side=16)
    step = MetaGradient(method, "vmap", memory=memory)(episodes)
    torch.testing.assert_close(list(step.gradient.values()), list(plain(method, episodes)), **CLOSE)


def test_whole_equals_staged(image_episodes: Callable[..., Episode]) -> None:
    method, episodes = conv_method("stride", 2), image_episodes(3, side=16)
    meta_gradient = MetaGradient(method, "vmap")
    params = {name: value.detach() for name, value in zip(meta_gradient.names(), method.parameters(), strict=True)}
    whole = Whole(method, meta_gradient.names(), backend=None)(params, episodes)
    torch.testing.assert_close(meta_gradient(episodes)._asdict(), whole._asdict(), **CLOSE)


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_compiled_stages_equal_the_plain_ones(memory: Any, sine_episodes: Callable[..., Episode]) -> None:
    method = MAML(MLP(1, [8, 8], 1).double(), Regression(), 0.01, 3, "sum_over_shots")
    episodes = sine_episodes(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        step = MetaGradient(method, compiled=True, memory=memory)(episodes)
    torch.testing.assert_close(step._asdict(), MetaGradient(method)(episodes)._asdict(), **CLOSE)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_recorded_convolutions_equal_the_plain_ones(
    downsample: str, memory: Any, image_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SMALL", 0)
    method, episodes = conv_method(downsample, 2), image_episodes(3, side=16)
    check_compiled(MetaGradient(method, "vmap", compiled=True, memory=memory), method, episodes)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_compiled_convolutions_equal_the_plain_ones(
    downsample: str, image_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SMALL", 2**40)
    method, episodes = conv_method(downsample, 2), image_episodes(3, side=16)
    check_compiled(MetaGradient(method, "vmap", compiled=True), method, episodes)


def check_compiled(compiled: MetaGradient, method: MAML, episodes: Episode) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        step = compiled(episodes)
    torch.testing.assert_close(step._asdict(), MetaGradient(method, "vmap")(episodes)._asdict(), **CLOSE)


def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory is 'forget'; it must be 'keep' or 'recompute'"):
        MetaGradient(conv_method("stride", 1), memory="forget")  # type: ignore[arg-type]


def test_recomputing_needs_an_inner_loop() -> None:
    class OwnLoss(MAML):
        def meta_loss(self, episode: Episode) -> Any:
            return super().meta_loss(episode)

    method = OwnLoss(MLP(1, [4], 1), Regression(), 0.01, 1, "mean")
    with pytest.raises(ValueError, match=r"memory is 'recompute', but OwnLoss has no inner loop .* use memory: keep"):
        MetaGradient(method, memory="recompute")


def peak_bytes(steps: int, memory: str) -> int:
    """Peak memory of the tensors of one meta-gradient, by the allocations and frees that the profiler records in order."""
    part = Examples(torch.rand(2, 10, 1, 28, 28), torch.arange(5).repeat_interleave(2).expand(2, -1))
    method = MAML(Conv4(1, 8, 5, 28, "stride"), Classification(), 0.01, steps, "mean")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        MetaGradient(method, "vmap", memory=memory)(Episode(part, part))  # type: ignore[arg-type]
    records = sorted((e.time_range.start, e.cpu_memory_usage) for e in profiled.events() if e.name == "[memory]")
    return max(itertools.accumulate(size for _, size in records))


def test_recomputing_keeps_the_memory_of_few_steps() -> None:
    """50 inner steps take at most 1.3 times the memory of 5; keeping everything takes several times as much."""
    few, many = peak_bytes(5, "recompute"), peak_bytes(50, "recompute")
    assert many <= 1.3 * few
    assert peak_bytes(50, "keep") > 2 * many
