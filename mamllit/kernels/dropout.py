"""The factors of dropout as an operator that no tracer looks into: a generator that begins at a key, and is gone thereafter.

The numbers of `mamllit.core.noise` are plain arithmetic on integers, some thirty passes over memory; for the maps of a
convolutional net that takes as long as its training step. What a generator gives is a function of its seed alone, as those are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake, register_vmap

from mamllit.kernels.operators import opaque

STREAM = 0x9E3779B9  # between the seeds of two streams, modulo 2**32


def _factors(key: Tensor, stream: int, shape: Sequence[int], share: float, dtype: torch.dtype) -> Tensor:
    random = torch.Generator(key.device).manual_seed((int(key) + stream * STREAM) % 2**32)
    kept = torch.rand(shape, generator=random, device=key.device) >= share
    return kept.to(dtype).div_(1 - share)


_operator = opaque("dropout_factors", _factors)


@register_fake("mamllit::dropout_factors")
def _(key: Tensor, stream: int, shape: Sequence[int], share: float, dtype: torch.dtype) -> Tensor:
    return key.new_empty(shape, dtype=dtype)


@register_vmap("mamllit::dropout_factors")
def _(info: Any, in_dims: Any, key: Tensor, *settings: Any) -> tuple[Tensor, int]:
    return torch.stack([_operator(own, *settings) for own in key.unbind(in_dims[0])]), 0


def factors(key: Tensor, stream: int, shape: Sequence[int], share: float, dtype: torch.dtype) -> Tensor:
    """Of `shape`, 0 with the chance `share`, else 1 / (1 - share).

    Args:
        key: a scalar int64, from `mamllit.core.noise`; the same key gives the same factors.
        stream: draws with different streams (layers) are independent of each other.
    """
    made: Tensor = _operator(key, stream, shape, share, dtype)
    return made
