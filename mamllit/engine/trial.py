"""Small trials of a network before it is trained or judged: is it right under `vmap`, does a prediction depend on its company?

PyTorch's `vmap` is wrong for some modules, without a word, and does not run others. So a network that is not made of modules
that are known to be right (`KNOWN`, each by a test) first gets a small meta-gradient: two tasks of the first batch, eight
examples or one per class, at most two inner steps, in float64 on a copy with noise on its parameters (so that nothing that
begins at zero hides a difference). What `vmap` gives is compared with the episodes run one by one. See docs/networks.md.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mamllit.backbones.first_rows import normalised_by_first
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.core.tree import item, tree_map
from mamllit.engine.plain_norms import PlainNorms
from mamllit.methods.base import Method

Operators = Literal["torch", "math", "plain"]  # as they are; attention as products; norms as sums and products, too
TOLERANCE = 1e-6  # of a relative difference in float64; rounding leaves 1e-15 to 1e-10
STEPS, ROWS = 2, 8  # of a trial; fewer examples than classes there cannot be

# Modules of torch.nn that tests/engine/test_networks.py finds right under `vmap`, whatever their settings
_RIGHT = """
    Sequential ModuleList ModuleDict ParameterList ParameterDict Identity Flatten Unflatten Linear Bilinear Conv1d
    Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Unfold Fold ReLU ReLU6 ELU SELU CELU GELU SiLU Mish
    Hardswish Hardtanh LeakyReLU LogSigmoid PReLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Hardshrink GLU
    Softmax LogSoftmax Softmin Softmax2d Threshold GroupNorm RMSNorm LocalResponseNorm CosineSimilarity MaxPool1d
    MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d ZeroPad1d ZeroPad2d ConstantPad1d
    ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d CircularPad1d CircularPad2d
    PixelShuffle PixelUnshuffle ChannelShuffle Upsample UpsamplingNearest2d UpsamplingBilinear2d
