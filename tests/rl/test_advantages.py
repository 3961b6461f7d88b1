"""Baseline and advantages against NumPy, trajectory by trajectory."""

import numpy as np
import pytest
import torch

from mamllit.rl import Gaussian, GaussianPolicy, Navigation, Noise, Trajectories, advantages, baseline, rollout
from mamllit.rl.advantages import discounted, features


def numpy_baseline(found: Trajectories, task: int, discount: float) -> list[np.ndarray]:
    """As the authors' linear feature baseline: least squares on the steps that were made."""
    rows, returns = [], []
    for k in range(found.rewards.shape[1]):
        length = int(found.valid[task, k].sum())
        o = np.clip(found.observations[task, k, :length].numpy(), -10, 10)
        t = np.arange(length)[:, None] / 100.0
        rows.append(np.concatenate([o, o**2, t, t**2, t**3, np.ones((length, 1))], 1))
        r = found.rewards[task, k, :length].numpy()
        returns.append(np.array([sum(discount ** (j - i) * r[j] for j in range(i, length)) for i in range(length)]))
    x, y = np.concatenate(rows), np.concatenate(returns)
    weights = np.linalg.lstsq(x.T @ x + 1e-5 * np.eye(x.shape[1]), x.T @ y, rcond=None)[0]
    return [part @ weights for part in rows]


def test_baseline_and_advantages_are_numpy_s(trajectories: Trajectories) -> None:
    values, found = baseline(trajectories, 0.9), advantages(trajectories, 0.9, 0.7)
    for task in range(3):
        expected = numpy_baseline(trajectories, task, 0.9)
        raw = []
        for k, value in enumerate(expected):
            r = trajectories.rewards[task, k, : len(value)].numpy()
            after = np.append(value[1:], 0.0)
            delta = r + 0.9 * after - value
            raw.append(np.array([sum((0.9 * 0.7) ** (j - i) * delta[j] for j in range(i, len(r))) for i in range(len(r))]))
            np.testing.assert_allclose(values[task, k, : len(r)], value, rtol=1e-6, atol=1e-6)
            assert found[task, k, len(r) :].abs().sum() == 0
        every = np.concatenate(raw)
        for k, part in enumerate(raw):
            got = found[task, k, : len(part)]
            np.testing.assert_allclose(got, (part - every.mean()) / (every.std() + 1e-8), rtol=1e-5, atol=1e-6)


def test_with_lambda_1_an_advantage_is_the_return_minus_the_baseline(trajectories: Trajectories) -> None:
    raw = (discounted(trajectories.rewards, 0.9, trajectories.continued) - baseline(trajectories, 0.9)) * trajectories.valid
    count = trajectories.valid.sum((1, 2), keepdim=True)
    centred = (raw - raw.sum((1, 2), keepdim=True) / count) * trajectories.valid
    found = advantages(trajectories, 0.9, 1.0)
    torch.testing.assert_close(found, centred / (centred.square().sum((1, 2), keepdim=True) / count).sqrt())


def test_what_comes_after_the_end_changes_nothing(trajectories: Trajectories) -> None:
    other = torch.where(trajectories.valid[..., None] > 0, trajectories.observations, 123.0)
    torch.testing.assert_close(
        advantages(trajectories._replace(observations=other), 0.9, 0.9), advantages(trajectories, 0.9, 0.9)
    )


def test_features_are_clipped_and_equal_rewards_give_no_advantage() -> None:
    assert features(torch.full((1, 2, 1), 50.0), torch.tensor([[0.0, 1.0]]))[0, 1].tolist() == pytest.approx(
        [10, 100, 1e-2, 1e-4, 1e-6, 1]
    )
    same = Trajectories(
        torch.zeros(1, 2, 3, 1),
        torch.zeros(1, 2, 3, 1),
        torch.zeros(1, 2, 3),
        torch.ones(1, 2, 3),
        torch.arange(3.0).expand(1, 2, 3),
    )
    assert advantages(same, 0.9, 1.0).abs().max() == 0


def test_a_budget_of_steps_fills_rows_with_trajectories_that_count_as_their_own() -> None:
    """Rows of several trajectories, and the same trajectories in a row each: lengths, returns and advantages are equal."""
    torch.manual_seed(0)
    policy, world, noise = GaussianPolicy(2, 2, std=0.3), Navigation(horizon=40), Noise(0, "test", (0, 1))
    goals = torch.tensor([[0.2, -0.1], [0.1, 0.1]])
    towards = lambda o: torch.cat([(goals[:, None] - o) * 5, policy(o)[..., 2:]], -1)  # noqa: E731
    found = rollout(world, goals, noise, 1, 3, towards, Gaussian(), refill=True)
    worth = advantages(found, 0.99, 0.95)
    for task in range(2):
        alone, parts = [], []
        for row in range(3):
            clock, valid = found.clock[task, row], found.valid[task, row]
            begins = [t for t in range(40) if clock[t] == 0]
            for begin, end in zip(begins, [*begins[1:], 40], strict=True):
                assert found.observations[task, row, begin].abs().sum() == 0
                assert clock[begin:end].tolist() == list(range(end - begin))
                assert len(set(valid[begin:end].tolist())) == 1  # all of it or nothing
                last = found.observations[task, row, end - 1] + 0.1 * found.actions[task, row, end - 1].clamp(-1, 1)
                reached = bool(((last - goals[task]).abs() < 0.01).all())
                assert bool(valid[begin]) == (reached or begin == 0)
                if valid[begin]:
                    alone.append([pad(value[task, row, begin:end]) for value in found])
                    parts.append(worth[task, row, begin:end])
        assert len(alone) > 3
        single = Trajectories(*(torch.stack(values)[None] for values in zip(*alone, strict=True)))
        assert found.returns[task].item() == pytest.approx(single.returns.item(), rel=1e-5)
        assert found.finished[task].item() == pytest.approx(single.finished.item())
        for part, again in zip(parts, advantages(single, 0.99, 0.95)[0], strict=True):
            torch.testing.assert_close(part, again[: len(part)], rtol=1e-4, atol=1e-4)


def pad(value: torch.Tensor) -> torch.Tensor:
    """To 40 steps."""
    return torch.cat([value, value.new_zeros(40 - len(value), *value.shape[1:])])
