"""Any learn2learn algorithm as a mamllit method: what has `clone()` and `adapt(loss)` is trained, tested and logged like MAML.

Such an algorithm differentiates with plain autograd and changes its clone in place, which `torch.func.vmap` cannot batch. So
the method says that it is not `vectorised`, and mamllit runs its episodes one by one, as learn2learn's own examples do.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mamllit.bridges.learn2learn.norm import BatchStatistics, use_batch_statistics
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.methods.base import Method
from mamllit.objectives import Objective, Reduction, task_loss


class Algorithm(Protocol):
    """What is asked of an algorithm, beside being an `nn.Module` whose forward is that of its network."""

    def clone(self) -> "Algorithm":
        """A copy whose parameters are functions of the original's, so that a loss of the copy reaches the original."""

    def adapt(self, loss: Tensor) -> None:
        """One step against the gradient of `loss`, made in the copy's parameters, differentiably."""


class Learn2Learn(Method):
    """Meta-train a learn2learn algorithm: `learn2learn.algorithms.MAML`, `MetaSGD`, `GBML` with any transform, or your own.

    Its meta-parameters are all parameters of the algorithm, those of a transform or learned step sizes included.

    Args:
        algorithm: the wrapped network, with its own inner step size and order of derivatives. Batch norm in it is set to
            the statistics of the batch at hand, always (what learn2learn's examples do by never leaving `train()`).
        objective: `Classification` or `Regression`.
        inner_steps: calls of `adapt` per task in meta-training, >= 0; evaluation may take more.
        reduction: how support and query losses are reduced; learn2learn's examples use "mean".

    Raises:
        TypeError: for an algorithm that is no module or lacks `clone` or `adapt`.
        ValueError: for a negative number of steps, or an unknown reduction.
    """

    vectorised = False

    def __init__(self, algorithm: nn.Module, objective: Objective, inner_steps: int, reduction: Reduction = "mean") -> None:
        super().__init__()
        missing = [name for name in ("clone", "adapt") if not callable(getattr(algorithm, name, None))]
        if missing or not isinstance(algorithm, nn.Module):
            lacks = f"has no {' and no '.join(missing)}" if missing else "is not an nn.Module"
            raise TypeError(
                f"the algorithm is a {type(algorithm).__name__}, which {lacks}; wrap the network first, "
                "e.g. learn2learn.algorithms.MAML(network, lr=0.1)"
            )
        if inner_steps < 0:
            raise ValueError(f"inner_steps is {inner_steps}; it must be >= 0")
        if reduction not in ("sum_over_shots", "mean"):
            raise ValueError(f"reduction is {reduction!r}; it must be 'sum_over_shots' or 'mean'")
        use_batch_statistics(algorithm)
        self.algorithm, self.objective = algorithm, objective
        self.inner_steps, self.reduction = inner_steps, reduction

    @property
    def backbone(self) -> nn.Module:
        """The network inside the algorithm (learn2learn calls it `module`)."""
        return getattr(self.algorithm, "module", self.algorithm)

    @property
    def transductive(self) -> bool:
        return super().transductive or any(isinstance(module, BatchStatistics) for module in self.modules())

    def trajectory(self, support: Examples, steps: int) -> list[Params]:
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be >= 0")
        outside = torch.is_grad_enabled()  # evaluation runs under no_grad; adapting needs gradients all the same
        with torch.enable_grad():
            learner = cast("nn.Module", self._cloned())
            states = [_state(learner)]
            for _ in range(steps):
                cast("Algorithm", learner).adapt(self._loss(learner(support.x), support, support))
                states.append(_state(learner))
        return states if outside else [{name: value.detach() for name, value in state.items()} for state in states]

    def adapt(self, support: Examples, steps: int | None = None) -> Params:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return self._adapted(state)(x)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.predict(self.adapt(episode.support), episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        return self._loss(output, episode.query, episode.support), logs

    def _cloned(self) -> Algorithm:
        return cast("Algorithm", self.algorithm).clone()

    def _adapted(self, state: Params) -> nn.Module:
        """A clone with the tensors of `state`.

        Not `torch.func.functional_call`: where a network has one module in two places, as learn2learn's OmniglotCNN does, it
        does not put back what it replaced.
        """
        learner = cast("nn.Module", self._cloned())
        named = list(learner.named_parameters(remove_duplicate=False))
        names: dict[int, str] = {}
        for name, value in named:
            owner, _, key = name.rpartition(".")
            module = learner.get_submodule(owner)
            delattr(module, key)  # a parameter, in whose place a tensor with a history may not be set
            setattr(module, key, state[names.setdefault(id(value), name)])
        return learner

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)


def _state(learner: nn.Module) -> Params:
    """The learner's tensors as they are now; `adapt` puts new ones in their place and leaves these alone."""
    return dict(learner.named_parameters())
