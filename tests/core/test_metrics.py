"""The statistics over episodes against numpy, however the episodes came in."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mamllit.core.metrics import EpisodeMetric, Summary


def summary_of(values: Tensor, **options: float) -> Summary:
    metric = EpisodeMetric(**options)
    metric.update(torch.arange(len(values)), values)
    return metric.summary()


@pytest.mark.parametrize("episodes", [2, 9, 10])
def test_mean_interval_and_median_equal_numpy(episodes: int) -> None:
    """ci95 uses the sample standard deviation (ddof 1); the median averages the middle two of an even number."""
    values = torch.rand(episodes, 3, dtype=torch.float64)
    summary, array = summary_of(values), values.numpy()
    np.testing.assert_allclose(summary.mean, array.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary.ci95, 1.96 * array.std(0, ddof=1) / np.sqrt(episodes), rtol=1e-12)
    np.testing.assert_allclose(summary.median, np.median(array, 0), rtol=1e-12)
    assert summary.diverged.tolist() == [0, 0, 0]
    assert summary.episodes == episodes


def test_interval_by_hand() -> None:
    """Values 0, 0, 1, 1: s = sqrt(1/3), so the half-width is 1.96 * sqrt(1/12) = 0.565803."""
    summary = summary_of(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert summary.ci95.item() == pytest.approx(0.565803, abs=1e-6)
    assert summary.mean.item() == summary.median.item() == 0.5


def test_statistics_are_taken_in_float64() -> None:
    """In float32 the mean of 16,777,216, 1 and 1 loses the ones."""
    summary = summary_of(torch.tensor([[16777216.0], [1.0], [1.0]]))
    assert summary.mean.dtype == torch.float64
    assert summary.mean.item() * 3 == 16777218


def test_order_batches_and_duplicates_do_not_matter() -> None:
    values = torch.randn(10, 4)
    expected = summary_of(values)
    metric = EpisodeMetric()
    for batch in ([7, 2, 9], [0], [2, 7, 1, 3], [8, 6, 5, 4, 0, 9]):  # 0, 2, 7 and 9 come twice
        metric.update(torch.tensor(batch), values[batch])
    summary = metric.summary()
    assert summary.episodes == 10
    for got, want in zip(summary[:4], expected[:4], strict=True):
        assert torch.equal(got, want)


def test_per_episode_rows_come_in_order_of_their_numbers() -> None:
    metric = EpisodeMetric()
    metric.update(torch.tensor([5, 3]), torch.tensor([[0.5], [0.3]]))
    metric.update(torch.tensor([4, 5]), torch.tensor([[0.4], [0.5]]))
    index, values = metric.per_episode()
    assert index.tolist() == [3, 4, 5]
    torch.testing.assert_close(values, torch.tensor([[0.3], [0.4], [0.5]]).double())


def test_a_diverged_episode_stays_in_the_mean_and_is_counted() -> None:
    values = torch.tensor([[1.0, 1.0], [2.0, torch.inf], [3.0, 3.0], [4.0, torch.nan]])
    summary = summary_of(values[:3])
    assert summary.mean.tolist() == [2, torch.inf]
    assert summary.median.tolist() == [2, 3]
    assert summary.diverged.tolist() == [0, pytest.approx(1 / 3)]
    assert torch.isnan(summary.ci95[1])
    assert not torch.isnan(summary.ci95[0])
    with_nan = summary_of(values)
    assert torch.isnan(with_nan.mean[1])
    assert with_nan.median[1] == torch.inf  # 1, 3, inf, nan: the mean of 3 and inf
    assert with_nan.diverged.tolist() == [0, 0.5]


def test_a_value_above_the_bound_is_diverged() -> None:
    values = torch.tensor([[9.0], [10.0], [11.0], [torch.inf]])
    assert summary_of(values, diverged_above=10.0).diverged.item() == 0.5
    assert summary_of(values).diverged.item() == 0.25


def test_reset_forgets() -> None:
    metric = EpisodeMetric()
    metric.update(torch.arange(3), torch.ones(3, 1))
    metric.reset()
    metric.update(torch.arange(2), torch.zeros(2, 1))
    summary = metric.summary()
    assert summary.episodes == 2
    assert summary.mean.item() == 0


def test_one_number_of_steps_is_still_a_dimension() -> None:
    """A network that is not adapted (an oracle) is tested after no steps alone."""
    summary = summary_of(torch.tensor([[1.0], [2.0]]))
    assert all(value.shape == (1,) for value in (summary.mean, summary.ci95, summary.median, summary.diverged))
    assert summary.mean.tolist() == [1.5]
