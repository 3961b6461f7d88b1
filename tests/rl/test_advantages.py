"""Baseline and advantages against NumPy, trajectory by trajectory."""

import numpy as np
import pytest
import torch

from mamllit.rl import Trajectories, advantages, baseline
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
    raw = (discounted(trajectories.rewards, 0.9) - baseline(trajectories, 0.9)) * trajectories.valid
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
    assert features(torch.full((1, 2, 1), 50.0))[0, 1].tolist() == pytest.approx([10, 100, 1e-2, 1e-4, 1e-6, 1])
    same = Trajectories(torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    assert advantages(same, 0.9, 1.0).abs().max() == 0
