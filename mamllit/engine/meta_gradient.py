"""The one place where a method for one episode becomes a meta-gradient over a batch of episodes.

The episodes run vectorised (`torch.func.vmap`), in vectorised chunks, or one by one; all three give the same gradient up to
rounding, and so do the two ways of `mamllit.engine.stages`, compiled or not. What "auto" chooses follows measurements
(experiments/benchmarks/README.md).
"""

import warnings
from typing import Literal

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.core.tree import Structure, count, flatten, take, tree_map
from mamllit.engine.compiling import Backend
from mamllit.engine.cpu import fast_on_cpu
from mamllit.engine.known import relative
from mamllit.engine.looped import Looped
from mamllit.engine.stages import Memory, MetaStep, Staged, Whole
from mamllit.engine.trial import Finding, remembered, try_out
from mamllit.methods.base import Method
from mamllit.methods.inner_loop_method import InnerLoopMethod

Execution = Literal["auto", "vmap", "loop"] | int
CPU_CHUNK = 2**23  # input numbers of the episodes that one vectorised chunk holds on a CPU, see `chunk_size`
SMALL = 2**12  # input numbers of a meta-batch up to which calls cost more than arithmetic, see `MetaGradient`
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2}  # by how much a compiled meta-gradient may differ from the plain one
HALF = 0.5  # in 16 bits
RECORDED_STEPS = 5  # inner steps that are recorded as one function; making one takes time and memory for each of them


def in_precision_of(method: Method, episodes: Episode) -> Episode:
    """The episodes in the floating point type of the method's parameters, which a Trainer's "64-true" or "16-true" decides.

    As they are under autocast, which converts by itself, and for inputs that are integers.
    """
    dtype, x = next((value.dtype for value in method.parameters()), None), episodes.support.x
    if dtype is None or x.dtype is dtype or not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return episodes
    return tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, episodes)


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
            meta-batch is only recorded: its convolutions and norms cannot be made faster by new code.
        memory: "keep" the activations of all inner steps for the backward pass, or "recompute" them there, which takes about
            a third more time and keeps the memory of one step, however many there are.
        finding: how the network is run, where that is known; else it is tried, see `check`.

    Raises:
        ValueError: for a chunk size below 1 or an unknown word; for "recompute" with a method that has no inner loop; for
            what a method that cannot be vectorised does not do.
    """

    def __init__(
        self,
        method: Method,
        execution: Execution = "auto",
        compiled: bool = False,
        memory: Memory = "keep",
        finding: Finding | None = None,
    ) -> None:
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
                f"memory is 'recompute', but {type(method).__name__} has no inner loop whose steps could be recomputed "
                "(it is not an InnerLoopMethod, or has its own meta_loss); use memory: keep"
            )
        self._made: dict[tuple[bool, Structure], Whole | Staged] = {}
        self._finding = finding
        method.heed_frozen()

    def __call__(self, episodes: Episode) -> MetaStep:
        with fast_on_cpu(episodes.support.x):
            return self._run(in_precision_of(self.method, episodes))

    def check(self, episodes: Episode) -> Finding:
        """How the method's network is run: vectorised where that is right, as a small trial on `episodes` has shown.

        Made before the first step, once per method; a network of modules that are known to be right needs none. Where the
        vectorised gradient is wrong or cannot be made, one warning says for which module, and the episodes run one by one.

        Raises:
            ValueError: for a network that writes to its own parameters or buffers, or has no second derivative.
        """
        if self._finding is None:
            self._finding = remembered(self.method, "gradient", lambda: try_out(self.method, episodes, _flat, "meta-gradient"))
        return self._finding

    def _run(self, episodes: Episode) -> MetaStep:
        if self._looped is not None:
            return self._looped(episodes)
        finding = self._finding or self.check(episodes)
        params = {name: value.detach() for name, value in self._trained.items()}
        total = count(episodes)
        size = chunk_size(self.execution, episodes) if finding.vectorised else 1
        run = self._made_for(episodes, size)
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

    def _made_for(self, episodes: Episode, size: int) -> Whole | Staged:
        """What runs a batch like `episodes`; made when the first comes, and kept, because it holds what is compiled."""
        tensors, structure = flatten(episodes)
        small = episodes.support.x.numel() + episodes.query.x.numel() <= SMALL
        if (small, structure) not in self._made:
            on_cpu = tensors[0].device.type == "cpu"
            plain = self._make(small, structure, on_cpu, False)
            made = self._make(small, structure, on_cpu, True) if self.compiled else plain
            if self.compiled and not self._agrees(made, plain, take(episodes, 0, size)):
                self.compiled, made = False, plain
            self._made[small, structure] = made
        return self._made[small, structure]

    def _agrees(self, compiled: Whole | Staged, plain: Whole | Staged, episodes: Episode) -> bool:
        """Whether the compiled step is the plain one on its first episodes, up to rounding; else one warning."""
        params = {name: value.detach() for name, value in self._trained.items()}
        random = torch.get_rng_state()
        with torch.random.fork_rng([params_device] if (params_device := episodes.support.x.device).type == "cuda" else []):
            expected = _vector(plain(params, episodes))
            if not torch.equal(torch.get_rng_state(), random):  # dropout, say: no two runs are the same
                return True
        with torch.random.fork_rng([params_device] if params_device.type == "cuda" else []):
            difference = relative(_vector(compiled(params, episodes)), expected)
        low = torch.is_autocast_enabled(params_device.type) or expected.dtype not in ROUNDING
        if difference <= (HALF if low else ROUNDING[expected.dtype]) or not expected.isfinite().all():
            return True
        warnings.warn(
            f"the compiled meta-gradient differs from the plain one by {100 * difference:.2g}%, so the meta-training step runs "
            "uncompiled (as with compile: false)",
            stacklevel=2,
        )
        return False

    def _make(self, small: bool, structure: Structure, on_cpu: bool, compiled: bool) -> Whole | Staged:
        method = self.method
        operators = "torch" if self._finding is None else self._finding.operators
        backend: Backend | None = None
        if compiled:
            backend = "inductor" if small or not on_cpu else "recorded"
        if not self._staging:
            return Whole(method, self.names(), structure, backend, operators)
        assert isinstance(method, InnerLoopMethod)
        whole = 1 if small else RECORDED_STEPS if on_cpu else 0
        if type(method).outer_weights is not InnerLoopMethod.outer_weights:
            whole = 0  # they may change from step to step, and what is compiled would keep those it saw
        if compiled and self.memory == "keep" and method.inner_steps <= whole:
            return Whole(method, self.names(), structure, backend, operators)
        return Staged(method, self.names(), structure, backend, self.memory, operators)


def _flat(method: Method, way: Finding, episodes: Episode) -> Tensor:
    """The meta-gradient as one vector, for a trial that runs as `way` says."""
    gradient = MetaGradient(method, "vmap" if way.vectorised else "loop", finding=way)
    return _vector(gradient(episodes))


def _vector(step: MetaStep) -> Tensor:
    return torch.cat([value.flatten() for value in step.gradient.values()])
