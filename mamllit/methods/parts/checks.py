"""What every method with an inner loop of gradient steps refuses."""

from torch import nn

from mamllit.core.adapted import check_no_running_buffers
from mamllit.objectives import Reduction


def check_inner_loop(backbone: nn.Module, inner_lr: float, inner_steps: int, reduction: Reduction) -> None:
    """Raise `ValueError` for a backbone with running buffers, a negative number of steps or step size, or an unknown word."""
    check_no_running_buffers(backbone)
    if inner_steps < 0:
        raise ValueError(f"inner_steps is {inner_steps}; it must be >= 0")
    if inner_lr < 0:
        raise ValueError(f"inner_lr is {inner_lr}; it must be >= 0")
    if reduction not in ("sum_over_shots", "mean"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum_over_shots' or 'mean'")
