"""The objective of an inner step on trajectories, in the three forms whose gradients agree and whose second derivatives do not.

An example of a task is one trajectory: inputs x [K, H, O] are observations, targets y [K, H, a + 3] what happened there, see
`pack`. Written so, policy gradient is one more `Objective`, and MAML, ANIL, Meta-SGD, CAVIA adapt to trajectories as they are.

With A the advantage of the action at step t, pi the policy and pi_0 the one that acted, the inner loss is minus the mean over
all steps of

- `log`: log pi A, the paper's (Finn et al. 2017, equation 5). Its second derivative lacks how the parameters change which
  trajectories are sampled, and is wrong by more than its own size on a small problem (tests/rl/test_estimators.py).
- `ratio`: pi / pi_0 A, that of ProMP (J. Rothfuss et al., ICLR 2019, arXiv 1810.06784): low variance, nearly unbiased.
- `dice`: (c_t - c_(t-1)) A with c_t the product of pi / pi_0 up to step t (J. Foerster et al., ICML 2018, arXiv 1802.05098,
  with the baseline of G. Farquhar et al., NeurIPS 2019, arXiv 1909.10549): all derivatives unbiased, of high variance.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mamllit.rl.distributions import Categorical, Distribution, Gaussian

Estimator = Literal["log", "ratio", "dice"]


class Happened(NamedTuple):
    """The targets of trajectories: `action` [..., H, a]; `advantage`, `old` (log-probability under the policy that acted) and
    `valid` (1 until the trajectory ended, then 0), each [..., H]."""

    action: Tensor
    advantage: Tensor
    old: Tensor
    valid: Tensor


def pack(happened: Happened) -> Tensor:
    """As one tensor [..., H, a + 3], the `y` of `Examples`."""
    return torch.cat([happened.action, torch.stack(happened[1:], -1)], -1)


def unpack(y: Tensor) -> Happened:
    """What `pack` was given."""
    return Happened(y[..., :-3], y[..., -3], y[..., -2], y[..., -1])


def mean_over_steps(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of `values` [K, H] over the steps that are `valid`; those after a trajectory's end count nowhere."""
    return (values * valid).sum() / valid.sum().clamp(min=1e-12)


class PolicyGradient:
    """The surrogate loss of a policy's return on one task's trajectories.

    Args:
        inner: which form an inner step differentiates, see the module.
        distribution: what the policy's outputs mean.

    Raises:
        ValueError: for an unknown form.

    >>> import torch
    >>> from mamllit.rl import GaussianPolicy, PolicyGradient, Happened, pack
    >>> policy, objective = GaussianPolicy(2, 1), PolicyGradient()
    >>> output = policy(torch.zeros(5, 10, 2))
    >>> happened = Happened(torch.zeros(5, 10, 1), torch.ones(5, 10), torch.zeros(5, 10), torch.ones(5, 10))
    >>> round(objective.loss(output, pack(happened)).item(), 4)  # minus the log-density of a standard normal at zero
    0.9189
    """

    metric_name = "return"
    higher_is_better = True
    counted = "trajectories"

    def __init__(self, inner: Estimator = "log", distribution: Distribution | None = None) -> None:
        if inner not in get_args(Estimator):
            raise ValueError(f"inner is {inner!r}; it must be one of {list(get_args(Estimator))}")
        self.inner = inner
        self.distribution: Distribution = Gaussian() if distribution is None else distribution

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        happened = unpack(y)
        log_prob = self.distribution.log_prob(output, happened.action)
        if self.inner == "log":
            weight = log_prob
        elif self.inner == "ratio":
            weight = (log_prob - happened.old).exp()
        else:
            total = ((log_prob - happened.old) * happened.valid).cumsum(-1)
            before = torch.cat([torch.zeros_like(total[..., :1]), total[..., :-1]], -1)
            weight = total.exp() - before.exp()
        return -mean_over_steps(weight * happened.advantage, happened.valid)

    def surrogate(self, output: Tensor, y: Tensor, clip: float | None = None) -> Tensor:
        """Minus the mean of pi / pi_0 A: the outer loss, whose value says how a changed policy would do on these steps.

        With `clip`, a ratio that is better than 1 + clip, or 1 - clip where A < 0, counts as that (J. Schulman et al. 2017,
        arXiv 1707.06347, equation 7).
        """
        happened = unpack(y)
        ratio = (self.distribution.log_prob(output, happened.action) - happened.old).exp()
        gain = ratio * happened.advantage
        if clip is not None:
            gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * happened.advantage)
        return -mean_over_steps(gain, happened.valid)

    def metric(self, output: Tensor, y: Tensor) -> Tensor:
        """The surrogate's gain; a return itself is only measured by acting."""
        return -self.surrogate(output, y)

    def fisher_roots(self, output: Tensor) -> Tensor:
        """Square roots of the Fisher information of each output, [d, ..., d]."""
        unit = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
        unit = unit.reshape(len(unit), *(1,) * (output.dim() - 1), -1)
        if isinstance(self.distribution, Categorical):
            p = output.softmax(-1)
            return p.movedim(-1, 0).sqrt()[..., None] * (unit - p)
        return unit * self.distribution.metric(output, torch.ones_like(output)).sqrt()

    def average(self, outputs: Tensor) -> Tensor:
        """The mean of the parameters."""
        return outputs.mean(0)
