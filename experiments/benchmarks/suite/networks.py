"""The peers' networks: what a user of PyTorch writes for the MAML paper's nets, equal to mamllit's in every number.

The parameters have the names and shapes of `mamllit.backbones`, so that one state dict fits both. Inside, everything is
ordinary: NCHW, `F.pad` and `F.conv2d`, `F.batch_norm` on batch statistics, `F.max_pool2d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.problems import Problem, network


class Regressor(nn.Module):
    """The sine network: linear layers with ReLU between them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Shift(nn.Module):
    """Batch norm on batch statistics with a learned shift only.

    The scale is a constant one: with a shift but no scale, `F.batch_norm`'s second derivative is wrong (torch 2.14: the
    shift's share of it is zero), which the comparison of the gradients showed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("one", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.one, self.beta, training=True, eps=1e-3)


class ConvNet(nn.Module):
    """Four blocks of convolution (TensorFlow's SAME padding), norm, ReLU and down-sampling, then a linear head."""

    def __init__(self, row: Problem) -> None:
        super().__init__()
        self.strided = row.downsample == "stride"
        stride = 2 if self.strided else 1
        channels = [row.channels] + [row.filters] * 4
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=stride) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.norms = nn.ModuleList(Shift(row.filters) for _ in range(4))
        self.head = nn.Linear(row.filters if self.strided else row.filters * (row.side // 16) ** 2, row.ways)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            before = 0 if self.strided and x.shape[-1] % 2 == 0 else 1
            x = F.relu(norm(conv(F.pad(x, (before, 1, before, 1)))))
            if not self.strided:
                x = F.max_pool2d(x, 2)
        # the permutation puts the 5x5 map in the order that mamllit's head expects
        return self.head(x.mean((2, 3)) if self.strided else x.permute(0, 2, 3, 1).flatten(1))


def peer_network(row: Problem) -> nn.Module:
    """A peer's network, float32, with the weights of mamllit's."""
    net: nn.Module = Regressor(row.filters) if row.channels == 0 else ConvNet(row)
    net.load_state_dict(network(row).state_dict())
    return net


def loss(row: Problem, output: Tensor, y: Tensor) -> Tensor:
    """Sum over the examples divided by the shots, as mamllit's `sum_over_shots`."""
    kind = F.mse_loss if row.channels == 0 else F.cross_entropy
    return kind(output, y, reduction="sum") / row.shots
