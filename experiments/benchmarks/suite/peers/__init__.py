"""The competitors, one file each, behind one interface.

A file has `build(row, dtype, device)`, which returns a `Competitor`. It raises `ImportError` where its library is not there,
and `Unsupported` where the library cannot do the row; both cost the competitor its cells and nothing else.
"""

import importlib
from typing import Any, Protocol

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from suite.problems import Problem

FILES = {
    "mamllit": "mamllit_compiled",
    "mamllit-eager": "mamllit_eager",
    "learn2learn": "learn2learn_maml",
    "higher": "higher_innerloop",
    "torchopt": "torchopt_metasgd",
    "autograd": "autograd_loop",
    "jax": "jax_vmap",
    "jax-map": "jax_map",
}


class Unsupported(Exception):
    """The library has no way to do what the row asks."""


class Competitor(Protocol):
    """A network in meta-training by one library."""

    def prepare(self, episodes: Episode) -> Any:
        """The batch as the library wants it, once and not timed."""

    def gradient(self, batch: Any) -> dict[str, Tensor]:
        """The meta-gradient, mean over the tasks, by parameter name; nothing is updated."""

    def step(self, batch: Any) -> None:
        """Zero the gradient, forward, backward, Adam; finished when it returns (but for CUDA's queue)."""


def build(name: str, row: Problem, dtype: torch.dtype, device: str) -> Competitor:
    """The competitor `name`, with the row's seeded weights; or the method of the experiment whose YAML `name` is the path of.

    Raises:
        ValueError: for an unknown name.
        ImportError: where the library is not there.
        Unsupported: where it cannot do the row.
    """
    if name.endswith(".yaml"):
        made: Competitor = importlib.import_module("suite.peers.cell").build(name, row, dtype, device)
        return made
    if name not in FILES:
        raise ValueError(f"there is no competitor {name!r}; there are {', '.join(FILES)}")
    return importlib.import_module(f"suite.peers.{FILES[name]}").build(row, dtype, device)
