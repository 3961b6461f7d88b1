"""Losses against PyTorch's, and the average of several models' outputs."""

import torch
import torch.nn.functional as F
from torch.func import vmap

from mamllit.objectives import Classification, Regression


def test_the_regression_loss_is_pytorchs_and_runs_under_nested_vmap() -> None:
    output, y = torch.randn(3, 2, 5, 1), torch.randn(2, 5, 1)
    losses = vmap(vmap(Regression().loss), in_dims=(0, None))(output, y)
    for model in range(3):
        for task in range(2):
            torch.testing.assert_close(losses[model, task], F.mse_loss(output[model, task], y[task]))
    assert torch.equal(Regression().loss(output[0], y), Regression().metric(output[0], y))


def test_classification_averages_probabilities() -> None:
    outputs = torch.randn(4, 6, 3)
    average = Classification().average(outputs)
    torch.testing.assert_close(average.exp(), outputs.softmax(-1).mean(0))
    torch.testing.assert_close(Classification().average(outputs[:1]).softmax(-1), outputs[0].softmax(-1))


def test_regression_averages_outputs() -> None:
    outputs = torch.randn(4, 6, 1)
    torch.testing.assert_close(Regression().average(outputs), outputs.mean(0))
