"""A prototypical training step as mamllit makes it, and as others do, with the same network, weights and images.

The others' network is the one that everybody writes (`nn.Conv2d`, `nn.BatchNorm2d`, `nn.MaxPool2d`). easyfsl's step is not the
same function: the distance is not squared, and support and query are normalised apart, in two passes.
"""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.backbones import Conv4
from mamllit.core.episode import Episode
from mamllit.core.tree import item
from suite.peers.cell import method_of
from suite.plain_loops import Episodes, Step, batch_of

CHECKED_STEPS, CHECKED_WAYS = 2, 4  # of the comparison in float64
ROUNDING = 1e-6  # by how much two losses or weights may differ there, relative to the largest

# row -> its cell, and what differs in its data. All queries of mini-ImageNet would be 480 images a step
ROWS: dict[str, tuple[str, dict[str, int]]] = {
    "omniglot-60w1s": ("prototypical/omniglot_5way_1shot", {}),
    "mini-30w1s-4q": ("prototypical/mini_imagenet_5way_1shot", {"queries": 4}),
}


def ordinary(net: Conv4) -> nn.Sequential:
    """The network of PyTorch's own layers, with the weights of `net`; its features come in another order."""
    layers: list[nn.Module] = []
    for convolve, norm in zip(net.convs, net.norms, strict=True):
        out_channels, in_channels = convolve.weight.shape[:2]
        conv, batch_norm = nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels, norm.eps)
        layers += [conv.to(convolve.weight.dtype), batch_norm.to(convolve.weight.dtype), nn.ReLU(), nn.MaxPool2d(2)]
        with torch.no_grad():
            conv.weight.copy_(convolve.weight), conv.bias.copy_(convolve.bias)
            batch_norm.weight.copy_(norm.gamma), batch_norm.bias.copy_(norm.beta)
    return nn.Sequential(*layers, nn.Flatten())


def weights(net: nn.Sequential) -> Tensor:
    """All in one vector, but for the convolutions' biases, which a norm takes away: Adam would divide rounding by rounding."""
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    parts = [layer.weight for layer in (*convs, *norms)] + [layer.bias for layer in norms]
    return nn.utils.parameters_to_vector(parts).detach()


class Plain(Step):
    """What one writes without a library."""

    def backward(self, batch: Episode) -> Tensor:
        support, query = item(batch, 0)
        features = self.method(torch.cat([support.x, query.x]))
        of_support, of_query = features[: len(support.y)], features[len(support.y) :]
        means = torch.stack([of_support[support.y == k].mean(0) for k in range(support.ways)])
        squares = of_query.square().sum(1, keepdim=True) - 2 * of_query @ means.T + means.square().sum(1)
        loss = F.cross_entropy(-squares, query.y)
        loss.backward()
        return loss.detach()


class EasyFSL(Step):
    """easyfsl's `PrototypicalNetworks` in the loop of its episodic training."""

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        self.classifier = importlib.import_module("easyfsl.methods").PrototypicalNetworks(self.method)

    def backward(self, batch: Episode) -> Tensor:
        support, query = item(batch, 0)
        self.classifier.process_support_set(support.x, support.y)
        loss = F.cross_entropy(self.classifier(query.x), query.y)
        loss.backward()
        return loss.detach()


class Learn2Learn(Step):
    """learn2learn's `PrototypicalClassifier` on features of one pass, as in its examples."""

    def __init__(self, method: nn.Module, document: Mapping[str, Any]) -> None:
        super().__init__(method, document)
        self.classifier = importlib.import_module("learn2learn").nn.PrototypicalClassifier()

    def backward(self, batch: Episode) -> Tensor:
        support, query = item(batch, 0)
        features = self.method(torch.cat([support.x, query.x]))
        self.classifier.fit_(features[: len(support.y)], support.y)
        loss = F.cross_entropy(self.classifier(features[len(support.y) :]), query.y)
        loss.backward()
        return loss.detach()


PEERS: dict[str, type[Step]] = {"plain PyTorch": Plain, "easyfsl": EasyFSL, "learn2learn": Learn2Learn}
SAME = ("plain PyTorch", "learn2learn")  # those whose step is the same function


def competitors(document: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> tuple[dict[str, Step], list[str]]:
    """mamllit's step, and those of the peers that are there, with the same weights; and the peers that are not."""
    method = method_of(document).to(dtype)
    network, missing = ordinary(method.backbone), []
    made: dict[str, Step] = {"mamllit": Episodes(method, document)}
    for name, peer in PEERS.items():
        try:
            made[name] = peer(network, document)
        except ImportError:
            missing.append(name)
    return made, missing


def check(document: Mapping[str, Any]) -> dict[str, float]:
    """The largest relative difference to mamllit in the losses of some steps, and in the weights after them, in float64.

    On fewer ways than the document's, and of those peers whose step is the same function.

    Raises:
        ValueError: for one that differs by more than ROUNDING.
    """
    small: Any = copy.deepcopy(document)
    small["data"]["init_args"]["train_ways"] = min(small["data"]["init_args"]["train_ways"], CHECKED_WAYS)
    small["model"]["init_args"]["compile"] = False
    team, _ = competitors(small, torch.float64)
    batch, found = batch_of(small, torch.float64), {}
    seen = {name: [step(batch) for _ in range(CHECKED_STEPS)] for name, step in team.items()}
    ours = torch.stack(seen["mamllit"]), weights(ordinary(team["mamllit"].method.backbone))
    for name in [name for name in SAME if name in team]:
        theirs = torch.stack(seen[name]), weights(team[name].method)
        found[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(theirs, ours, strict=True))
        if not found[name] <= ROUNDING:
            raise ValueError(f"the step of {name} differs from mamllit's by {found[name]:.2g} of the loss or the weights")
    return found
