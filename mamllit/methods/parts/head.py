"""Where the last layer of a gradient method starts in a task: learned with the rest, at zero, or one vector for all classes.

A learned last layer (Finn et al. 2017) has a row per class, so that a prediction depends on the order in which a task lists
its classes, and on their number. A layer that starts at zero (C.-H. Kao et al., MAML is a Noisy Contrastive Learner, ICLR
2022) or with one meta-learned vector in every row (UNICORN-MAML: H.-J. Ye, W.-L. Chao, How to Train Your MAML to Excel in
Few-Shot Classification, ICLR 2022) does not: it is made for the N classes of the task at hand, whatever N it was trained with.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.inner_loop import Params

HeadStart = Literal["learned", "zero", "shared"]
WEIGHT, BIAS = "head.weight", "head.bias"  # in a state: [N, D] and [N]


def made(start: HeadStart, backbone: nn.Module) -> "Head | None":
    """The layer that a method adds to its backbone: None for "learned", the backbone's own.

    Raises:
        ValueError: for an unknown start; see `Head` for the others.
    """
    if start not in get_args(HeadStart):
        raise ValueError(f"head is {start!r}; it must be one of {list(get_args(HeadStart))}")
    return None if start == "learned" else Head(start, backbone)


class Head(nn.Module):
    """The last layer, in a method's state: a row per class, all equal before the first inner step.

    Args:
        start: "zero": rows of zeros, which are not meta-learned; "shared": rows that are all one meta-learned vector [D].
            Biases start at zero.
        backbone: a network without a last layer, which gives features [n, D] and says D as its `feature_size` (`Conv4` and
            `MLP` with `out_features: null`).

    Raises:
        ValueError: for a backbone that has a last layer of its own or does not say its `feature_size`.
    """

    names = (WEIGHT, BIAS)  # what it adds to a state

    def __init__(self, start: Literal["zero", "shared"], backbone: nn.Module) -> None:
        super().__init__()
        network, size = type(backbone).__name__, getattr(backbone, "feature_size", None)
        if getattr(backbone, "head", None) is not None:
            raise ValueError(
                f"head is {start!r}, but {network} has its own last layer; set out_features: null, or use head: learned"
            )
        if not isinstance(size, int):
            raise ValueError(
                f"head is {start!r}, but {network} has no attribute `feature_size`, the D of its features [n, D]; "
                "give it one, or use head: learned"
            )
        self.size = size
        self.vector: nn.Parameter | None = None
        if start == "shared":
            self.vector = nn.Parameter(torch.empty(size).uniform_(-(size**-0.5), size**-0.5).to(next(backbone.parameters())))

    def start(self, ways: int, like: Tensor) -> Params:
        """The layer before the first inner step, for `ways` classes, with the device and dtype of `like`."""
        rows = like.new_zeros(ways, self.size) if self.vector is None else self.vector.expand(ways, -1)
        return {WEIGHT: rows, BIAS: like.new_zeros(ways)}

    def output(self, backbone: nn.Module, state: Params, x: Tensor) -> Tensor:
        """Logits [n, N] of `backbone` with the parameters in `state` for inputs `x` [n, ...]."""
        own = {name: value for name, value in state.items() if name not in (WEIGHT, BIAS)}
        return F.linear(functional_call(backbone, own, (x,)), state[WEIGHT], state[BIAS])
