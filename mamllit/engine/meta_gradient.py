"""The one place where a method for one episode becomes a meta-gradient over a batch of episodes.

The episodes run vectorised (`torch.func.vmap`), in vectorised chunks, or one by one; all three give the same gradient up to
rounding, and so do the two ways of `mamllit.engine.stages`, compiled or not. What "auto" chooses follows measurements
(experiments/benchmarks/README.md).
"""

from typing import Literal

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.core.tree import Structure, count, flatten, take
from mamllit.engine.compiling import Backend
from mamllit.engine.looped import Looped
from mamllit.engine.stages import Memory, MetaStep, Staged, Whole
from mamllit.kernels.matmul import fast_products
from mamllit.methods.base import InnerLoopMethod, Method

Execution = Literal["auto", "vmap", "loop"] | int
CPU_CHUNK = 2**23  # input numbers of the episodes that one vectorised chunk holds on a CPU, see `chunk_size`
SMALL = 2**12  # input numbers of a meta-batch up to which calls cost more than arithmetic, see `MetaGradient`
RECORDED_STEPS = 5  # inner steps that are recorded as one function; making one takes time and memory for each of them


def chunk_size(execution: Execution, episodes: Episode, limit: int | None = None) -> int:
    """How many of the `episodes` run vectorised at once.

    "auto" is all of them on an accelerator. On a CPU it is the largest divisor of T whose inputs number at most `limit`
    (CPU_CHUNK): all four tasks of mini-ImageNet at once took 2.4 s, one by one 3.2 s; what bounds it is memory.
    """
    total = count(episodes)
    if execution == "vmap" or (execution == "auto" and episodes.support.x.device.type != "cpu"):
        return total
    if execution == "loop":
        return 1
    if execution != "auto":
        return min(execution, total)
    inputs = (episodes.support.x.numel() + episodes.query.x.numel()) // total
    fitting = max((CPU_CHUNK if limit is None else limit) // inputs, 1)
    return max(size for size in range(1, total + 1) if total % size == 0 and size <= fitting)


class MetaGradient:
    """Computes the mean meta-loss of a batch of episodes and its gradient.

    A method with an inner loop runs in stages, unless it is compiled and takes a single step in a small meta-batch (sine),
    or few steps on a CPU: then, and for a method that says no more than its `meta_loss`, everything is one function. A
    method that cannot be vectorised runs episode by episode, uncompiled (`mamllit.engine.looped`).

    Args:
        method: its `meta_loss` is differentiated with respect to its parameters.
        execution: "vmap" (all episodes at once), "loop" (one by one, the least memory), a number: chunks of that many
            episodes, vectorised inside; or "auto": see `chunk_size`.
        compiled: run under `torch.compile`; where that fails, one warning and the plain step. On a CPU the step of a large
            meta-batch is only recorded, not made anew: its convolutions and norms are as fast as they get already.
        memory: "keep" the activations of all inner steps for the way back, or "recompute" them there, which takes about
            a third more time and keeps the memory of one step, however many there are.

    Raises:
        ValueError: for a chunk size below 1 or an unknown word; for "recompute" with a method that has no inner loop; for
            what a method that cannot be vectorised does not do.
    """

    def __init__(self, method: Method, execution: Execution = "auto", compiled: bool = False, memory: Memory = "keep") -> None:
        if not (execution in ("auto", "vmap", "loop") or (type(execution) is int and execution >= 1)):
            raise ValueError(f"execution is {execution!r}; it must be 'auto', 'vmap', 'loop' or a chunk size >= 1")
        if memory not in ("keep", "recompute"):
            raise ValueError(f"memory is {memory!r}; it must be 'keep' or 'recompute'")
        self.method, self.execution, self.compiled, self.memory = method, execution, compiled, memory
        trained = [(name, value) for name, value in method.named_parameters() if value.requires_grad]
        self._trained = {f"method.{name}": value for name, value in trained}
        self._looped: Looped | None = None
        if not method.vectorised:
            self._looped = Looped(method, self._trained)
            if compiled or execution not in ("auto", "loop"):
                raise ValueError(
                    f"{type(method).__name__} cannot be vectorised or compiled, but execution is {execution!r} and compile is "
                    f"{compiled!r}; use execution: auto (or loop) and compile: auto (or false)"
                )
        self._staging = isinstance(method, InnerLoopMethod) and type(method).meta_loss is InnerLoopMethod.meta_loss
        if memory == "recompute" and not self._staging:
            raise ValueError(
                f"memory is 'recompute', but {type(method).__name__} has no inner loop whose steps could be made again "
                "(it is no InnerLoopMethod, or has a meta_loss of its own); use memory: keep"
            )
        self._made: dict[tuple[bool, Structure], Whole | Staged] = {}
        method.heed_frozen()

    def __call__(self, episodes: Episode) -> MetaStep:
        with fast_products(episodes.support.x):
            return self._run(episodes)

    def _run(self, episodes: Episode) -> MetaStep:
        if self._looped is not None:
            return self._looped(episodes)
        params = {name: value.detach() for name, value in self._trained.items()}
        total = count(episodes)
        size = chunk_size(self.execution, episodes)
        run = self._made_for(episodes)
        if size >= total:
            return run(params, episodes)
        parts = [(run(params, take(episodes, i, i + size)), min(size, total - i)) for i in range(0, total, size)]
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
        return list(self._trained)

    def _made_for(self, episodes: Episode) -> Whole | Staged:
        """What runs a batch like `episodes`; made when the first comes, and kept, because what is compiled hangs on it."""
        tensors, structure = flatten(episodes)
        small = episodes.support.x.numel() + episodes.query.x.numel() <= SMALL
        if (small, structure) not in self._made:
            self._made[small, structure] = self._make(small, structure, on_cpu=tensors[0].device.type == "cpu")
        return self._made[small, structure]

    def _make(self, small: bool, structure: Structure, on_cpu: bool) -> Whole | Staged:
        method = self.method
        backend: Backend | None = None
        if self.compiled:
            backend = "inductor" if small or not on_cpu else "recorded"
        if not self._staging:
            return Whole(method, self.names(), structure, backend)
        assert isinstance(method, InnerLoopMethod)
        whole = 1 if small else RECORDED_STEPS if on_cpu else 0
        if type(method).outer_weights is not InnerLoopMethod.outer_weights:
            whole = 0  # they may change from step to step, and what is compiled would keep those it saw
        if self.compiled and self.memory == "keep" and method.inner_steps <= whole:
            return Whole(method, self.names(), structure, backend)
        return Staged(method, self.names(), structure, backend, self.memory)
