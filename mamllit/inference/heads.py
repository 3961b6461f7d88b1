"""Heads: what tells classes apart by features. Each is a method of mamllit, over a network that stays as it is.

With few images per class and good features these are what is hard to beat (W.-Y. Chen et al., A Closer Look at Few-shot
Classification, ICLR 2019; Y. Tian et al., Rethinking Few-shot Image Classification, ECCV 2020). `anil` and `maml` are the inner
loops of those methods from a last layer at zero, with nothing meta-learned: what the loop alone brings. A checkpoint that was
meta-trained predicts by its own method.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from mamllit.core.episode import Examples
from mamllit.methods import ANIL, MAML, LinearProbe, Method, NearestNeighbour, PrototypicalNetworks
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


class BaselinePlusPlus(LinearProbe):
    """Baseline++: the cosine with a vector per class, from the class means by 100 gradient steps.

    The heads of all folds of an estimate are trained at once, by the same steps (see `without`).

    Args:
        backbone: gives features [n, D].

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.inference.heads import BaselinePlusPlus
    >>> support = Examples(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1, 1]), ways=2)
    >>> method = BaselinePlusPlus(torch.nn.Identity())
    >>> method.without(support, torch.tensor([[False, True, False]])).argmax(-1)
    tensor([[0, 1, 1]])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone, Classification(), inner_lr=1.0, inner_steps=100, head="cosine")

    def without(self, support: Examples, left_out: Tensor) -> Tensor:
        """Logits [F, n, N] of all support images by F heads, each trained without the images that `left_out` [F, n] marks, and
        with the images of smaller classes repeated in turn, as `outputs` has it."""
        features = self.backbone(support.x).flatten(1)
        rows = [equal_classes(support.y, ~out) for out in left_out]
        counts = torch.stack([torch.bincount(own, minlength=len(features)) for own in rows]).to(features.dtype)
        shares = counts[:, :, None] * members(support, features)  # [F, n, N]
        weights = (shares / shares.sum(1, keepdim=True)).mT @ features
        z, n = F.normalize(features, dim=-1), counts.sum(1)

        def logits(weight: Tensor) -> Tensor:
            return self.scale * (z @ F.normalize(weight, dim=-1).flatten(0, 1).mT).unflatten(1, weight.shape[:2]).movedim(0, 1)

        def loss(weight: Tensor) -> Tensor:
            fit = -(logits(weight).log_softmax(-1) * shares).sum((1, 2)) / n
            return fit.sum() + self.weight_decay / 2 * weight.square().sum()

        for _ in range(self.inner_steps):
            weights = weights - self.inner_lr * grad(loss)(weights)
        return logits(weights)


def equal_classes(labels: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Rows by class, as many of each as the largest has: a smaller class has its images repeated in turn. `allowed` [n] leaves
    images out."""
    every = [(labels == label) & (True if allowed is None else allowed) for label in range(int(labels.max()) + 1)]
    most = max(int(own.sum()) for own in every)
    rows = [own.nonzero().flatten() for own in every]
    return torch.cat([own.repeat(-(-most // len(own)))[:most] for own in rows])


def in_their_span(features: Tensor) -> Tensor:
    """Features [n, D] in an orthonormal basis of their own span, [n, min(n, D)]: all products of two are as they were, and no
    head of `HEADS` sees more."""
    if len(features) >= features.shape[1]:
        return features
    return torch.linalg.qr(features.double().mT, "r").R.mT.to(features.dtype)


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


class WithWeights(nn.Module):
    """Features of length 10, each with a weight that begins at 1, for an outer loop to learn.

    Args:
        backbone: gives features [n, D]; its parameters stay as they are.
        size: D.

    >>> import torch
    >>> from mamllit.inference.heads import WithWeights
    >>> WithWeights(torch.nn.Identity(), 2)(torch.tensor([[3.0, 4.0]]))
    tensor([[6., 8.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, backbone: nn.Module, size: int) -> None:
        super().__init__()
        self.backbone, self.feature_size, self.out_features = backbone, size, None
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.normalize(self.backbone(x).flatten(1) * self.weight, dim=-1)


class WithLinearLayer(nn.Module):
    """Features of length 10 and a linear layer that begins as the identity: what `MAML` adapts of frozen features.

    Weights of single features would not do: from a head at zero, their gradients are too small to change a prediction.

    Args:
        backbone: gives features [n, D]; its parameters stay as they are.
        size: D.

    >>> import torch
    >>> from mamllit.inference.heads import WithLinearLayer
    >>> WithLinearLayer(torch.nn.Identity(), 2)(torch.tensor([[3.0, 4.0]]))
    tensor([[6., 8.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, backbone: nn.Module, size: int) -> None:
        super().__init__()
        self.backbone, self.feature_size, self.out_features = backbone, size, None
        self.weight = nn.Parameter(torch.zeros(size, size))  # [D, D], beside the identity

    def forward(self, x: Tensor) -> Tensor:
        z = 10 * F.normalize(self.backbone(x).flatten(1), dim=-1)
        return z + z @ self.weight.mT


def anil(backbone: nn.Module, size: int) -> ANIL:
    """ANIL on features of `size`, five steps of 0.02 from a last layer at zero; an outer loop learns the features' weights."""
    return ANIL(WithWeights(backbone, size), Classification(), 0.02, 5, "sum_over_shots", head="zero")


def maml(backbone: nn.Module, size: int) -> MAML:
    """MAML on features of `size`, five steps of 0.02 of a linear layer on them and of a last layer from zero."""
    return MAML(
        WithLinearLayer(backbone, size), Classification(), 0.02, 5, "sum_over_shots", frozen=["backbone.*"], head="zero"
    )


HEADS: dict[str, Callable[[nn.Module, int], Method]] = {  # of a network that gives features [n, D], and D
    "logistic": lambda backbone, size: LogisticRegression(backbone),
    "nearest_mean": lambda backbone, size: PrototypicalNetworks(backbone, Classification(), "cosine", scale=10.0),
    "euclidean_mean": lambda backbone, size: PrototypicalNetworks(backbone, Classification()),
    "nearest_image": lambda backbone, size: NearestNeighbour(backbone, Classification()),
    "baseline++": lambda backbone, size: BaselinePlusPlus(backbone),
    "anil": anil,
    "maml": maml,
}
STEPWISE = ("anil", "maml")  # those that take a number of inner steps
AS_THEY_ARE = (LogisticRegression, PrototypicalNetworks, NearestNeighbour, Resemblance)  # weigh classes of any size the same
