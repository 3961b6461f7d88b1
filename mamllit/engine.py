"""The one place where a method for one episode becomes a meta-gradient over a batch of episodes.

The episodes run vectorised (`torch.func.vmap`), in vectorised chunks, or one by one; all three give the same gradient up to
rounding. The whole "gradient of the vectorised meta-loss" step can be compiled: `torch.compile` cannot differentiate twice
through autograd, but here the differentiation is inside what is compiled.
"""

import logging
import shutil
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from mamllit.adaptation import Params
from mamllit.episode import Episode, Examples
from mamllit.methods.base import Method

Execution = Literal["auto", "vmap", "loop"] | int
CPU_CHUNK = 2**19  # input numbers of the episodes that one vectorised chunk holds on a CPU, see `chunk_size`


log = logging.getLogger(__name__)


class MetaStep(NamedTuple):
    """Mean meta-loss over T episodes (scalar), mean logged scalars, and the gradient per parameter name."""

    loss: Tensor
    logs: dict[str, Tensor]
    gradient: Params


class _Verbs(nn.Module):
    """Gives `functional_call` a forward, so that a method's verbs run on parameters handed in from outside."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, function: Callable, *args):
        return function(self.method, *args)


def _meta_loss(method: Method, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    return method.meta_loss(episode)


def take(episodes: Episode, start: int, stop: int) -> Episode:
    """Episodes `start` to `stop` of a batch."""
    return Episode(*(Examples(*(tensor[start:stop] for tensor in part)) for part in episodes))


def count(episodes: Episode) -> int:
    """T, the number of episodes in a batch."""
    return episodes.support.x.shape[0]


def chunk_size(execution: Execution, episodes: Episode) -> int:
    """How many of the `episodes` run vectorised at once.

    "auto" is all of them on an accelerator. On a CPU it is the largest divisor of T whose inputs number at most CPU_CHUNK:
    beyond that, vectorising cost more than it saved where it was tried (Omniglot with 15 queries: chunks of 8 episodes 1.2 s,
    all 32 at once 1.5 s; one loaded CPU).
    """
    total = count(episodes)
    if execution == "vmap" or (execution == "auto" and episodes.support.x.device.type != "cpu"):
        return total
    if execution == "loop":
        return 1
    if execution != "auto":
        return min(execution, total)
    inputs = (episodes.support.x.numel() + episodes.query.x.numel()) // total
    fitting = max(CPU_CHUNK // inputs, 1)
    return max(size for size in range(1, total + 1) if total % size == 0 and size <= fitting)


class MetaGradient:
    """Computes the mean meta-loss of a batch of episodes and its gradient.

    Args:
        method: its `meta_loss` is differentiated with respect to its parameters.
        execution: "vmap" (all episodes at once), "loop" (one by one, the least memory), a number: chunks of that many
            episodes, vectorised inside; or "auto": see `chunk_size`.
        compiled: run the step under `torch.compile`; where that fails, one warning and the plain step.

    Raises:
        ValueError: for a chunk size below 1 or an unknown word.
    """

    def __init__(self, method: Method, execution: Execution = "auto", compiled: bool = False) -> None:
        if not (execution in ("auto", "vmap", "loop") or (type(execution) is int and execution >= 1)):
            raise ValueError(f"execution is {execution!r}; it must be 'auto', 'vmap', 'loop' or a chunk size >= 1")
        self.method, self.execution, self.compiled = method, execution, compiled
        self._verbs = _Verbs(method)
        self._trained = [(name, value) for name, value in self._verbs.named_parameters() if value.requires_grad]
        self._step: Callable[[Params, Episode], MetaStep] | None = None

    def __call__(self, episodes: Episode) -> MetaStep:
        params = {name: value.detach() for name, value in self._trained}
        total = count(episodes)
        size = chunk_size(self.execution, episodes)
        if size >= total:
            return self._run(params, episodes)
        parts = [(self._run(params, take(episodes, i, i + size)), min(size, total - i)) for i in range(0, total, size)]
        weight = [n / total for _, n in parts]

        def mean(values: list[Tensor]) -> Tensor:
            return torch.stack([w * value for w, value in zip(weight, values, strict=True)]).sum(0)

        first = parts[0][0]
        return MetaStep(
            mean([part.loss for part, _ in parts]),
            {name: mean([part.logs[name] for part, _ in parts]) for name in first.logs},
            {name: mean([part.gradient[name] for part, _ in parts]) for name in first.gradient},
        )

    def names(self) -> list[str]:
        """Names of the meta-parameters, as in `MetaStep.gradient`, in the order of `parameters()`."""
        return [name for name, _ in self._trained]

    def _vectorised(self, params: Params, episodes: Episode) -> MetaStep:
        def mean_loss(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
            def one(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
                return functional_call(self._verbs, params, (_meta_loss, episode))

            losses, logs = vmap(one, randomness="different")(episodes)
            return losses.mean(), {name: value.mean() for name, value in logs.items()}

        gradient, (loss, logs) = grad_and_value(mean_loss, has_aux=True)(params)
        return MetaStep(loss, logs, gradient)

    def _run(self, params: Params, episodes: Episode) -> MetaStep:
        if not self.compiled:
            return self._vectorised(params, episodes)
        try:
            if self._step is None:
                self._step = torch.compile(self._vectorised, fullgraph=True, dynamic=False)
            return self._step(params, episodes)
        except Exception as error:  # whatever the compiler raises, the plain step is right, only slower
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"torch.compile failed, so the meta-training step runs uncompiled: {first_line}", stacklevel=2)
            self.compiled = False
            return self._vectorised(params, episodes)


def should_compile(setting: bool | Literal["auto"], steps: int, device: torch.device, worth: int = 2000) -> bool:
    """Whether to compile: as asked, or for "auto" where a compiler is there and the run has at least `worth` steps.

    Compiling takes half a minute to a minute, and saves from one millisecond (sine) upwards per step. The answer depends on
    nothing but the machine and the run's length, so that a resumed run takes the same path.
    """
    if setting != "auto":
        return setting
    if steps < worth:
        return False
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl")):
        log.warning("compile: auto found no C++ compiler; the meta-training step runs uncompiled")
        return False
    return True
