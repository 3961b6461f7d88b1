"""The three inner losses against an enumerated Markov decision process: gradient and its derivative, exactly.

All trajectories stand in one "batch", each weighted by its probability (in place of `valid`), so that a loss is an expectation.
"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian

from mamllit.core.episode import Examples
from mamllit.methods import MAML
from mamllit.rl import Categorical, Happened, PolicyGradient, Tabular, pack, unpack

WORLD = Tabular(states=2, choices=2, horizon=2, seed=2)


def enumerated(task: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Observations [n, H, S], targets [n, H, 4] and probabilities [n] of every trajectory; advantages are rewards to come."""
    states, actions, rewards = [], [], []
    for choices in itertools.product(range(WORLD.choices), repeat=WORLD.horizon):
        state, path, reward = 0, [], []
        for choice in choices:
            path.append(state)
            reward.append(task[state * WORLD.choices + choice])
            state = int(WORLD.successor[state, choice])
        states.append(path)
        actions.append(choices)
        rewards.append(torch.stack(reward))
    x = torch.nn.functional.one_hot(torch.tensor(states), WORLD.observations).double()
    action = torch.tensor(actions).double()[..., None]
    old = Categorical().log_prob(x @ logits, action).detach()
    to_come = torch.stack(rewards).flip(-1).cumsum(-1).flip(-1)
    return x, pack(Happened(action, to_come, old, torch.ones_like(old))), old.sum(-1).exp()


def expected_loss(inner: str, logits: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Of the sum over a trajectory's steps, in the place of the mean."""
    objective = PolicyGradient(inner, Categorical())  # type: ignore[arg-type]
    return sum(w * objective.loss(x[i] @ logits, y[i]) for i, w in enumerate(weight)) * WORLD.horizon  # type: ignore[return-value]


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return WORLD.tasks(torch.rand(1, 4, dtype=torch.float64))[0], torch.randn(2, 2, dtype=torch.float64)


def errors(problem: tuple[Tensor, Tensor], inner: str) -> tuple[float, float]:
    """Relative errors of gradient and second derivative against those of the exact value."""
    task, logits = problem
    x, y, weight = enumerated(task, logits)
    assert weight.sum().item() == pytest.approx(1.0)
    loss = lambda at: expected_loss(inner, at, x, y, weight)  # noqa: E731
    value = lambda at: -WORLD.value(task, at)  # noqa: E731
    first, second = grad(value)(logits), hessian(value)(logits)
    return (
        ((grad(loss)(logits) - first).norm() / first.norm()).item(),
        ((hessian(loss)(logits) - second).norm() / second.norm()).item(),
    )


def test_all_three_have_the_exact_gradient_and_dice_alone_the_exact_second_derivative(problem: tuple[Tensor, Tensor]) -> None:
    log, ratio, dice = (errors(problem, inner) for inner in ("log", "ratio", "dice"))
    assert max(log[0], ratio[0], dice[0]) < 1e-12
    assert log[1] > 0.5
    assert ratio[1] < 0.25 * log[1]
    assert dice[1] < 1e-12


def test_the_jacobian_of_an_inner_step_through_dice_is_that_of_the_exact_value(problem: tuple[Tensor, Tensor]) -> None:
    """By the method itself: d(theta - alpha grad loss)/d theta, with trajectories as its examples."""
    task, logits = problem
    x, y, weight = enumerated(task, logits)
    happened = unpack(y)
    # a probability as a trajectory's weight: `valid` of dice must be 0 or 1, so it goes to the advantages instead
    y = pack(happened._replace(advantage=happened.advantage * (weight * len(weight))[:, None]))
    policy = torch.nn.Linear(2, 2, bias=False).double()
    policy.weight.data = logits.T.contiguous()
    method = MAML(policy, PolicyGradient("dice", Categorical()), 0.1, 1, "mean")
    step = lambda at: method.step({"weight": at}, Examples(x, y))["weight"]  # noqa: E731
    exact = lambda at: at + 0.1 / WORLD.horizon * grad(lambda w: WORLD.value(task, w.T))(at)  # noqa: E731
    point = policy.weight.detach()
    torch.testing.assert_close(step(point), exact(point), rtol=1e-12, atol=1e-12)
    jacobian = torch.func.jacrev
    torch.testing.assert_close(jacobian(step)(point), jacobian(exact)(point), rtol=1e-12, atol=1e-12)


def test_off_the_policy_that_acted_ratio_and_dice_weigh_and_log_does_not() -> None:
    """Away from it, where the line search judges, the two are importance-weighted; at it, all steps have weight 1."""
    old, y = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0, -0.6931472, 1.0]]])
    new = torch.tensor([[[1.0, 0.0]]])
    gain = {inner: -PolicyGradient(inner, Categorical()).loss(new, y).item() for inner in ("log", "ratio", "dice")}  # type: ignore[arg-type]
    assert gain["ratio"] == pytest.approx(2 * 0.7310586)
    assert gain["dice"] == pytest.approx(2 * 0.7310586 - 1)
    assert gain["log"] == pytest.approx(-0.3132617)
    assert PolicyGradient(distribution=Categorical()).surrogate(old, y).item() == pytest.approx(-1.0)


def test_steps_after_the_end_count_nowhere() -> None:
    torch.manual_seed(0)
    output, y = torch.randn(3, 5, 4), torch.randn(3, 5, 5)
    y[..., -1] = 0
    y[:, :2, -1] = 1
    for inner in ("log", "ratio", "dice"):
        objective = PolicyGradient(inner)  # type: ignore[arg-type]
        torch.testing.assert_close(objective.loss(output, y), objective.loss(output[:, :2], y[:, :2]))
        torch.testing.assert_close(objective.surrogate(output, y), objective.surrogate(output[:, :2], y[:, :2]))


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inner is 'lvc'; it must be one of \['log', 'ratio', 'dice'\]"):
        PolicyGradient("lvc")  # type: ignore[arg-type]
