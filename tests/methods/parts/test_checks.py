"""What all methods with an inner loop refuse, and the loss they share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mamllit.core.episode import Examples
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Classification, Regression, task_loss


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": -1}, r"inner_steps is -1; it must be >= 0"),
        ({"inner_lr": -0.5}, r"inner_lr is -0.5; it must be >= 0"),
        ({"reduction": "sum"}, r"reduction is 'sum'; it must be 'sum_over_shots' or 'mean'"),
        ({"backbone": nn.BatchNorm1d(3)}, r"running buffers.*running_mean"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {"backbone": nn.Linear(1, 1), "inner_lr": 0.0, "inner_steps": 0, "reduction": "mean"}
    check_inner_loop(**right)
    with pytest.raises(ValueError, match=message):
        check_inner_loop(**{**right, **wrong})


def test_the_sum_is_divided_by_the_shots_of_the_support() -> None:
    support = Examples(torch.zeros(6, 1), torch.arange(3).repeat_interleave(2), 3)  # 3 ways, 2 shots
    query = Examples(torch.zeros(9, 1), torch.arange(3).repeat_interleave(3), 3)
    output = torch.randn(9, 3)
    summed = task_loss(Classification(), output, query, support, "sum_over_shots")
    torch.testing.assert_close(summed, F.cross_entropy(output, query.y, reduction="sum") / 2)
    torch.testing.assert_close(task_loss(Classification(), output, query, support, "mean"), F.cross_entropy(output, query.y))


def test_regression_has_one_way() -> None:
    support, query = Examples(torch.zeros(4, 1), torch.zeros(4, 1)), Examples(torch.zeros(8, 1), torch.ones(8, 1))
    loss = task_loss(Regression(), torch.full((8, 1), 3.0), query, support, "sum_over_shots")
    assert loss.item() == pytest.approx(4 * 8 / 4)
