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


def test_the_fisher_of_a_softmax_is_the_covariance_of_the_label() -> None:
    output = torch.randn(4, 3, dtype=torch.float64)
    roots, p = Classification().fisher_roots(output), output.softmax(-1)
    for i in range(4):
        expected = torch.diag(p[i]) - torch.outer(p[i], p[i])
        torch.testing.assert_close(roots[:, i].T @ roots[:, i], expected)


def test_the_fisher_of_a_gaussian_is_the_identity() -> None:
    roots = Regression().fisher_roots(torch.randn(4, 2))
    assert torch.equal(roots[:, 3].T @ roots[:, 3], torch.eye(2))
