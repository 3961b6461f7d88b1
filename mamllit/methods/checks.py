"""What every method with an inner loop of gradient steps refuses, and the loss that its inner and outer loop share."""

from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.core.inner_loop import check_no_running_buffers
from mamllit.objectives import Objective, Reduction, reduced_loss


def check_inner_loop(backbone: nn.Module, inner_lr: float, inner_steps: int, reduction: Reduction) -> None:
    """Raise `ValueError` for a backbone with running buffers, a negative number of steps or step size, or an unknown word."""
    check_no_running_buffers(backbone)
    if inner_steps < 0:
        raise ValueError(f"inner_steps is {inner_steps}; it must be >= 0")
    if inner_lr < 0:
        raise ValueError(f"inner_lr is {inner_lr}; it must be >= 0")
    if reduction not in ("sum_over_shots", "mean"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum_over_shots' or 'mean'")


def task_loss(objective: Objective, output: Tensor, examples: Examples, support: Examples, reduction: Reduction) -> Tensor:
    """The loss of `output` on `examples` of a task; scalar. "sum_over_shots" divides by the shots of the `support`."""
    return reduced_loss(objective, output, examples, support.per_class, reduction)