"""
KNOWN: frozenset[type[nn.Module]] = frozenset(getattr(nn, name) for name in _RIGHT.split())
OWN = ("mamllit.backbones.", "mamllit.methods.")  # each class there has a row in the conformance tests


class Finding(NamedTuple):
    """How a network is run. `vectorised`: under `vmap`, else one by one; `why` says why not, or what was replaced."""

    vectorised: bool = True
    operators: Operators = "torch"
    why: str = ""


class Company(NamedTuple):
    """Whether a prediction depends on the other examples: on "none", through a batch "norm", or in some "other" manner.

    `operators`: with which the norm can be told to take its statistics from the support.
    """

    kind: Literal["none", "norm", "other"]
    operators: Operators = "torch"


_findings: WeakKeyDictionary[Method, dict[str, Finding]] = WeakKeyDictionary()
_companies: WeakKeyDictionary[Method, Company] = WeakKeyDictionary()


def unknown(method: nn.Module) -> dict[str, nn.Module]:
    """The modules, by name, that are not known to be right under `vmap`: of another class, or changed (a parametrisation)."""
    return {name: module for name, module in method.named_modules() if not _is_known(module)}


def _is_known(module: nn.Module) -> bool:
    if f"{type(module).__module__}.".startswith(OWN):
        return True
    names = {name for name, _ in module.named_parameters(recurse=False)}
    plain = names <= {"weight", "bias"} or isinstance(module, nn.ParameterList | nn.ParameterDict)
    return type(module) in KNOWN and plain and not dict(module.named_buffers(recurse=False))


@contextmanager
def running(operators: Operators, statistics_rows: int | None = None) -> Iterator[None]:
    """Within, attention is computed by products, which PyTorch can differentiate twice, and norms as `operators` says.

    `statistics_rows`: PyTorch's batch norms, where they are plain, use the statistics of the first so many examples.
    """
    if operators == "torch":
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), PlainNorms(statistics_rows) if operators == "plain" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def remembered(method: Method, kind: str, find: Callable[[], Finding]) -> Finding:
    """The finding of this `kind` for this method: made once, and said once where the episodes must run one by one."""
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
    small, double = sample(episodes), _widest(episodes)
    with _undisturbed(small, double):
        finding = _compared(method, small, run, what, double)
    if finding is None:
        with _undisturbed(small, None):
            finding = _compared(method, small, run, what, None)
    return finding or Finding(False, "math")  # the step itself will raise the error, as it is


def _compared(method: Method, small: Episode, run: Run, what: str, dtype: torch.dtype | None) -> Finding | None:
    """The finding in `dtype` (None: the network's own); None where the network does not run one by one either."""
    tried, small = _copy(method, dtype), _as(small, dtype)
    tolerance = 1e-2 if dtype is None else TOLERANCE
    before = {name: (value, value.clone()) for name, value in _state(tried)}
    random = torch.get_rng_state()
    try:
        expected = run(tried, Finding(False, "math"), small)
    except Exception as error:
        _refuse_changed(tried, before)
        if "would mutate a captured Tensor" in str(error):
            raise ValueError(
                f"the forward pass of {_blamed(tried, small)} writes in place to a tensor of its own. {_WRITING}"
            ) from error
        if "derivative" in str(error) or isinstance(error, NotImplementedError):
            raise ValueError(
                f"PyTorch has no second derivative of {_blamed(tried, small)} ({_first_line(error)}); use another module "
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
    why = f"PyTorch's vmap {trouble} for {_blamed(tried, small)}; the episodes run one by one (as with execution: loop)"
    return Finding(False, "math", why)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; inf where one is not finite, 0 where both are zero."""
    difference = (found - expected).norm()
    if not difference.isfinite():
        return float("inf")
    return float(difference / expected.norm().clamp_min(torch.finfo(expected.dtype).tiny))


# ---- company -------------------------------------------------------------------------------------------------------


def company(method: Method, episode: Episode | None = None) -> Company | None:
    """What a prediction of `method` depends on, found by trying on `episode` and remembered; None where it was never tried."""
    if method not in _companies and episode is not None:
        _companies[method] = _find_company(method, episode)
    return _companies.get(method)


def _find_company(method: Method, episode: Episode) -> Company:
    double = _widest(episode)
    try:
        with _undisturbed(episode, double), torch.no_grad():
            return _depends(_copy(method, double), _as(episode, double), 1e-9)
    except Exception:  # a network that does not run in float64
        pass
    try:
        with _undisturbed(episode, None), torch.no_grad():
            return _depends(_copy(method, None), _as(episode, None), 1e-3)
    except Exception:  # its own error, if it is one, comes with the first real prediction
        return Company("norm" if method.transductive else "none")


def _depends(tried: Method, episode: Episode, tolerance: float) -> Company:
    tried.eval()
    support, first = episode.support, episode.query.x[:1]
    replaced = (len(support.x) + 1) // 2
    one = torch.cat([first, support.x])
    other = torch.cat([first, first.expand(replaced, *first.shape[1:]), support.x[replaced:]])

    def differs(front: Tensor, operators: Operators, rows: int | None) -> bool:
        method = tried if rows is None else normalised_by_first(tried, rows)
        with running(operators, rows):
            a, b = (method.predict(state, torch.cat([front, x]))[len(front)] for x in (one, other))
        return bool((a - b).norm() > tolerance * a.norm().clamp_min(1e-6))

    with running("math"):
        state = tried.adapt(support, 1)
    if not differs(one[:0], "math", None):
        return Company("none")
    for operators in ("torch", "plain"):
        if not differs(support.x, operators, len(support.x)):
            return Company("norm", operators)
    return Company("other")


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


def _copy(method: Method, dtype: torch.dtype | None) -> Method:
    try:
        tried = copy.deepcopy(method)
    except Exception as error:
        raise ValueError(
            f"the network cannot be copied ({_first_line(error)}), as a module with the old torch.nn.utils.weight_norm cannot; "
            "use torch.nn.utils.parametrizations, and keep no computed tensor on a module"
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


def _as(episodes: Episode, dtype: torch.dtype | None) -> Episode:
    return tree_map(lambda t: t.detach().to(dtype) if dtype and t.is_floating_point() else t.detach(), episodes)


def _widest(episodes: Episode) -> torch.dtype | None:
    return None if episodes.support.x.device.type == "mps" else torch.float64


@contextmanager
def _undisturbed(episodes: Episode, dtype: torch.dtype | None) -> Iterator[None]:
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
    "Each task adapts a network of its own in the inner loop, and all would write there in turn: keep what is computed in "
    "local variables, use Embedding without max_norm, and weight_norm or orthogonal in place of spectral_norm"
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
    raise ValueError(f"the forward pass of {_named(tried, owner)} writes to {', '.join(changed)}. {_WRITING}")


# ---- which module is to blame --------------------------------------------------------------------------------------


def _blamed(tried: Method, small: Episode) -> str:
    """Names of the modules that fail by themselves; where none does, of all that are not known."""
    candidates = unknown(tried)
    try:
        inputs = _inputs(tried, candidates, small)
        failing: list[str] = []
        for name in sorted(inputs, key=lambda name: -name.count(".")):
            inside = any(other == name or other.startswith(f"{name}.") for other in failing)
            if not inside and not _right_alone(candidates[name], inputs[name]):
                failing.append(name)
    except Exception:  # no more than a better message hangs on this
        failing = []
    if not failing:
        leaves = [name for name in candidates if not any(other.startswith(f"{name}.") for other in candidates if name)]
        failing = [name for name in leaves if name] or list(candidates)
    return ", ".join(_named(tried, name) for name in sorted(failing))


def _named(tried: nn.Module, name: str) -> str:
    kind = type(tried.get_submodule(name)).__name__
    return f"{name} (a {kind})" if name else f"the {kind}"


def _inputs(tried: Method, modules: dict[str, nn.Module], small: Episode) -> dict[str, tuple[Any, ...]]:
    """What each module is called with in a prediction for one task."""
    found: dict[str, tuple[Any, ...]] = {}

    def hook(name: str) -> Callable[..., Any]:
        return lambda module, args: found.setdefault(name, tuple(args))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items() if name]
    try:
        with torch.no_grad(), running("math"):
            task = item(small, 0)
            tried.predict(tried.adapt(task.support, 0), task.query.x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _right_alone(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a derivative of a derivative of this one module is the same for two tasks under `vmap` and one by one."""
    params = {name: value.detach() for name, value in module.named_parameters()}
    first, *rest = args
    moving = isinstance(first, Tensor) and first.is_floating_point()

    def output(p: Params, x: Any) -> Tensor:
        value: Any = functional_call(module, p, (x, *rest))
        while not isinstance(value, Tensor):
            value = value[0]
        return value

    def slope(p: Params, x: Any, scale: Tensor) -> Tensor:
        def loss(p: Params, x: Any) -> Tensor:
            return (scale * output(p, x)).sin().sum()

        gradient = grad(loss)(p, x) if p else {}
        own = [value.square().sum() for value in gradient.values()]
        own += [grad(loss, argnums=1)(p, x).square().sum()] if moving else []
        return torch.stack(own).sum()

    def both(vectorised: bool) -> Tensor:
        scales = torch.tensor([0.5, 0.8], dtype=torch.get_default_dtype())
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        x = first.clone().requires_grad_() if moving else first
        own = {name: torch.stack([value, 1.1 * value]) for name, value in leaves.items()}
        if vectorised:
            slopes = vmap(slope, in_dims=(0, None, 0), randomness="different")(own, x, scales)
        else:
            each = [slope({name: value[i] for name, value in own.items()}, x, scales[i]) for i in range(2)]
            slopes = torch.stack(each)
        wanted = [*leaves.values(), *([x] if moving else [])]
        found = torch.autograd.grad(slopes.sum(), wanted, allow_unused=True, materialize_grads=True)
        return torch.cat([value.flatten() for value in found])

    module.eval()  # without dropout
    try:
        with torch.enable_grad(), running("math"):
            return relative(both(True), both(False)) <= TOLERANCE
    except Exception:
        return False
    finally:
        module.train()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
