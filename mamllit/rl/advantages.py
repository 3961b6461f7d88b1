"""Advantages of actions: a linear baseline per task, generalised advantage estimation, standardised per task.

As in the MAML authors' code: the baseline is fitted to the returns of the same trajectories before their advantages are taken,
and a trajectory that is cut at the horizon counts as ended (the value after it is 0).
"""

import torch
from torch import Tensor

from mamllit.rl.trajectories import Trajectories

RIDGE, TRIES, CLIP = 1e-5, 5, 10.0


def discounted(values: Tensor, factor: float, continued: Tensor) -> Tensor:
    """sum over l of factor^l values[..., t + l], as far as the trajectory of step t goes on (see `Trajectories.continued`)."""
    total, found = torch.zeros_like(values[..., 0]), torch.empty_like(values)
    for t in reversed(range(values.shape[-1])):
        total = values[..., t] + factor * continued[..., t] * total
        found[..., t] = total
    return found


def features(observations: Tensor, clock: Tensor) -> Tensor:
    """What the baseline is linear in: observations [..., H, O], squares, three powers of time, 1 (Duan et al. 2016)."""
    clipped = observations.clamp(-CLIP, CLIP).double()
    time = clock.double()[..., None] / 100
    return torch.cat([clipped, clipped.square(), time, time**2, time**3, torch.ones_like(time)], -1)


def baseline(trajectories: Trajectories, discount: float) -> Tensor:
    """The value of each step's observation, [T, K, H]: ridge regression of the returns from there, one solve for all tasks.

    The normal equations are in float64. Where they cannot be solved, the ridge is made ten times as large, up to five times.

    Raises:
        FloatingPointError: where they cannot be solved even so.
    """
    x = (features(trajectories.observations, trajectories.clock) * trajectories.valid[..., None]).flatten(1, 2)
    y = discounted(trajectories.rewards, discount, trajectories.continued).double().flatten(1)[..., None]
    gram, moment, unit = x.mT @ x, x.mT @ y, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for power in range(TRIES + 1):
        weights, _ = torch.linalg.solve_ex(gram + RIDGE * 10**power * unit, moment)
        if weights.isfinite().all():
            return (x @ weights)[..., 0].reshape(trajectories.rewards.shape).to(trajectories.rewards.dtype)
    largest, ridge = float(y.abs().max()), RIDGE * 10**TRIES
    raise FloatingPointError(f"the baseline cannot be fitted, with returns up to {largest:g} and a ridge of {ridge:g}")


def advantages(trajectories: Trajectories, discount: float, gae_lambda: float) -> Tensor:
    """Standardised advantages [T, K, H], 0 after a trajectory's end; J. Schulman et al. 2016, arXiv 1506.02438, equation 16.

    `gae_lambda` = 1 gives the return minus the baseline. Mean and standard deviation are those of a task's valid steps.
    """
    rewards, valid, continued = trajectories.rewards, trajectories.valid, trajectories.continued
    value = baseline(trajectories, discount)
    after = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1) * continued
    raw = discounted(rewards + discount * after - value, discount * gae_lambda, continued) * valid
    count = valid.sum((1, 2), keepdim=True)
    mean = raw.sum((1, 2), keepdim=True) / count
    deviation = (raw - mean) * valid
    return deviation / (deviation.square().sum((1, 2), keepdim=True) / count).sqrt().add(1e-8)
