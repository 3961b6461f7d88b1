"""Worlds, and what is known of their returns."""

import math

import pytest
import torch
from torch import Tensor

from mamllit.rl import Gaussian, GaussianPolicy, Navigation, Noise, Revealed, Tabular, World, rollout
from mamllit.rl.trajectories import Trajectories, check_finite


def returns(act_in: Tensor, act: object, trajectories: int = 1) -> float:
    noise = Noise(0, "test", tuple(range(len(act_in))))
    world = Revealed(Navigation())
    found = rollout(world, act_in, noise, 0, trajectories, act, Gaussian())  # type: ignore[arg-type]
    return found.returns.mean().item()


def deterministic(mean: Tensor) -> Tensor:
    return torch.cat([mean, torch.full_like(mean, -math.inf)], -1)


def test_landmarks_on_the_paper_s_forty_goals() -> None:
    """Standing still, and going straight to the goal; both worked out by hand from the authors' goals."""
    goals = Navigation().paper_tasks()
    assert goals.shape == (40, 2)
    still = returns(goals, lambda o: deterministic(torch.zeros_like(o[..., :2])))
    greedy = returns(goals, lambda o: deterministic((o[..., 2:] - o[..., :2]) / 0.1))
    assert still == pytest.approx(-40.0823, abs=1e-3)
    assert greedy == pytest.approx(-0.5441, abs=1e-3)


def test_a_navigation_trajectory_ends_near_the_goal_and_counts_nothing_after() -> None:
    goals = torch.tensor([[0.1, 0.0], [0.4, 0.4]])
    world = Revealed(Navigation(horizon=6))
    noise = Noise(0, "test", (0, 1))
    found = rollout(world, goals, noise, 0, 2, lambda o: deterministic((o[..., 2:] - o[..., :2]) / 0.1), Gaussian())
    assert found.valid[:, 0].tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert found.rewards[0, 0, 1:].abs().sum() == 0
    assert found.rewards[1, 0].sum().item() == pytest.approx(-math.sqrt(2) * (0.3 + 0.2 + 0.1), abs=1e-5)


def test_tasks_are_in_their_ranges_and_only_navigation_has_the_paper_s() -> None:
    numbers = torch.rand(100, 2)
    assert Navigation().tasks(numbers).abs().max() <= 0.5
    with pytest.raises(ValueError, match=r"Tabular has no published test tasks; leave the protocol 'paper' out"):
        Tabular().paper_tasks()


def test_the_tabular_world_s_value_is_the_mean_return_by_sampling() -> None:
    from mamllit.rl import Categorical

    world, logits = Tabular(states=3, choices=2, horizon=4), torch.randn(3, 2)
    task = world.tasks(torch.rand(1, 6))
    found = rollout(world, task, Noise(0, "train", (0,)), 0, 20_000, lambda o: o @ logits, Categorical())
    spread = found.rewards.sum(-1).std().item() / math.sqrt(20_000)
    assert found.returns.mean().item() == pytest.approx(world.value(task[0], logits).item(), abs=4 * spread)


def test_noise_belongs_to_the_task() -> None:
    """Whichever tasks stand beside it; other phases, splits, seeds and tasks have others."""
    alone, among = Noise(3, "val", (7,)), Noise(3, "val", (5, 6, 7))
    assert torch.equal(alone.normal(2, (4, 5))[0], among.normal(2, (4, 5))[2])
    assert torch.equal(alone.normal(2, (100,))[0, :10], alone.normal(2, (10,))[0])
    others = [Noise(3, "val", (8,)), Noise(4, "val", (7,)), Noise(3, "test", (7,))]
    numbers = [alone.normal(3, (20,)), *(other.normal(2, (20,)) for other in [alone, *others])]
    assert len({tuple(value[0].tolist()) for value in numbers}) == 5
    many = Noise(0, "train", (0,)).normal(0, (100_000,))
    assert many.isfinite().all()
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.01 and abs((many**4).mean() - 3) < 0.15


def test_a_task_s_trajectories_do_not_depend_on_its_company() -> None:
    policy, world = GaussianPolicy(2, 2), Navigation()
    goals = world.paper_tasks()[:3]
    act = lambda o: policy(o)  # noqa: E731
    together = rollout(world, goals, Noise(0, "test", (0, 1, 2)), 1, 4, act, Gaussian())
    alone = rollout(world, goals[1:2], Noise(0, "test", (1,)), 1, 4, act, Gaussian())
    torch.testing.assert_close(together.rewards[1:2], alone.rewards, rtol=0, atol=1e-4)


def test_numbers_that_are_not_finite_stop_with_the_tasks_named() -> None:
    fine = torch.zeros(2, 1, 1, 2)
    bad = Trajectories(fine, fine, torch.tensor([[[0.0]], [[math.nan]]]), torch.ones(2, 1, 1), torch.zeros(2, 1, 1))
    with pytest.raises(FloatingPointError, match=r"in Navigation are not finite in 1 of 2 tasks: goal_x 0\.25, goal_y -0\.5"):
        check_finite(bad, torch.tensor([[0.1, 0.1], [0.25, -0.5]]), Navigation())
    check_finite(bad._replace(rewards=bad.rewards.nan_to_num()), torch.zeros(2, 2), Navigation())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Navigation(horizon=0), r"horizon is 0; it must be >= 1"),
        (lambda: Tabular(states=0, choices=1), r"states is 0; it must be >= 1; choices is 1; it must be >= 2"),
        (lambda: Noise(-1, "test", ()), r"seed is -1; it must be >= 0"),
        (lambda: Noise(0, "tests", ()), r"split is 'tests'; it must be one of"),
        (lambda: GaussianPolicy(0, 2), r"observations is 0, actions 2, hidden \[100, 100\]; each must be >= 1"),
        (lambda: GaussianPolicy(2, 2, activation="gelu"), r"activation is 'gelu'; it must be one of \['relu', 'tanh'\]"),
        (lambda: GaussianPolicy(2, 2, std=0.0), r"std is 0\.0; it must be > 0"),
        (lambda: GaussianPolicy(2, 2, init="zero"), r"init is 'zero'; it must be one of \['xavier', 'torch'\]"),
    ],
)
def test_what_is_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]


def test_a_world_s_plain_parts() -> None:
    world: World = Revealed(Navigation())
    assert world.places(torch.ones(3, 4)).shape == (3, 2)  # type: ignore[union-attr]
    assert Tabular().places(torch.ones(3, 2)) is None


def test_initial_weights_are_the_authors_or_those_of_linear_layers() -> None:
    for init, bound in (("xavier", math.sqrt(6 / 106)), ("torch", 0.1)):
        policy = GaussianPolicy(20, 6, init=init)
        largest = float(policy.head.mean.weight.detach().abs().max())
        assert 0.9 * bound < largest <= bound
        assert (policy.head.mean.bias == 0).all() == (init == "xavier")
