"""Fully connected networks: the sine regressor and the no-convolution Omniglot classifier of the MAML paper."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mamllit.backbones.norm import BatchStatNorm
from mamllit.backbones.sizes import DATA, Size, number

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}


class MLP(nn.Module):
    """Linear layers with an activation between them; each hidden layer optionally batch-normalised before it.

    Finn et al. 2017: sine, section 5.1, `MLP(1, [40, 40], 1)`; Omniglot without convolution, appendix A.1,
    `MLP(784, [256, 128, 64, 64], ways, norm=True)`.

    Args:
        in_features: size of a flattened input; "data": the command line takes it from the DataModule, and so below.
        hidden: sizes of the hidden layers.
        out_features: number of outputs (classes, or 1); None leaves the last layer off, and the features come out.
        norm: batch statistics norm before each activation.
        activation: "relu", or "tanh" where a smooth net is wanted (finite differences).
        init: "torch" for `nn.Linear`'s default; "paper" for the authors' truncated normal (std 0.01, cut at two std),
            biases zero. On sine the default is better and depends far less on the seed.

    Shape: [n, ...] with in_features values per example -> [n, out_features].

    >>> import torch
    >>> from mamllit import MLP
    >>> MLP(1, [40, 40], 1)(torch.rand(10, 1)).shape
    torch.Size([10, 1])
    """

    def __init__(
        self,
        in_features: Size = DATA,
        hidden: Sequence[int] = (40, 40),
        out_features: Size | None = DATA,
        norm: bool = False,
        activation: Activation = "relu",
        init: Literal["torch", "paper"] = "torch",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {sorted(ACTIVATIONS)}")
        if init not in ("torch", "paper"):
            raise ValueError(f"init is {init!r}; it must be 'torch' or 'paper'")
        in_features = number("in_features", in_features)
        out_features = None if out_features is None else number("out_features", out_features)
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        sizes = [in_features, *hidden]
        if out_features is None and not hidden:
            raise ValueError("hidden is empty and out_features None, so no layer is left; give one of them")
        self.feature_size = sizes[-1]
        outputs = [*hidden, *([] if out_features is None else [out_features])]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, outputs, strict=False)]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(BatchStatNorm(size) for size in hidden) if norm else None
        if init == "paper":
            for layer in layers:
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
                nn.init.zeros_(layer.bias)

    @property
    def head(self) -> nn.Module | None:
        """The last layer; None where it was left off."""
        return None if self.out_features is None else self.layers[-1]

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, [n, features]; the flattened input where it is the only one."""
        x = x.flatten(1)
        for depth in range(len(self.layers) - (self.out_features is not None)):
            x = self.layers[depth](x)
            if self.norms is not None:
                x = self.norms[depth](x)
            x = ACTIVATIONS[self.activation](x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return features if self.head is None else self.head(features)
