"""Stein variational gradient descent: particles that follow their own and each other's log-density, and keep apart.

Q. Liu, D. Wang 2016, as used by Yoon et al. 2018. With P particles,

    theta_m <- theta_m + eps / P sum_j [k(theta_j, theta_m) grad log p(theta_j) + grad_(theta_j) k(theta_j, theta_m)]

and k(a, b) = exp(-|a - b|^2 / h), over all of a particle's parameters together. The bandwidth h is the median of all P x P
squared distances, the P zeros among them, divided by log P, and counts as a constant; of one particle, k is 1. All
distances come from one matrix product of the particles seen from the first, not from the P x P differences.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap

from mamllit.core.inner_loop import Params


def kernel(particles: Params) -> tuple[Tensor, Tensor]:
    """k [P, P] and the bandwidth h, a scalar, of particles whose tensors are [P, ...].

    They are the same for particles that are moved together; rounding is least near the origin (see `offsets`).
    """
    rows = [_in_memory_order(value).flatten(1) for value in particles.values()]
    products = torch.stack([value @ value.mT for value in rows]).sum(0)
    products = (products + products.mT) / 2  # symmetric to the last digit, too
    lengths = products.diagonal()
    distance = (lengths[:, None] + lengths[None] - 2 * products).clamp_min(0)
    count = len(distance)
    if count == 1:
        return torch.ones_like(distance), torch.ones_like(distance[0, 0])
    middle = distance.detach().flatten().sort().values
    median = (middle[(count * count - 1) // 2] + middle[count * count // 2]) / 2
    different = median > 8 * torch.finfo(median.dtype).eps * middle[-1]  # no more than rounding where most are identical
    bandwidth = torch.where(different, median / math.log(count), torch.ones_like(median))
    return torch.exp(-distance / bandwidth), bandwidth


def repulsion(particles: Params) -> Params:
    """sum_j grad_(theta_j) k(theta_j, theta_m) = 2/h sum_j k_jm (theta_m - theta_j), [P, ...]."""
    moved = offsets(particles)
    apart = _apart(*kernel(moved))
    return {name: _mixed(apart, value) for name, value in moved.items()}


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
    gradient, moved = vmap(grad(energy))(point), offsets(point)
    k, bandwidth = kernel(moved)
    apart = _apart(k, bandwidth) / likelihood
    new = {}
    for name, value in particles.items():
        direction = _mixed(apart, moved[name]) - _mixed(k.mT, gradient[name])
        new[name] = value + step_size / len(k) * direction
    return new


def offsets(particles: Params) -> Params:
    """The particles seen from the first. Where they lie close together, products of these keep the digits of their distances;
    products of the particles themselves would lose them."""
    return {name: value - value[:1] for name, value in particles.items()}


def _apart(k: Tensor, bandwidth: Tensor) -> Tensor:
    """The matrix [P, P] whose product with the particles is their repulsion; its rows sum to zero, so `offsets` do as well."""
    return 2 / bandwidth * (torch.diag(k.sum(0)) - k.mT)


def _mixed(matrix: Tensor, value: Tensor) -> Tensor:
    """sum_j matrix_mj value_j of `value` [P, ...]."""
    seen = _in_memory_order(value)
    mixed = (matrix @ seen.flatten(1)).reshape(seen.shape)
    return mixed.movedim(-1, 2) if value.dim() == 5 else mixed


def _in_memory_order(value: Tensor) -> Tensor:
    """Weights of convolutions [P, O, C, k, k] as [P, O, k, k, C], as they lie in memory: to flatten them copies nothing."""
    return value.movedim(2, -1) if value.dim() == 5 else value
