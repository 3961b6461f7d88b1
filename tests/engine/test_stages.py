"""The staged meta-gradient equals the whole one and plain autograd: kept or recomputed, compiled or not, first order or not."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import flatten
from mamllit.engine import meta_gradient as engine
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.engine.stages import Whole
from mamllit.methods import MAML, Method
from mamllit.objectives import Classification, Regression

COMPILERS = ("g++", "c++", "clang++", "cl")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def conv_method(downsample: str, steps: int, first_order: bool = False) -> MAML:
    net = Conv4(1, 4, 3, 16, downsample).double()  # type: ignore[arg-type]
    return MAML(net, Classification(), 0.1, steps, "sum_over_shots", first_order)


def plain(method: Method, episodes: Episode) -> tuple[torch.Tensor, ...]:
    """The gradient of the mean meta-loss by torch.autograd, one episode after another."""
    each = [Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes)) for i in range(len(episodes.support.x))]
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
    whole = Whole(method, meta_gradient.names(), flatten(episodes)[1], backend=None)(params, episodes)
    torch.testing.assert_close(meta_gradient(episodes)._asdict(), whole._asdict(), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "memory"), [(0, "keep"), (1, "keep"), (2, "keep"), (2, "recompute")])
def test_a_single_task_equals_the_same_task_twice(
    steps: int, memory: Any, image_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task runs as it is, two run under `vmap`; recorded too."""
    monkeypatch.setattr(engine, "SMALL", 0)
    method, one = conv_method("stride", steps), image_episodes(1, side=16)
    two = Episode(*(part.joined(part) for part in one))
    expected = MetaGradient(method, "vmap", memory=memory)(two)
    for compiled in (False, True):
        found = MetaGradient(method, "vmap", compiled=compiled, memory=memory)(one)
        torch.testing.assert_close(found._asdict(), expected._asdict(), **CLOSE)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_compiled_stages_equal_the_plain_ones(memory: Any, sine_episodes: Callable[..., Episode]) -> None:
    method = MAML(MLP(1, [8, 8], 1).double(), Regression(), 0.01, 3, "sum_over_shots")
    episodes = sine_episodes(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        step = MetaGradient(method, compiled=True, memory=memory)(episodes)
    torch.testing.assert_close(step._asdict(), MetaGradient(method)(episodes)._asdict(), **CLOSE)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_single_task_equals_the_plain_one(sine_episodes: Callable[..., Episode]) -> None:
    """Products of matrices without a dimension of tasks are joined with sums by the compiler, and once lost the step size."""
    method = MAML(MLP(1, [8, 8], 1).double(), Regression(), 0.1, 1, "sum_over_shots")
    check_compiled(MetaGradient(method, compiled=True), method, sine_episodes(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downsample", "memory", "whole"),
    [("stride", "keep", 5), ("max_pool", "keep", 5), ("max_pool", "keep", 0), ("stride", "recompute", 5)],
)
def test_recorded_convolutions_equal_the_plain_ones(
    downsample: str, memory: Any, whole: int, image_episodes: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "RECORDED_STEPS", whole)
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


MEASURE = """
import multiprocessing, resource, sys, threading, torch
from mamllit.backbones import Conv4
from mamllit.engine import cpu
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.core.episode import Episode, Examples
from mamllit.methods import MAML
from mamllit.objectives import Classification

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def measure(steps, memory):
    cpu.keep_memory = lambda: True  # kept memory has gaps, which would count as well
    torch.set_num_threads(1)
    part = Examples(torch.rand(2, 60, 1, 28, 28), torch.arange(5).repeat_interleave(12).expand(2, -1), 5)
    method = MAML(Conv4(1, 16, 5, 28, "stride", implementation="fast"), Classification(), 0.01, steps, "mean")
    step, before, seen, done = MetaGradient(method, "vmap", memory=memory), resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            seen.append(max(seen.pop(), resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(Episode(part, part))
    done.set()
    watcher.join()
    print(seen[0] - before, flush=True)

for words in sys.argv[1:]:  # each in a process of its own, which has imported all already
    steps, memory = words.split()
    child = multiprocessing.get_context("fork").Process(target=measure, args=(int(steps), memory))
    child.start()
    child.join()
"""


def peak_bytes(*runs: str) -> list[int]:
    """Peak resident memory of a meta-gradient of "STEPS MEMORY" each, looked at every millisecond."""
    # large tensors mapped one by one, and given back at once: else the heap's gaps count as well
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE, *runs], capture_output=True, text=True, check=True, env=environment)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read from /proc here")
def test_recomputing_keeps_the_memory_of_few_steps() -> None:
    """30 inner steps take at most 1.3 times the memory of 5, and what 25 of them add is at most a quarter of what keeping adds.

    What is added is compared, not the whole: PyTorch's own share of a first step differs from machine to machine.
    """
    few, many, kept = peak_bytes("5 recompute", "30 recompute", "30 keep")
    assert many <= 1.3 * few < kept
    assert 4 * (many - few) < kept - few
