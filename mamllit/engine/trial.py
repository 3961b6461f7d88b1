"""A small trial of a network before it is trained: is it right under `vmap`?

PyTorch's `vmap` is silently wrong for some modules, and does not run others. So a network that is not made of modules
that are known to be right (`mamllit.engine.known`) first gets a small meta-gradient: two tasks of the first batch, eight
examples or one per class, at most two inner steps, in float64 on a copy with noise on its parameters (so that nothing that
begins at zero hides a difference). What `vmap` gives is compared with the episodes run one by one. See docs/networks.md.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mamllit.core.episode import Episode, Examples
from mamllit.core.tree import tree_map
from mamllit.engine.blame import blamed, named
from mamllit.engine.known import TOLERANCE, Operators, relative, unknown
from mamllit.methods.base import Method

STEPS, ROWS = 2, 8  # of a trial; it has at least one example per class


class Finding(NamedTuple):
    """How a network is run. `vectorised`: under `vmap`, else one by one; `why` says why not, or what was replaced."""

    vectorised: bool = True
    operators: Operators = "torch"
    why: str = ""


_findings: WeakKeyDictionary[Method, dict[str, Finding]] = WeakKeyDictionary()


def remembered(method: Method, kind: str, find: Callable[[], Finding]) -> Finding:
    """The finding of this `kind` for this method, made once; if the episodes must run one by one, one warning says so."""
    known = _findings.setdefault(method, {})
    if kind not in known:
        known[kind] = find()
        said = {finding.why for other, finding in known.items() if other != kind}
        if not known[kind].vectorised and known[kind].why and known[kind].why not in said:
            warnings.warn(known[kind].why, stacklevel=2)
    return known[kind]


Run = Callable[[Method, Finding, Episode], Tensor]  # a result as one vector: a meta-gradient, or predictions


def try_out(method: Method, episodes: Episode, run: Run, what: str) -> Finding:
    """Compare `run` vectorised and one by one; `what` the result is called in a message.

    Raises:
        ValueError: for a network that cannot be copied, changes its own parameters or buffers, or has no second derivative.
    """
    if not unknown(method):
        return Finding()
    small, double = sample(episodes), widest(episodes)
    with undisturbed(small, double):
        finding = _compared(method, small, run, what, double)
    if finding is None:
        with undisturbed(small, None):
            finding = _compared(method, small, run, what, None)
    return finding or Finding(False, "math")  # the step itself will raise the error


def _compared(method: Method, small: Episode, run: Run, what: str, dtype: torch.dtype | None) -> Finding | None:
    """The finding in `dtype` (None: the network's own); None where the network does not run one by one either."""
    tried, small = noisy_copy(method, dtype), in_dtype(small, dtype)
    tolerance = 1e-2 if dtype is None else TOLERANCE
    before = {name: (value, value.clone()) for name, value in _state(tried)}
    random = torch.get_rng_state()
    try:
        expected = run(tried, Finding(False, "math"), small)
    except Exception as error:
        _refuse_changed(tried, before)
        if "would mutate a captured Tensor" in str(error):
            raise ValueError(
                f"the forward pass of {blamed(tried, small)} writes in place to one of its own tensors. {_WRITING}"
            ) from error
        if "derivative" in str(error) or isinstance(error, NotImplementedError):
            raise ValueError(
                f"PyTorch has no second derivative of {blamed(tried, small)} ({_first_line(error)}); use another module "
                "there, or drop the second derivatives (first_order: true)"
            ) from error
        return None
    _refuse_changed(tried, before)
    if not torch.equal(torch.get_rng_state(), random):  # dropout: two runs differ, so it is switched off for the comparison
        try:
            run(tried, Finding(True, "math"), small)
        except Exception as error:
            return _one_by_one(tried, small, f"does not run ({_first_line(error)})")
        tried.eval()
        expected = run(tried, Finding(False, "math"), small)
    trouble = ""
    for operators in ("math", "plain"):
        try:
            difference = relative(run(tried, Finding(True, operators), small), expected)
        except Exception as error:
            trouble = trouble or f"does not run ({_first_line(error)})"
            continue
        if difference <= tolerance:
            return Finding(True, operators, "its norms run as plain operators" if operators == "plain" else "")
        trouble = trouble or f"gets the {what} wrong by {100 * difference:.2g}%"
    return _one_by_one(tried, small, trouble)


def _one_by_one(tried: Method, small: Episode, trouble: str) -> Finding:
    why = f"PyTorch's vmap {trouble} for {blamed(tried, small)}; the episodes run one by one (as with execution: loop)"
    return Finding(False, "math", why)


# ---- what a trial is made on ---------------------------------------------------------------------------------------


def sample(episodes: Episode) -> Episode:
    """Two tasks of a batch, each with ROWS examples of all classes, or one of each class, in support and query."""
    tasks = len(episodes.support.x)
    chosen = [0, 1 % tasks]

    def part(examples: Examples) -> Examples:
        rows = [_few(examples.y[task]) for task in chosen]
        if len({len(r) for r in rows}) > 1:
            rows = [torch.arange(examples.y.shape[1], device=examples.y.device)] * 2
        x, y = (torch.stack([t[task][r] for task, r in zip(chosen, rows, strict=True)]) for t in (examples.x, examples.y))
        return replace(examples, x=x, y=y)

    return Episode(part(episodes.support), part(episodes.query))


def _few(y: Tensor) -> Tensor:
    if y.is_floating_point():
        return torch.arange(min(len(y), ROWS), device=y.device)
    labels = y.unique()
    return torch.cat([(y == label).nonzero()[: max(1, ROWS // len(labels)), 0] for label in labels])


def noisy_copy(method: Method, dtype: torch.dtype | None) -> Method:
    """A copy in `dtype` (None: its own), of at most STEPS inner steps, with noise on its parameters.

    Raises:
        ValueError: for a network that cannot be copied.
    """
    try:
        tried = copy.deepcopy(method)
    except Exception as error:
        raise ValueError(
            f"the network cannot be copied ({_first_line(error)}), which happens with the old torch.nn.utils.weight_norm; "
            "use torch.nn.utils.parametrizations, and store no computed tensor on a module"
        ) from error
    tried = tried if dtype is None else tried.to(dtype)
    if isinstance(steps := getattr(tried, "inner_steps", None), int):
        tried.inner_steps = min(steps, STEPS)  # type: ignore[assignment]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in tried.parameters():
            scale = float(value.std()) if value.numel() > 1 else 0.0
            noise = torch.randn(value.shape, generator=random, dtype=torch.float32)
            value.add_(noise.to(value), alpha=0.1 * (scale or 1.0))
    return tried


def in_dtype(episodes: Episode, dtype: torch.dtype | None) -> Episode:
    """Detached, and what is no integer in `dtype` (None: its own)."""
    return tree_map(lambda t: t.detach().to(dtype) if dtype and t.is_floating_point() else t.detach(), episodes)


def widest(episodes: Episode) -> torch.dtype | None:
    """The dtype of a trial, float64; None where the device has none."""
    return None if episodes.support.x.device.type == "mps" else torch.float64


@contextmanager
def undisturbed(episodes: Episode, dtype: torch.dtype | None) -> Iterator[None]:
    """Within, new tensors are of `dtype` and autocast is off; afterwards that and the random numbers are as before."""
    device, default = episodes.support.x.device, torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False), torch.inference_mode(False):
        torch.set_default_dtype(dtype or default)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


_WRITING = (
    "Each task adapts its own copy of the network in the inner loop, and all would write there: keep computed values in "
    "local variables, use Embedding without max_norm, and weight_norm or orthogonal instead of spectral_norm"
)


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _refuse_changed(tried: Method, before: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Raise `ValueError` where a forward pass has written to the network's own parameters or buffers."""
    now = dict(_state(tried))
    changed = [n for n, (own, value) in before.items() if now.get(n) is not own or not torch.equal(own, value)]
    changed += [name for name in now if name not in before]
    if not changed:
        return
    owner, _, _ = changed[0].rpartition(".")
    raise ValueError(f"the forward pass of {named(tried, owner)} writes to {', '.join(changed)}. {_WRITING}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
