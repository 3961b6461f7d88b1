"""Stein variational gradient descent: particles that follow their own and each other's log-density, and keep apart.

Q. Liu, D. Wang 2016, as used by Yoon et al. 2018. With P particles,

    theta_m <- theta_m + eps / P sum_j [k(theta_j, theta_m) grad log p(theta_j) + grad_(theta_j) k(theta_j, theta_m)]

and k(a, b) = exp(-|a - b|^2 / h), over all of a particle's parameters together. The bandwidth h is the median of all P x P
squared distances, the P zeros among them, divided by log P, and counts as a constant; of one particle, k is 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap

from mamllit.adaptation import Params


def kernel(particles: Params) -> tuple[Tensor, Tensor]:
    """k [P, P] and the bandwidth h, a scalar, of particles whose tensors are [P, ...]."""
    distance = torch.stack([(value[:, None] - value[None]).flatten(2).square().sum(-1) for value in particles.values()]).sum(0)
    count = len(distance)
    if count == 1:
        return torch.ones_like(distance), torch.ones_like(distance[0, 0])
    middle = distance.detach().flatten().sort().values
    median = (middle[(count * count - 1) // 2] + middle[count * count // 2]) / 2
    bandwidth = torch.where(median > 0, median / math.log(count), torch.ones_like(median))  # 1 where most are identical
    return torch.exp(-distance / bandwidth), bandwidth


def repulsion(particles: Params) -> Params:
    """sum_j grad_(theta_j) k(theta_j, theta_m) = 2/h (theta_m sum_j k_jm - sum_j k_jm theta_j), [P, ...]."""
    k, bandwidth = kernel(particles)
    return {
        name: 2 / bandwidth * (_scaled(k.sum(0), value) - torch.tensordot(k, value, 1)) for name, value in particles.items()
    }


def svgd_step(
    energy: Callable[[Params], Tensor], particles: Params, step_size: float, likelihood: float, first_order: bool
) -> Params:
    """One step of all particles, [P, ...] each.

    Args:
        energy: the loss of one particle, a scalar.
        step_size: eps.
        likelihood: log p is -`likelihood` times the energy. The step is divided by it, so that one particle moves by
            -eps grad energy whatever it is, and what it sets is how strongly the particles repel each other.
        first_order: treat the direction as a constant.
    """
    point = {name: value.detach() for name, value in particles.items()} if first_order else particles
    gradient = vmap(grad(energy))(point)
    k, _ = kernel(point)
    apart = repulsion(point)
    new = {}
    for name, value in particles.items():
        direction = apart[name] / likelihood - torch.tensordot(k, gradient[name], 1)
        new[name] = value + step_size / len(k) * direction
    return new


def _scaled(factor: Tensor, value: Tensor) -> Tensor:
    return factor.reshape(-1, *(1,) * (value.dim() - 1)) * value
