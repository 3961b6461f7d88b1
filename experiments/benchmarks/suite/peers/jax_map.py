"""JAX with the tasks one after the other inside one program, which spares it the grouped convolution that vmap makes."""

from collections.abc import Callable

import jax
import torch

from suite.peers.jax_vmap import Jax
from suite.problems import Problem


def one_by_one(function: Callable) -> Callable:
    return lambda episodes: jax.lax.map(function, episodes)


def build(row: Problem, dtype: torch.dtype, device: str) -> Jax:
    return Jax(row, dtype, device, one_by_one)
