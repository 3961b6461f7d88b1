"""Distributions against torch.distributions, and their metric against the second derivative of the divergence."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import hessian

from mamllit.rl import Categorical, Distribution, Gaussian, PolicyGradient


def normal(output: Tensor) -> Independent:
    mean, log_std = output.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


CASES = [(Gaussian(), normal, 4, 2), (Categorical(), lambda output: TorchCategorical(logits=output), 3, 1)]


@pytest.mark.parametrize(("own", "theirs", "size", "actions"), CASES, ids=["gaussian", "categorical"])
def test_they_are_torch_s(own: Distribution, theirs: object, size: int, actions: int) -> None:
    old, new, noise = torch.randn(5, 6, size), torch.randn(5, 6, size), torch.randn(5, 6, actions)
    action = own.sample(old, noise)
    value = action if actions > 1 else action[..., 0]
    torch.testing.assert_close(own.log_prob(new, action), theirs(new).log_prob(value))  # type: ignore[operator]
    torch.testing.assert_close(own.kl(old, new), kl_divergence(theirs(old), theirs(new)))  # type: ignore[operator]
    torch.testing.assert_close(own.entropy(old), theirs(old).entropy())  # type: ignore[operator]


@pytest.mark.parametrize(("own", "size"), [(Gaussian(), 4), (Categorical(), 3)], ids=["gaussian", "categorical"])
def test_the_metric_is_the_divergence_s_second_derivative_and_the_roots_its_root(own: Distribution, size: int) -> None:
    output, tangent = torch.randn(2, size, dtype=torch.float64)
    second = hessian(lambda new: own.kl(output, new))(output)
    torch.testing.assert_close(own.metric(output, tangent), second @ tangent)
    roots = PolicyGradient(distribution=own).fisher_roots(output[None])[:, 0]
    torch.testing.assert_close(torch.einsum("ci,cj->ij", roots, roots), second)


def test_actions_come_as_often_as_their_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    found = Categorical().sample(logits.expand(20_000, 3), torch.randn(20_000, 1))
    counts = torch.bincount(found[:, 0].long(), minlength=3) / 20_000
    torch.testing.assert_close(counts, logits.softmax(0), rtol=0, atol=0.015)
    assert PolicyGradient().average(torch.stack([logits, -logits])).abs().max() == 0
