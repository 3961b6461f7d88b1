"""What a policy's output means: a distribution over actions, with its sample, log-probability, divergence and metric.

An output is [..., d]. Everything is written for one output and broadcasts over what stands in front.
"""

import math
from typing import Protocol

import torch
from torch import Tensor


class Distribution(Protocol):
    """A family of distributions over actions [..., a], with parameters [..., d]."""

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """An action [..., a], a function of the parameters and of standard normal numbers `noise` [..., a]."""

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """Logarithm of the density or probability of the action, summed over its dimensions; [...]."""

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """Kullback-Leibler divergence KL(old || new); [...]."""

    def metric(self, output: Tensor, tangent: Tensor) -> Tensor:
        """The Fisher information at `output` times a `tangent`: the second derivative of `kl` in `new`, at `old`."""

    def entropy(self, output: Tensor) -> Tensor:
        """Entropy; [...]."""


class Gaussian:
    """Independent normal action dimensions: the output is [mean, log sigma], d = 2 a.

    >>> import torch
    >>> from mamllit.rl import Gaussian
    >>> Gaussian().log_prob(torch.zeros(2), torch.zeros(1)).item()  # -log(2 pi) / 2
    -0.9189385175704956
    """

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        return mean + log_std.exp() * noise

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        z = (action - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * action.shape[-1]

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        (mean, log_std), (new_mean, new_log_std) = old.chunk(2, -1), new.chunk(2, -1)
        spread = (2 * log_std).exp() + (mean - new_mean).square()
        return (new_log_std - log_std + spread * (-2 * new_log_std).exp() / 2 - 0.5).sum(-1)

    def metric(self, output: Tensor, tangent: Tensor) -> Tensor:
        log_std = output.chunk(2, -1)[1]
        of_mean, of_log_std = tangent.chunk(2, -1)
        return torch.cat([of_mean * (-2 * log_std).exp(), 2 * of_log_std], -1)

    def entropy(self, output: Tensor) -> Tensor:
        log_std = output.chunk(2, -1)[1]
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class Categorical:
    """One of d actions by its logit; an action is its number as a float, [..., 1].

    >>> import torch
    >>> from mamllit.rl import Categorical
    >>> Categorical().log_prob(torch.zeros(4), torch.tensor([2.0])).exp().item()
    0.25
    """

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        below = torch.special.ndtr(noise)  # uniform
        return (output.softmax(-1).cumsum(-1)[..., :-1] < below).sum(-1, keepdim=True).to(output.dtype)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        return output.log_softmax(-1).gather(-1, action.long())[..., 0]

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        old, new = old.log_softmax(-1), new.log_softmax(-1)
        return (old.exp() * (old - new)).sum(-1)

    def metric(self, output: Tensor, tangent: Tensor) -> Tensor:
        p = output.softmax(-1)
        return p * (tangent - (p * tangent).sum(-1, keepdim=True))

    def entropy(self, output: Tensor) -> Tensor:
        log_p = output.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
