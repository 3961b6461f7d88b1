"""The meta-loss as one would write it down: episode by episode, under plain autograd.

Every faster form in `mamllit.engine` is tested against it; who has read this need not read those.
"""

import torch
from torch import Tensor

from mamllit.core.episode import Episode
from mamllit.methods.base import Method


def mean_meta_loss(method: Method, episodes: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean `meta_loss` over a batch of T episodes, a scalar whose `backward` is the meta-gradient, and the mean logs."""
    losses, logs = zip(*(method.meta_loss(episode) for episode in episodes.tasks()), strict=True)
    means = {name: torch.stack([log[name] for log in logs]).mean().detach() for name in logs[0]}
    return torch.stack(losses).mean(), means
