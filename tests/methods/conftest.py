"""For the tests of the methods: a meta-gradient against central differences of the mean meta-loss."""

from collections.abc import Callable

import pytest
import torch

from mamllit.core.episode import Episode
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import Method


@pytest.fixture
def assert_meta_gradient_is_the_slope() -> Callable[..., None]:
    """A function of a float64 method, smooth in its parameters, and episodes."""
    return _assert_slope


def _assert_slope(method: Method, episodes: Episode, step: float = 1e-5, rtol: float = 1e-5) -> None:
    """Along three random directions in the space of all trained meta-parameters."""
    trained = [value for value in method.parameters() if value.requires_grad]
    gradient = list(MetaGradient(method)(episodes).gradient.values())
    assert all(value.dtype == torch.float64 for value in trained)
    for _ in range(3):
        direction = [torch.randn_like(value) for value in trained]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        losses = []
        for sign in (1, -2):  # there, and from there to the other side
            with torch.no_grad():
                for value, d in zip(trained, direction, strict=True):
                    value.add_(sign * step * d)
            losses.append(float(MetaGradient(method)(episodes).loss))
        with torch.no_grad():
            for value, d in zip(trained, direction, strict=True):
                value.add_(step * d)
        measured = (losses[0] - losses[1]) / (2 * step)
        assert abs(measured) > 1e-3
        assert abs(measured - slope) <= rtol * max(abs(measured), 1.0), f"differences give {measured}, the gradient {slope}"
