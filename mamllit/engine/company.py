"""What a prediction depends on besides its own example: nothing, the other examples through a batch norm, or otherwise."""

from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mamllit.backbones.first_rows import normalised_by_first
from mamllit.core.episode import Episode
from mamllit.engine.known import Operators, running
from mamllit.engine.trial import in_dtype, noisy_copy, undisturbed, widest
from mamllit.methods.base import Method


class Company(NamedTuple):
    """Whether a prediction depends on the other examples: "none", through a batch "norm", or "other".

    `operators`: those with which the norm can use the support's statistics.
    """

    kind: Literal["none", "norm", "other"]
    operators: Operators = "torch"


_companies: WeakKeyDictionary[Method, Company] = WeakKeyDictionary()


def company(method: Method, episode: Episode | None = None) -> Company | None:
    """What a prediction of `method` depends on, found by a trial on `episode` and remembered; None without a trial."""
    if method not in _companies and episode is not None:
        _companies[method] = _find_company(method, episode)
    return _companies.get(method)


def _find_company(method: Method, episode: Episode) -> Company:
    double = widest(episode)
    try:
        with undisturbed(episode, double), torch.no_grad():
            return _depends(noisy_copy(method, double), in_dtype(episode, double), 1e-9)
    except Exception:  # a network that does not run in float64
        pass
    try:
        with undisturbed(episode, None), torch.no_grad():
            return _depends(noisy_copy(method, None), in_dtype(episode, None), 1e-3)
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
