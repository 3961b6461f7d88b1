"""Nearest neighbour: the class of the support image whose features have the largest cosine with those of the query image.

S. Ravi, H. Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017, section 5.1 and table 1: on the 1,600
features of a network that was pre-trained to tell the meta-train classes apart (`mamllit.systems.PreTrainer`; `--init_from`
its run). O. Vinyals et al. 2016, table 1: on the pixels, with `torch.nn.Identity` for the network. Nothing is learned here,
neither in a task nor across tasks (`max_steps: 0`); with more shots, the single nearest image still decides.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import NearestNeighbour
    >>> from mamllit.objectives import Classification
    >>> method = NearestNeighbour(torch.nn.Identity(), Classification())
    >>> task = method.adapt(Examples(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), ways=2))
    >>> method.predict(task, torch.tensor([[6.0, 8.0]]))  # the second image of class 0 has the same direction
    tensor([[1.0000, 0.8000]])
"""

from typing import ClassVar

from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.methods.base import Method
from mamllit.methods.parts.features import best_of_class, cosines, embed
from mamllit.objectives import Objective


class NearestNeighbour(Method):
    """The class of the nearest support image, by cosine.

    Args:
        backbone: gives features [n, D]; `torch.nn.Identity` for pixels.
        objective: `Classification`.
    """

    reads_features: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        support, query = embed(self.backbone, state, x)
        return best_of_class(cosines(query, support), state)
