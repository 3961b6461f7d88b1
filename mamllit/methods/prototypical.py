"""Prototypical networks: the class whose mean feature is nearest.

J. Snell, K. Swersky, R. Zemel: Prototypical Networks for Few-shot Learning, NIPS 2017, arXiv 1703.05175.

    c_k = mean of f(x_i) over the support of class k;    logits(x)_k = -|f(x) - c_k|^2

Nothing is adapted: a task is its support. As in the authors' training, support and query go through the network together;
their test uses the norm's running statistics, ours those of the batch (see `mamllit.engine.evaluation`). With
`distance: cosine` the logits are `scale` times the cosine of f(x) and c_k, as is common on pre-trained features.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import PrototypicalNetworks
    >>> from mamllit.objectives import Classification
    >>> method = PrototypicalNetworks(torch.nn.Identity(), Classification())
    >>> task = method.adapt(Examples(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0, 1]), ways=2))
    >>> method.predict(task, torch.tensor([[0.0, 1.0]]))  # the prototypes are (1, 0) and (0, 4)
    tensor([[-2., -9.]])
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.methods.base import Method
from mamllit.methods.parts.features import class_means, cosines, embed, square_distances
from mamllit.objectives import Objective


class PrototypicalNetworks(Method):
    """Learn features in which the nearest class mean is the class.

    Args:
        backbone: the network f; its output [n, D] are features, so it needs no head.
        objective: `Classification`.
        distance: "squared_euclidean" (the paper's) or "cosine".
        scale: factor of the logits, > 0.

    Raises:
        ValueError: for an unknown distance or a scale that is not positive.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        distance: Literal["squared_euclidean", "cosine"] = "squared_euclidean",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if distance not in ("squared_euclidean", "cosine"):
            raise ValueError(f"distance is {distance!r}; it must be 'squared_euclidean' or 'cosine'")
        if scale <= 0:
            raise ValueError(f"scale is {scale}; it must be > 0")
        self.backbone, self.objective, self.distance, self.scale = backbone, objective, distance, scale

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        support, query = embed(self.backbone, state, x)
        prototypes = class_means(support, state)
        if self.distance == "cosine":
            return self.scale * cosines(query, prototypes)
        return -self.scale * square_distances(query, prototypes)
