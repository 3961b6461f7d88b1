"""What is fast on a CPU is so for every computation: meta-gradients, evaluations, calibration, own images."""

import os
from collections.abc import Callable

import pytest
import torch

from mamllit.backbones import MLP, Conv4
from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import item
from mamllit.engine import cpu
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.engine.uncertainty import active_learning, predictive
from mamllit.inference.classifier import classify
from mamllit.methods import MAML
from mamllit.objectives import Classification, Regression

IMAGES = Examples(torch.rand(2, 4, 1, 16, 16), torch.tensor([[0, 0, 1, 1]] * 2), 2)
POINTS = Examples(torch.rand(2, 4, 1), torch.rand(2, 4, 1))


def classifier() -> MAML:
    return MAML(Conv4(1, 2, 2, 16, "stride"), Classification(), 0.1, 1, "mean")


def regressor() -> MAML:
    return MAML(MLP(1, [2], 1), Regression(), 0.1, 1, "mean")


COMPUTATIONS: dict[str, tuple[Callable[[], object], int]] = {
    "a loop of one's own": (lambda: MetaGradient(classifier())(Episode(IMAGES, IMAGES)), 5),
    "evaluation": (lambda: evaluate(classifier(), Episode(IMAGES, IMAGES), 1), 5),
    "own images": (lambda: classify(classifier(), item(IMAGES, 0), IMAGES.x[1], 1, "inductive"), 5),
    "calibration": (lambda: predictive(regressor(), Episode(POINTS, POINTS), 1), 3),
    "active learning": (lambda: active_learning(regressor(), POINTS, POINTS, POINTS, 1, 1, "spread"), 3),
}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_every_computation_keeps_memory_and_has_fast_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, dims = COMPUTATIONS[name]
    kept: list[bool] = []
    shapes: list[int] = []
    real = cpu.fast_products
    monkeypatch.setattr(cpu, "keep_memory", lambda: kept.append(True) or True)
    monkeypatch.setattr(cpu, "fast_products", lambda x: shapes.append(x.dim()) or real(x))
    cpu._prepare_once.cache_clear()
    compute()
    compute()
    assert kept == [True]  # once per process
    assert shapes == [dims, dims]


def test_an_accelerator_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "keep_memory", lambda: pytest.fail("there is no need to"))
    cpu._prepare_once.cache_clear()
    cpu.prepare(torch.device("meta"))


def test_without_a_gpu_the_optimiser_does_not_search_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning sets the variable to 1 when it is imported, and Adam then has PyTorch load NVML's library at each step."""
    for found, expected in ((False, "0"), (True, "1")):
        monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        cpu._prepare_once.cache_clear()
        cpu.prepare(torch.device("cpu"))
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == expected
    cpu._prepare_once.cache_clear()
