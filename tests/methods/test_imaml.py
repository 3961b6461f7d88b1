"""iMAML: the closed form on a quadratic, central differences of a converged inner loop, and its limits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import MLP
from mamllit.core.episode import Episode, Examples
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import IMAML, MAML
from mamllit.methods.imaml import conjugate_gradients, inner
from mamllit.objectives import Classification, Regression


def one(episodes: Episode, i: int = 0) -> Episode:
    return Episode(*(Examples(part.x[i], part.y[i], part.ways) for part in episodes))


def on_sine(steps: int, lr: float = 0.02, proximity: float = 10.0, cg_steps: int = 40, norm: bool = False) -> IMAML:
    net = MLP(1, [5], 1, activation="tanh", norm=norm).double()
    return IMAML(net, Regression(), lr, steps, "mean", proximity, cg_steps)


def test_the_quadratic_closed_form() -> None:
    """f = x w: H = 2 X'X / n, phi = (H + lambda)^-1 (lambda theta + 2 X'y / n), g = (I + H / lambda)^-1 grad L_q(phi)."""
    support = Examples(torch.randn(6, 4).double(), torch.randn(6, 1).double())
    query = Examples(torch.randn(5, 4).double(), torch.randn(5, 1).double())
    net = nn.Linear(4, 1, bias=False).double()
    method = IMAML(net, Regression(), 0.1, 1, "mean", 0.7, cg_steps=4)
    x, y = support.x, support.y
    hessian, theta = 2 * x.T @ x / 6, net.weight.detach().T
    phi = torch.linalg.solve(hessian + 0.7 * torch.eye(4).double(), 0.7 * theta + 2 * x.T @ y / 6)
    at_query = 2 * query.x.T @ (query.x @ phi - query.y) / 5
    expected = torch.linalg.solve(torch.eye(4).double() + hessian / 0.7, at_query)
    loss, _ = method.outer_loss({"weight": phi.T}, Episode(support, query))
    torch.testing.assert_close(loss.detach(), (query.x @ phi - query.y).square().mean())
    torch.testing.assert_close(torch.autograd.grad(loss, net.weight)[0], expected.T, rtol=1e-9, atol=1e-11)


def test_the_inner_loop_ends_at_the_minimum_of_the_regularised_loss() -> None:
    support = Examples(torch.randn(6, 4).double(), torch.randn(6, 1).double())
    net = nn.Linear(4, 1, bias=False).double()
    state = IMAML(net, Regression(), 0.1, 400, "mean", 0.7).adapt(support)
    x, y = support.x, support.y
    matrix = 2 * x.T @ x / 6 + 0.7 * torch.eye(4).double()
    expected = torch.linalg.solve(matrix, 0.7 * net.weight.detach().T + 2 * x.T @ y / 6)
    torch.testing.assert_close(state["weight"], expected.T, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_the_meta_gradient_is_the_slope_once_the_inner_loop_has_converged(
    norm: bool, sine_episodes: Callable[..., Episode], assert_meta_gradient_is_the_slope: Callable[..., None]
) -> None:
    """With `norm`, also along the norm's shift, which the inner loop does not move but by which phi moves."""
    method = on_sine(100, norm=norm)
    assert ("norms.0.beta" in method.adapted) is False
    assert_meta_gradient_is_the_slope(method, sine_episodes(2, shots=8))


def test_equals_the_gradient_through_all_steps_of_a_converged_inner_loop(sine_episodes: Callable[..., Episode]) -> None:
    """Plain autograd through 200 proximal steps."""
    method, episode = on_sine(200), one(sine_episodes(1))
    theta = dict(method.backbone.named_parameters())
    phi = dict(theta)
    for _ in range(200):
        output = torch.func.functional_call(method.backbone, phi, (episode.support.x,))
        distance = inner(*({n: phi[n] - theta[n] for n in phi},) * 2)
        loss = (output - episode.support.y).square().mean() + 5.0 * distance
        gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {n: value - 0.02 * g for (n, value), g in zip(phi.items(), gradient, strict=True)}
    output = torch.func.functional_call(method.backbone, phi, (episode.query.x,))
    expected = torch.autograd.grad((output - episode.query.y).square().mean(), list(theta.values()))
    found = torch.autograd.grad(method.meta_loss(episode)[0], list(theta.values()))
    torch.testing.assert_close(list(found), list(expected), rtol=1e-6, atol=1e-8)


def test_a_strong_pull_gives_the_plain_query_gradient(sine_episodes: Callable[..., Episode]) -> None:
    """lambda = 1e9: phi = theta and g = grad L_q(theta), which is MAML without inner steps."""
    method, episodes = on_sine(3, lr=1e-10, proximity=1e9), sine_episodes(3)
    plain = MetaGradient(MAML(method.backbone, Regression(), 0.1, 0, "mean"))(episodes)
    step = MetaGradient(method)(episodes)
    torch.testing.assert_close(step._asdict(), plain._asdict(), rtol=1e-6, atol=1e-6)


def test_the_inner_loop_keeps_no_graph(sine_episodes: Callable[..., Episode]) -> None:
    state = on_sine(3).adapt(one(sine_episodes(1)).support)
    assert not any(value.requires_grad for value in state.values())


def test_damping_is_added_to_the_identity(sine_episodes: Callable[..., Episode]) -> None:
    """With lambda so large that H / lambda vanishes, damping 1 halves the gradient."""
    episode, method = one(sine_episodes(1)), on_sine(0, proximity=1e12)
    damped = IMAML(method.backbone, Regression(), 0.02, 0, "mean", 1e12, damping=1.0)
    for name, value in method.implicit_gradient(method.start(1), episode).items():
        torch.testing.assert_close(damped.implicit_gradient(method.start(1), episode)[name], value / 2)


def test_conjugate_gradients_solve_and_stay_at_the_solution() -> None:
    root = torch.randn(6, 6).double()
    matrix, right = root @ root.T + torch.eye(6).double(), {"a": torch.randn(4).double(), "b": torch.randn(2).double()}

    def product(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        image = matrix @ torch.cat([vector["a"], vector["b"]])
        return {"a": image[:4], "b": image[4:]}

    expected = torch.linalg.solve(matrix, torch.cat([right["a"], right["b"]]))
    for steps in (8, 60):
        found = conjugate_gradients(product, right, steps)
        torch.testing.assert_close(torch.cat([found["a"], found["b"]]), expected, rtol=1e-7, atol=1e-9)


def test_a_right_hand_side_of_zero_is_solved_by_zero() -> None:
    assert torch.equal(conjugate_gradients(lambda v: v, {"a": torch.zeros(3)}, 4)["a"], torch.zeros(3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"proximity": 0.0}, r"proximity is 0.0; it must be > 0"),
        ({"cg_steps": 0}, r"cg_steps is 0; it must be >= 1"),
        ({"damping": -1.0}, r"damping is -1.0; it must be >= 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    right = {
        "backbone": MLP(1, [4], 1), "objective": Classification(), "inner_lr": 0.1, "inner_steps": 1, "reduction": "mean",
        "proximity": 1.0,
    }  # fmt: skip
    IMAML(**right)
    with pytest.raises(ValueError, match=message):
        IMAML(**{**right, **wrong})
