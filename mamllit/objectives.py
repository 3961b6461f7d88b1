"""What an episode is judged by: the loss that is differentiated and the metric that is reported, for each kind of task."""

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mamllit.core.episode import Examples

Reduction = Literal["sum_over_shots", "mean"]


class Objective(Protocol):
    """A kind of task. `metric_name` is what is reported, `higher_is_better` its sense."""

    metric_name: str
    higher_is_better: bool

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss over the n examples of `output` and `y`; scalar."""

    def metric(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean metric over the n examples; scalar."""

    def fisher_roots(self, output: Tensor) -> Tensor:
        """C vectors [C, n, d] for an output [n, d], whose products r r' summed over C are the output's Fisher information."""

    def average(self, outputs: Tensor) -> Tensor:
        """One output [n, ...] for those of P models, [P, n, ...]: that of their mixture."""


class Classification:
    """Softmax cross-entropy on logits [n, N] and labels [n]; reports accuracy.

    Where m classes share the largest logit, each is right in 1 / m of the cases: a network that gives constants scores 1 / N,
    in whichever order the classes come. An output that is not a number is wrong.

    >>> import torch
    >>> from mamllit import Classification
    >>> Classification().metric(torch.eye(3), torch.tensor([0, 1, 2])).item()
    1.0
    """

    metric_name = "accuracy"
    higher_is_better = True

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y)

    def metric(self, output: Tensor, y: Tensor) -> Tensor:
        best = output == output.amax(-1, keepdim=True)
        hit = best.gather(-1, y[..., None])[..., 0].to(torch.promote_types(output.dtype, torch.float32))  # bf16 would round
        return (hit / best.sum(-1).clamp(min=1)).mean()

    def fisher_roots(self, output: Tensor) -> Tensor:
        """sqrt(p_c) (e_c - p) for each class c: their products sum to diag(p) - p p'."""
        log_p = output.log_softmax(-1)
        unit = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
        return (log_p / 2).exp().T[..., None] * (unit[:, None] - log_p.exp())

    def average(self, outputs: Tensor) -> Tensor:
        """The logarithm of the mean probabilities."""
        return outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))


class Regression:
    """Mean squared error on outputs and targets [n, d]; reports the same.

    >>> import torch
    >>> from mamllit import Regression
    >>> Regression().loss(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])).item()
    5.0
    """

    metric_name = "mse"
    higher_is_better = False

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()  # F.mse_loss fails under two nested vmaps (torch 2.14)

    def metric(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()  # F.mse_loss fails under two nested vmaps (torch 2.14)

    def fisher_roots(self, output: Tensor) -> Tensor:
        """The unit vectors: a Gaussian of variance 1 has the identity as Fisher information."""
        unit = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
        return unit[:, None].expand(-1, len(output), -1)

    def average(self, outputs: Tensor) -> Tensor:
        """The mean."""
        return outputs.mean(0)


def task_loss(objective: Objective, output: Tensor, examples: Examples, support: Examples, reduction: Reduction) -> Tensor:
    """The loss of `output` on n `examples` of a task as `mean`, or `sum_over_shots`: their sum by the shots K of the `support`.

    The MAML authors' code sums the per-example losses and divides by K, for support and query alike (cbfinn/maml, `xent`
    and `mse`), so a support loss is N times the mean cross-entropy. With `mean`, the same inner step needs N times the alpha.
    """
    loss = objective.loss(output, examples.y)
    if reduction == "mean":
        return loss
    return loss * (examples.x.shape[0] / support.per_class)
