"""SVGD: the kernel and its gradient, and that the particles become samples of a known Gaussian."""

import math

import torch
from torch import Tensor

from mamllit.methods.parts.svgd import kernel, repulsion, svgd_step

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def cloud(count: int = 7) -> dict[str, Tensor]:
    return {"a": torch.randn(count, 3, 2, dtype=torch.float64), "b": torch.randn(count, 4, dtype=torch.float64)}


def flat(particles: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in particles.values()], 1)


def test_the_kernel_is_that_of_all_parameters_with_the_median_of_all_squared_distances() -> None:
    particles = cloud()
    k, bandwidth = kernel(particles)
    squared = torch.cdist(flat(particles), flat(particles)) ** 2
    expected = squared.flatten().quantile(0.5) / math.log(7)
    torch.testing.assert_close(bandwidth, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(k, torch.exp(-squared / bandwidth), rtol=1e-6, atol=1e-9)
    assert torch.equal(k, k.T)
    assert torch.equal(k.diagonal(), torch.ones(7, dtype=torch.float64))


def test_particles_near_each_other_and_far_from_the_origin_keep_their_distances_in_float32() -> None:
    """Products of the points themselves would have no digit of them left."""
    near = {name: 100 + 0.01 * value for name, value in cloud().items()}
    single = {name: value.float() for name, value in near.items()}
    exact = repulsion({name: value.double() for name, value in single.items()})
    torch.testing.assert_close(flat(repulsion(single)).double(), flat(exact), rtol=1e-4, atol=1e-3)
    assert flat(exact).abs().max() > 10


def test_convolutions_weights_move_as_if_they_were_flat() -> None:
    """Their memory order is that of channels-last images, and so is that of the result."""
    weight = torch.randn(4, 6, 3, 3, 5, dtype=torch.float64).movedim(-1, 2)
    found = svgd_step(lambda p: p["w"].sin().sum(), {"w": weight}, 0.1, 2.0, first_order=False)["w"]
    expected = svgd_step(lambda p: p["w"].sin().sum(), {"w": weight.flatten(1)}, 0.1, 2.0, first_order=False)["w"]
    torch.testing.assert_close(found.flatten(1), expected, **CLOSE)
    assert found.movedim(2, -1).is_contiguous()


def test_the_repulsion_is_the_kernels_gradient() -> None:
    """By autograd of sum_j k(theta_j, theta_m) with respect to theta_j, the bandwidth a constant."""
    particles = cloud()
    bandwidth, points = kernel(particles)[1], flat(particles)
    found = flat(repulsion(particles))
    for m in range(7):
        moving = points.clone().requires_grad_()
        value = torch.exp(-(moving - points[m]).square().sum(1) / bandwidth).sum()
        (gradient,) = torch.autograd.grad(value, moving)
        torch.testing.assert_close(found[m], gradient.sum(0), **CLOSE)


def test_the_bandwidth_is_a_constant() -> None:
    particles = {name: value.requires_grad_() for name, value in cloud().items()}
    assert not kernel(particles)[1].requires_grad


def test_one_particle_follows_its_own_gradient() -> None:
    particles = cloud(1)
    k, _ = kernel(particles)
    assert k.item() == 1
    assert all((value == 0).all() for value in repulsion(particles).values())
    new = svgd_step(lambda p: (p["a"] ** 2).sum() + (p["b"] ** 4).sum(), particles, 0.1, 30.0, first_order=False)
    torch.testing.assert_close(new["a"], 0.8 * particles["a"], **CLOSE)
    torch.testing.assert_close(new["b"], particles["b"] - 0.4 * particles["b"] ** 3, **CLOSE)


def test_identical_particles_stay_finite_and_together() -> None:
    particles = {"a": torch.ones(4, 2, dtype=torch.float64, requires_grad=True)}
    new = svgd_step(lambda p: (p["a"] ** 2).sum(), particles, 0.1, 1.0, first_order=False)
    torch.testing.assert_close(new["a"], torch.full((4, 2), 0.8, dtype=torch.float64), **CLOSE)
    (gradient,) = torch.autograd.grad(new["a"].sum(), particles["a"])
    assert gradient.isfinite().all()


def test_permuting_the_particles_permutes_the_result() -> None:
    particles, order = cloud(), torch.randperm(7)
    energy = lambda p: p["a"].sin().sum() + p["b"].square().sum()  # noqa: E731
    new = svgd_step(energy, particles, 0.1, 2.0, first_order=False)
    again = svgd_step(energy, {k: v[order] for k, v in particles.items()}, 0.1, 2.0, first_order=False)
    torch.testing.assert_close(again, {k: v[order] for k, v in new.items()}, **CLOSE)


def test_particles_become_samples_of_a_gaussian() -> None:
    """log p = -4 (x - mean)' P (x - mean) / 2: mean and standard deviations, within 5%."""
    mean, precision = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 4.0])
    particles = {"x": torch.randn(100, 2) * 0.5}
    for _ in range(500):
        particles = svgd_step(lambda p: 0.5 * (precision * (p["x"] - mean) ** 2).sum(), particles, 0.8, 4.0, first_order=True)
    x = particles["x"]
    torch.testing.assert_close(x.mean(0), mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(x.std(0), (4 * precision).rsqrt(), rtol=0.05, atol=0)
