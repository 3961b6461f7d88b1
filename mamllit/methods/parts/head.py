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


class Head(nn.Module):
    """The last layer, in a method's state: a row per class, all equal before the first inner step.

    Args:
        start: "learned": the backbone's own layer, this module does nothing; "zero": rows of zeros, which are not meta-learned;
            "shared": rows that are all one meta-learned vector [D]. Biases start at zero.
        backbone: for "zero" and "shared" a network without a last layer, which gives features [n, D] and says D as its
            `feature_size` (`Conv4` and `MLP` with `out_features: null`).

    Raises:
        ValueError: for an unknown start, or a backbone that has a last layer of its own or does not say its `feature_size`.
    """

    def __init__(self, start: HeadStart, backbone: nn.Module) -> None:
        super().__init__()
        if start not in get_args(HeadStart):
            raise ValueError(f"head is {start!r}; it must be one of {list(get_args(HeadStart))}")
        self.kind = start
        self.vector: nn.Parameter | None = None
        if start == "learned":
            return
        network, size = type(backbone).__name__, getattr(backbone, "feature_size", None)
        if getattr(backbone, "head", None) is not None:
            raise ValueError(
                f"head is {start!r}, but {network} has a last layer of its own; set out_features: null, or use head: learned"
            )
        if not isinstance(size, int):
            raise ValueError(
                f"head is {start!r}, but {network} has no attribute `feature_size`, the D of its features [n, D]; "
                "give it one, or use head: learned"
            )
        self.size = size
        if start == "shared":
            self.vector = nn.Parameter(torch.empty(size).uniform_(-(size**-0.5), size**-0.5).to(next(backbone.parameters())))

    @property
    def names(self) -> tuple[str, ...]:
        """What it adds to a state."""
        return () if self.kind == "learned" else (WEIGHT, BIAS)

    def start(self, ways: int, like: Tensor) -> Params:
        """The layer before the first inner step, for `ways` classes, with the device and dtype of `like`; empty where the
        backbone has its own."""
        if self.kind == "learned":
            return {}
        rows = like.new_zeros(ways, self.size) if self.vector is None else self.vector.expand(ways, -1)
        return {WEIGHT: rows, BIAS: like.new_zeros(ways)}

    def output(self, backbone: nn.Module, state: Params, x: Tensor) -> Tensor:
        """Logits [n, N] of `backbone` with the parameters in `state` for inputs `x` [n, ...]."""
        if self.kind == "learned":
            return functional_call(backbone, state, (x,))
        own = {name: value for name, value in state.items() if name not in (WEIGHT, BIAS)}
        return F.linear(functional_call(backbone, own, (x,)), state[WEIGHT], state[BIAS])
