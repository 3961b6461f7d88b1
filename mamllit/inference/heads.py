"""Heads: what tells classes apart by features. Each is a method of mamllit, over a network that stays as it is.

With few images per class and good features these are what is hard to beat (W.-Y. Chen et al., A Closer Look at Few-shot
Classification, ICLR 2019; Y. Tian et al., Rethinking Few-shot Image Classification, ECCV 2020). ANIL's inner loop from a head
at zero is the first steps of the logistic head; a checkpoint that was meta-trained so predicts by its own method.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.methods import LinearProbe, Method, NearestNeighbour, PrototypicalNetworks
from mamllit.methods.parts.features import cosines, embed, members
from mamllit.objectives import Classification


class LogisticRegression(Method):
    """Logistic regression on features of unit length, solved to the end; every class weighs the same, however many its images.

        min over W of  C sum_i w_i CE(W z_i, y_i) + |W|^2 / 2,    w_i = n / (N images of i's class)

    Its W is A^T Z for some A [n, N]: only the products of the n support features with each other matter, and where an image is
    left out its w_i is 0. So the solutions for all folds of an estimate are found at once (see `solve`).

    Args:
        backbone: gives features [n, D].
        strength: C, as scikit-learn names it.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.inference.heads import LogisticRegression
    >>> method = LogisticRegression(torch.nn.Identity())
    >>> support = Examples(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1, 1]), ways=2)
    >>> method.predict(method.adapt(support), support.x).argmax(-1)
    tensor([0, 1, 1])
    """

    vectorised: ClassVar[bool] = False
    reads_features: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, strength: float = 10.0) -> None:
        super().__init__()
        self.backbone, self.objective, self.strength = backbone, Classification(), strength

    def adapt(self, support: Examples, steps: int | None = None) -> Tensor:
        z = self._features(support.x)
        return self._solved(z, support, torch.ones(1, len(z), dtype=z.dtype))[0].mT @ z

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self._features(x) @ state.mT

    def without(self, support: Examples, left_out: Tensor) -> Tensor:
        """Logits [F, n, N] of all support images by F solutions, each without the images that `left_out` [F, n] marks."""
        z = self._features(support.x)
        return z @ z.mT @ self._solved(z, support, (~left_out).to(z.dtype))

    def _solved(self, z: Tensor, support: Examples, counted: Tensor) -> Tensor:
        of_class = members(support, z)
        shares = counted / (counted @ of_class)[:, support.y]  # of its class
        weights = self.strength * counted.sum(1, keepdim=True) / support.ways * shares
        return solve(z @ z.mT, of_class, weights)

    def _features(self, x: Tensor) -> Tensor:
        return F.normalize(self.backbone(x).flatten(1), dim=-1)


def solve(products: Tensor, targets: Tensor, weights: Tensor, most: int = 300, tolerance: float = 1e-4) -> Tensor:
    """A [F, n, N] of F logistic regressions on the same n examples, each with weights of its own; W = A^T Z.

    At the solution A = weights (targets - probabilities). D. Boehning's bound of the Hessian (Annals of the Institute of
    Statistical Mathematics 44, 1992) is the same in every iteration, so one inverse serves them all; momentum, begun anew where
    it leads uphill.

    Args:
        products: Z Z^T, [n, n].
        targets: [n, N], of 0 and 1.
        weights: [F, n]; 0 for examples that are left out.
        most: iterations.
        tolerance: of a probability.
    """
    scaled = weights[:, :, None]
    identity = torch.eye(len(products), dtype=products.dtype)
    inverse = torch.linalg.inv(identity + scaled * products / 2)
    found = ahead = torch.zeros(*weights.shape, targets.shape[1], dtype=products.dtype)
    pace = 1.0
    for _ in range(most):
        gradient = ahead + scaled * ((products @ ahead).softmax(-1) - targets)
        after = ahead - inverse @ gradient
        if bool((gradient.abs() <= tolerance * scaled + tolerance).all()):
            return after
        if bool(((ahead - after) * (after - found)).sum() > 0):
            pace = 1.0
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        found, ahead, pace = after, after + (pace - 1) / faster * (after - found), faster
    return found


class Resemblance(Method):
    """No classifier, but what an answer is like: "logits" [n, support images], the cosine with each.

    Args:
        backbone: gives features [n, D].

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.inference.heads import Resemblance
    >>> method = Resemblance(torch.nn.Identity())
    >>> method.predict(Examples(torch.eye(2), torch.tensor([0, 1]), ways=2), torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    reads_features: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, Classification()

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        support, query = embed(self.backbone, state, x)
        return cosines(query, support)


class FeaturesOf(nn.Module):
    """The features of a network that has a last layer, or none.

    Args:
        backbone: with a method `features`, such as `Conv4`; else its outputs are features.

    >>> import torch
    >>> from mamllit import MLP
    >>> from mamllit.inference.heads import FeaturesOf
    >>> FeaturesOf(MLP(4, [8], out_features=3))(torch.rand(2, 4)).shape
    torch.Size([2, 8])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self.backbone, "features", self.backbone)(x)
        return out.flatten(1)


HEADS: dict[str, Callable[[nn.Module], Method]] = {
    "logistic": LogisticRegression,
    "nearest_mean": lambda backbone: PrototypicalNetworks(backbone, Classification(), "cosine", scale=10.0),
    "euclidean_mean": lambda backbone: PrototypicalNetworks(backbone, Classification()),
    "nearest_image": lambda backbone: NearestNeighbour(backbone, Classification()),
    "baseline++": lambda backbone: LinearProbe(backbone, Classification(), inner_lr=1.0, inner_steps=100, head="cosine"),
}
AS_THEY_ARE = (LogisticRegression, PrototypicalNetworks, NearestNeighbour, Resemblance)  # weigh classes of any size the same
