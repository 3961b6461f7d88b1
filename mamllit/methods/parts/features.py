"""What methods that compare features share: one pass for support and query, and who belongs to which class."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.core.episode import Examples


def embed(backbone: Callable[[Tensor], Tensor], support: Examples, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n, D] of the support and [q, D] of `x`, in one pass: a norm by batch statistics sees both, in one scale."""
    features = backbone(torch.cat([support.x, x])).flatten(1)
    return features[: len(support.x)], features[len(support.x) :]


def members(support: Examples, features: Tensor) -> Tensor:
    """1 where an example is of a class, else 0, [n, N], in the type of the `features`."""
    return F.one_hot(support.y, support.ways).to(features.dtype)


def class_means(features: Tensor, support: Examples) -> Tensor:
    """The mean feature of each class, [N, D]."""
    of_class = members(support, features)
    return of_class.mT @ features / of_class.sum(0)[:, None]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of every row of `a` [q, D] with every row of `b` [n, D], [q, n]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


def best_of_class(similarity: Tensor, support: Examples) -> Tensor:
    """The largest similarity [q, n] to an example of each class, [q, N]: what the nearest neighbour says."""
    other = members(support, similarity) == 0
    return similarity[:, :, None].masked_fill(other, -torch.inf).amax(1)


def square_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for all rows of `a` [q, D] and `b` [n, D], [q, n]."""
    return a.square().sum(-1, keepdim=True) - 2 * a @ b.mT + b.square().sum(-1)
